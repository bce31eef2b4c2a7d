"""Contender: ours. The base in the dtype under test, frozen through `lib/frozen.py`, LoRA in float32, channels last."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from contender import ALPHA, CLIP_NORM, RANK, RATE, Batch, Setup, Step, adapter_weights, load_base, serve
from diffusers import UNet2DConditionModel
from sd_atelier.lib.config import TrainableConfig
from sd_atelier.lib.frozen import attached, plain_weight
from sd_atelier.lib.noise import NoiseSchedule
from sd_atelier.lib.objective import loss_per_sample, noised
from sd_atelier.lib.trainables.lora import Lora


class Host:
    """As much of a host as a step needs: a U-Net in the dtype under test."""

    name, family, device = "bench", "sd1", torch.device("cpu")

    def __init__(self, setup: Setup) -> None:
        with torch.device("meta"):
            unet = UNet2DConditionModel(**setup.architecture)
        load_base(unet, setup)
        unet.eval().to(memory_format=torch.channels_last)
        self.parts, self.dtype = {"unet": unet}, setup.dtype
        self.attached = ExitStack()  # left when the process ends

    def denoiser(self, x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x_t = x_t.to(self.dtype, memory_format=torch.channels_last)
        return self.parts["unet"](x_t, t, text.to(self.dtype), return_dict=False)[0].float()


def build(setup: Setup) -> Step:
    host = Host(setup)
    lora = Lora(TrainableConfig(rank=RANK, alpha=ALPHA, layers="kohya"), seed=0)
    lora.prepare(host)
    lora.restore(_named(setup, lora))
    parameters = list(lora.parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    schedule = NoiseSchedule.scaled_linear()
    host.attached.enter_context(attached(host.parts.values(), plain_weight, lora.branch_of))

    def step(batch: Batch) -> float:
        x_t, noise = noised(batch.latents, batch.noise, batch.t, schedule)
        with lora.training(0, 0):
            prediction = host.denoiser(x_t, batch.t, batch.text)
            loss = loss_per_sample(prediction, noise, "mse").mean()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _named(setup: Setup, lora: Lora) -> dict[str, torch.Tensor]:
    """The seeded adapter under the names and in the shapes of our files."""
    shapes = {name: parameter.shape for name, parameter in lora.parameters().items()}
    tensors = {}
    for module, down, up in adapter_weights(setup):
        stem = "lora_unet_" + module.replace(".", "_")
        for half, value in (("down", down), ("up", up)):
            name = f"{stem}.lora_{half}.weight"
            tensors[name] = value.reshape(shapes[name])
    return tensors


if __name__ == "__main__":
    serve(build)
