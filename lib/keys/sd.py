"""Stable Diffusion 1.x and 2.x: kohya's names, which every program reads.

U-Net: `lora_unet_` and the diffusers module name; text encoder: `lora_te_text_model_...`; dots become underscores.
"""

from __future__ import annotations

from typing import ClassVar

from ..registry import SPELLINGS
from .family import Family
from .table import Table
from .text_encoder import CLIP_KINDS, OPEN_CLIP
from .unet import KINDS, unet_table

_UNET = unet_table(up_attention=(False, True, True, True))


class StableDiffusion(Family):
    """Names for a U-Net spelled as diffusers spells it and a CLIP text encoder spelled as transformers spells it."""

    title = "Stable Diffusion"
    prefixes: ClassVar[dict[str, str]] = {"unet": "lora_unet_", "te": "lora_te_"}
    tables: ClassVar[dict[str, Table]] = {"unet": _UNET}
    kinds: ClassVar[dict[str, dict[str, str]]] = {"unet": KINDS, "te": CLIP_KINDS}
    kohya_is_original = False


@SPELLINGS.register("sd1")
class StableDiffusion1(StableDiffusion):
    """Stable Diffusion 1.x: a text width of 768."""


@SPELLINGS.register("sd2")
class StableDiffusion2(StableDiffusion):
    """Stable Diffusion 2.x: a text width of 1024, Linear projections, often v-prediction, OpenCLIP's text encoder."""

    tables: ClassVar[dict[str, Table]] = {"unet": _UNET, "te": OPEN_CLIP}
