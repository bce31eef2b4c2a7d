"""The files of the records: loss.csv, run.csv and probe.csv, written whole rows at a time and read leniently.

Numbers are the shortest text that reads back as the same float32 (t, loss, weight, grad_norm) or float64 (means and
rates). Text that a spreadsheet would take for a formula gets a ' in front, which reading takes off. LF, UTF-8.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import files

LOSS_COLUMNS = ("step", "epoch", "image", "caption_sha", "t", "loss", "weight", "lr", "seed")
RUN_COLUMNS = ("step", "epoch", "loss", "loss_latest", "loss_window", "loss_window_se", "n", "grad_norm")
PROBE_COLUMNS = ("step", "image", "t", "loss", "loss_base")
RATE = "lr_"  # begins the column of a parameter group's rate

_WHOLE = ("step", "epoch", "n", "seed")
_TEXT = ("image", "caption_sha")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # and ' itself, so that the mark can be taken off again


class Table:
    """A CSV file that grows: rows wait in memory until they are on the disk."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)
        self.num_bytes = 0  # behind the header line
        self._waiting: list[str] = []
        self._ours = False  # whether what the file holds was written or cut by us

    def add(self, row: Mapping[str, str | int | float | np.float32]) -> None:
        """Add a row; columns that it lacks stay empty."""
        self._waiting.append(",".join(_cell(row[c]) if c in row else "" for c in self.columns) + "\n")

    def write(self) -> None:
        """Write what waits, durably. Errors: `files.DiskFullError`, `OSError`, after which it still waits."""
        if not self._waiting:
            return
        if not self._ours and self.path.exists():
            raise ValueError(f"{self.path} has rows already; a run that goes on has to restore its records first")
        self._ours = True
        header, rows = _header(self.columns), "".join(self._waiting).encode()
        if self.num_bytes:
            files.append_bytes(self.path, rows, len(header) + self.num_bytes)
        else:
            files.append_bytes(self.path, header + rows, 0)
        self.num_bytes += len(rows)
        self._waiting = []

    def cut(self, num_bytes: int) -> None:
        """Cut the file to so many bytes behind its header line. Errors: `ValueError` when they are not there."""
        if num_bytes:
            header = _header_of(self.path, num_bytes)
            files.append_bytes(self.path, b"", len(header) + num_bytes)
            self._take_columns(header)
        elif self.path.exists():
            files.append_bytes(self.path, b"", 0)
        self.num_bytes, self._waiting, self._ours = num_bytes, [], True

    def _take_columns(self, header: bytes) -> None:
        """The file's columns, and behind them the rates of groups that it lacks: a fork may have other groups."""
        columns = next(csv.reader([header.decode()]))
        if _fixed(columns) != _fixed(self.columns):
            raise ValueError(f"{self.path} has the columns {', '.join(columns)}: it was changed")
        lacking = [column for column in self.columns if column not in columns]
        self.columns = (*columns, *lacking)
        if lacking:
            # rows stay as they are, short, so that offsets taken earlier stay right
            files.write_bytes(self.path, _header(self.columns) + self.path.read_bytes()[len(header) :])


def copy_records(source: Path, target: Path, offsets: Mapping[str, int]) -> None:
    """Copy the records of the run folder `source`, up to `offsets`, into another. Errors: as `Recorder.restore`."""
    for name, offset in offsets.items():
        if offset:
            header = _header_of(source / name, offset)
            with open(source / name, "rb") as file:
                files.write_bytes(target / name, file.read(len(header) + offset))


def read_losses(path: Path) -> dict[str, NDArray]:
    """loss.csv as column -> array. Whole numbers int64, text object, the rest float64.

    A missing file has no rows, and a last row that is cut off is left out. Errors: `ValueError` naming a wrong line.
    """
    return _read(path, LOSS_COLUMNS)


def read_run(path: Path) -> dict[str, NDArray]:
    """run.csv, as `read_losses`; a rate is nan at steps whose run did not have that group."""
    return _read(path, RUN_COLUMNS)


def read_probe(path: Path) -> dict[str, NDArray]:
    """probe.csv, as `read_losses`."""
    return _read(path, PROBE_COLUMNS)


def losses_by_step(path: Path) -> Iterator[tuple[int, list[tuple[str, float]]]]:
    """(step, its (picture, loss) pairs) from loss.csv, one step at a time. Errors: `ValueError` naming a wrong row."""
    rows = csv.reader(_whole_lines(path))
    next(rows, None)
    step, samples = -1, []
    for row in rows:
        try:
            # the text is the shortest one for a float32, so as a float64 it is another number
            row_step, sample = int(row[0]), (_without_mark(row[2]), float(np.float32(row[5])))
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path} was changed: it has a row {row}") from error
        if row_step != step and samples:
            yield step, samples
            samples = []
        step = row_step
        samples.append(sample)
    if samples:
        yield step, samples


def clean(text: str) -> str:
    """Text that can be written: names of files may hold bytes that are none."""
    return text.encode("utf-8", "backslashreplace").decode()


def _cell(value: str | int | float | np.float32) -> str:
    if isinstance(value, str):
        text = clean("'" + value if value.startswith(_FORMULA) else value)
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text
    return repr(float(value)) if isinstance(value, float) else str(value)


def _without_mark(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text


def _header(columns: Sequence[str]) -> bytes:
    return (",".join(map(_cell, columns)) + "\n").encode()


def _header_of(path: Path, offset: int) -> bytes:
    """The header line of a file that reaches `offset` bytes behind it, to the end of a row. Errors: `ValueError`."""
    if not path.exists():
        raise ValueError(f"{path} is missing; put it back, or fork the run from an earlier step")
    with open(path, "rb") as file:
        header = file.readline()
        file.seek(len(header) + offset - 1)
        if file.read(1) != b"\n":
            raise ValueError(f"{path} is shorter than when the checkpoint was saved, or was changed; put it back")
    return header


def _fixed(columns: Sequence[str]) -> list[str]:
    return [column for column in columns if not column.startswith(RATE)]


def _whole_lines(path: Path) -> Iterator[str]:
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line.decode()


def _read(path: Path, fixed: Sequence[str]) -> dict[str, NDArray]:
    rows = csv.reader(_whole_lines(path))
    columns = next(rows, None) or list(fixed)
    stores = [_store(column) for column in columns]
    short = None
    for row in rows:
        # only the last row may be short: cut off inside a quoted name that holds a line break
        if short is not None or len(row) > len(columns):
            raise ValueError(f"{path} was changed: it has a row {short or row}")
        if len(row) < len(fixed):
            short = row
            continue
        try:
            for (values, convert), text in zip(stores, row, strict=False):
                values.append(convert(text))
            for values, _ in stores[len(row) :]:
                values.append(math.nan)
        except ValueError as error:
            raise ValueError(f"{path} was changed: {error} in the row {row}") from error
    return {c: _array(values, c) for c, (values, _) in zip(columns, stores, strict=True)}


def _store(column: str) -> tuple[Any, Callable[[str], Any]]:
    if column in _TEXT:
        same: dict[str, str] = {}  # one object a name, not one a row
        return [], lambda text: same.setdefault(text, _without_mark(text))
    if column in _WHOLE:
        return array("q"), int
    return array("d"), lambda text: float(text) if text else math.nan


def _array(values: Any, column: str) -> NDArray:
    kind = object if column in _TEXT else np.int64 if column in _WHOLE else np.float64
    return np.array(values, dtype=kind)
