"""The transformers of Stable Diffusion 3 and Flux from a file in the original spelling, with or without a prefix.

The file has fused layers where diffusers has several, and some modulations in the other order; `keys` knows which. The
shapes say all of the configuration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..keys.family import Family
from ..keys.table import output_slices
from ..registry import SPELLINGS
from .part_file import read_tensors
from .single_file import Shapes, shapes_of

_FIRST = {"sd3": "joint_blocks.0.x_block.attn.qkv.weight", "flux": "double_blocks.0.img_attn.qkv.weight"}
_PREFIXES = ("model.diffusion_model.", "")

# norms carry no adapter, so that `keys` has no names for them
_BLOCK = r"transformer_blocks.\1."
_QK = r"norm\.(q|k)\w+_norm\.(scale|weight)"
_NORMS = {
    "sd3": {
        r"joint_blocks\.(\d+)\.x_block\.(attn2?)\.ln_([qk])\.weight": _BLOCK + r"\2.norm_\3.weight",
        r"joint_blocks\.(\d+)\.context_block\.attn\.ln_([qk])\.weight": _BLOCK + r"attn.norm_added_\2.weight",
        r"pos_embed": "pos_embed.pos_embed",
    },
    "flux": {
        r"double_blocks\.(\d+)\.img_attn\." + _QK: _BLOCK + r"attn.norm_\2.weight",
        r"double_blocks\.(\d+)\.txt_attn\." + _QK: _BLOCK + r"attn.norm_added_\2.weight",
        r"single_blocks\.(\d+)\." + _QK: "single_" + _BLOCK + r"attn.norm_\2.weight",
    },
}


def family_in(shapes: Shapes) -> tuple[str, str] | None:
    """(family, prefix of the transformer's names) of a file; None where it holds none of these transformers."""
    pairs = ((family, prefix) for family in _FIRST for prefix in _PREFIXES)
    return next(((family, prefix) for family, prefix in pairs if prefix + _FIRST[family] in shapes), None)


def transformer(path: Path, family: str, prefix: str, dtype: torch.dtype) -> Any:
    """A SD3Transformer2DModel or FluxTransformer2DModel. Errors: `ValueError` naming what is missing or is unknown."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    shapes = {name.removeprefix(prefix): s for name, s in shapes_of(path).items() if name.startswith(prefix)}
    read = read_tensors(path, shapes, dtype)
    try:
        config = _sd3_config(shapes) if family == "sd3" else _flux_config(shapes)
    except KeyError as error:
        raise ValueError(f"{path} is incomplete: {prefix}{error.args[0]} is missing") from error
    cls: Any = SD3Transformer2DModel if family == "sd3" else FluxTransformer2DModel
    with torch.device("meta"):
        model = cls.from_config(config)
    names: Family = SPELLINGS.get(family)()  # type: ignore[operator]
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = dict(split_tensors(family, names, shapes, lambda name: read(prefix + name), path))
    lacking = sorted(wanted.keys() - tensors.keys())
    if lacking:
        needed, lost = sum(map(math.prod, wanted.values())), sum(math.prod(wanted[name]) for name in lacking)
        raise ValueError(
            f"{path} is incomplete: its transformer lacks {lost:,} of {needed:,} values, the first {lacking[0]}"
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{path} is no {names.title}: {name} is {tuple(tensors[name].shape)} rather than {shape}")
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def split_tensors(
    family: str, names: Family, shapes: Shapes, read: Callable[[str], Tensor], path: Path
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a transformer under the names of diffusers. Errors: `ValueError` for a name that is unknown."""
    for name in shapes:
        renamed = next((re.sub(a, b, name) for a, b in _NORMS[family].items() if re.fullmatch(a, name)), None)
        if renamed is not None:
            yield renamed, read(name)
            continue
        layer, _, end = name.rpartition(".")
        if end not in ("weight", "bias"):
            raise ValueError(f"{path} is no {names.title}: it holds {name}")
        try:
            split = names.split_names("unet", layer)
        except ValueError as error:
            raise ValueError(f"{path} is no {names.title}: {error}") from error
        if f"{layer}.weight" not in shapes:
            raise ValueError(f"{path} is incomplete: {layer}.weight is missing")
        num_outputs, num_inputs = shapes[f"{layer}.weight"][0], math.prod(shapes[f"{layer}.weight"][1:])
        tensor = read(name)
        widths = names.widths("unet", split, num_inputs) or (num_outputs,)
        for own, rows in zip(split, output_slices(widths), strict=True):
            part = tensor[rows]
            if names.halves_swapped("unet", own, num_outputs, num_inputs):
                part = torch.cat(part.chunk(2)[::-1])
            # a view would keep all of a fused layer alive, and a copy of one part would not be where the others are
            yield f"{own}.{end}", part.contiguous().clone() if len(split) > 1 else part


def _num_blocks(shapes: Shapes, name: str) -> int:
    return 1 + max((int(m.group(1)) for m in map(re.compile(rf"{name}\.(\d+)\.").match, shapes) if m), default=-1)


def _sd3_config(shapes: Shapes) -> dict[str, Any]:
    width, num_channels, patch, _ = shapes["x_embedder.proj.weight"]
    norm = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight")
    head = norm[0] if norm else 64
    num_layers = _num_blocks(shapes, "joint_blocks")
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": num_channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": num_layers,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": tuple(
            i for i in range(num_layers) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes
        ),
        "qk_norm": "rms_norm" if norm else None,
    }


def _flux_config(shapes: Shapes) -> dict[str, Any]:
    width, num_inputs = shapes["img_in.weight"]
    norm = "double_blocks.0.img_attn.norm.query_norm"
    (head,) = shapes.get(f"{norm}.scale") or shapes[f"{norm}.weight"]
    return {
        "patch_size": 1,
        "in_channels": num_inputs,
        "out_channels": shapes["final_layer.linear.weight"][0],
        "num_layers": _num_blocks(shapes, "double_blocks"),
        "num_single_layers": _num_blocks(shapes, "single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        # 16, 56 and 56 for heads of 128
        "axes_dims_rope": (head // 8, head * 7 // 16, head * 7 // 16),
    }
