"""What takes long on the page "Data set", each as a job: checking and preparing pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...lib.config import ConceptConfig, DataConfig
from ...lib.data import preparing
from ...lib.data.findings import SEVERITIES, examine
from ...lib.data.gallery import Gallery
from ...lib.data.image_steps import Background, Faces, Upscale, steps_from
from ...lib.data.pieces import Step, Tools
from ...lib.data.scan import Problem
from ...lib.data.segmentation import Segmenter
from ...lib.data.tag_rules import tag_rules
from ...lib.files import sha256_of
from . import captioners, faces, jobs, upscalers
from .fields import text
from .folders import new_folder
from .galleries import finding_of, gallery_of, name_in
from .jobs import Job, the_queue
from .model import token_counter

MOST_FINDINGS = 500  # of each sort
MOST_GROUPS = 300
MOST_NOTES = 500


def check(values: dict[str, Any]) -> Any:
    """Begin to look at everything: files, captions, every pixel, what shows the same."""
    gallery = gallery_of(values)
    data = DataConfig(
        concepts=(ConceptConfig(folder=str(gallery.folder)),),
        flip=bool(values.get("flip")),
        caption_from_name=bool(values.get("caption_from_name")),
    )
    return jobs.start("check", gallery.folder, lambda job: _checked(job, gallery, data)).status()


def prepare(values: dict[str, Any]) -> Any:
    """Begin to prepare the pictures into a new folder; or to try it, with `dry_run`."""
    gallery = gallery_of(values)
    out = new_folder(str(values.get("out") or ""), "the new folder")
    given = values.get("steps")
    if not isinstance(given, list) or not given or not all(isinstance(step, dict) for step in given):
        raise ValueError("there is nothing to do; choose at least one step")
    steps = steps_from(given)
    models = {name: str(values.get(name) or "") for name in ("segmenter", "upscaler")}

    def work(job: Job) -> dict[str, Any]:
        job.note = "reads the folder"
        done = preparing.prepare(
            gallery.folder,
            out,
            steps,
            _tools(job, steps, **models),
            dry_run=bool(values.get("dry_run")),
            on_progress=job.progress,
            stopped=lambda: job.stop_requested,
        )
        return _prepared(gallery, done, out, bool(values.get("dry_run")))

    return jobs.start("prepare", gallery.folder, work).status()


def status(values: dict[str, Any]) -> Any:
    """How far a job is."""
    return jobs.find(text(values, "id")).status()


def stop(values: dict[str, Any]) -> Any:
    """Stop a job; what it has done is kept."""
    job = jobs.find(text(values, "id"))
    job.stop()
    return job.status()


def _checked(job: Job, gallery: Gallery, data: DataConfig) -> dict[str, Any]:
    job.note = "reads the folder"
    num_tokens = token_counter()

    def on_progress(done: int, total: int) -> None:
        job.note = ""
        job.progress(done, total)

    found = examine(data, tag_rules(), num_tokens, on_progress=on_progress, stopped=lambda: job.stop_requested)
    return {
        "num": len(found.samples),
        "num_left_out": len(found.left_out),
        "findings": {severity: _sorts(gallery, found.problems, severity) for severity in SEVERITIES},
        "tokens": num_tokens is not None,
        "num_groups": len(found.duplicates),
        "groups": [
            {"equal": group.equal, "names": [name_in(gallery, path) for path in group.paths]}
            for group in found.duplicates[:MOST_GROUPS]
        ],
    }


def _sorts(gallery: Gallery, problems: Iterable[Problem], severity: str) -> list[dict[str, Any]]:
    """The problems of a severity by their sort, the most frequent first."""
    sorts: dict[str, list[Problem]] = {}
    for problem in problems:
        if problem.severity == severity:
            sorts.setdefault(problem.heading, []).append(problem)
    return [
        {
            "heading": heading,
            "num": sum(len(problem.about) for problem in alike),
            "items": [finding_of(gallery, problem) for problem in alike[:MOST_FINDINGS]],
        }
        for heading, alike in sorted(sorts.items(), key=lambda item: -len(item[1]))
    ]


def _tools(job: Job, steps: Sequence[Step], segmenter: str, upscaler: str) -> Tools:
    """What the steps need from this host, and no more: faces, a segmentation model on its device, an upscaler."""
    from modules import devices

    tools, used = Tools(rules=tag_rules()), []
    if any(isinstance(s, Faces) or (getattr(s, "focal", False) and getattr(s, "face", 0)) for s in steps):
        tools = replace(tools, detect_faces=faces.detector())
        used.append(f"faces {faces.name()}")
    if segmenter and any(isinstance(step, Background) for step in steps):
        model = Segmenter(captioners.named_segmenter(segmenter), str(devices.device))
        used.append(f"{segmenter} {sha256_of(model.model.path)}")

        def mask(picture: Image.Image) -> Image.Image:
            with the_queue(job) if captioners.takes_queue(model.model) else nullcontext():
                return model(picture)

        tools = replace(tools, background_mask=mask)
    if any(isinstance(step, Upscale) for step in steps):
        name = upscaler or next(iter(upscalers.names()), "")
        used.append(f"upscaler {upscalers.identity(name)}")

        def upscale(picture: Image.Image) -> Image.Image:
            with the_queue(job):
                return upscalers.enlarged(picture, name)

        tools = replace(tools, upscale=upscale)
    return replace(tools, names=tuple(used))


def _prepared(gallery: Gallery, done: preparing.Preparation, out: Path, dry_run: bool) -> dict[str, Any]:
    notes = [f"{name_in(gallery, p.path)} {p.text}" for p in done.problems if p.severity != "note"]
    notes += [f"{picture.source} is left out: {picture.left_out}" for picture in done.pictures if picture.left_out]
    notes += [f"{picture.source} {note}" for picture in done.pictures for note in picture.notes]
    made = [
        {"from": picture.source, "to": [[name, *size] for name, size in picture.outputs.items()]}
        for picture in done.pictures
        if picture.made
    ]
    return {
        "out": str(out),
        "dry_run": dry_run,
        "num_made": done.num_made,
        "num_kept": done.num_kept,
        "num_notes": len(notes),
        "notes": notes[:MOST_NOTES],
        "made": made[:MOST_NOTES] if dry_run else [],
    }
