"""Editing caption files: what would change, changing it, and undoing it byte for byte.

Before a file is changed, the journal holds what every file of the edit was and will be. So an edit that was cut in the
middle can be undone like a whole one, and a file that somebody else changed meanwhile is never overwritten.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..files import make_folder, write_bytes, write_json
from .captions import CAPTION_SUFFIXES, find_caption, split_tags
from .headers import printable
from .tag_rules import plain

JOURNAL = ".atelier-undo"  # a hidden folder is no part of a data set
EXISTING = ("skip", "append", "replace")
_NUM_WRITERS = 8
_T = TypeVar("_T")
_NUMBERED = re.compile(r"(\d{6})\.json")


@dataclass(frozen=True)
class CaptionChange:
    """One caption file: its text before and after; `old` are its bytes, None where there was no file."""

    path: Path
    before: str
    after: str
    old: bytes | None

    @property
    def new(self) -> bytes:
        """UTF-8; the last line ends as it did."""
        ending = b"\n" if self.old is not None and self.old.rstrip(b"\0").endswith(b"\n") else b""
        return self.after.encode("utf-8") + ending

    def parts(self) -> list[tuple[str, str]]:
        """The tags in order, each with what becomes of it: "-" goes, "+" comes, " " stays."""
        gone, come = _words(self.before), _words(self.after)
        parts: list[tuple[str, str]] = []
        for kind, a1, a2, b1, b2 in difflib.SequenceMatcher(None, gone, come, autojunk=False).get_opcodes():
            if kind == "equal":
                parts += [(" ", word) for word in gone[a1:a2]]
            else:
                parts += [("-", word) for word in gone[a1:a2]] + [("+", word) for word in come[b1:b2]]
        return parts

    def diff(self) -> str:
        """The tags that go and come, for people: `cat.txt: -old, +new`."""
        parts = [f"{sign}{word}" for sign, word in self.parts() if sign != " "]
        return f"{printable(self.path.name)}: {', '.join(parts) or 'encoding or spaces'}"


def plan(
    pictures: Iterable[Path],
    edit: Callable[[str], str],
    chosen: Callable[[str], bool] = lambda caption: True,
    *,
    from_name: bool = False,
    as_utf8: bool = False,
) -> list[CaptionChange]:
    """What an edit would change in the captions of these pictures; nothing is written.

    A picture without a caption file gets a `.txt`; with `from_name` its file name is what is edited. Two pictures that
    share a caption file change it once. What is not changed is not written, except with `as_utf8` where it is in
    another encoding. Errors: `OSError`, and `ValueError` for a caption file that is none.
    """
    changes: dict[Path, CaptionChange] = {}
    for picture in pictures:
        before, source, note = find_caption(picture, from_name)
        if not chosen(before):
            continue
        after = edit(before)
        if source == "name":
            before = source = ""
        path = picture.with_name(source) if source else picture.with_suffix(CAPTION_SUFFIXES[0])
        if after != before or (as_utf8 and note):
            changes[path] = CaptionChange(path, before, after, path.read_bytes() if source else None)
    return list(changes.values())


def plan_words(words_of: Mapping[Path, Sequence[str]], existing: str = "skip") -> list[CaptionChange]:
    """What tags or sentences that a model found for each picture would change; nothing is written.

    `existing` says what becomes of a caption that is there: "skip" leaves it, "append" adds what it lacks, "replace".
    Pictures that share a caption file get the words of all. Errors: as `plan`; `ValueError` for another `existing`.
    """
    if existing not in EXISTING:
        raise ValueError(f'existing captions can be treated as {", ".join(EXISTING)}, got "{existing}"')
    sharing: dict[Path, list[Path]] = {}
    for picture in words_of:
        sharing.setdefault(picture.with_suffix(""), []).append(picture)
    changes: list[CaptionChange] = []
    for pictures in sharing.values():
        new = [word for picture in pictures for word in words_of[picture]]

        def edited(before: str, new: Sequence[str] = new) -> str:
            if not new or (before and existing == "skip"):
                return before
            has = {plain(tag) for tag in split_tags(before)} if existing == "append" else set()
            more: dict[str, str] = {}
            for word in new:
                if plain(word) not in has:
                    more.setdefault(plain(word), word)
            kept = [before.rstrip(" ,")] if has else []
            return ", ".join([*kept, *more.values()]) if more else before

        changes += plan(pictures[:1], edited)
    return changes


def apply(changes: Sequence[CaptionChange], root: Path, title: str) -> Path | None:
    """Write the changes, one file after the other, each whole. Returns the journal, which `undo` takes.

    Errors: `ValueError` where a file is no longer what the plan was made from, or lies elsewhere through a link, where
    undoing would not reach: then nothing is written; `OSError` in the middle: what is written can be undone.
    """
    if not changes:
        return None
    root = Path(os.path.abspath(root))
    for folder in {change.path.parent for change in changes}:
        if not lies_in(folder, root):
            raise ValueError(f"{printable(folder)} does not lie in {printable(root)}; edit its captions there")
    for change in changes:
        if _bytes(change.path) != change.old:
            raise ValueError(f"{printable(change.path)} was changed since the edit was planned; plan it again")
    folder = root / JOURNAL
    make_folder(folder)
    number = max((int(m[1]) for m in map(_NUMBERED.fullmatch, (p.name for p in folder.iterdir())) if m), default=0) + 1
    journal = folder / f"{number:06d}.json"
    entries = [
        {
            "path": Path(os.path.abspath(change.path)).relative_to(root).as_posix(),
            "old": None if change.old is None else base64.b64encode(change.old).decode(),
            "new_sha256": _sha(change.new),
        }
        for change in changes
    ]
    write_json(journal, {"title": title, "files": entries}, verify=True)
    _each(lambda change: write_bytes(change.path, change.new), changes)
    return journal


def lies_in(folder: Path, root: Path) -> bool:
    """Whether a folder is another one or below it, as its name says and also where links lead."""
    named = Path(os.path.abspath(folder)).is_relative_to(os.path.abspath(root))
    return named and folder.resolve().is_relative_to(root.resolve())


def journals(root: Path) -> list[Path]:
    """The edits that can be undone, oldest first."""
    folder = root / JOURNAL
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NUMBERED.fullmatch(path.name))


def newest_title(root: Path) -> str:
    """What the newest edit was called, "" where there is none. Errors: `ValueError` for a damaged journal."""
    found = journals(root)
    return _read(found[-1], root)[0] if found else ""


def undo(root: Path) -> tuple[str, int]:
    """Undo the newest edit of a data set: its title, and how many files were put back.

    Errors: `ValueError` when there is none, or when a file was changed after the edit: then nothing is put back.
    """
    found = journals(root)
    if not found:
        raise ValueError(f"{printable(root)}: there is no edit to undo")
    journal = found[-1]
    title, entries = _read(journal, root)
    todo = []
    for path, old, new_sha in entries:
        now = _bytes(path)
        if now == old:
            continue  # the edit was cut before this file, or this was undone already
        if now is None or _sha(now) != new_sha:
            raise ValueError(f'{printable(path)} was changed after "{title}"; undoing it would lose that change')
        todo.append((path, old))
    _each(lambda entry: entry[0].unlink() if entry[1] is None else write_bytes(*entry), todo)
    journal.unlink()
    if not any(journal.parent.iterdir()):
        journal.parent.rmdir()
    return title, len(todo)


def _read(journal: Path, root: Path) -> tuple[str, list[tuple[Path, bytes | None, str]]]:
    try:
        value: Any = json.loads(journal.read_text("utf-8"))
        entries = [
            (root / e["path"], None if e["old"] is None else base64.b64decode(e["old"]), str(e["new_sha256"]))
            for e in value["files"]
        ]
        title = str(value["title"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{printable(journal)} is damaged; the edit cannot be undone: {error}") from error
    inside = root.resolve()
    for path, _, _ in entries:
        # a data set from elsewhere brings its journal along; it must not write outside
        if path.suffix not in CAPTION_SUFFIXES or not path.resolve().is_relative_to(inside):
            raise ValueError(f"{printable(journal)} names {printable(path)}, which is no caption of this data set")
    return title, entries


def _each(do: Callable[[_T], object], values: Sequence[_T]) -> None:
    # a durable write waits for the disk, which can take several at once; after an error no other one begins
    with ThreadPoolExecutor(_NUM_WRITERS) as pool:
        for _ in pool.map(do, values):
            pass


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
