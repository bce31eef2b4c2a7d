"""Adapters of canonical layers <-> the tensors of a network file, in every spelling that programs write.

A file has `lora_down`, `lora_up` and `alpha` under kohya's names, where readers take alpha / rank as the scale, or
`lora_A` and `lora_B` under those of diffusers, without an alpha: there the scale is multiplied into `lora_B`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network_keys import DOWN, UP
from ..registry import SPELLINGS
from .family import Family
from .table import output_slices

_KEY = re.compile(rf"(?P<name>.+?)\.(?:(?P<down>{DOWN})|(?P<up>{UP})|(?P<alpha>alpha)|(?P<more>dora_scale|lora_m.+))")


@dataclass(frozen=True)
class Adapter:
    """An update scale * up @ down of a weight: down (rank, in[, kh, kw]), up (out, rank[, 1, 1])."""

    down: Tensor
    up: Tensor
    scale: float


def published(family: str, adapters: Mapping[str, Adapter], dtype: torch.dtype, names: str) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, from adapters by canonical name.

    `names`: "family" for what most programs read for this family (Stable Diffusion 3: the names of diffusers on split
    layers), or "kohya". Nothing is lost but by the dtype: the slices of up stand beside copies of down.
    """
    spelling: Family = SPELLINGS.get(family)()  # type: ignore[operator]
    tensors: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        place = spelling.place_in_file(name) if spelling.published and names == "family" else None
        if place is None or place[0] not in spelling.published:
            tensors[f"{name}.lora_down.weight"] = _stored(adapter.down, dtype)
            tensors[f"{name}.lora_up.weight"] = _stored(adapter.up, dtype)
            # readers divide by the rank, whatever the scale was made of
            tensors[f"{name}.alpha"] = torch.tensor(adapter.scale * adapter.down.shape[0], dtype=dtype)
            continue
        part, module_name = place
        split = spelling.siblings(part, module_name)
        num_out, num_in = adapter.up.shape[0], adapter.down.shape[1]
        slices = output_slices(spelling.widths(part, split, num_in) or (num_out,))
        if slices[-1].stop != num_out:
            raise ValueError(
                f"{name} has {num_out} outputs, which are not {len(split)} layers of {num_in}; use kohya's names"
            )
        for layer, rows in zip(split, slices, strict=True):
            up = adapter.up.detach()[rows]
            if spelling.halves_swapped(part, layer, len(up), num_in):
                up = torch.cat(up.chunk(2)[::-1])
            own = spelling.file_name(part, layer)
            tensors[f"{own}.lora_A.weight"] = _stored(adapter.down, dtype)
            tensors[f"{own}.lora_B.weight"] = _stored(up * adapter.scale, dtype)
    return tensors


def adapters_in(family: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Adapter], tuple[str, ...]]:
    """(the adapters of a file by canonical name, the keys that belong to none).

    Slices of a fused layer become one adapter: with down shared where all have the same, else with the ranks put side
    by side, which is the same update. A slice that the file lacks is left as no change.
    Errors: `ValueError` for halves that do not fit together, and for a layer that is more than a plain LoRA.
    """
    spelling: Family = SPELLINGS.get(family)()  # type: ignore[operator]
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match:
            halves.setdefault(match["name"], {})[match.lastgroup or ""] = tensor
    groups: dict[str, dict[int, Adapter]] = {}
    shared: dict[str, tuple[str, tuple[str, ...]]] = {}  # canonical name -> (part, split layers)
    unknown = [key for key in tensors if not _KEY.fullmatch(key)]
    for name, own in halves.items():
        place = spelling.place_in_file(name)
        if place is None or not {"down", "up"} & own.keys():
            unknown += [key for key in tensors if key.startswith(name + ".") and _name_of(key) == name]
            continue
        adapter = _adapter(name, own)
        part, module_name = place
        held = spelling.place(part, module_name)
        if spelling.halves_swapped(part, module_name, len(adapter.up), adapter.down.shape[1]):
            adapter = Adapter(adapter.down, torch.cat(adapter.up.chunk(2)[::-1]), adapter.scale)
        group = groups.setdefault(held.name, {})
        if held.index in group or (held.count == 1 and group):
            raise ValueError(f"{name} is a second adapter on {held.name}")
        group[held.index] = adapter
        if held.count > 1:
            shared[held.name] = (part, spelling.siblings(part, module_name))
    fused = {
        name: _fused(spelling, name, *shared[name], group) if name in shared else group[0]
        for name, group in groups.items()
    }
    return fused, tuple(unknown)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # memory of its own: what is trained goes on, and files take no tensors that share memory
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()


def _name_of(key: str) -> str:
    match = _KEY.fullmatch(key)
    return match["name"] if match else ""


def _adapter(name: str, own: Mapping[str, Tensor]) -> Adapter:
    if "more" in own:
        raise ValueError(f"{name} is more than a plain LoRA (weight-decomposed, or with a core), which is not read")
    if not {"down", "up"} <= own.keys():
        raise ValueError(f"{name} has only one of its two halves, {' and '.join(own)}")
    down, up = own["down"], own["up"]
    if down.shape[0] != up.shape[1]:
        raise ValueError(f"the halves of {name} have different ranks: {down.shape[0]} and {up.shape[1]}")
    alpha = own["alpha"].item() if "alpha" in own else down.shape[0]
    return Adapter(down, up, alpha / down.shape[0])


def _fused(spelling: Family, name: str, part: str, split: tuple[str, ...], group: Mapping[int, Adapter]) -> Adapter:
    first = next(iter(group.values()))
    if any(own.down.shape[1:] != first.down.shape[1:] for own in group.values()):
        shown = ", ".join(f"{split[i]} {own.down.shape[1]}" for i, own in sorted(group.items()))
        raise ValueError(f"the parts of {name} must have the same inputs to be one adapter, got {shown}")
    if len(group) == len(split) and all(
        own.scale == first.scale and torch.equal(own.down, first.down) for own in group.values()
    ):
        return Adapter(first.down, torch.cat([group[i].up for i in range(len(split))]), first.scale)
    widths = spelling.widths(part, split, first.down.shape[1])
    assert widths is not None
    slices = output_slices(len(group[i].up) if i in group else width for i, width in enumerate(widths))
    present = sorted(group)
    down = torch.cat([group[i].down.float() for i in present])
    up = down.new_zeros(slices[-1].stop, len(down))
    for i, columns in zip(present, output_slices(len(group[i].down) for i in present), strict=True):
        up[slices[i], columns] = group[i].up.float() * group[i].scale
    return Adapter(down, up, 1.0)
