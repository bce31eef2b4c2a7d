"""Fingerprints: which base model is loaded, from 16 of its values in each layer.

A file's name and hash do not travel from host to host; the weights do, up to the rounding of the dtype that holds them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUM_VALUES = 16

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_FINFO = {str(dtype).removeprefix("torch."): torch.finfo(dtype) for dtype in _FLOATS}
_NUM_SHOWN = 3


@dataclass(frozen=True)
class Rows:
    """The rows of a larger weight from `start` on, of `total` rows in all; the others come as further pieces."""

    weight: Tensor
    start: int
    total: int


def fingerprint(layers: Iterable[tuple[str, Tensor | Rows]]) -> dict[str, Any]:
    """`{name: {"dtype": "float16", "values": [16 floats]}}`, JSON values, from (name, weight) pairs.

    The values lie evenly over the weight in its logical order, whatever its memory format; a weight of fewer than 16
    gives all of them. A weight that a model holds in pieces comes as pairs of one name, in the order of its rows, and
    has the same values as if it were whole. Nothing of a weight's size is allocated, and none is kept.
    """
    dtypes: dict[str, str] = {}
    picked: dict[str, list[Tensor]] = {}
    for name, weight in layers:
        rows = weight if isinstance(weight, Rows) else Rows(weight, 0, weight.shape[0] if weight.dim() else 1)
        dtypes.setdefault(name, str(rows.weight.dtype).removeprefix("torch."))
        picked.setdefault(name, []).append(_picked(rows.weight.detach(), rows.start, rows.total))
    # sync: after every layer has been asked for
    return {
        name: {"dtype": dtypes[name], "values": [x for v in own for x in v.tolist()]} for name, own in picked.items()
    }


def compare_fingerprints(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What speaks against the same base model, one line a kind; empty when it is the same.

    Values count as equal when they differ by no more than two roundings to the coarser of the two dtypes.
    """
    lines = []
    for title, names in (("missing", old.keys() - new.keys()), ("new", new.keys() - old.keys())):
        if names:
            lines.append(f"base model: layers {title} ({len(names)}): {_some(sorted(names))}")
    common = sorted(old.keys() & new.keys())
    unlike = [name for name in common if not _alike(old[name], new[name])]
    if unlike:
        lines.append(f"base model: weights differ in {len(unlike)} of {len(common)} layers: {_some(unlike)}")
    return lines


def _picked(weight: Tensor, start: int, total: int) -> Tensor:
    num_columns = math.prod(weight.shape[1:])
    count = total * num_columns
    num_values = min(count, NUM_VALUES)
    flat = np.arange(num_values) * count // max(num_values, 1) - start * num_columns
    flat = flat[(flat >= 0) & (flat < weight.numel())]
    if weight.element_size() == 1:
        # older versions of torch cannot index float8, but can index the bytes that it is stored in
        return weight.view(torch.uint8)[_places(flat, weight)].view(weight.dtype).float()
    return weight[_places(flat, weight)].float()


def _places(flat: np.ndarray, weight: Tensor) -> Any:
    if weight.dim() == 0:
        return None
    return tuple(torch.from_numpy(i).to(weight.device) for i in np.unravel_index(flat, tuple(weight.shape)))


def _alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if len(old["values"]) != len(new["values"]):
        return False
    infos = [_FINFO[d] for d in (old["dtype"], new["dtype"]) if d in _FINFO]
    eps = max((i.eps for i in infos), default=0.0)
    smallest = max((i.smallest_normal * i.eps for i in infos), default=0.0)
    return all(
        a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= eps * max(abs(a), abs(b)) + smallest
        for a, b in zip(old["values"], new["values"], strict=True)
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NUM_SHOWN]) + (f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else "")
