"""Stable Diffusion 1.x and 2.x: kohya's names, which every program reads.

U-Net: `lora_unet_` and the diffusers module name; text encoder: `lora_te_text_model_...`; dots become underscores.
"""

from __future__ import annotations

import re
from typing import ClassVar

from ..registry import SPELLINGS
from .table import Original
from .text_encoder import CLIP, CLIP_KINDS, OPEN_CLIP
from .unet import KINDS, Shape, UnetFamily, unet_table

_UNET = unet_table(Shape.usual(attention=(True, True, True, False)))
_SPLIT = re.compile(r"(down_blocks|mid_block|up_blocks|time_embedding|add_embedding)[._].+|conv_(in|out)")


class StableDiffusion(UnetFamily):
    """Files name the layers as diffusers and transformers spell them."""

    title = "Stable Diffusion"
    prefixes: ClassVar[dict[str, str]] = {"unet": "lora_unet_", "te": "lora_te_"}
    diffusers: ClassVar[dict[str, str]] = {"unet": "unet", "te": "text_encoder"}
    tables = {"unet": _UNET, "te": CLIP}  # noqa: RUF012 - replaced for other shapes
    kinds: ClassVar[dict[str, dict[str, str]]] = {"unet": KINDS, "te": CLIP_KINDS}
    kohya_is_original = False

    def _look_up(self, part: str, name: str) -> tuple[Original, tuple[str, ...]] | None:
        # kohya's name is the module's own, so that a U-Net of any shape has it without a table
        if part == "unet" and _SPLIT.fullmatch(name):
            return Original(name), (name,)
        return super()._look_up(part, name)

    def _dotted(self, part: str, flat: str) -> str | None:
        return super()._dotted(part, flat) or (flat if part == "unet" and _SPLIT.fullmatch(flat) else None)


@SPELLINGS.register("sd1")
class StableDiffusion1(StableDiffusion):
    """Stable Diffusion 1.x: a text width of 768."""


@SPELLINGS.register("sd2")
class StableDiffusion2(StableDiffusion):
    """Stable Diffusion 2.x: a text width of 1024, Linear projections, often v-prediction, OpenCLIP's text encoder."""

    tables = {"unet": _UNET, "te": OPEN_CLIP}  # noqa: RUF012
