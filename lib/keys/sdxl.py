"""Stable Diffusion XL (the base model): kohya's names, which every program reads.

U-Net: `lora_unet_` and the original block names; text encoders: `lora_te1_text_model_...` (CLIP) and
`lora_te2_text_model_...` (OpenCLIP, its attention split into q, k, v and out).
"""

from __future__ import annotations

from typing import ClassVar

from ..registry import SPELLINGS
from .family import Family
from .table import Table
from .text_encoder import CLIP_KINDS, OPEN_CLIP
from .unet import KINDS, unet_table


@SPELLINGS.register("sdxl")
class StableDiffusionXl(Family):
    """Two text encoders, attention at the two coarser of three levels."""

    title = "Stable Diffusion XL"
    prefixes: ClassVar[dict[str, str]] = {"unet": "lora_unet_", "te1": "lora_te1_", "te2": "lora_te2_"}
    tables: ClassVar[dict[str, Table]] = {"unet": unet_table(up_attention=(True, True, False)), "te2": OPEN_CLIP}
    kinds: ClassVar[dict[str, dict[str, str]]] = {"unet": KINDS, "te1": CLIP_KINDS, "te2": CLIP_KINDS}
