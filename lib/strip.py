"""Checkpoint strips: pictures of the same prompts and seeds, checkpoints side by side, in the order of their steps.

Finished cells are kept under a key that is made of everything they depend on, so that none is made twice and an
interrupted strip goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from .files import write_image, write_json
from .host import SampleRequest

INK, SOFT, PAPER, EMPTY, LINE = "#1F2933", "#6B7885", "#FFFFFF", "#F1F4F6", "#D5DBE1"
MARGIN_PX, GAP_PX = 28, 10
MIN_SHOWN_PX = 192  # smaller pictures are shown enlarged: a strip is for looking at
MAX_ROW_LINES = 3

_FILE_SUFFIX = re.compile(r"\.(safetensors|ckpt|pt|pth|bin|png|jpg|jpeg|webp)$", re.IGNORECASE)
# A checkpoint that was written once more has -2 and so on behind its step of six digits.
_STEP = re.compile(r"(?:^|(?<=[-_ ])|(?<=step)|(?<=epoch)|(?<=steps))(?:(\d{6,18})-\d{1,6}|(\d{1,18}))$", re.IGNORECASE)


def natural_step(name: str) -> int | None:
    """The step (or epoch) at the end of a checkpoint's name: x-000800, checkpoint-2400, epoch-10; None for last."""
    match = _STEP.search(_FILE_SUFFIX.sub("", name))
    return int(match[1] or match[2]) if match else None


def natural_order(names: Iterable[str]) -> list[str]:
    """Names by step; those without one, such as the finished network's, come last, by name."""

    def order(name: str) -> tuple[bool, int, str]:
        step = natural_step(name)
        return step is None, step or 0, name

    return sorted(names, key=order)


