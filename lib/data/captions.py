"""Captions: finding and reading them, the trigger word, and what shuffle and dropout make of them at a visit."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path

# In this order; both spellings, because a data set made on Windows may hold either.
CAPTION_SUFFIXES = (".txt", ".TXT", ".caption", ".CAPTION")
MAX_CAPTION_BYTES = 1 << 20

# UTF-32 stands first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_NUMBERING = re.compile(r"^\d+(?:[\s_-]+|\.\s+|$)")
# A dot, or a run of dots, ends a tag only between a word and a space, a comma or the end.
_SEPARATOR = re.compile(r",|(?<=[^\s.,])\.+(?=[\s,]|$)")


def read_text(path: Path) -> tuple[str, str | None]:
    """The caption in a file, and what is to be said about its encoding (None for UTF-8).

    UTF-8 with or without mark, UTF-16 and UTF-32 by their mark, UTF-16 without one where every second byte is zero,
    else Windows-1252; bytes that the encoding does not know become U+FFFD. Lines are trimmed, empty ones left out and
    the rest joined with one space; control characters become spaces. Errors: `OSError`; `ValueError` beyond 1 MiB.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_CAPTION_BYTES + 1)
    if len(data) > MAX_CAPTION_BYTES:
        raise ValueError(f"the caption file {path} is larger than 1 MiB; it is not a caption")
    text, note = _decoded(data)
    lost = text.count("\ufffd")
    if lost and note:
        note += f"; {lost} characters could not be read"
    return one_line(text), note


def one_line(text: str) -> str:
    """A text as captions are read: lines trimmed and joined with one space, control characters as spaces."""
    lines = (line.strip() for line in _CONTROL.sub(" ", text).splitlines())
    return " ".join(line for line in lines if line)


def find_caption(image_path: Path, from_name: bool) -> tuple[str, str, str | None]:
    """(caption, source, note) of a picture.

    The file beside it with the same stem and `.txt`, else `.caption`; else, where `from_name`, its file name without
    leading numbering (`00012-`) and with spaces for underscores; else "". `source` is the caption file's name, "name"
    or "". Errors: as `read_text`, for a caption file that is there and cannot be read.
    """
    for suffix in CAPTION_SUFFIXES:
        path = image_path.with_suffix(suffix)
        try:
            text, note = read_text(path)
        except FileNotFoundError:
            continue
        return text, path.name, note
    if from_name:
        stem = image_path.stem.encode("utf-8", "replace").decode("utf-8")
        caption = " ".join(_NUMBERING.sub("", stem).replace("_", " ").split())
        return caption, "name", None
    return "", "", None


def with_trigger(caption: str, trigger: str) -> str:
    """`caption` with `trigger` in front, unless it is in there as whole words in any case. Idempotent."""
    trigger = trigger.strip(" ,")
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption.strip() else trigger


def with_ending(caption: str, ending: str) -> str:
    """`caption` with `ending` behind it, unless it ends with these words in any case. Idempotent."""
    ending, bare = ending.strip(" ,"), caption.rstrip(" ,")
    if not ending or re.search(rf"(?<!\w){re.escape(ending)}$", bare, re.IGNORECASE):
        return caption
    return f"{bare}, {ending}" if bare else ending


def split_tags(caption: str) -> list[str]:
    """The tags or sentences of a caption: split at commas and at dots that end a word, trimmed, empty ones left out.

    A dot splits only where a word stands before it and a space, a comma or the end follows, so `v1.5`, `1.2`, `.5`,
    `w0lf.x` and the tag `...` stay whole.
    """
    return [tag for part in _SEPARATOR.split(caption) if (tag := part.strip())]


def compose(
    caption: str,
    *,
    shuffle: bool,
    keep_tags: int,
    tag_dropout: float,
    caption_dropout: float,
    uniform: Callable[[], float],
) -> str:
    """The caption of one visit. With nothing enabled it is `caption`, byte for byte; else the tags joined with ", ".

    The first `keep_tags` tags are neither dropped nor moved. `uniform` gives numbers in [0, 1); they are drawn in
    this order and only where enabled: one for the caption ("" when it falls below `caption_dropout`, and nothing more
    is drawn), one for each tag that may be dropped from first to last, one for each exchange of the shuffle
    (Fisher-Yates from the end).
    """
    if caption_dropout > 0 and uniform() < caption_dropout:
        return ""
    if not shuffle and tag_dropout <= 0:
        return caption
    tags = split_tags(caption)
    kept, free = tags[:keep_tags], tags[keep_tags:]
    if tag_dropout > 0:
        free = [tag for tag in free if uniform() >= tag_dropout]
    if shuffle:
        for last in range(len(free) - 1, 0, -1):
            other = int(uniform() * (last + 1))
            free[last], free[other] = free[other], free[last]
    return ", ".join(kept + free)


def _decoded(data: bytes) -> tuple[str, str | None]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace"), f"read as {encoding[:-3].upper()}"
    # Latin text in UTF-16 without a mark would otherwise pass as UTF-8 that is full of zeros.
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(data) >= 4 and data[start::2].count(0) > len(data) // 4 > data[1 - start :: 2].count(0):
            return data.decode(encoding, "replace"), "has no byte order mark; read as UTF-16"
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace"), "is not UTF-8; read as Windows-1252, so look at its accented letters"
