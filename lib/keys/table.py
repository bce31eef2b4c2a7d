"""Two spellings of a model's layers side by side: the original code's and that of diffusers or transformers.

Where the original computes several layers as one matrix product (qkv), one original layer stands for several split
ones, concatenated along the outputs in the order given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class Original:
    """A layer in the original spelling: the `index`-th of `count` layers whose outputs `name` concatenates."""

    name: str
    index: int = 0
    count: int = 1


def output_slices(widths: Iterable[int]) -> tuple[slice, ...]:
    """The outputs of each split layer within their original layer.

    `widths`: outputs of each split layer, in the order of `split`.
    """
    return tuple(slice(start, stop) for start, stop in pairwise(accumulate(widths, initial=0)))


class Table:
    """Rows: original name -> split name, or all the split names that it concatenates.

    `{}` stands for one number, the same in both spellings. `aliases` are further original names of single split layers,
    for code that takes a fused layer apart. Errors: `ValueError` for a split name given twice.
    """

    def __init__(self, rows: Mapping[str, str | tuple[str, ...]], aliases: Mapping[str, str] | None = None) -> None:
        self._split = {name: (split,) if isinstance(split, str) else split for name, split in rows.items()}
        self._original: dict[str, Original] = {}
        for name, split in self._split.items():
            for index, layer in enumerate(split):
                if layer in self._original:
                    raise ValueError(f'"{layer}" is in "{self._original[layer].name}" and in "{name}"')
                self._original[layer] = Original(name, index, len(split))
        self._split |= {alias: (layer,) for alias, layer in (aliases or {}).items()}
        # files write underscores for dots; where both spellings have a name it is the same layer
        self._flat = {name.replace(".", "_"): name for name in (*self._split, *self._original)}

    def original(self, name: str) -> Original | None:
        """The original layer of a split one; None where the table has no such layer."""
        for template, number in _templates(name, "."):
            if template in self._original:
                found = self._original[template]
                return replace(found, name=found.name.replace("{}", number))
        return None

    def split(self, name: str) -> tuple[str, ...] | None:
        """The split layers of an original one, in order; None where the table has no such layer."""
        for template, number in _templates(name, "."):
            if template in self._split:
                return tuple(layer.replace("{}", number) for layer in self._split[template])
        return None

    def dotted(self, name: str) -> str | None:
        """The name, in either spelling, that has become `name` by writing underscores for dots; None where none has."""
        for template, number in _templates(name, "_"):
            if template in self._flat:
                return self._flat[template].replace("{}", number)
        return None


def _templates(name: str, separator: str) -> Iterable[tuple[str, str]]:
    """`name` itself, and with each of its numbers in turn as `{}`, each with that number."""
    yield name, ""
    pieces = name.split(separator)
    for i, piece in enumerate(pieces):
        if piece.isdigit():
            yield separator.join((*pieces[:i], "{}", *pieces[i + 1 :])), piece
