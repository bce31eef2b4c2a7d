"""Layers of the U-Nets of Stable Diffusion 1.x, 2.x and XL: the original numbered blocks beside those of diffusers.

The numbers depend on how many residual blocks and levels there are and which of them have attention, so the table is
made from that; pruned and distilled models have fewer.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count

from .family import Family
from .table import Table

KINDS = {
    "attention": r"\.attn[12]\.to_(q|k|v|out\.0)$",
    "mlp": r"\.ff\.net\.\d+(\.proj)?$",
    "projection": r"\.attentions\.\d+\.proj_(in|out)$",
    "block": r"^\.(down_blocks|mid_block|up_blocks)\.",
}

_RESNET = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
# inside a transformer both spellings are the same
_TRANSFORMER = {
    name: name
    for name in (
        "proj_in",
        "proj_out",
        *(f"transformer_blocks.{{}}.attn{i}.to_{x}" for i in (1, 2) for x in ("q", "k", "v", "out.0")),
        "transformer_blocks.{}.ff.net.0.proj",
        "transformer_blocks.{}.ff.net.2",
    )
}
_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
}

Levels = tuple[tuple[bool, ...], ...]  # for each level, for each of its residual blocks: whether attention follows


@dataclass(frozen=True)
class Shape:
    """The blocks of a U-Net, on the way down from the finest level and on the way up from the coarsest."""

    down: Levels
    up: Levels

    @classmethod
    def usual(cls, attention: Sequence[bool]) -> Shape:
        """Two residual blocks a level on the way down and three on the way up; `attention` from the finest level."""
        return cls(tuple((a,) * 2 for a in attention), tuple((a,) * 3 for a in reversed(attention)))

    @classmethod
    def of(cls, names: Collection[str]) -> Shape | None:
        """The blocks of the U-Net that has layers of these names, in either spelling; None where they do not tell."""
        if any(name.startswith("input_blocks.") for name in names):
            return cls(_original_levels("input_blocks", names, 1), _original_levels("output_blocks", names, 0))
        if any(name.startswith("down_blocks.0.resnets.") for name in names):
            return cls(_split_levels("down_blocks", names), _split_levels("up_blocks", names))
        return None


def unet_table(shape: Shape) -> Table:
    """The layers of a U-Net of this shape in both spellings."""
    resnets = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    transformers = {"middle_block.1": "mid_block.attentions.0"}
    rows: dict[str, str | tuple[str, ...]] = dict(_OUTSIDE)
    block = count(1)
    for i, level in enumerate(shape.down):
        for j, attends in enumerate(level):
            original = f"input_blocks.{next(block)}"
            resnets[f"{original}.0"] = f"down_blocks.{i}.resnets.{j}"
            if attends:
                transformers[f"{original}.1"] = f"down_blocks.{i}.attentions.{j}"
        rows[f"input_blocks.{next(block)}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
    block = count(0)
    for i, level in enumerate(shape.up):
        for j, attends in enumerate(level):
            original = f"output_blocks.{next(block)}"
            resnets[f"{original}.0"] = f"up_blocks.{i}.resnets.{j}"
            if attends:
                transformers[f"{original}.1"] = f"up_blocks.{i}.attentions.{j}"
            if j == len(level) - 1:
                rows[f"{original}.{2 if attends else 1}.conv"] = f"up_blocks.{i}.upsamplers.0.conv"
    for blocks, layers in ((resnets, _RESNET), (transformers, _TRANSFORMER)):
        for original, split in blocks.items():
            rows.update({f"{original}.{ours}": f"{split}.{theirs}" for ours, theirs in layers.items()})
    return Table(rows)


def _original_levels(blocks: str, names: Collection[str], first: int) -> Levels:
    levels: list[list[bool]] = [[]]
    for number in count(first):
        own = [name.removeprefix(f"{blocks}.{number}.") for name in names if name.startswith(f"{blocks}.{number}.")]
        if not own:
            break
        if "0.op" in own:
            levels.append([])
            continue
        levels[-1].append("1.proj_in" in own)
        if any(re.fullmatch(r"[12]\.conv", name) for name in own):
            levels.append([])
    return tuple(tuple(level) for level in levels if level)


def _split_levels(blocks: str, names: Collection[str]) -> Levels:
    def numbers(pattern: str) -> set[str]:
        return {match[1] for match in (re.match(pattern, name) for name in names) if match}

    return tuple(
        tuple(
            j in numbers(rf"{blocks}\.{i}\.attentions\.(\d+)\.")
            for j in sorted(numbers(rf"{blocks}\.{i}\.resnets\.(\d+)\."), key=int)
        )
        for i in sorted(numbers(rf"{blocks}\.(\d+)\."), key=int)
    )


class UnetFamily(Family):
    """A family whose denoiser is a U-Net, where numbers in original names depend on the shape."""

    def fitted(self, part: str, module_names: Collection[str]) -> Family:
        """This family with the original names that a U-Net of these layers has."""
        shape = Shape.of(module_names) if part == "unet" else None
        if shape is None:
            return self
        other = copy.copy(self)
        other.tables = {**self.tables, "unet": unet_table(shape)}
        return other
