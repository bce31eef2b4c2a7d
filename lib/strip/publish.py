"""A strip's files, from its cells: PNG pages, JSON that says what is in them, and one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import write_bytes, write_json
from .cells import Cell
from .gallery import gallery
from .metrics import ColumnMetrics, column_metrics
from .names import natural_step
from .page import Figure, Sheet, shown_size, write_pages

LEGEND = (
    "To base and to previous: 1 - SSIM, 0 is the same picture. Noise, background and colour: ratio to the picture "
    "without a network; a mark is a sign of collapse, and a reason to look."
)


def compose(
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Iterable[Cell],
    path: Path,
    *,
    title: str = "",
    note: str = "",
    metadata: Mapping[str, str] | None = None,
    base: int | None = None,
    controlled: Mapping[int, float] | None = None,
) -> list[Path]:
    """Write a strip as PNG (and `<stem>-2.png` ... where it needs more pages), `<stem>.json` and `<stem>.html`.

    `columns` are labels such as toy-000800 (the step is never cut off); `rows` are prompts, lines after the first are
    drawn paler. Cells whose image is a path are read when they are drawn, so memory is that of one row. A cell that
    does not come is drawn empty. The first picture decides the size; others are fitted into it. With `base`, the
    column without a network, metrics stand under the columns; `controlled` gives a column's controlled loss against
    the base. `metadata` goes into the PNG as text. Returns the PNG files.
    Errors: `ValueError` without columns, rows or pictures, or for a cell outside the grid.
    """
    if not columns or not rows:
        raise ValueError(f"a strip needs at least one column and one row, got {len(columns)} and {len(rows)}")
    places: dict[tuple[int, int], Cell] = {}
    for cell in cells:
        if not (0 <= cell.column < len(columns) and 0 <= cell.row < len(rows)):
            raise ValueError(f"cell ({cell.column}, {cell.row}) lies outside {len(columns)} columns, {len(rows)} rows")
        places[cell.column, cell.row] = cell
    cell_size = next((size for cell in places.values() if (size := cell.size)), None)
    if cell_size is None:
        reasons = list(dict.fromkeys(cell.error for cell in places.values() if cell.error))
        raise ValueError("a strip needs at least one picture, got none" + "".join(f"; {r}" for r in reasons[:3]))

    def image_at(column: int, row: int) -> Image.Image | None:
        cell = places.get((column, row))
        return None if cell is None else cell.loaded()

    measured: list[ColumnMetrics] = []
    figures: list[list[Figure]] = []
    if base is not None:
        measured = column_metrics(len(columns), len(rows), image_at, base)
        figures = [m.figures((controlled or {}).get(i)) for i, m in enumerate(measured)]
    sheet = Sheet(columns, rows, title, note, figures, (LEGEND,) if base is not None else ())
    text = {"Software": "Atelier", "Title": title, **(metadata or {})}
    pages = write_pages(sheet, lambda column, row: places.get((column, row)), cell_size, path, text)
    for stale in _stale(path, len(pages)):
        stale.unlink()
    write_json(path.with_suffix(".json"), _about(sheet, places.values(), measured, cell_size, pages))
    html = gallery(sheet, places, cell_size)
    write_bytes(path.with_suffix(".html"), html.encode("utf-8", "backslashreplace"))
    return pages


def _stale(path: Path, num_pages: int) -> list[Path]:
    """Pages of the same strip when it was larger."""
    stale, number = [], num_pages + 1
    while (page := path.with_name(f"{path.stem}-{number}{path.suffix}")).is_file():
        stale.append(page)
        number += 1
    return stale


def _about(
    sheet: Sheet,
    cells: Iterable[Cell],
    measured: Sequence[ColumnMetrics],
    cell_size: tuple[int, int],
    pages: Sequence[Path],
) -> dict[str, Any]:
    columns: list[dict[str, Any]] = [{"label": label, "step": natural_step(label)} for label in sheet.columns]
    for column, metrics in zip(columns, measured, strict=False):
        column["metrics"] = {name: value for name, value in asdict(metrics).items() if value is not None}
        column["signs"] = list(metrics.signs)
    return {
        "title": sheet.title,
        "note": sheet.note,
        "columns": columns,
        "rows": list(sheet.rows),
        "cell_size_px": list(cell_size),
        "shown_size_px": list(shown_size(cell_size)),
        "pages": [page.name for page in pages],
        "cells": [
            {"column": c.column, "row": c.row, "key": c.key, "file": c.file} | ({"error": c.error} if c.error else {})
            for c in cells
        ],
    }


class Overview:
    """A small picture of a strip that grows cell by cell, for a host to show while it is made."""

    def __init__(self, num_columns: int, num_rows: int, cell_size: tuple[int, int], most_px: int = 1024) -> None:
        scale = min(1.0, most_px / (num_columns * cell_size[0]), most_px / (num_rows * cell_size[1]))
        self._size = (max(1, int(cell_size[0] * scale)), max(1, int(cell_size[1] * scale)))
        self.image = Image.new("RGB", (num_columns * self._size[0], num_rows * self._size[1]), "#F1F4F6")

    def paste(self, cell: Cell) -> None:
        """Put a cell into its place; one without a picture leaves it empty."""
        image = cell.loaded()
        if image is not None:
            place = (cell.column * self._size[0], cell.row * self._size[1])
            self.image.paste(image.resize(self._size, Image.Resampling.BILINEAR), place)
