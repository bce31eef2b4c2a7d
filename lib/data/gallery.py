"""A data set's folder as a gallery: its pictures with their captions, filters, edits that are shown first, and undo.

Both hosts' pages are built on it. It is read once; afterwards only what changed on disk is read again. Pictures are
named by their path below the folder, with `/`; another name is refused, so no request reaches out of the folder.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import caption_files
from .caption_files import CaptionChange
from .captions import one_line
from .findings import TagCount, tag_counts
from .gallery_filter import EVERYTHING, GalleryFilter, gallery_filter
from .gallery_items import Entry, FileState, Item, state_of
from .headers import printable
from .scan import Problem, folder_at, pictures_below
from .tag_edits import edit, in_turn
from .tag_rules import TagRules, tag_rules
from .thumbnails import Thumbnails

__all__ = ["EVERYTHING", "EditPlan", "Gallery", "GalleryFilter", "Item", "Page", "gallery_filter", "opened"]

REFRESH_SECONDS = 2.0  # a page asks often; the folder is looked through no more often than this
MAX_PAGE = 500
NUM_KEPT = 8  # folders that are kept in memory


@dataclass(frozen=True)
class Page:
    """Some of the pictures that a filter finds, in the order of their names."""

    items: tuple[Item, ...]
    offset: int
    num_found: int
    num_all: int


@dataclass(frozen=True)
class EditPlan:
    """What an edit would change. Nothing is written before `Gallery.apply`."""

    title: str
    changes: tuple[CaptionChange, ...]
    num_meant: int  # pictures that the edit was for
    num_left_out: int  # of these: captions that cannot be edited

    @property
    def digest(self) -> str:
        """Of every byte that would change, to apply exactly what was shown."""
        sha = hashlib.sha256(self.title.encode("utf-8", "backslashreplace"))
        for change in self.changes:
            for part in (os.fsencode(change.path), b"-" if change.old is None else b"+" + change.old, change.new):
                sha.update(len(part).to_bytes(8, "little") + part)
        return sha.hexdigest()

    def diff(self, most: int | None = None) -> str:
        """A line for each caption that changes, at most so many."""
        lines = [change.diff() for change in self.changes[:most]]
        if len(lines) < len(self.changes):
            lines.append(f"and {len(self.changes) - len(lines)} more")
        return "\n".join(lines)


class Gallery:
    """A folder of pictures and captions. Several threads may use it at once."""

    def __init__(self, folder: Path | str, rules: TagRules | None = None) -> None:
        """Read it. Errors: `ValueError` where there is no such folder."""
        self.folder = Path(folder_at(os.fspath(folder), "the folder"))
        self.problems: tuple[Problem, ...] = ()  # of folders, not of single pictures
        self._rules = rules or tag_rules()
        self._thumbnails = Thumbnails()
        self._entries: dict[str, Entry] = {}
        self._found: tuple[GalleryFilter | None, list[Entry]] = (None, [])
        self._counts: tuple[GalleryFilter | None, list[TagCount]] = (None, [])
        self._newest: tuple[tuple[Path, FileState] | None, str] = (None, "")
        self._read_at = float("-inf")
        self._lock = threading.RLock()
        self.refresh()

    def refresh(self) -> int:
        """Look through the folder and read again what changed by time or size; how many pictures that were."""
        with self._lock:
            problems: list[Problem] = []
            before, entries, num_read = self._entries, {}, 0
            inside: dict[Path, bool] = {}
            listing = pictures_below(os.fspath(self.folder), 0, {}, problems)
            for name, path in sorted((printable(name), Path(path)) for name, path in listing):
                entry = before.get(name)
                if entry is None or entry.path != path:
                    if path.parent not in inside:
                        inside[path.parent] = caption_files.lies_in(path.parent, self.folder)
                    entry = Entry(name, path, inside[path.parent])
                num_read += entry.read()
                entries[name] = entry
            if num_read or entries.keys() != before.keys():
                self._forget()
            self._entries, self.problems = entries, tuple(problems)
            self._read_at = time.monotonic()
            return num_read

    def __len__(self) -> int:
        return len(self._entries)

    def item(self, name: str) -> Item:
        """A picture by its name. Errors: `ValueError` where the gallery has none of that name."""
        with self._lock:
            return self._entry(name).item(self._rules)

    def names(self, which: GalleryFilter = EVERYTHING) -> list[str]:
        """The names of the pictures that a filter finds, in order."""
        with self._lock:
            return [entry.name for entry in self._matching(which)]

    def page(self, which: GalleryFilter = EVERYTHING, offset: int = 0, limit: int = 100) -> Page:
        """Some of the pictures that a filter finds. Errors: `ValueError` for an offset below 0, a limit beyond 500."""
        if offset < 0 or not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"a page begins at 0 or later and has 1 to {MAX_PAGE} pictures, got {offset} and {limit}")
        with self._lock:
            found = self._matching(which)
            items = tuple(entry.item(self._rules) for entry in found[offset : offset + limit])
            return Page(items, offset, len(found), len(self._entries))

    def tag_counts(self, which: GalleryFilter = EVERYTHING) -> list[TagCount]:
        """Every tag of the pictures that a filter finds, the most frequent first."""
        with self._lock:
            found = self._matching(which)
            if self._counts[0] != which:
                self._counts = which, tag_counts(entry.caption for entry in found)
            return self._counts[1]

    def thumbnail(self, name: str, side_px: int = 256) -> bytes:
        """A small JPEG (`thumbnails.MIME`). Errors: `ValueError` for another name, `PictureError`."""
        with self._lock:
            entry = self._entry(name)
            path, version = entry.path, entry.version
        return self._thumbnails.of(path, version, side_px)

    def plan(self, edits: Iterable[tuple[str, str]], which: GalleryFilter | Sequence[str]) -> EditPlan:
        """What edits, (name, words) of `tag_edits.EDITS` in turn, would change in a filter's pictures or in named ones.

        Errors: `ValueError` for an unknown edit, missing words or a name that the gallery does not have; `OSError`.
        """
        edits = [(name.strip(), words) for name, words in edits]
        if not edits:
            raise ValueError("name at least one edit")
        change = in_turn([edit(name, words, self._rules) for name, words in edits])
        title = " ".join(f"{name}={words}" if words.strip() else name for name, words in edits)
        with self._lock:
            meant = self._meant(which)
            changes = caption_files.plan([entry.path for entry in meant if not entry.fault], change)
            return _edit_plan(title, changes, meant)

    def plan_words(self, words_of: Mapping[str, Sequence[str]], existing: str, title: str) -> EditPlan:
        """What tags or sentences that a model found, by picture, would change (`caption_files.plan_words`)."""
        with self._lock:
            meant = self._meant(list(words_of))
            by_path = {entry.path: words_of[entry.name] for entry in meant if not entry.fault}
            return _edit_plan(title, caption_files.plan_words(by_path, existing), meant)

    def plan_caption(self, name: str, caption: str) -> EditPlan:
        """What writing one caption would change; lines are joined."""
        with self._lock:
            entry = self._entry(name)
            if entry.fault:
                raise ValueError(f"the caption of {name} cannot be edited here: {entry.fault}")
            new = one_line(caption)
            return _edit_plan(f"caption of {name}", caption_files.plan([entry.path], lambda _: new), [entry])

    def apply(self, plan: EditPlan, shown: str | None = None) -> int:
        """Write a plan; how many captions were written. With `shown` only where its digest is that.

        Errors: `ValueError` where captions changed meanwhile: then nothing is written; `OSError`: what is written can
        be undone.
        """
        if shown is not None and shown != plan.digest:
            raise ValueError("captions changed since the edit was shown; look at it again")
        with self._lock:
            try:
                caption_files.apply(plan.changes, self.folder, plan.title)
            finally:
                self._reread(change.path for change in plan.changes)
        return len(plan.changes)

    def set_caption(self, name: str, caption: str, before: str) -> Item:
        """Write one caption, where it is still the one that was shown. Errors: `ValueError`, `OSError`."""
        with self._lock:
            plan = self.plan_caption(name, caption)
            if any(change.before != before for change in plan.changes):
                self._reread([self._entry(name).path])
                raise ValueError(f"the caption of {name} was changed meanwhile; look at it again")
            self.apply(plan)
            return self._entry(name).item(self._rules)

    def newest_edit(self) -> str:
        """What the edit that `undo` takes back was called, "" where there is none."""
        with self._lock:
            found = caption_files.journals(self.folder)
            newest = (found[-1], state_of(found[-1])) if found else None
            if newest != self._newest[0]:
                try:
                    self._newest = newest, caption_files.newest_title(self.folder)
                except ValueError as error:
                    self._newest = newest, str(error)
            return self._newest[1]

    def undo(self) -> tuple[str, int]:
        """Take back the newest edit, byte for byte: its title, and how many files. Errors: as `caption_files.undo`."""
        with self._lock:
            try:
                return caption_files.undo(self.folder)
            finally:
                self._reread()

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            self.refresh()  # it may be new
        if name not in self._entries:
            raise ValueError(f'there is no picture "{printable(name)[:200]}" in {printable(self.folder)}')
        return self._entries[name]

    def _meant(self, which: GalleryFilter | Sequence[str]) -> list[Entry]:
        if isinstance(which, GalleryFilter):
            self.refresh()
            return self._matching(which)
        return [self._entry(name) for name in dict.fromkeys(which)]

    def _matching(self, which: GalleryFilter) -> list[Entry]:
        if time.monotonic() - self._read_at > REFRESH_SECONDS:
            self.refresh()
        if self._found[0] != which:
            self._found = which, [entry for entry in self._entries.values() if self._matches(entry, which)]
        return self._found[1]

    def _matches(self, entry: Entry, which: GalleryFilter) -> bool:
        text = which.text.lower()
        return (
            (not text or text in entry.caption.lower() or text in entry.name.lower())
            and which.tags.matches(entry.caption)
            and (not which.with_problems or any(p.severity != "note" for p in entry.item(self._rules).problems))
        )

    def _reread(self, paths: Iterable[Path] | None = None) -> None:
        """After captions were written: also what has the same time and size as before. None means all of them."""
        stems = None if paths is None else {path.with_suffix("") for path in paths}
        for entry in self._entries.values():
            if stems is None or entry.path.with_suffix("") in stems:
                entry.forget_caption()
        self.refresh()

    def _forget(self) -> None:
        self._found, self._counts = (None, []), (None, [])


_opened: OrderedDict[Path, Gallery] = OrderedDict()
_opening = threading.Lock()


def opened(folder: Path | str) -> Gallery:
    """The gallery of a folder, which is kept while no more than eight others are asked for. Errors: as `Gallery`."""
    path = Path(folder_at(os.fspath(folder), "the folder"))
    with _opening:
        gallery = _opened.pop(path, None) or Gallery(path)
        _opened[path] = gallery
        while len(_opened) > NUM_KEPT:
            _opened.popitem(last=False)
    return gallery


def _edit_plan(title: str, changes: Iterable[CaptionChange], meant: Sequence[Entry]) -> EditPlan:
    return EditPlan(title, tuple(changes), len(meant), sum(bool(entry.fault) for entry in meant))
