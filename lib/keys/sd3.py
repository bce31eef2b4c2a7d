"""Stable Diffusion 3 and 3.5: the names of diffusers, which ComfyUI reads too, and kohya's as an export.

Files: `transformer.<diffusers>`, `text_encoder.` (CLIP), `text_encoder_2.` (OpenCLIP), and kohya's `lora_te3_` (T5),
for which diffusers has no name. Kohya's are on the original fused layers: `lora_unet_joint_blocks_0_x_block_attn_qkv`.
"""

from __future__ import annotations

from typing import ClassVar

from ..registry import SPELLINGS
from .family import Family
from .table import Table
from .text_encoder import CLIP, CLIP_KINDS, OPEN_CLIP, T5, T5_KINDS

_SPLIT = "transformer_blocks.{}."
_PICTURE = "joint_blocks.{}.x_block."
_TEXT = "joint_blocks.{}.context_block."

_TRANSFORMER = Table(
    {
        _PICTURE + "adaLN_modulation.1": _SPLIT + "norm1.linear",
        _PICTURE + "attn.qkv": tuple(f"{_SPLIT}attn.to_{x}" for x in "qkv"),
        _PICTURE + "attn.proj": _SPLIT + "attn.to_out.0",
        # the second attention of SD 3.5 medium
        _PICTURE + "attn2.qkv": tuple(f"{_SPLIT}attn2.to_{x}" for x in "qkv"),
        _PICTURE + "attn2.proj": _SPLIT + "attn2.to_out.0",
        _PICTURE + "mlp.fc1": _SPLIT + "ff.net.0.proj",
        _PICTURE + "mlp.fc2": _SPLIT + "ff.net.2",
        _TEXT + "adaLN_modulation.1": _SPLIT + "norm1_context.linear",
        _TEXT + "attn.qkv": tuple(f"{_SPLIT}attn.add_{x}_proj" for x in "qkv"),
        _TEXT + "attn.proj": _SPLIT + "attn.to_add_out",
        _TEXT + "mlp.fc1": _SPLIT + "ff_context.net.0.proj",
        _TEXT + "mlp.fc2": _SPLIT + "ff_context.net.2",
        "x_embedder.proj": "pos_embed.proj",
        "context_embedder": "context_embedder",
        **{
            f"{original}.mlp.{i}": f"time_text_embed.{embedder}_embedder.linear_{j}"
            for original, embedder in (("t_embedder", "timestep"), ("y_embedder", "text"))
            for i, j in ((0, 1), (2, 2))
        },
        "final_layer.adaLN_modulation.1": "norm_out.linear",
        "final_layer.linear": "proj_out",
    }
)


@SPELLINGS.register("sd3")
class StableDiffusion3(Family):
    """Blocks of picture and text with shared attention; three text encoders."""

    title = "Stable Diffusion 3"
    prefixes: ClassVar[dict[str, str]] = {
        "unet": "lora_unet_",
        "te1": "lora_te1_",
        "te2": "lora_te2_",
        "te3": "lora_te3_",
    }
    diffusers: ClassVar[dict[str, str]] = {
        "unet": "transformer",
        "te1": "text_encoder",
        "te2": "text_encoder_2",
        "te3": "text_encoder_3",
    }
    published = frozenset({"unet", "te1", "te2"})
    tables = {"unet": _TRANSFORMER, "te1": CLIP, "te2": OPEN_CLIP, "te3": T5}  # noqa: RUF012
    kinds: ClassVar[dict[str, dict[str, str]]] = {
        "unet": {
            "attention": r"^\.transformer_blocks\.\d+\.attn2?\.",
            "mlp": r"^\.transformer_blocks\.\d+\.ff(_context)?\.",
            # the modulations: kohya trains them by default
            "projection": r"^\.transformer_blocks\.\d+\.norm",
        },
        "te1": CLIP_KINDS,
        "te2": CLIP_KINDS,
        "te3": T5_KINDS,
    }

    def halves_swapped(self, part: str, module_name: str, num_outputs: int, num_inputs: int) -> bool:
        """A last modulation, of all or of the text, gives scale and shift; the original gives shift and scale."""
        # all other modulations give at least six vectors
        last = module_name.endswith(".norm1_context.linear") and num_outputs == 2 * num_inputs
        return part == "unet" and (last or module_name == "norm_out.linear")