def cell_key(model_fingerprint: str, request: SampleRequest, **settings: Any) -> str:
    """SHA-256, in hex, of the model with its patches and of every sampling setting. `settings` are those of the host
    that a request does not hold (sampler, CLIP skip, strength), as JSON values."""
    parts = {"model": model_fingerprint, "request": dataclasses.asdict(request), "settings": settings}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class CellStore:
    """Finished cells in a folder: KEY.png, and KEY.json with what it is and the hash of the picture.

    The JSON file is written last, so a cell is there whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def get(self, key: str) -> Image.Image | None:
        """The finished picture; None if it was never finished or its file is no longer what was written."""
        picture, about = self._paths(key)
        if not (picture.is_file() and about.is_file()):
            return None
        try:
            written = json.loads(about.read_text("utf-8"))["sha256"]
        except (ValueError, KeyError, TypeError):  # damaged: made again, like a cell that was never finished
            return None
        if hashlib.sha256(picture.read_bytes()).hexdigest() != written:
            return None
        with Image.open(picture) as image:
            return image.convert("RGB")

    def put(self, key: str, image: Image.Image, about: Mapping[str, Any] | None = None) -> Path:
        """Keep a finished picture. `about` is information for people, as JSON values. Returns the picture's path."""
        picture, information = self._paths(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        written = write_image(picture, image.convert("RGB"))
        write_json(information, {**(about or {}), "sha256": written})
        return picture

    def _paths(self, key: str) -> tuple[Path, Path]:
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise ValueError(f'a cell\'s key must be 64 hexadecimal digits, got "{key}"')
        return self.folder / f"{key}.png", self.folder / f"{key}.json"


@dataclass(frozen=True)
class Cell:
    """One picture of a strip. `column` and `row` count from 0; `key` and `file` say where it is kept."""

    column: int
    row: int
    image: Image.Image
    key: str = ""
    file: str = ""


def compose(
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Iterable[Cell],
    path: Path,
    *,
    title: str = "",
    note: str = "",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a strip as PNG, and beside it a JSON file of the same name that says what is in it.

    `columns` are labels such as toy-000800 (the step is never cut off); `rows` are prompts, lines after the first are
    drawn paler. `cells` may be lazy: each picture is pasted and let go, so memory is that of the strip and one cell. A
    cell that does not come is drawn empty. The first cell decides the size; others are fitted into it. `metadata` goes
    into the PNG as text. Errors: `ValueError` without columns, rows or cells, or for a cell outside the grid.
    """
    if not columns or not rows:
        raise ValueError(f"a strip needs at least one column and one row, got {len(columns)} and {len(rows)}")
    canvas: _Canvas | None = None
    done: list[dict[str, Any]] = []
    for cell in cells:
        if not (0 <= cell.column < len(columns) and 0 <= cell.row < len(rows)):
            raise ValueError(f"cell ({cell.column}, {cell.row}) lies outside {len(columns)} columns, {len(rows)} rows")
        if canvas is None:
            canvas = _Canvas(columns, rows, cell.image.size, title, note)
        canvas.paste(cell)
        done.append({"column": cell.column, "row": cell.row, "key": cell.key, "file": cell.file})
    if canvas is None:
        raise ValueError("a strip needs at least one picture, got none")
    information = PngImagePlugin.PngInfo()
    for name, text in {"Software": "Atelier", "Title": title, **(metadata or {})}.items():
        information.add_itxt(name, text)
    write_image(path, canvas.image, pnginfo=information)
    about = {
        "title": title,
        "note": note,
        "columns": [{"label": label, "step": natural_step(label)} for label in columns],
        "rows": list(rows),
        "cell_size_px": list(canvas.cell_size),
        "shown_size_px": list(canvas.shown_size),
        "cells": done,
    }
    write_json(path.with_suffix(".json"), about)


class _Canvas:
    """The picture that grows cell by cell: labels first, cells as they come."""

    def __init__(
        self, columns: Sequence[str], rows: Sequence[str], cell_size: tuple[int, int], title: str, note: str
    ) -> None:
        self.cell_size = cell_size
        enlarge = -(-MIN_SHOWN_PX // max(cell_size))
        self.shown_size = (cell_size[0] * enlarge, cell_size[1] * enlarge)
        bold, plain, small, head = _font(16, True), _font(15), _font(13), _font(24, True)
        steps = [_split(label)[1] for label in columns]
        self._column_px = max([self.shown_size[0], *(int(bold.getlength(_drawable(bold, s))) + 1 for s in steps)])
        grid_px = len(columns) * (self._column_px + GAP_PX) - GAP_PX
        texts = [self._row_lines(row, grid_px, plain, small) for row in rows]
        title_px = max((head.getlength(_drawable(head, title)), small.getlength(_drawable(small, note))))
        width = 2 * MARGIN_PX + max(grid_px, min(int(title_px) + 1, 1200))
        y = MARGIN_PX + (38 if title else 0) + (24 if note else 0) + (10 if title or note else 0)
        columns_y, y = y, y + 30
        self._row_y = []
        text_y = []
        for lines in texts:
            text_y.append(y + 4)
            y += 4 + 21 * len(lines) + (7 if lines else 0)
            self._row_y.append(y)
            y += self.shown_size[1] + 18
        self.image = Image.new("RGB", (width, y - 18 + MARGIN_PX), PAPER)
        draw = ImageDraw.Draw(self.image)
        if title:
            draw.text((MARGIN_PX, MARGIN_PX - 6), _ellipsis(title, width - 2 * MARGIN_PX, head), INK, head)
        if note:
            y = MARGIN_PX + (32 if title else 0)
            draw.text((MARGIN_PX, y), _ellipsis(note, width - 2 * MARGIN_PX, small), SOFT, small)
        for i, label in enumerate(columns):
            self._column_label(draw, label, MARGIN_PX + i * (self._column_px + GAP_PX), columns_y, plain, bold)
        for lines, top in zip(texts, text_y, strict=True):
            for k, (line, font, colour) in enumerate(lines):
                draw.text((MARGIN_PX, top + 21 * k), line, colour, font)
        for top in self._row_y:
            for i in range(len(columns)):
                left = MARGIN_PX + i * (self._column_px + GAP_PX)
                box = (left, top, left + self._column_px - 1, top + self.shown_size[1] - 1)
                draw.rectangle(box, fill=EMPTY, outline=LINE)

    def paste(self, cell: Cell) -> None:
        """Put a picture into its place, in its own proportions."""
        image, (width, height) = cell.image.convert("RGB"), self.shown_size
        scale = min(width / image.width, height / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if size != image.size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        left = MARGIN_PX + cell.column * (self._column_px + GAP_PX)
        x, y = left + (self._column_px - size[0]) // 2, self._row_y[cell.row] + (height - size[1]) // 2
        self.image.paste(PAPER, (left, self._row_y[cell.row], left + self._column_px, self._row_y[cell.row] + height))
        self.image.paste(image, (x, y))

    def _column_label(self, draw: ImageDraw.ImageDraw, label: str, x: int, y: int, plain: Any, bold: Any) -> None:
        front, step = _split(label)
        step = _drawable(bold, step)
        room = self._column_px - bold.getlength(step)
        front = _ellipsis(front, room, plain, front=True)
        draw.text((x, y + 1), front, SOFT, plain)
        draw.text((x + plain.getlength(front), y), step, INK, bold)

    @staticmethod
    def _row_lines(row: str, width: int, plain: Any, small: Any) -> list[tuple[str, Any, str]]:
        prompt, _, rest = row.partition("\n")
        lines = [(line, plain, INK) for line in _wrapped(prompt, width, plain, MAX_ROW_LINES)]
        return lines + [(line, small, SOFT) for line in _wrapped(rest, width, small, MAX_ROW_LINES)]


def _split(label: str) -> tuple[str, str]:
    """The front of a label, which may be cut, and the step with what follows it, which may not. A label without a step
    is all step, so that it is drawn in bold."""
    stem = _FILE_SUFFIX.sub("", label)
    match = _STEP.search(stem)
    if match:
        return stem[: match.start()], stem[match.start() :]
    return ("", label) if len(label) <= 24 else (label, "")


def _wrapped(text: str, width: float, font: Any, most: int) -> list[str]:
    """At most so many lines of at most `width` pixels; what is left out is marked by an ellipsis."""
    lines: list[str] = []
    rest = " ".join(text[:4000].split())
    while rest:
        if len(lines) == most - 1:
            return [*lines, _ellipsis(rest, width, font)]
        num = max(1, _fitting(rest, width, font))
        if num < len(rest):
            space = rest.rfind(" ", 1, num + 1)
            num = space if space > 0 else num
        lines.append(_drawable(font, rest[:num]))
        rest = rest[num:].lstrip()
    return lines


def _ellipsis(text: str, width: float, font: Any, *, front: bool = False) -> str:
    """`text` cut to `width` pixels at its end, or at its front."""
    text, dots = _drawable(font, text[-4000:] if front else text[:4000]), _drawable(font, "…")
    if font.getlength(text) <= width:
        return text
    room = width - font.getlength(dots)
    if room < 0:
        return ""
    if front:
        num = _fitting(text[::-1], room, font)
        return dots + text[len(text) - num :].lstrip()
    return text[: _fitting(text, room, font)].rstrip() + dots


def _fitting(text: str, width: float, font: Any) -> int:
    """How many characters from the start fit into `width` pixels."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(_drawable(font, text[:middle])) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _drawable(font: Any, text: str) -> str:
    """What the font can draw: no control characters, and Latin-1 only where it is Pillow's bitmap font."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if isinstance(font, ImageFont.FreeTypeFont):
        return text
    return text.replace("…", "...").encode("latin-1", "replace").decode("latin-1")


@lru_cache(maxsize=16)
def _font(size_px: int, bold: bool = False) -> Any:
    """The font that comes with matplotlib, which knows most scripts; without it Pillow's own, which before 10.1 is a
    small bitmap."""
    load: Callable[..., Any] = ImageFont.load_default
    try:
        import matplotlib

        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size_px)
    except (ImportError, OSError):
        pass
    try:
        return load(size_px)
    except TypeError:
        return load()
