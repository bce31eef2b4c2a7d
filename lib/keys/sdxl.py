"""Stable Diffusion XL (the base model): kohya's names, which every program reads.

U-Net: `lora_unet_` and the original block names; text encoders: `lora_te1_text_model_...` (CLIP) and
`lora_te2_text_model_...` (OpenCLIP, its attention split into q, k, v and out).
"""

from __future__ import annotations

from typing import ClassVar

from ..registry import SPELLINGS
from .text_encoder import CLIP, CLIP_KINDS, OPEN_CLIP
from .unet import KINDS, Shape, UnetFamily, unet_table


@SPELLINGS.register("sdxl")
class StableDiffusionXl(UnetFamily):
    """Two text encoders, attention at the two coarser of three levels."""

    title = "Stable Diffusion XL"
    prefixes: ClassVar[dict[str, str]] = {"unet": "lora_unet_", "te1": "lora_te1_", "te2": "lora_te2_"}
    diffusers: ClassVar[dict[str, str]] = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
    tables = {  # noqa: RUF012 - replaced for other shapes
        "unet": unet_table(Shape.usual(attention=(False, True, True))),
        "te1": CLIP,
        "te2": OPEN_CLIP,
    }
    kinds: ClassVar[dict[str, dict[str, str]]] = {"unet": KINDS, "te1": CLIP_KINDS, "te2": CLIP_KINDS}
