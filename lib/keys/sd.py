"""Stable Diffusion 1.x and 2.x: kohya's names, which every program reads.

U-Net: `lora_unet_` and the diffusers module name; text encoder: `lora_te_text_model_...`; dots become underscores.
"""

from __future__ import annotations

import re
from typing import ClassVar

from ..registry import SPELLINGS

_ATTENTION = re.compile(r"\.attn[12]\.to_(q|k|v|out\.0)$")
_MLP = re.compile(r"\.ff\.net\.\d+(\.proj)?$")
_PROJECTION = re.compile(r"\.attentions\.\d+\.proj_(in|out)$")
_BLOCK = re.compile(r"^(down_blocks|mid_block|up_blocks)\.")
_TEXT_ATTENTION = re.compile(r"\.self_attn\.(q|k|v|out)_proj$")
_TEXT_MLP = re.compile(r"\.mlp\.fc[12]$")


class StableDiffusion:
    """Names for a U-Net spelled as diffusers spells it and a CLIP text encoder spelled as transformers spells it."""

    prefixes: ClassVar[dict[str, str]] = {"unet": "lora_unet_", "te": "lora_te_"}

    def file_name(self, part: str, module_name: str) -> str:
        """The name of a layer in files. Errors: `ValueError` for a part that this family does not have."""
        if part not in self.prefixes:
            raise ValueError(f'unknown part "{part}" of Stable Diffusion; choices: {", ".join(self.prefixes)}')
        if part == "te" and not module_name.startswith("text_model."):
            # transformers 5 dropped the level that every file still carries
            module_name = "text_model." + module_name
        return self.prefixes[part] + module_name.replace(".", "_")

    def kind(self, part: str, module_name: str) -> str | None:
        """What a layer is: attention, mlp, projection or block (the rest of the blocks); None outside the blocks."""
        if part == "te":
            name = "." + module_name
            return "attention" if _TEXT_ATTENTION.search(name) else "mlp" if _TEXT_MLP.search(name) else None
        for kind, pattern in (("attention", _ATTENTION), ("mlp", _MLP), ("projection", _PROJECTION), ("block", _BLOCK)):
            if pattern.search(module_name):
                return kind
        return None


@SPELLINGS.register("sd1")
class StableDiffusion1(StableDiffusion):
    """Stable Diffusion 1.x: a text width of 768."""


@SPELLINGS.register("sd2")
class StableDiffusion2(StableDiffusion):
    """Stable Diffusion 2.x: a text width of 1024, Linear projections, often v-prediction."""
