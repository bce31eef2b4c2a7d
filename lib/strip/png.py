"""PNG files written band by band: a picture of any size in the memory of one band.

PNG Specification (third edition), W3C 2025: chunks, filter type 1 (Sub), zlib. Pillow writes only what is in memory as
a whole.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from PIL import Image

_ROWS = 64  # filtered and packed at a time, so that a high band is not in memory several times
_LEVEL = 4  # pictures hardly grow smaller above it, and take twice the time


def png_chunks(size: tuple[int, int], bands: Iterable[Image.Image], text: Mapping[str, str]) -> Iterator[bytes]:
    """The bytes of an RGB picture, from bands of its full width from top to bottom. `text` goes in as iTXt.

    Errors: `ValueError` when the bands do not make up `size`, or for a keyword that PNG does not allow.
    """
    width, height = size
    yield b"\x89PNG\r\n\x1a\n"
    yield _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    for keyword, value in text.items():
        if not 1 <= len(keyword) <= 79 or not keyword.isascii() or not keyword.isprintable():
            raise ValueError(f'a keyword of a PNG is 1 to 79 ASCII letters, got "{keyword}"')
        yield _chunk(b"iTXt", keyword.encode() + b"\0\0\0\0\0" + value.encode("utf-8", "backslashreplace"))
    packer = zlib.compressobj(_LEVEL)
    rows = 0
    for band in bands:
        if band.width != width:
            raise ValueError(f"a band of {width} px was expected, got {band.width} px")
        rows += band.height
        for top in range(0, band.height, _ROWS):
            part = band.crop((0, top, width, min(top + _ROWS, band.height))).convert("RGB")
            data = packer.compress(_filtered(np.asarray(part)))
            if data:
                yield _chunk(b"IDAT", data)
    if rows != height:
        raise ValueError(f"bands of {height} px in all were expected, got {rows} px")
    yield _chunk(b"IDAT", packer.flush())
    yield _chunk(b"IEND", b"")


def _filtered(pixels: np.ndarray) -> bytes:
    """Each row with its filter type in front, each value the difference to that of the pixel before."""
    height, width, _ = pixels.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 1
    flat = pixels.reshape(height, 3 * width)
    rows[:, 1:4] = flat[:, :3]
    np.subtract(flat[:, 3:], flat[:, :-3], out=rows[:, 4:])
    return rows.tobytes()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
