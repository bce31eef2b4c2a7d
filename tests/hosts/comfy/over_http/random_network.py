"""Networks of random weights, for where only what they do to a picture matters."""

import torch
from safetensors import safe_open


def network(model, step, with_text, size=0.1):
    """A random LoRA on the attention layers of a checkpoint's U-Net, and of its text encoder where asked.

    `size` is the standard deviation of its upper half; the same step gives the same network.
    """
    generator = torch.Generator().manual_seed(step)
    tensors = {}
    with safe_open(model, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            unet, text = key.startswith("model.diffusion_model."), "text_model.encoder.layers.0.self_attn" in key
            if not key.endswith("weight") or not ((unet and ".attn" in key) or (text and with_text)):
                continue
            shape = file.get_slice(key).get_shape()
            if len(shape) != 2:
                continue
            inner = key.split("model.diffusion_model.")[-1] if unet else "text_model" + key.split("text_model")[1]
            name = ("lora_unet_" if unet else "lora_te_") + inner.removesuffix(".weight").replace(".", "_")
            tensors[name + ".lora_down.weight"] = torch.randn(4, shape[1], generator=generator) / shape[1] ** 0.5
            tensors[name + ".lora_up.weight"] = torch.randn(shape[0], 4, generator=generator) * size
            tensors[name + ".alpha"] = torch.tensor(4.0)
    return tensors
