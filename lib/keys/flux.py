"""Flux: kohya's names, on the original fused layers.

Transformer: `lora_unet_double_blocks_0_img_attn_qkv`, `lora_unet_single_blocks_0_linear1`; text encoders: `lora_te1_`
(CLIP) and `lora_te3_` (T5, counted as if OpenCLIP stood between them, as ComfyUI reads it).
"""

from __future__ import annotations

from typing import ClassVar

from ..registry import SPELLINGS
from .family import Family
from .table import Table
from .text_encoder import CLIP, CLIP_KINDS, T5, T5_KINDS

_DOUBLE = "transformer_blocks.{}."
_SINGLE = "single_transformer_blocks.{}."

_TRANSFORMER = Table(
    {
        "double_blocks.{}.img_mod.lin": _DOUBLE + "norm1.linear",
        "double_blocks.{}.img_attn.qkv": tuple(f"{_DOUBLE}attn.to_{x}" for x in "qkv"),
        "double_blocks.{}.img_attn.proj": _DOUBLE + "attn.to_out.0",
        "double_blocks.{}.img_mlp.0": _DOUBLE + "ff.net.0.proj",
        "double_blocks.{}.img_mlp.2": _DOUBLE + "ff.net.2",
        "double_blocks.{}.txt_mod.lin": _DOUBLE + "norm1_context.linear",
        "double_blocks.{}.txt_attn.qkv": tuple(f"{_DOUBLE}attn.add_{x}_proj" for x in "qkv"),
        "double_blocks.{}.txt_attn.proj": _DOUBLE + "attn.to_add_out",
        "double_blocks.{}.txt_mlp.0": _DOUBLE + "ff_context.net.0.proj",
        "double_blocks.{}.txt_mlp.2": _DOUBLE + "ff_context.net.2",
        "single_blocks.{}.modulation.lin": _SINGLE + "norm.linear",
        "single_blocks.{}.linear1": (*(f"{_SINGLE}attn.to_{x}" for x in "qkv"), _SINGLE + "proj_mlp"),
        "single_blocks.{}.linear2": _SINGLE + "proj_out",
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        **{
            f"{original}.{layer}_layer": f"time_text_embed.{embedder}_embedder.linear_{i}"
            for original, embedder in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance"))
            for i, layer in ((1, "in"), (2, "out"))
        },
        "final_layer.adaLN_modulation.1": "norm_out.linear",
        "final_layer.linear": "proj_out",
    }
)


@SPELLINGS.register("flux")
class Flux(Family):
    """In the single blocks attention and MLP share their two layers, so both count as attention."""

    title = "Flux"
    prefixes: ClassVar[dict[str, str]] = {"unet": "lora_unet_", "te1": "lora_te1_", "te3": "lora_te3_"}
    diffusers: ClassVar[dict[str, str]] = {"unet": "transformer", "te1": "text_encoder", "te3": "text_encoder_2"}
    tables = {"unet": _TRANSFORMER, "te1": CLIP, "te3": T5}  # noqa: RUF012
    kinds: ClassVar[dict[str, dict[str, str]]] = {
        "unet": {
            "attention": r"transformer_blocks\.\d+\.attn\.|single_transformer_blocks\.\d+\.proj_(mlp|out)$",
            "mlp": r"\.transformer_blocks\.\d+\.ff(_context)?\.",
            # the modulations: kohya trains them by default
            "projection": r"transformer_blocks\.\d+\.norm",
        },
        "te1": CLIP_KINDS,
        "te3": T5_KINDS,
    }

    def widths(self, part: str, split: tuple[str, ...], num_inputs: int) -> tuple[int, ...] | None:
        """As in the base class; the MLP of a single block is four times as wide as its input."""
        widths = super().widths(part, split, num_inputs)
        return widths and tuple(4 * w if name.endswith("mlp") else w for w, name in zip(widths, split, strict=True))

    def halves_swapped(self, part: str, module_name: str, num_outputs: int, num_inputs: int) -> bool:
        """The last modulation gives scale and shift; the original gives shift and scale."""
        return part == "unet" and module_name == "norm_out.linear"
