"""Composing pages: pictures under their checkpoints, in the memory of one row, however large the strip is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..files import write_chunks
from .cells import Cell
from .lettering import drawable, ellipsis, font, wrapped
from .names import split_label
from .png import png_chunks

INK, SOFT, PAPER, EMPTY, LINE, WARNING = "#1F2933", "#6B7885", "#FFFFFF", "#F1F4F6", "#D5DBE1", "#B45309"
MARGIN_PX, GAP_PX = 28, 10
MIN_SHOWN_PX = 192  # smaller pictures are shown enlarged: a strip is for looking at
MAX_PAGE_PX = 16_384  # what viewers and browsers still open
MAX_ROW_LINES = 3
_LINE_PX, _FIGURE_PX = 21, 19


@dataclass(frozen=True)
class Figure:
    """A line under a column; one that warns gets a mark."""

    text: str
    warns: bool = False


@dataclass(frozen=True)
class Sheet:
    """What a strip shows besides its pictures.

    `columns` are labels such as toy-000800 (the step is never cut off); `rows` are prompts, lines after the first are
    drawn paler; `figures` stand under the columns, `legend` at the foot.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    title: str = ""
    note: str = ""
    figures: Sequence[Sequence[Figure]] = ()
    legend: Sequence[str] = ()


Picture = Callable[[int, int], Cell | None]


def write_pages(
    sheet: Sheet, picture: Picture, cell_size: tuple[int, int], path: Path, text: Mapping[str, str]
) -> list[Path]:
    """Write a sheet as PNG: `path`, and `<stem>-2.png` and so on where one page would be larger than 16,384 px.

    `picture(column, row)` is asked once for each place, row by row, so that the memory is that of one row of one page.
    `cell_size` (width, height) is that of the pictures; others are fitted into it. `text` goes into each file.
    """
    layout = _Layout(sheet, cell_size)
    paths = []
    for number, (columns, rows) in enumerate(layout.pages(), start=1):
        page = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        size, bands = layout.page(columns, rows, picture)
        write_chunks(page, png_chunks(size, bands, text))
        paths.append(page)
    return paths


