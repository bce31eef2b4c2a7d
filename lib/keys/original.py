"""Models without names of their own here: every layer by the name that it has in the model's first code.

Files have `diffusion_model.<name>`, which ComfyUI reads for every model that it loads. Only the denoiser is trained.
What a layer is, is guessed from its name.
"""

from __future__ import annotations

from typing import ClassVar

from ..registry import SPELLINGS
from .family import Family
from .table import Original

_PREFIX = "diffusion_model."


@SPELLINGS.register("original")
class Unnamed(Family):
    """Any other model: one layer, one adapter, one name."""

    title = "this model"
    prefixes: ClassVar[dict[str, str]] = {"unet": _PREFIX}
    diffusers: ClassVar[dict[str, str]] = {"unet": "transformer"}
    tables = {}  # noqa: RUF012
    kinds: ClassVar[dict[str, dict[str, str]]] = {
        "unet": {
            "attention": r"\.\d+\..*(attn|attention|\bto_[qkv]\b|\b[qkv]_proj\b|\bqkv\b)",
            "mlp": r"\.\d+\..*(mlp|ffn?|feed_?forward|fc[12])\b",
            # modulations and what carries a block's inputs in or out
            "projection": r"\.\d+\..*(mod|proj|adaln|norm)",
            # numbered modules are those of the blocks; the rest embeds the inputs or makes the output
            "block": r"\.\w*(blocks|layers)\.\d+\.",
        }
    }

    def place_in_file(self, name: str) -> tuple[str, str] | None:
        return ("unet", name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None

    def original_name(self, part: str, module_name: str) -> Original:
        self._check(part)
        return Original(module_name)

    def split_names(self, part: str, original_name: str) -> tuple[str, ...]:
        self._check(part)
        return (original_name,)

    def _look_up(self, part: str, name: str) -> tuple[Original, tuple[str, ...]]:
        return Original(name), (name,)

    def _flat(self, part: str, name: str) -> str:
        return self.prefixes[part] + name
