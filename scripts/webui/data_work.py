"""What takes long on the page "Data set", each as a job: checking, preparing and captioning pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...lib.config import ConceptConfig, DataConfig, from_dict
from ...lib.data import preparing
from ...lib.data.findings import SEVERITIES, examine
from ...lib.data.gallery import EditPlan, Gallery, Item
from ...lib.data.headers import PictureError, named_faults
from ...lib.data.image_steps import Background, Faces, Upscale, steps_from
from ...lib.data.onnx_model import OnnxModel
from ...lib.data.pictures import decode, on_white
from ...lib.data.pieces import Step, Tools
from ...lib.data.scan import Problem
from ...lib.data.segmentation import Segmenter
from ...lib.data.tag_rules import tag_rules
from ...lib.data.tagger import TaggingConfig, tag_pictures
from ...lib.files import sha256_of
from . import captioners, faces, jobs, upscalers
from .fields import table, text
from .folders import new_folder
from .galleries import gallery_of, name_in, names_of, shown
from .jobs import Job, StoppedError, the_queue
from .model import token_counter

# pictures -> their words by path, and what is wrong with the others
Look = Callable[[Sequence[Item]], tuple[dict[Path, list[str]], Iterable[Problem]]]

MOST_FINDINGS = 500  # of each sort
MOST_GROUPS = 300
MOST_NOTES = 500
PICTURES_AT_ONCE = 8  # for which the host's queue is taken


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


def caption(values: dict[str, Any]) -> Any:
    """Begin to caption pictures; what is found is shown, and written when the user says so."""
    gallery = gallery_of(values)
    key, config = text(values, "model"), from_dict(TaggingConfig, table(values, "tagging"), "tagging")
    names = names_of(gallery, values)

    def work(job: Job) -> dict[str, Any]:
        job.note = "opens the model"
        look, takes_queue = (_host if key in captioners.HOST else _tagger)(key, config)
        job.note = ""
        items = [gallery.item(name) for name in names]
        todo = [item for item in items if config.existing != "skip" or not item.caption]
        words: dict[str, list[str]] = {}
        problems: list[Problem] = []
        try:
            _look_at(job, todo, look, takes_queue, words, problems)
        except jobs.EXPECTED as error:
            if not words:
                raise
            job.error = str(error)  # what was found before is kept
        job.kept = words, config.existing, f"captions by {key.rpartition('/')[2]}"
        return {
            **shown(gallery, words_of(job.id, gallery)),
            "num_looked_at": len(words),
            "num_passed_over": len(items) - len(todo),
            "problems": [_finding(gallery, problem) for problem in problems],
        }

    return jobs.start("caption", gallery.folder, work).status()


def status(values: dict[str, Any]) -> Any:
    """How far a job is."""
    return jobs.find(text(values, "id")).status()


def stop(values: dict[str, Any]) -> Any:
    """Stop a job; what it has done is kept."""
    job = jobs.find(text(values, "id"))
    job.stop()
    return job.status()


def words_of(job_id: str, gallery: Gallery) -> EditPlan:
    """What writing the captions that a job found would change now. Errors: `ValueError`."""
    job = jobs.find(job_id)
    if job.kind != "caption" or job.kept is None or job.folder != gallery.folder:
        raise ValueError("this work has found no captions")
    words, existing, title = job.kept
    return gallery.plan_words(words, existing, title)


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
            "items": [_finding(gallery, problem) for problem in alike[:MOST_FINDINGS]],
        }
        for heading, alike in sorted(sorts.items(), key=lambda item: -len(item[1]))
    ]


def _look_at(
    job: Job,
    items: Sequence[Item],
    look: Look,
    takes_queue: bool,
    words: dict[str, list[str]],
    problems: list[Problem],
) -> None:
    """Put what `look` finds in pictures into `words`, by name, and what cannot be looked at into `problems`.

    A few pictures at a time, so that others get a turn where the host's queue is needed.
    """
    job.progress(0, len(items))
    for start in range(0, len(items), PICTURES_AT_ONCE):
        part = items[start : start + PICTURES_AT_ONCE]
        try:
            with the_queue(job) if takes_queue else nullcontext():
                found, faults = look(part)
        except StoppedError:
            break
        words.update((item.name, found[item.path]) for item in part if item.path in found)
        problems += faults
        job.progress(start + len(part), len(items))
        if job.stop_requested:
            break


def _tagger(key: str, config: TaggingConfig) -> tuple[Look, bool]:
    from modules import devices

    tagger = captioners.open_tagger(key, str(devices.device))

    def look(part: Sequence[Item]) -> tuple[dict[Path, list[str]], Iterable[Problem]]:
        found = tag_pictures([item.path for item in part], tagger, config)
        return found.words(), found.problems

    return look, _takes_queue(tagger.model)


def _host(key: str, config: TaggingConfig) -> tuple[Look, bool]:
    if said := captioners.missing(key):
        raise ValueError(said)

    def look(part: Sequence[Item]) -> tuple[dict[Path, list[str]], Iterable[Problem]]:
        pictures: dict[Path, Image.Image] = {}
        problems: list[Problem] = []
        for item in part:
            try:
                with named_faults(item.path):
                    pictures[item.path] = on_white(*decode(item.path, DataConfig().max_megapixels))[0]
            except PictureError as error:
                problems.append(Problem(item.path, error.reason, "error"))
        with captioners.host_captioner(key, config) as captioner:
            return {path: captioner(picture) for path, picture in pictures.items()}, problems

    return look, True


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
            with the_queue(job) if _takes_queue(model.model) else nullcontext():
                return model(picture)

        tools = replace(tools, background_mask=mask)
    if any(isinstance(step, Upscale) for step in steps):
        name = upscaler or next(iter(upscalers.names()), "")
        used.append(f"upscaler {name}")

        def upscale(picture: Image.Image) -> Image.Image:
            with the_queue(job):
                return upscalers.enlarged(picture, name)

        tools = replace(tools, upscale=upscale)
    return replace(tools, names=tuple(used))


def _takes_queue(model: OnnxModel) -> bool:
    """Whether a model shares the device with the host's."""
    return model.provider != "CPUExecutionProvider"


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


def _finding(gallery: Gallery, problem: Problem) -> dict[str, Any]:
    return {
        "name": name_in(gallery, problem.path),
        "text": problem.text,
        "files": [name_in(gallery, path) for path in problem.files[:MOST_FINDINGS]],
    }
