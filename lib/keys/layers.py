"""The layers of a loaded model that can carry one adapter each, whatever the spelling and however they are split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..frozen import is_linear
from ..registry import SPELLINGS
from .family import Family, Place
from .table import output_slices


@dataclass(frozen=True)
class Member:
    """A module that holds some or all outputs of a canonical layer."""

    module: nn.Module
    rows: slice  # of the canonical layer's outputs
    swapped: bool  # it holds the second half of them first

    def own(self, rows_of_layer: Tensor) -> Tensor:
        """Its part of a tensor that has a row for each output of the canonical layer, in its own order.

        Differentiable, and a view where the order allows.
        """
        rows = rows_of_layer[self.rows]
        return torch.cat(rows.chunk(2)[::-1]) if self.swapped else rows


@dataclass(frozen=True)
class CanonicalLayer:
    """A layer as the model's first code has it: the unit that gets an adapter and a fingerprint."""

    name: str  # kohya's, the same in every program
    part: str
    kind: str | None
    members: tuple[Member, ...]  # in the order of their outputs
    num_in: int
    num_out: int
    kernel: tuple[int, ...] | None  # None for Linear


def canonical_layers(family: str, parts: Mapping[str, nn.Module]) -> dict[str, CanonicalLayer]:
    """Every canonical layer of the parts of a host's model by its name, in the order of the modules.

    Errors: `ValueError` for a layer that the family does not have, and for a fused layer of which slices are missing,
    are there twice or have different inputs.
    """
    layers: dict[str, CanonicalLayer] = {}
    for part, root in parts.items():
        modules = {
            name: module for name, module in root.named_modules() if isinstance(module, nn.Conv2d) or is_linear(module)
        }
        names: Family = SPELLINGS.get(family)()  # type: ignore[operator]
        names = names.fitted(part, modules.keys())
        groups: dict[str, dict[int, tuple[str, Place]]] = {}
        for module_name in modules:
            place = names.place(part, module_name)
            before = groups.setdefault(place.name, {}).setdefault(place.index, (module_name, place))
            if before != (module_name, place):
                raise ValueError(f'{part}: "{before[0]}" and "{module_name}" are both {place.name}')
        for name, group in groups.items():
            layers[name] = _layer(names, part, name, group, modules)
    return layers


def _layer(
    names: Family, part: str, name: str, group: Mapping[int, tuple[str, Place]], modules: Mapping[str, nn.Module]
) -> CanonicalLayer:
    module_name, place = next(iter(group.values()))
    if sorted(group) != list(range(place.count)):
        missing = [s for i, s in enumerate(names.siblings(part, module_name)) if i not in group]
        raise ValueError(
            f"{part}: {name} has {place.count} parts in this model, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there; an adapter on it needs all of them"
        )
    own = [group[i][0] for i in range(place.count)]
    sizes = [_sizes(modules[n]) for n in own]
    num_in, _, kernel = sizes[0]
    if any((size[0], size[2]) != (num_in, kernel) for size in sizes):
        shown = ", ".join(f"{n} {size[0]}" for n, size in zip(own, sizes, strict=True))
        raise ValueError(f"{part}: the parts of {name} must have the same inputs to share an adapter, got {shown}")
    slices = output_slices(size[1] for size in sizes)
    members = tuple(
        Member(modules[n], rows, names.halves_swapped(part, n, rows.stop - rows.start, num_in))
        for n, rows in zip(own, slices, strict=True)
    )
    return CanonicalLayer(name, part, place.kind, members, num_in, slices[-1].stop, kernel)


def _sizes(module: nn.Module) -> tuple[int, int, tuple[int, ...] | None]:
    """(inputs, outputs, kernel). Not those of the weight, which may be packed."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels, module.out_channels, tuple(module.kernel_size)
    return int(module.in_features), int(module.out_features), None  # type: ignore[arg-type]
