"""Contender: diffusers' U-Net with PEFT's LoRA in a plain training loop, as diffusers' own LoRA example has it.

bf16 means base weights in bf16, adapter in float32, under autocast.
"""

from __future__ import annotations

import torch
from contender import ALPHA, CLIP_NORM, RANK, RATE, Batch, Setup, Step, adapter_weights, load_base, serve
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig


def build(setup: Setup) -> Step:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**setup.architecture)
    load_base(unet, setup)
    weights = {name: (down, up) for name, down, up in adapter_weights(setup)}
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(weights)))
    cast_training_params(unet, dtype=torch.float32)
    with torch.no_grad():
        for name, (down, up) in weights.items():
            layer = unet.get_submodule(name)
            for half, value in ((layer.lora_A, down), (layer.lora_B, up)):
                parameter = half["default"].weight
                parameter.copy_(value.reshape(parameter.shape))
    unet.train()
    parameters = [p for p in unet.parameters() if p.requires_grad]
    if len(parameters) != 2 * len(weights):
        raise ValueError(f"PEFT trains {len(parameters)} tensors where the adapter has {2 * len(weights)}")
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)

    def step(batch: Batch) -> float:
        noisy = scheduler.add_noise(batch.latents, batch.noise, batch.t)
        with torch.autocast("cpu", setup.dtype, enabled=setup.dtype != torch.float32):
            prediction = unet(noisy, batch.t, batch.text, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), batch.noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


if __name__ == "__main__":
    serve(build)