def shown_size(cell_size: tuple[int, int]) -> tuple[int, int]:
    """How large a cell is drawn, in pixels: small pictures are enlarged by a whole factor."""
    enlarge = -(-MIN_SHOWN_PX // max(cell_size))
    return cell_size[0] * enlarge, cell_size[1] * enlarge


class _Layout:
    """Where everything stands; pages are made of bands of their full width."""

    def __init__(self, sheet: Sheet, cell_size: tuple[int, int]) -> None:
        self._sheet, self._shown = sheet, shown_size(cell_size)
        self._bold, self._plain, self._small, self._head = font(16, True), font(15), font(13), font(24, True)
        steps = [split_label(label)[1] for label in sheet.columns]
        widths = [int(self._bold.getlength(drawable(self._bold, step))) + 1 for step in steps]
        self._column_px = max(self._shown[0], *widths)
        self._per_page = max(1, (MAX_PAGE_PX - 2 * MARGIN_PX + GAP_PX) // (self._column_px + GAP_PX))
        widest = min(len(sheet.columns), self._per_page) * (self._column_px + GAP_PX) - GAP_PX
        self._texts = [self._row_lines(row, widest) for row in sheet.rows]
        self._num_figures = max((len(lines) for lines in sheet.figures), default=0)

    def pages(self) -> Iterator[tuple[range, range]]:
        """The columns and rows of each page."""
        num_columns, num_rows = len(self._sheet.columns), len(self._texts)
        room = MAX_PAGE_PX - self._head_px() - self._foot_px()
        row = 0
        row_ranges = []
        while row < num_rows:
            first, used = row, 0
            while row < num_rows and (row == first or used + self._row_px(row) <= room):
                used += self._row_px(row)
                row += 1
            row_ranges.append(range(first, row))
        for rows in row_ranges:
            for first in range(0, num_columns, self._per_page):
                yield range(first, min(first + self._per_page, num_columns)), rows

    def page(self, columns: range, rows: range, picture: Picture) -> tuple[tuple[int, int], Iterator[Image.Image]]:
        """The size of a page in pixels, and its bands from top to bottom, made when they are asked for."""
        sheet = self._sheet
        grid_px = len(columns) * (self._column_px + GAP_PX) - GAP_PX
        texts = [(self._head, sheet.title), (self._small, sheet.note), *((self._small, line) for line in sheet.legend)]
        text_px = max(int(f.getlength(drawable(f, text))) + 1 for f, text in texts)
        width = 2 * MARGIN_PX + max(grid_px, min(text_px, 1200))
        height = self._head_px() + sum(self._row_px(row) for row in rows) + self._foot_px()

        def bands() -> Iterator[Image.Image]:
            yield self._head_band(width, columns)
            for row in rows:
                yield self._row_band(width, columns, row, picture)
            yield self._foot_band(width, columns)

        return (width, height), bands()

    def _head_px(self) -> int:
        title, note = bool(self._sheet.title), bool(self._sheet.note)
        return MARGIN_PX + 38 * title + 24 * note + 10 * (title or note) + 30

    def _row_px(self, row: int) -> int:
        return self._label_px(row) + self._shown[1] + 18

    def _label_px(self, row: int) -> int:
        num_lines = len(self._texts[row])
        return 4 + _LINE_PX * num_lines + 7 * bool(num_lines)

    def _foot_px(self) -> int:
        legend = len(self._sheet.legend)
        return _FIGURE_PX * self._num_figures + (_FIGURE_PX * legend + 8) * bool(legend) + MARGIN_PX

    def _left(self, place: int) -> int:
        return MARGIN_PX + place * (self._column_px + GAP_PX)

    def _head_band(self, width: int, columns: range) -> Image.Image:
        band = Image.new("RGB", (width, self._head_px()), PAPER)
        draw, sheet = ImageDraw.Draw(band), self._sheet
        room = width - 2 * MARGIN_PX
        if sheet.title:
            draw.text((MARGIN_PX, MARGIN_PX - 6), ellipsis(sheet.title, room, self._head), INK, self._head)
        if sheet.note:
            y = MARGIN_PX + 32 * bool(sheet.title)
            draw.text((MARGIN_PX, y), ellipsis(sheet.note, room, self._small), SOFT, self._small)
        for place, column in enumerate(columns):
            front, step = split_label(sheet.columns[column])
            step = drawable(self._bold, step)
            front = ellipsis(front, self._column_px - self._bold.getlength(step), self._plain, front=True)
            x, y = self._left(place), band.height - 30
            draw.text((x, y + 1), front, SOFT, self._plain)
            draw.text((x + self._plain.getlength(front), y), step, INK, self._bold)
        return band

    def _row_band(self, width: int, columns: range, row: int, picture: Picture) -> Image.Image:
        band = Image.new("RGB", (width, self._row_px(row)), PAPER)
        draw, top = ImageDraw.Draw(band), self._label_px(row)
        for k, (line, letters, colour) in enumerate(self._texts[row]):
            draw.text((MARGIN_PX, 4 + _LINE_PX * k), line, colour, letters)
        for place, column in enumerate(columns):
            left = self._left(place)
            cell = picture(column, row)
            image = None if cell is None else cell.loaded()
            if image is None:
                box = (left, top, left + self._column_px - 1, top + self._shown[1] - 1)
                draw.rectangle(box, fill=EMPTY, outline=LINE)
                self._reason(draw, "" if cell is None else cell.error, left, top)
            else:
                self._paste(band, image, left, top)
        return band

    def _paste(self, band: Image.Image, image: Image.Image, left: int, top: int) -> None:
        """Put a picture into its place, in its own proportions."""
        width, height = self._shown
        scale = min(width / image.width, height / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if size != image.size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        band.paste(image, (left + (self._column_px - size[0]) // 2, top + (height - size[1]) // 2))

    def _reason(self, draw: ImageDraw.ImageDraw, error: str, left: int, top: int) -> None:
        """Why a cell is empty, in as many lines as there is room for."""
        most = max(1, (self._shown[1] - 16) // 17)
        for k, line in enumerate(wrapped(error, self._column_px - 16, self._small, most)):
            draw.text((left + 8, top + 8 + 17 * k), line, WARNING, self._small)

    def _foot_band(self, width: int, columns: range) -> Image.Image:
        band = Image.new("RGB", (width, self._foot_px()), PAPER)
        draw = ImageDraw.Draw(band)
        for place, column in enumerate(columns):
            figures = self._sheet.figures[column] if self._sheet.figures else ()
            for k, figure in enumerate(figures):
                x, y = self._left(place), _FIGURE_PX * k
                room = self._column_px
                if figure.warns:
                    draw.polygon([(x, y + 13), (x + 6, y + 2), (x + 12, y + 13)], fill=WARNING)
                    x, room = x + 17, room - 17
                colour = WARNING if figure.warns else SOFT
                draw.text((x, y), ellipsis(figure.text, room, self._small), colour, self._small)
        y = _FIGURE_PX * self._num_figures + 8
        for k, line in enumerate(self._sheet.legend):
            text = ellipsis(line, width - 2 * MARGIN_PX, self._small)
            draw.text((MARGIN_PX, y + _FIGURE_PX * k), text, SOFT, self._small)
        return band

    def _row_lines(self, row: str, width: int) -> list[tuple[str, Any, str]]:
        prompt, _, rest = row.partition("\n")
        lines = [(line, self._plain, INK) for line in wrapped(prompt, width, self._plain, MAX_ROW_LINES)]
        return lines + [(line, self._small, SOFT) for line in wrapped(rest, width, self._small, MAX_ROW_LINES)]
