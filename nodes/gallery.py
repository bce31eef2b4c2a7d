"""The gallery of a data set's folder as the page asks for it: what each request holds, and what is answered.

A request names its folder under the rules of `paths`, and pictures by their names in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..lib.data.gallery import EditPlan, Gallery, GalleryFilter, Item, gallery_filter, opened
from ..lib.data.headers import printable
from ..lib.data.tag_edits import EDITS
from . import paths

MOST_SHOWN = 200  # changes of an edit that are listed
MOST_TAGS = 1000
PAGE = 100

Asked = Mapping[str, Any]


def page(asked: Asked) -> dict[str, Any]:
    """{folder, filter*, offset*, limit*} -> {folder, items, offset, num_found, num_all, undo, problems}."""
    gallery = _gallery(asked)
    found = gallery.page(_filter(asked), _count(asked, "offset", 0), _count(asked, "limit", PAGE))
    return {
        "folder": str(gallery.folder),
        "items": [_item(item) for item in found.items],
        "offset": found.offset,
        "num_found": found.num_found,
        "num_all": found.num_all,
        "undo": gallery.newest_edit(),
        "problems": [str(problem) for problem in gallery.problems if problem.severity != "note"],
    }


def tags(asked: Asked) -> dict[str, Any]:
    """{folder, filter*} -> {tags: [[tag, number of captions], ...], the most frequent first, num_tags}."""
    counts = _gallery(asked).tag_counts(_filter(asked))
    return {"tags": [[count.tag, count.num_captions] for count in counts[:MOST_TAGS]], "num_tags": len(counts)}


def edits(asked: Asked) -> dict[str, Any]:
    """{} -> {edits: [{name, needs}]}; needs: what its words are, "" where it takes none."""
    return {"edits": [{"name": name, "needs": kind.needs} for name, kind in EDITS.items()]}


def plan(asked: Asked) -> dict[str, Any]:
    """{folder, edits: [[name, words]], filter* or names} -> {title, digest, num, num_meant, num_left_out, changes}.

    changes: of the first 200 caption files {name, parts: [[" ", "-" or "+", tag], ...]}.
    """
    gallery = _gallery(asked)
    made = _plan(gallery, asked)
    return {
        "title": made.title,
        "digest": made.digest,
        "num": len(made.changes),
        "num_meant": made.num_meant,
        "num_left_out": made.num_left_out,
        "changes": [
            {"name": printable(change.path.relative_to(gallery.folder).as_posix()), "parts": change.parts()}
            for change in made.changes[:MOST_SHOWN]
        ],
    }


def apply(asked: Asked) -> dict[str, Any]:
    """As `plan`, with the digest of what was shown -> {num, undo}."""
    gallery = _gallery(asked)
    num = gallery.apply(_plan(gallery, asked), _text(asked, "digest"))
    return {"num": num, "undo": gallery.newest_edit()}


def caption(asked: Asked) -> dict[str, Any]:
    """{folder, name, caption, before: the caption that was shown} -> {item, undo}."""
    gallery = _gallery(asked)
    item = gallery.set_caption(_text(asked, "name"), _text(asked, "caption"), _text(asked, "before"))
    return {"item": _item(item), "undo": gallery.newest_edit()}


def undo(asked: Asked) -> dict[str, Any]:
    """{folder} -> {title, num, undo: the edit before it}."""
    gallery = _gallery(asked)
    title, num = gallery.undo()
    return {"title": title, "num": num, "undo": gallery.newest_edit()}


ANSWERS: Mapping[str, Callable[[Asked], dict[str, Any]]] = {
    "page": page,
    "tags": tags,
    "edits": edits,
    "plan": plan,
    "apply": apply,
    "caption": caption,
    "undo": undo,
}


def thumbnail(asked: Asked) -> bytes:
    """{folder, name, side*} -> a small JPEG."""
    side = str(asked.get("side", "256"))
    if not side.isdecimal():
        raise ValueError(f"side must be a number of pixels, got {side[:20]!r}")
    return _gallery(asked).thumbnail(_text(asked, "name"), int(side[:6]))


def _gallery(asked: Asked) -> Gallery:
    return opened(paths.named_folder(_text(asked, "folder")))


def _filter(asked: Asked) -> GalleryFilter:
    given = asked.get("filter", {})
    if not isinstance(given, dict):
        raise ValueError("filter must be an object")
    return gallery_filter(given)


def _plan(gallery: Gallery, asked: Asked) -> EditPlan:
    given, names = asked.get("edits"), asked.get("names")
    if not isinstance(given, list) or not all(
        isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) for text in one) for one in given
    ):
        raise ValueError("edits must be a list of pairs: name and words")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("names must be a list of pictures")
    return gallery.plan([(name, words) for name, words in given], _filter(asked) if names is None else names)


def _item(item: Item) -> dict[str, Any]:
    return {
        "name": item.name,
        "caption": item.caption,
        "version": item.version,
        "size": item.size,
        "problems": [{"text": problem.text, "severity": problem.severity} for problem in item.problems],
        "editable": item.is_editable,
    }


def _text(asked: Asked, name: str) -> str:
    value = asked.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {str(value)[:40]!r}")
    return value


def _count(asked: Asked, name: str, default: int) -> int:
    value = asked.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {str(value)[:40]!r}")
    return value
