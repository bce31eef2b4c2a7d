"""The runs on the disk, as the pages show them: also those of the other host, in a folder that both share.

A run is known by a key that is made of its path; only folders that were found in the parents of the settings have one.
Reading a run's folder never runs anything of it, and a run that cannot be read is listed with the reason.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Iterable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...lib.checkpoints import MARKER
from ...lib.comparison import by_picture
from ...lib.config import DataConfig, RunConfig, difference, from_dict, to_dict
from ...lib.data.scan import scan
from ...lib.named_folders import is_below, roots_in
from ...lib.records import read_losses, read_probe, read_run
from ...lib.run_folder import RunFolder
from ...lib.verdicts import WORDS, Verdict, flags, verdicts
from .folders import is_local, run_parents, settings_file

MAX_PICTURES = 300
THUMBNAIL_PX = 192
_READING = threading.Lock()
_PREVIEW = re.compile(r"(\d{6,})-(\d+)-.*\.png")
_STRIPS = ("strip", "previews")  # begins of what pictures of strips in a run folder are called


def key_of(folder: Path) -> str:
    """The key that stands for a run folder."""
    return hashlib.sha256(str(folder.absolute()).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def run_folders() -> dict[str, Path]:
    """Key -> folder of every run in the known parents."""
    found = {}
    for parent in run_parents():
        if parent.is_dir():
            for folder in parent.iterdir():
                if (folder / MARKER).is_file():
                    found[key_of(folder)] = folder
    return found


def folder_of(key: str) -> Path:
    """The folder of a run. Errors: `ValueError` where there is none."""
    folder = run_folders().get(key)
    if folder is None:
        raise ValueError("this run is no longer there; refresh the list")
    return folder


def run_list(live: Iterable[Path]) -> list[dict[str, Any]]:
    """A line for each run, newest first; `live` are the folders of runs that go on in this program."""
    live = set(live)
    lines = [_line(key, folder, folder in live) for key, folder in run_folders().items()]
    return sorted(lines, key=lambda line: (line["created"], line["name"]), reverse=True)


def details(key: str) -> dict[str, Any]:
    """Everything that the page of one run shows. Errors: `ValueError`."""
    folder = folder_of(key)
    run = RunFolder.open(folder)
    config = run.config
    losses, probes = read_losses(folder / "loss.csv"), read_probe(folder / "probe.csv")
    pictures = by_picture(losses["image"], losses["t"], losses["loss"])
    shown = sorted(pictures, key=lambda p: -p.mean if math.isfinite(p.mean) else math.inf)[:MAX_PICTURES]
    return {
        **_line(key, folder, False),
        "summary": _summary(config),
        "changed": difference(RunConfig(), config),
        "config": to_dict(config),
        "trigger": ", ".join(dict.fromkeys(c.trigger for c in config.data.concepts if c.trigger)),
        "verdicts": _spoken(verdicts(probes, pictures)) if losses["step"].size else [],
        "pictures": [{**_finite(asdict(p)), "flags": flags(p)} for p in shown],
        "num_pictures": len(pictures),
        "checkpoints": _checkpoints(run),
        "previews": previews(folder),
        "strips": sorted(path.name for pattern in _STRIPS for path in folder.glob(f"{pattern}*.png")),
        "report": (folder / "report.html").is_file(),
    }


def _spoken(found: Iterable[Verdict]) -> list[dict[str, Any]]:
    """Words that the page translates, and what it fills in."""
    return [{"words": WORDS[verdict.kind], "values": verdict.values} for verdict in found]


def previews(folder: Path) -> list[dict[str, Any]]:
    """The previews of a run, by step and number."""
    found = []
    for path in (folder / "previews").glob("*.png"):
        match = _PREVIEW.fullmatch(path.name)
        if match:
            found.append({"step": int(match[1]), "number": int(match[2]), "name": path.name})
    return sorted(found, key=lambda p: (p["step"], p["number"]))


def picture_file(key: str, name: str) -> Path:
    """A picture of a run: a preview, a strip or a cell. Errors: `ValueError` where there is none of that name."""
    folder = folder_of(key)
    part, _, file = name.rpartition("/")
    path = folder / part / file
    plain = re.fullmatch(r"[^/\\\0]+\.png", file) and file not in ("..", ".")
    if part not in ("previews", "cells", "") or not plain or (not part and not file.startswith(_STRIPS)):
        raise ValueError("there is no such picture")
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("this picture is no longer there")
    return path


def thumbnail(path: Path) -> Image.Image:
    """A small copy of a picture. Errors: `ValueError` where it cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
            image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            return image.convert("RGB")
    except (OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"{path.name} cannot be shown: {error}") from None


