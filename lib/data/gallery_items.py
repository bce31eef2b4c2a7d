"""The pictures of a gallery: what is known of each, and reading it again when its files change."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .captions import CAPTION_SUFFIXES, find_caption, split_tags
from .findings import caption_findings
from .headers import PictureError, printable, read_header
from .pictures import check_size
from .sample import Sample
from .scan import Problem
from .tag_rules import TagRules

MAX_MEGAPIXELS = 200.0
FileState = tuple[int, int, int]  # mtime in ns, bytes, inode: what is written anew has another
_NO_FILE = (0, 0, 0)


@dataclass(frozen=True)
class Item:
    """One picture of the gallery."""

    name: str  # path below the folder, with `/`
    path: Path
    caption: str
    caption_file: str  # name of the file beside it; "" where there is none
    tags: tuple[str, ...]
    version: str  # changes with the picture's file
    size: tuple[int, int] | None  # in pixels, upright; None where the picture cannot be used
    problems: tuple[Problem, ...]
    is_editable: bool  # its caption; not where it cannot be read, or lies elsewhere through a link


@dataclass
class Entry:
    """A picture's files as they were when they were read. The header is read when somebody asks."""

    name: str
    path: Path
    is_inside: bool  # its caption file; not where a link leads elsewhere
    caption: str = ""
    _stat: FileState = _NO_FILE
    _caption_stat: tuple[str, FileState] | None = None  # name and state of the caption file
    _caption_problem: Problem | None = None
    _item: Item | None = None

    @property
    def fault(self) -> str:
        """Why its caption cannot be edited, "" where it can."""
        if not self.is_inside:
            return "it lies elsewhere through a link"
        problem = self._caption_problem
        return problem.text if problem and problem.severity == "error" else ""

    @property
    def version(self) -> str:
        """Changes with the picture's file."""
        return "-".join(f"{number:x}" for number in self._stat)

    def read(self) -> bool:
        """Read what changed by time, size or inode; whether anything did."""
        stat, caption_stat = state_of(self.path), ("", _NO_FILE)
        for suffix in CAPTION_SUFFIXES:
            path = self.path.with_suffix(suffix)
            if (found := state_of(path)) != _NO_FILE:
                caption_stat = path.name, found
                break
        if (stat, caption_stat) == (self._stat, self._caption_stat):
            return False
        if caption_stat != self._caption_stat:
            self.caption, self._caption_problem = "", None
            try:
                self.caption, source, note = find_caption(self.path, False)
                if note:
                    self._caption_problem = Problem(self.path.with_name(source), note, "warning")
            except (OSError, ValueError) as error:
                text = f"has a caption that cannot be read: {printable(str(error))}"
                self._caption_problem = Problem(self.path, text, "error")
        self._stat, self._caption_stat, self._item = stat, caption_stat, None
        return True

    def forget_caption(self) -> None:
        """Let `read` read the caption in any case: also one of the same time and size."""
        self._caption_stat = None

    def item(self, rules: TagRules) -> Item:
        """The picture, its header read, with what is to be said about it."""
        if self._item is None:
            problems = [self._caption_problem] if self._caption_problem else []
            size = None
            try:
                header = read_header(self.path)
                check_size(self.path, header, MAX_MEGAPIXELS)
                size = header.size
                problems += [Problem(self.path, text, "note") for text in header.warnings]
            except PictureError as error:
                problems.append(Problem(self.path, error.reason, "error"))
            sample = Sample(name=self.name, path=self.path, caption=self.caption, size=size or (0, 0), bucket=(0, 0))
            self._item = Item(
                name=self.name,
                path=self.path,
                caption=self.caption,
                caption_file=self._caption_stat[0] if self._caption_stat else "",
                tags=tuple(split_tags(self.caption)),
                version=self.version,
                size=size,
                problems=(*problems, *caption_findings([sample], rules)),
                is_editable=not self.fault,
            )
        return self._item


def state_of(path: Path) -> FileState:
    """What changes with a file; the same for all that are not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return _NO_FILE  # reading it says why, where it is there
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
