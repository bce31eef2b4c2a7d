"""Seeded random weights for the step benchmark: the U-Net of Stable Diffusion 1.5 and a LoRA on kohya's 192 layers.

Both files are float32 safetensors. The LoRA's ups are not zero, so that the first loss already depends on every one.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from workers.contender import RANK, SD15, TINY, text_of


def make(folder: Path, tiny: bool) -> tuple[Path, Path]:
    """Write base and adapter into `folder` unless they are there, and give their paths."""
    stem = "tiny" if tiny else "sd15"
    base, adapter = folder / f"{stem}-base.safetensors", folder / f"{stem}-adapter.safetensors"
    if not (base.exists() and adapter.exists()):
        from diffusers import UNet2DConditionModel

        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**(TINY if tiny else SD15))
        _scale_output(unet)
        _write(adapter, _adapter(unet))
        _write(base, unet.state_dict())
    return base, adapter


def adapted_layers(unet: nn.Module) -> dict[str, nn.Module]:
    """The layers that kohya's LoRA has by default: Linear and 1x1 convolution in the transformer blocks, by name."""
    return {
        name: layer
        for name, layer in unet.named_modules()
        if ".attentions." in name
        and (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)))
    }


@torch.no_grad()
def _scale_output(unet: nn.Module) -> None:
    """Random weights predict next to nothing: scale the last convolution so that the output deviates by 0.5."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 4, 32, 32, generator=generator)
    output = unet(noise, torch.tensor([500]), text_of(0)[None], return_dict=False)[0]
    unet.conv_out.weight.mul_(0.5 / output.std())


def _adapter(unet: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for name, layer in adapted_layers(unet).items():
        out_width, in_width = layer.weight.shape[:2]
        tensors[f"{name}.down"] = torch.randn(RANK, in_width, generator=generator) * in_width**-0.5
        tensors[f"{name}.up"] = torch.randn(out_width, RANK, generator=generator) * 0.05
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    os.replace(partial, path)
