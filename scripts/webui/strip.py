"""Checkpoint strips by the host's own sampling: a run's checkpoints, or any LoRAs or whole checkpoints, side by side.

Each strip is made in a thread of its own that takes the host's queue for one checkpoint at a time, so that a picture
that is asked for meanwhile does not wait for the whole strip. Finished cells are kept and never made twice. A whole
checkpoint takes the place of the loaded one for its cells, which is loaded again after them.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...lib.control import Control
from ...lib.files import make_folder, safe_name, sha256_of
from ...lib.host import SampleRequest
from ...lib.memory import OutOfMemoryError
from ...lib.named_folders import is_below, roots_in, unquoted
from ...lib.run_folder import RunFolder
from ...lib.strip.cells import Cell, CellStore
from ...lib.strip.names import checkpoint_files, selected
from ...lib.strip.publish import compose
from ...lib.strip.render import Column, Row, render, rows_of
from .catalogue import controlled, folder_of
from .folders import is_local, own_folder, run_parents, settings_file
from .painting import WebuiPainter

BASE = "no network"
KEPT = 8  # ended strips that are remembered
EXPECTED = (ValueError, OSError, OutOfMemoryError)
# for the page's grid, which is refreshed while the strip is made
MOST_CELLS = 2000


@dataclass(frozen=True, kw_only=True)
class StripRequest:
    """What to draw: `source` is a run's key, or a folder, a glob or a file of LoRAs or whole checkpoints."""

    source: str
    prompts: tuple[str, ...]
    negative_prompt: str = ""
    seeds: tuple[int, ...] = (1,)
    strengths: tuple[float, ...] = (1.0,)
    every: int = 1
    steps: int = 20
    guidance: float = 7.0
    width: int = 512
    height: int = 512
    sampler: str = ""

    def rows(self) -> list[Row]:
        """A row for each prompt, seed and strength. Errors: `ValueError`."""
        if not self.prompts:
            raise ValueError("a strip needs a prompt")
        for name, value, low, high in (
            ("steps", self.steps, 1, 1000),
            ("width", self.width, 64, 4096),
            ("height", self.height, 64, 4096),
            ("every", self.every, 1, 1_000_000),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {value}")
        if any(seed < 0 for seed in self.seeds):
            raise ValueError("seeds must be 0 or more: a strip compares checkpoints at the same noise")
        common = {"steps": self.steps, "guidance": self.guidance, "width": self.width, "height": self.height}
        requests = [SampleRequest(prompt=p, negative_prompt=self.negative_prompt, **common) for p in self.prompts]
        return rows_of(requests, self.seeds or (1,), self.strengths or (1.0,))


@dataclass
class Strip:
    """A strip that is being made, or was."""

    request: StripRequest
    title: str
    files: dict[str, Path]  # label -> network
    folder: Path
    key: str | None = None  # of the run that it belongs to
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    started: float = field(default_factory=time.time)
    phase: str = "waiting"
    error: str = ""
    note: str = ""
    cells: list[Cell] = field(default_factory=list)
    pages: list[Path] = field(default_factory=list)
    control: Control = field(default_factory=Control)

    @property
    def is_live(self) -> bool:
        return self.phase in ("waiting", "making")

    @property
    def labels(self) -> list[str]:
        return [BASE, *self.files]

    def status(self) -> dict[str, Any]:
        """JSON values for the page."""
        rows = self.request.rows()
        return {
            "id": self.id,
            "title": self.title,
            "key": self.key,
            "phase": self.phase,
            "live": self.is_live,
            "error": self.error,
            "note": self.note,
            "columns": self.labels,
            "rows": [row.label for row in rows],
            "cells": [{"column": c.column, "row": c.row, "key": c.key, "error": c.error} for c in self.cells],
            "total": len(self.labels) * len(rows),
            "size": [self.request.width, self.request.height],
            "pages": [path.name for path in self.pages],
            "folder": str(self.folder),
        }

    def cell_file(self, key: str) -> Path:
        """The picture of a cell. Errors: `ValueError`."""
        path = next((c.image for c in self.cells if c.key == key and isinstance(c.image, Path)), None)
        if path is None:
            raise ValueError("there is no such cell")
        return path

    def page_file(self, name: str) -> Path:
        """A page of the finished strip. Errors: `ValueError`."""
        path = next((p for p in self.pages if p.name == name), None)
        if path is None:
            raise ValueError("there is no such page")
        return path


def strips() -> list[Strip]:
    """Strips of this program, oldest first; they outlive *Reload UI*."""
    from .runs import registry

    return registry().wrapped.setdefault("strips", [])


def find(strip_id: str) -> Strip:
    """Errors: `ValueError` where there is none."""
    found = next((strip for strip in strips() if strip.id == strip_id), None)
    if found is None:
        raise ValueError("this strip is no longer known; make it again, finished cells are kept")
    return found


def start(request: StripRequest) -> Strip:
    """Begin a strip; returns at once. Errors: `ValueError` for a source that is none, or wrong settings."""
    rows = request.rows()
    strip = _of_run(request) if _is_key(request.source) else _of_files(request)
    if len(rows) * len(strip.labels) > MOST_CELLS:
        raise ValueError(
            f"{len(strip.labels)} checkpoints and {len(rows)} rows are more than {MOST_CELLS} cells; choose every "
            "second checkpoint, or fewer rows"
        )
    if any(s.is_live and s.folder == strip.folder for s in strips()):
        raise ValueError(f"a strip of {strip.title} is being made already")
    known = strips()
    ended = [s for s in known if not s.is_live]
    for old in ended[: max(0, len(ended) - KEPT)]:
        known.remove(old)
    known.append(strip)
    threading.Thread(target=_make, args=(strip, rows), name=f"atelier strip {strip.title}", daemon=True).start()
    return strip


def _is_key(source: str) -> bool:
    return len(source) == 16 and all(c in "0123456789abcdef" for c in source)


def _of_run(request: StripRequest) -> Strip:
    folder = folder_of(request.source)
    networks = RunFolder.open(folder).checkpoints.networks()
    if not networks:
        raise ValueError(f"{folder.name} has no checkpoint yet")
    steps = selected(list(networks), every=request.every, steps=list(networks))
    return Strip(request, folder.name, {networks[s].stem: networks[s] for s in steps}, folder, request.source)


def _of_files(request: StripRequest) -> Strip:
    text = unquoted(request.source)
    if not text:
        raise ValueError("name a run, or a folder or a file of LoRAs or checkpoints")
    homes = _homes()
    roots = [*homes, own_folder(), *run_parents(), *roots_in(settings_file())]
    given = Path(text)
    places = [given] if given.is_absolute() else [home / given for home in homes]
    # said before anything is looked at, and of each file, since a pattern can lead out of its folder again
    for place in places:
        _check_below(text, [Path(str(place).partition("*")[0])], roots)
    places = [_as_written(place) for place in places]
    source = next((place for place in places if "*" not in text and place.exists()), None)
    if source is None:
        source = next((place for place in places if glob.has_magic(text) and glob.glob(str(place))), places[0])
    files = checkpoint_files(source)
    _check_below(text, files.values(), roots)
    labels = selected(list(files), every=request.every)
    digest = hashlib.sha256(str(source).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    title = source.name.replace("*", "") or "strip"
    folder = own_folder() / "strips" / f"{safe_name(title, 'strip')}-{digest}"
    return Strip(request, title, {label: files[label] for label in labels}, folder)


def _homes() -> list[Path]:
    """Where names without a folder are looked for: the LoRA folder, then those of checkpoints."""
    from modules import sd_models, shared

    named = [shared.cmd_opts.lora_dir, getattr(shared.cmd_opts, "ckpt_dir", None), sd_models.model_path]
    return [Path(folder).absolute() for folder in named if folder]


def _as_written(place: Path) -> Path:
    """With the ending that a name in a prompt lacks."""
    return place if glob.has_magic(str(place)) or place.exists() else place.with_name(place.name + ".safetensors")


def _check_below(text: str, paths: Iterable[Path], roots: Sequence[Path]) -> None:
    """Errors: `ValueError` where others reach this WebUI and a path lies outside the roots."""
    if not is_local() and not all(is_below(path.resolve(), roots) for path in paths):
        raise ValueError(
            f'"{text}" may not be used, because this WebUI can be reached from other machines; name a folder below '
            f"{roots[0]}, or add its root to {settings_file()} on the machine it runs on"
        )


def _make(strip: Strip, rows: Sequence[Row]) -> None:
    phase = "failed"
    try:
        phase = _made(strip, rows)
    except EXPECTED as error:
        strip.error = str(error)
    except BaseException as error:
        strip.error = f"{type(error).__name__}: {error}"
        raise
    finally:
        strip.phase = phase


def _made(strip: Strip, rows: Sequence[Row]) -> str:
    make_folder(strip.folder)
    strip.note = "waits for the model"
    painter = WebuiPainter(strip.request.sampler, strip.control)
    strip.phase, strip.note = "making", ""
    columns = [Column(BASE, None, painter.fingerprint)]
    columns += [_column(label, path, painter.fingerprint) for label, path in strip.files.items()]

    def tell(cell: Cell, done: int, total: int) -> None:
        strip.cells.append(cell)

    rendered = render(
        columns,
        rows,
        painter,
        CellStore(strip.folder / "cells"),
        on_cell=tell,
        stop_requested=lambda: strip.control.stop_requested,
    )
    if any(cell.image is not None for cell in rendered.cells):
        request = strip.request
        strip.pages = compose(
            strip.labels,
            [row.label for row in rows],
            rendered.cells,
            strip.folder / "strip.png",
            title=strip.title,
            note=f"{request.steps} steps, guidance {request.guidance:g}, {request.width} x {request.height} px",
            metadata={"requests": json.dumps([dataclasses.asdict(row) for row in rows])},
            base=0,
            controlled=_controlled(strip),
        )
    elif not rendered.stopped:
        raise ValueError(next((cell.error for cell in rendered.cells if cell.error), "no picture was made"))
    return "stopped" if rendered.stopped else "finished"


def _column(label: str, path: Path, base: str) -> Column:
    try:
        return Column(label, path, base + sha256_of(path))
    except OSError as error:
        return Column(label, path, error=f"cannot be read: {error.strerror}")


def _controlled(strip: Strip) -> dict[int, float]:
    """Column -> change of the controlled loss against the base, where the run measured it at that step."""
    from ...lib.records import read_probe
    from ...lib.strip.names import natural_step

    if strip.key is None:
        return {}
    measured = {p["step"]: p["change"] for p in controlled(read_probe(strip.folder / "probe.csv"))}
    found = {i: measured.get(natural_step(label)) for i, label in enumerate(strip.labels)}
    return {i: change for i, change in found.items() if change is not None and i}
