"""Making the cells of a strip that are missing: each model loaded once, each finished cell kept at once.

A checkpoint that cannot be used, or a prompt that cannot be sampled, costs its own cells, which say why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from ..host import SampleRequest
from ..memory import is_out_of_memory
from .cells import Cell, CellStore, cell_key

Paint = Callable[[SampleRequest, float], Image.Image]


@dataclass(frozen=True)
class Column:
    """A checkpoint. `source` is what the painter loads: a file, or None for the model without a network.

    `fingerprint` tells the model with its patches exactly, such as the SHA-256 of base and network; `error` says why
    it cannot be used, where that is known before it is loaded.
    """

    label: str
    source: Any
    fingerprint: str = ""
    error: str = ""


@dataclass(frozen=True)
class Row:
    """What is sampled in each column: a request, and the strength of the network."""

    request: SampleRequest
    strength: float = 1.0

    @property
    def label(self) -> str:
        """The prompt, and below it seed and strength."""
        strength = "" if self.strength == 1 else f", strength {self.strength:g}"
        return f"{self.request.prompt}\nseed {self.request.seed}{strength}"


def rows_of(requests: Sequence[SampleRequest], seeds: Sequence[int] = (), strengths: Sequence[float] = ()) -> list[Row]:
    """Rows for each request, with each of the seeds (its own if none are given) and each of the strengths."""
    seeded = [dataclasses.replace(r, seed=seed) for r in requests for seed in (seeds or [r.seed])]
    return [Row(request, strength) for request in seeded for strength in (strengths or [1.0])]


class Painter(Protocol):
    """How a host makes the pictures of a strip."""

    @property
    def settings(self) -> dict[str, Any]:
        """Whatever a picture depends on that is neither in the request nor in the model: sampler, CLIP skip, dtype."""
        ...

    def named_in(self, request: SampleRequest) -> dict[str, Any]:
        """What the prompts name and do not hold, such as embeddings: name -> hash of its content; mostly nothing."""
        ...

    def ready(self, column: Column) -> AbstractContextManager[Paint]:
        """The model with a column's network, loaded once; gives `paint(request, strength)`.

        Errors: `ValueError` and `OSError` in a sentence where the checkpoint cannot be used.
        """
        ...


@dataclass(frozen=True)
class Rendered:
    """The cells of a strip, row after row within each column; `num_made` were not there before."""

    cells: list[Cell]
    num_made: int
    stopped: bool


def render(
    columns: Sequence[Column],
    rows: Sequence[Row],
    painter: Painter,
    store: CellStore,
    *,
    on_cell: Callable[[Cell, int, int], None] = lambda cell, done, total: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Rendered:
    """Make what is missing, checkpoint by checkpoint. `on_cell(cell, done, total)` is told of each cell, in order.

    A stop between two cells keeps what is finished. Errors: those of the painter that are not the checkpoint's fault.
    """
    total = len(columns) * len(rows)
    settings = [{**painter.settings, **painter.named_in(row.request)} for row in rows]
    cells: list[Cell] = []
    num_made = 0

    def finish(cell: Cell) -> None:
        cells.append(cell)
        on_cell(cell, len(cells), total)

    for index, column in enumerate(columns):
        keys = [_key(column, row, own) for row, own in zip(rows, settings, strict=True)]
        found = [None if column.error else store.find(key) for key in keys]
        if column.error or all(found):
            for place, (key, path) in enumerate(zip(keys, found, strict=True)):
                finish(_cell(index, place, key, path, column.error))
            continue
        if stop_requested():
            return Rendered(cells, num_made, True)
        with ExitStack() as stack:
            try:
                paint = stack.enter_context(painter.ready(column))
            except (ValueError, OSError) as error:
                for place, (key, path) in enumerate(zip(keys, found, strict=True)):
                    finish(_cell(index, place, key, path, "" if path else str(error)))
                continue
            for place, (row, key) in enumerate(zip(rows, keys, strict=True)):
                path, error_text = found[place], ""
                if path is None:
                    if stop_requested():
                        return Rendered(cells, num_made, True)
                    path, error_text = _painted(paint, column, row, key, store, settings[place])
                    num_made += not error_text
                finish(_cell(index, place, key, path, error_text))
    return Rendered(cells, num_made, False)


def _painted(
    paint: Paint, column: Column, row: Row, key: str, store: CellStore, settings: dict[str, Any]
) -> tuple[Any, str]:
    """The path of a new cell, or why there is none."""
    try:
        image = paint(row.request, row.strength)
    except ValueError as error:
        return None, str(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, "out of memory; make the pictures smaller"
    request = dataclasses.asdict(row.request)
    about = {"column": column.label, "request": request, "strength": row.strength, "settings": settings}
    infotext = image.info.get("parameters")
    text = {"parameters": infotext} if isinstance(infotext, str) else {}
    return store.put(key, image, about, text), ""


def _key(column: Column, row: Row, settings: dict[str, Any]) -> str:
    # without a network all strengths are the same picture
    strength = row.strength if column.source is not None else 1.0
    return cell_key(column.fingerprint, row.request, strength=strength, **settings)


def _cell(column: int, row: int, key: str, path: Any, error: str) -> Cell:
    return Cell(column, row, path, key, "" if path is None else f"{path.parent.name}/{path.name}", error)
