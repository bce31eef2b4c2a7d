"""Which pictures of a gallery are meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .tag_edits import TagFilter


@dataclass(frozen=True)
class GalleryFilter:
    """Which pictures are meant. Everything must be so; the default means all."""

    tags: TagFilter = TagFilter()
    text: str = ""  # in the caption or the name, in any case
    with_problems: bool = False  # only those with an error or a warning


EVERYTHING = GalleryFilter()


def gallery_filter(values: Mapping[str, Any]) -> GalleryFilter:
    """A filter from a page's fields: all, any, none (tags with commas, or a list), least, most, text, with_problems.

    Errors: `ValueError` naming the field.
    """
    known = {"all", "any", "none", "least", "most", "text", "with_problems"}
    for name in values:
        if name not in known:
            raise ValueError(f'unknown filter "{str(name)[:40]}"; known: {", ".join(sorted(known))}')

    def tags(name: str) -> tuple[str, ...]:
        given = values.get(name) or ()
        words = given.split(",") if isinstance(given, str) else given
        if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"the filter {name} must be tags, got {str(given)[:40]!r}")
        return tuple(word.strip() for word in words if word.strip())

    def count(name: str) -> int | None:
        given = values.get(name)
        if given is None or given == "":
            return None
        if isinstance(given, bool) or not str(given).strip().isdecimal():
            raise ValueError(f"the filter {name} must be a whole number of tags from 0, got {str(given)[:40]!r}")
        return int(given)

    text, with_problems = values.get("text") or "", values.get("with_problems") or False
    if not isinstance(text, str) or not isinstance(with_problems, bool):
        raise ValueError("the filter text must be words, and with_problems true or false")
    return GalleryFilter(
        TagFilter(tags("all"), tags("any"), tags("none"), count("least") or 0, count("most")),
        text.strip(),
        with_problems,
    )
