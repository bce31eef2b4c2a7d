"""The previews of a run as a strip that grows while it trains: steps along X, prompts along Y, the same seeds.

While the run goes on only the HTML page is written, which costs nothing beside a preview, and loads itself again in a
browser; when it ends, the pages with their metrics.
"""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from ..files import write_bytes
from ..records import read_probe
from ..run_folder import RunFolder
from .cells import Cell
from .gallery import gallery
from .page import Sheet
from .publish import compose

STEM = "previews"  # of the files in the run folder
BASE = "no network"  # what a network that has not been trained yet shows
_PREVIEW = re.compile(r"(\d{6,18})-(\d+)-(.*)\.png", re.DOTALL)
_REFRESH_SECONDS = 15


def preview_files(run: RunFolder) -> dict[tuple[int, int], Path]:
    """(step, number of the prompt from 1) -> picture."""
    found = {}
    for path in sorted(run.previews.iterdir()) if run.previews.is_dir() else ():
        match = _PREVIEW.fullmatch(path.name)
        if match:
            found[int(match[1]), int(match[2])] = path
    return found


def write_page(run: RunFolder, *, grows: bool = False) -> Path | None:
    """Write `previews.html` from what is there; None without previews. With `grows` a browser loads it again and again.

    Errors: `OSError`.
    """
    found = preview_files(run)
    if not found:
        return None
    columns, rows, cells = _laid_out(run, found)
    with Image.open(found[max(found)]) as image:  # the latest step's
        size = image.size
    note = "Steps side by side at fixed seeds." + (" Grows while the run goes on." if grows else "")
    page = gallery(
        Sheet(columns, rows, run.path.name, note),
        {(cell.column, cell.row): cell for cell in cells},
        size,
        refresh_seconds=_REFRESH_SECONDS if grows else 0,
    )
    path = run.path / f"{STEM}.html"
    write_bytes(path, page.encode("utf-8", "backslashreplace"))
    return path


def write_strip(run: RunFolder) -> Path | None:
    """Write `previews.png` (and further pages), `.json` and `.html` of a run; the first page, or None without previews.

    Errors: `OSError`, also for a preview that cannot be read.
    """
    found = preview_files(run)
    if not found:
        return None
    columns, rows, cells = _laid_out(run, found)
    steps = _steps(found)
    changes = controlled_changes(run.path)
    pages = compose(
        columns,
        rows,
        cells,
        run.path / f"{STEM}.png",
        title=run.path.name,
        note="Previews of the run, steps side by side at fixed seeds.",
        base=0 if steps[0] == 0 else None,
        controlled={column: changes[step] for column, step in enumerate(steps) if step and step in changes},
    )
    return pages[0]


def controlled_changes(folder: Path) -> dict[int, float]:
    """Step -> the controlled loss against that of the base, where the run measured it: -0.04 is 4 % less."""
    probe = read_probe(folder / "probe.csv")
    found = {}
    for step in sorted(set(probe["step"].tolist())):
        at = probe["step"] == step
        base = float(probe["loss_base"][at].mean())
        if base:
            found[int(step)] = float(probe["loss"][at].mean()) / base - 1
    return found


def _laid_out(run: RunFolder, found: dict[tuple[int, int], Path]) -> tuple[list[str], list[str], list[Cell]]:
    """Labels of columns and rows, and the cells."""
    steps, numbers = _steps(found), sorted({number for _, number in found})
    preview, rows = run.config.preview, []
    for number in numbers:
        words = next(_PREVIEW.fullmatch(path.name)[3] for (_, n), path in found.items() if n == number)  # type: ignore[index]
        prompt = preview.prompts[number - 1] if number <= len(preview.prompts) else words
        rows.append(f"{prompt}\nseed {preview.seed + number - 1}")
    columns = [f"{run.path.name}-{step:06d}" if step else BASE for step in steps]
    cells = [
        Cell(steps.index(step), numbers.index(number), path, file=f"{run.previews.name}/{path.name}")
        for (step, number), path in found.items()
    ]
    return columns, rows, cells


def _steps(found: dict[tuple[int, int], Path]) -> list[int]:
    return sorted({step for step, _ in found})
