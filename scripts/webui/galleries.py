"""The galleries that requests name, and how plans of edits are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...lib.data.gallery import EditPlan, Gallery, GalleryFilter, gallery_filter, opened
from ...lib.data.scan import Problem
from .fields import table
from .folders import picture_folder

MOST_SHOWN = 200  # captions of a difference
MOST_FILES = 500  # that a problem names


def gallery_of(values: dict[str, Any]) -> Gallery:
    """The gallery of {"folder": ...}. Errors: `ValueError`."""
    return opened(picture_folder(str(values.get("folder") or ""), "the folder"))


def which_of(values: dict[str, Any]) -> GalleryFilter | list[str]:
    """The pictures that are meant: {"names": [...]}, or {"filter": {...}}. Errors: `ValueError`."""
    names = values.get("names")
    if names is None:
        return gallery_filter(table(values, "filter"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("names must be a list of pictures")
    return names


def names_of(gallery: Gallery, values: dict[str, Any]) -> list[str]:
    """Their names. Errors: `ValueError`."""
    which = which_of(values)
    return gallery.names(which) if isinstance(which, GalleryFilter) else which


def shown(gallery: Gallery, plan: EditPlan) -> dict[str, Any]:
    """A plan as the page shows it."""
    return {
        "title": plan.title,
        "digest": plan.digest,
        "num": len(plan.changes),
        "num_meant": plan.num_meant,
        "num_left_out": plan.num_left_out,
        "changes": [
            {"name": name_in(gallery, change.path), "parts": change.parts()} for change in plan.changes[:MOST_SHOWN]
        ],
    }


def name_in(gallery: Gallery, path: Path) -> str:
    """A path below the folder as the gallery names it, else whole."""
    try:
        return path.relative_to(gallery.folder).as_posix()
    except ValueError:
        return str(path)


def finding_of(gallery: Gallery, problem: Problem) -> dict[str, Any]:
    """A problem as the page shows it."""
    return {
        "name": name_in(gallery, problem.path),
        "text": problem.text,
        "files": [name_in(gallery, path) for path in problem.files[:MOST_FILES]],
    }