def trained_picture(key: str, image: str) -> Path:
    """The file of a picture that a run was trained on. Errors: `ValueError` where it is gone or may not be shown."""
    # a page asks for many at once, and the first one reads the folder
    with _READING:
        paths = _paths_of(str(folder_of(key)))
    if image not in paths:
        raise ValueError(f"{image} is no longer where it was")
    path = paths[image]
    if not is_local() and not is_below(path.resolve(), roots_in(settings_file())):
        raise ValueError("pictures outside the known folders are not shown to other machines")
    return path


def chart(folder: Path, num_points: int = 400) -> dict[str, Any]:
    """The curves of a run: raw losses thinned to `num_points`, their smooth curve, and the controlled loss by step.

    The smooth curve is centred, so that it does not lag behind; at the ends it sees one side only.
    """
    run = read_run(folder / "run.csv")
    step, loss = run["step"], run["loss"]
    smooth = smoothed(loss)
    places = np.unique(np.linspace(0, len(step) - 1, min(num_points, len(step))).astype(int)) if len(step) else []
    return {
        "steps": [int(step[i]) for i in places],
        "loss": [_number(loss[i]) for i in places],
        "smooth": [_number(smooth[i]) for i in places],
        "controlled": controlled(read_probe(folder / "probe.csv")),
    }


def smoothed(loss: NDArray) -> NDArray:
    """A centred mean over a twentieth of the run (at least 5 steps, at most 400) on each side, of what is finite."""
    if not len(loss):
        return loss
    reach = int(min(400, max(5, len(loss) // 20)))
    finite = np.isfinite(loss)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, loss, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    first = np.maximum(np.arange(len(loss)) - reach, 0)
    last = np.minimum(np.arange(len(loss)) + reach + 1, len(loss))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[last] - sums[first]) / (counts[last] - counts[first])


def controlled(probes: dict[str, NDArray]) -> list[dict[str, Any]]:
    """By step: the loss at fixed noise and timesteps, and its change against the model without the network."""
    found = []
    for step in np.unique(probes["step"]):
        at = probes["step"] == step
        loss, base = float(probes["loss"][at].mean()), float(probes["loss_base"][at].mean())
        found.append(
            {"step": int(step), "loss": _number(loss), "change": _number(loss / base - 1 if base else math.nan)}
        )
    return found


def _line(key: str, folder: Path, is_live: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"key": key, "name": folder.name, "folder": str(folder), "live": is_live, "created": ""}
    line |= {"error": "", "host": "", "base": "", "steps": [], "num_steps": None, "picture": None, "lineage": None}
    try:
        run = RunFolder.open(folder)
        config, versions = run.config, run.description["versions"]
    except (ValueError, OSError) as error:
        return {**line, "error": str(error)}
    shown = previews(folder)
    lineage = run.description.get("lineage")
    return line | {
        "created": run.created,
        "host": str(versions.get("host", "")),
        "base": str(versions.get("model name", "")),
        "algorithm": config.trainable.algorithm,
        "rank": config.trainable.rank,
        "steps": list(run.checkpoints.networks()),
        "num_steps": config.loop.steps,
        "num_epochs": config.loop.epochs,
        "picture": shown[-1]["name"] if shown else None,
        "lineage": None if not lineage else {"name": lineage["name"], "step": lineage["step"]},
    }


def _checkpoints(run: RunFolder) -> list[dict[str, Any]]:
    measured = {point["step"]: point for point in controlled(read_probe(run.path / "probe.csv"))}
    return [
        {
            "step": step,
            "file": path.name,
            "size": path.stat().st_size if path.is_file() else None,
            "change": measured.get(step, {}).get("change"),
        }
        for step, path in run.checkpoints.networks().items()
    ]


def _summary(config: RunConfig) -> list[tuple[str, str]]:
    trainable, loop = config.trainable, config.loop
    batch = f"{loop.batch_size}" + (f" x {loop.accumulate}" if loop.accumulate > 1 else "")
    return [
        ("Network", f"{trainable.algorithm}, rank {trainable.rank}, alpha {trainable.alpha:g}, {trainable.layers}"),
        ("Learning rate", config.rate.schedule),
        ("Optimizer", config.optimizer.name),
        ("Batch", batch),
        ("Resolution", f"{config.data.resolution} px"),
        ("Pictures from", "; ".join(concept.folder for concept in config.data.concepts)),
    ]


@lru_cache(maxsize=8)
def _paths_of(folder: str) -> dict[str, Path]:
    data = from_dict(DataConfig, RunFolder.open(folder).description["config"]["data"])
    return {sample.name: sample.path for sample in scan(data).samples}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(v) if isinstance(v, float) else v for name, v in values.items()}


def _number(value: Any) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
