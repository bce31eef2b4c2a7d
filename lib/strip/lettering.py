"""Fonts, and text that fits: cut where it must be, never where it says the step."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import ImageFont


def wrapped(text: str, width: float, font: Any, most: int) -> list[str]:
    """At most so many lines of at most `width` pixels; what is left out is marked by an ellipsis."""
    lines: list[str] = []
    rest = " ".join(text[:4000].split())
    while rest:
        if len(lines) == most - 1:
            return [*lines, ellipsis(rest, width, font)]
        num = max(1, _fitting(rest, width, font))
        if num < len(rest):
            space = rest.rfind(" ", 1, num + 1)
            num = space if space > 0 else num
        lines.append(drawable(font, rest[:num]))
        rest = rest[num:].lstrip()
    return lines


def ellipsis(text: str, width: float, font: Any, *, front: bool = False) -> str:
    """`text` cut to `width` pixels at its end, or at its front."""
    text, dots = drawable(font, text[-4000:] if front else text[:4000]), drawable(font, "…")
    if font.getlength(text) <= width:
        return text
    room = width - font.getlength(dots)
    if room < 0:
        return ""
    if front:
        num = _fitting(text[::-1], room, font)
        return dots + text[len(text) - num :].lstrip()
    return text[: _fitting(text, room, font)].rstrip() + dots


def _fitting(text: str, width: float, font: Any) -> int:
    """How many characters from the start fit into `width` pixels."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(drawable(font, text[:middle])) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def drawable(font: Any, text: str) -> str:
    """What the font can draw: no control characters, and Latin-1 only where it is Pillow's bitmap font."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if isinstance(font, ImageFont.FreeTypeFont):
        return text
    return text.replace("…", "...").encode("latin-1", "replace").decode("latin-1")


@lru_cache(maxsize=16)
def font(size_px: int, bold: bool = False) -> Any:
    """The font that comes with matplotlib, which knows most scripts; without it Pillow's own, which before 10.1 is a
    small bitmap."""
    load: Callable[..., Any] = ImageFont.load_default
    try:
        import matplotlib

        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size_px)
    except (ImportError, OSError):
        pass
    try:
        return load(size_px)
    except TypeError:
        return load()
