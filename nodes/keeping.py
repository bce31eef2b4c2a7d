"""What is kept of runs: which run folder a graph means, the published network, its losses, the strip of its previews.

A graph that is queued again means the run that it made before, as long as its settings and its data are the same: it
goes on where it stopped, or its result is there at once. This knows no host.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..lib import files
from ..lib.checkpoints import MARKER
from ..lib.config import RunConfig
from ..lib.records import read_run
from ..lib.run_folder import RunFolder, differences
from ..lib.strip.growing import STEM, preview_files, write_strip

PUBLISHED = "published.json"  # in a run folder: the stem of a checkpoint -> what it is called where the host lists it
_publishing = threading.Lock()


def earlier_runs(parent: Path, name: str, config: RunConfig, source: tuple[str, int] | None = None) -> list[RunFolder]:
    """The runs of this name below `parent` with the same settings, newest first. Their data and base are not compared.

    `source`: run id and step that a run must have been branched off from; None means one that begins at step 0.
    """
    stem = files.safe_name(name, "run")
    numbered = re.compile(re.escape(stem) + r"(?:-(\d{1,9}))?")
    found = []
    for path in parent.iterdir() if parent.is_dir() else ():
        match = numbered.fullmatch(path.name)
        if match and (path / MARKER).is_file() and (path / "run.json").is_file():
            run = RunFolder.open(path)
            about, lineage = run.description, run.description["lineage"]
            branched = None if lineage is None else (lineage["run"], lineage["step"])
            if branched == source and not differences(about, config, about["base"], about["data"]):
                found.append((int(match[1] or 1), run))
    return [run for _, run in sorted(found, key=lambda pair: pair[0], reverse=True)]


def network_file(run: RunFolder, step: int | None = None) -> tuple[int, Path]:
    """The network of a step, or the newest, and its step. Errors: `ValueError` where there is none."""
    networks = run.checkpoints.networks()
    if not networks:
        raise ValueError(f"{run.path} has no checkpoint yet")
    if step is None:
        step = max(networks)
    if step not in networks:
        raise ValueError(f"{run.path.name} has no checkpoint of step {step}; there are {', '.join(map(str, networks))}")
    return step, networks[step]


def publish(network: Path, folder: Path, name: str, notes: Mapping[str, str] | None = None) -> Path:
    """Copy a network under a friendly name into `folder`, where the host lists it; an equal copy is found again.

    No name is ever used twice: -2, -3 ... are put behind it. The network's own metadata says the new name, since
    programs know it by that; `notes` are added to it.
    """
    tensors, metadata = files.read_safetensors(network)
    record = network.parent.parent / PUBLISHED
    in_run = (network.parent.parent / MARKER).is_file()
    with _publishing:
        known: dict[str, Any] = json.loads(record.read_text("utf-8")) if in_run and record.is_file() else {}
        before = known.get(network.stem, {})
        for stem, about in before.items():
            path = folder / f"{stem}.safetensors"
            same = about["name"] == name and about["notes"] == dict(notes or {})
            if same and path.is_file() and files.sha256_of(path) == about["sha256"]:
                return path
        stem = _free_stem(folder, name)
        metadata = {key: stem if value == network.stem else value for key, value in metadata.items()}
        path = folder / f"{stem}.safetensors"
        digest = files.write_safetensors(path, tensors, metadata | dict(notes or {}))
        if in_run:
            about = {"name": name, "notes": dict(notes or {}), "sha256": digest}
            files.write_json(record, {**known, network.stem: {**before, stem: about}})
        return path


def write_network(folder: Path, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a network that is in memory under a name that is free."""
    with _publishing:
        stem = _free_stem(folder, name)
        path = folder / f"{stem}.safetensors"
        own = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        files.write_safetensors(path, own, {"ss_output_name": stem, **metadata})
        return path


def _free_stem(folder: Path, name: str) -> str:
    """A name that no file in the folder has, on any system."""
    files.make_folder(folder)
    taken = {path.stem.lower() for path in folder.iterdir()}
    wanted, number = files.safe_name(name, "lora"), 1
    while (stem := wanted if number == 1 else f"{wanted}-{number}").lower() in taken:
        number += 1
    return stem


def losses(run: RunFolder) -> list[float]:
    """The loss of each step, as recorded."""
    return [float(loss) for loss in read_run(run.path / "run.csv")["loss"]]


def strip_of_previews(run: RunFolder) -> Image.Image | None:
    """The first page of the run's strip of previews, which is made where it is older than them; None without any."""
    found = preview_files(run)
    if not found:
        return None
    page: Path | None = run.path / f"{STEM}.png"
    if not page.is_file() or page.stat().st_mtime_ns < max(path.stat().st_mtime_ns for path in found.values()):
        page = write_strip(run)
    assert page is not None
    with Image.open(page) as image:
        return image.convert("RGB")
