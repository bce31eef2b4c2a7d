"""Models that look at the pictures of a data set, each run as a job: captions, and how pleasing pictures are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ...lib.config import DataConfig, from_dict
from ...lib.data.aesthetic import AestheticScorer, best_first, score_pictures, score_table
from ...lib.data.gallery import EditPlan, Gallery, Item
from ...lib.data.headers import PictureError, named_faults
from ...lib.data.pictures import decode, on_white
from ...lib.data.scan import Problem
from ...lib.data.tagger import TaggingConfig, tag_pictures
from . import captioners, jobs
from .fields import table, text
from .galleries import finding_of, gallery_of, names_of, shown
from .jobs import Job, StoppedError, the_queue

Found = TypeVar("Found")
# pictures -> what was found in them by path, and what is wrong with the others
Look = Callable[[Sequence[Item]], tuple[dict[Path, Found], Iterable[Problem]]]

PICTURES_AT_ONCE = 8  # for which the host's queue is taken


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
            "problems": [finding_of(gallery, problem) for problem in problems],
        }

    return jobs.start("caption", gallery.folder, work).status()


def score(values: dict[str, Any]) -> Any:
    """Begin to say how pleasing pictures are; no file is changed."""
    gallery = gallery_of(values)
    names = names_of(gallery, values)
    place = captioners.named_predictor(text(values, "model"))

    def work(job: Job) -> dict[str, Any]:
        job.note = "opens the model"
        look, takes_queue = _scorer(place)
        job.note = ""
        scores: dict[str, float] = {}
        problems: list[Problem] = []
        try:
            _look_at(job, [gallery.item(name) for name in names], look, takes_queue, scores, problems)
        except jobs.EXPECTED as error:
            if not scores:
                raise
            job.error = str(error)  # what was found before is kept
        return {
            "scores": best_first(scores),
            "csv": score_table(scores).decode(),
            "problems": [finding_of(gallery, problem) for problem in problems],
        }

    return jobs.start("score", gallery.folder, work).status()


def words_of(job_id: str, gallery: Gallery) -> EditPlan:
    """What writing the captions that a job found would change now. Errors: `ValueError`."""
    job = jobs.find(job_id)
    if job.kind != "caption" or job.kept is None or job.folder != gallery.folder:
        raise ValueError("this work has found no captions")
    words, existing, title = job.kept
    return gallery.plan_words(words, existing, title)


def _look_at(
    job: Job,
    items: Sequence[Item],
    look: Look[Found],
    takes_queue: bool,
    found: dict[str, Found],
    problems: list[Problem],
) -> None:
    """Put what `look` finds in pictures into `found`, by name, and what cannot be looked at into `problems`.

    A few pictures at a time, so that others get a turn where the host's queue is needed.
    """
    job.progress(0, len(items))
    for start in range(0, len(items), PICTURES_AT_ONCE):
        part = items[start : start + PICTURES_AT_ONCE]
        try:
            with the_queue(job) if takes_queue else nullcontext():
                new, faults = look(part)
        except StoppedError:
            break
        found.update((item.name, new[item.path]) for item in part if item.path in new)
        problems += faults
        job.progress(start + len(part), len(items))
        if job.stop_requested:
            break


def _tagger(key: str, config: TaggingConfig) -> tuple[Look[list[str]], bool]:
    from modules import devices

    tagger = captioners.open_tagger(key, str(devices.device))

    def look(part: Sequence[Item]) -> tuple[dict[Path, list[str]], Iterable[Problem]]:
        found = tag_pictures([item.path for item in part], tagger, config)
        return found.words(), found.problems

    return look, captioners.takes_queue(tagger.model)


def _host(key: str, config: TaggingConfig) -> tuple[Look[list[str]], bool]:
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


def _scorer(place: Path) -> tuple[Look[float], bool]:
    from modules import devices

    scorer = AestheticScorer(place, str(devices.device))

    def look(part: Sequence[Item]) -> tuple[dict[Path, float], Iterable[Problem]]:
        found = score_pictures([item.path for item in part], scorer)
        return found.scores, found.problems

    return look, captioners.takes_queue(scorer.model)
