"""Small pictures for galleries: made once, kept in memory up to a limit."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path

from PIL import Image

from .headers import named_faults
from .pictures import decode

MIME = "image/jpeg"
SIDES_PX = (32, 1024)
_QUALITY = 85


def reduced(path: Path, longest_px: int, max_megapixels: float = 200.0) -> Image.Image:
    """A picture in RGB, its longer side at most `longest_px`: upright, in sRGB, transparency on white.

    Errors: `PictureError` naming the file and what is wrong with it.
    """
    with named_faults(path):
        image, alpha, _ = decode(path, max_megapixels, longest_px)
        scale = min(1.0, longest_px / max(image.size))
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        made = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        if alpha is not None:
            made.paste("white", mask=alpha.resize(size, reducing_gap=2.0).point(lambda value: 255 - value))
    return made


def thumbnail(path: Path, side_px: int) -> bytes:
    """The same as JPEG. Errors: also `ValueError` for a side outside 32 to 1024."""
    if not SIDES_PX[0] <= side_px <= SIDES_PX[1]:
        raise ValueError(f"a thumbnail's side must be {SIDES_PX[0]} to {SIDES_PX[1]} pixels, got {side_px}")
    file = io.BytesIO()
    reduced(path, side_px).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


class Thumbnails:
    """The newest of them, at most so many bytes. Every file keeps its own until it changes."""

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[Path, str, int], bytes] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def of(self, path: Path, version: str, side_px: int) -> bytes:
        """As `thumbnail`; `version` is anything that changes with the file."""
        key = path, version, side_px
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = thumbnail(path, side_px)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._num_bytes += len(made)
            while self._num_bytes > self._max_bytes and len(self._kept) > 1:
                self._num_bytes -= len(self._kept.popitem(last=False)[1])
        return made
