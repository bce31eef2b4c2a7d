"""Picture headers: format, size and frames, read without decoding or allocating a pixel.

Pillow's own opening of PNG, GIF and WebP reads whole files, allocates canvases before any limit can be applied, or
changes with its version; those three are read here. JPEG, BMP, TIFF and AVIF go through Pillow's plugin for that
format and no other.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, JpegImagePlugin
from PIL.ImageFile import ImageFile

# What decoders raise on bytes that are not what they should be, and on warnings that a host has turned into errors.
FAULTS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_ORIENTATION_TAG = 0x0112
_NO_PICTURE = "is not a picture"
_Said = tuple[tuple[int, int], str, int, int]  # size as stored, mode, frames, EXIF orientation
_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
}


class PictureError(ValueError):
    """A picture that cannot be used. `path` is the file, `reason` the rest of the sentence that begins with it.

    `kind` is a reason that stands over all pictures of its sort.
    """

    def __init__(self, path: Path, reason: str, kind: str = "is truncated or damaged") -> None:
        super().__init__(f"{printable(path)} {reason}")
        self.path = path
        self.reason = reason
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about its picture."""

    size: tuple[int, int]  # (width, height) in pixels, after the orientation is applied
    format: str  # what it is, whatever the file is called: "PNG", "JPEG", ...
    mode: str  # Pillow's name of the pixel layout
    num_bytes: int  # of the file
    num_frames: int = 1
    orientation: int = 1  # EXIF, 1 to 8
    warnings: tuple[str, ...] = ()


def extensions() -> tuple[str, ...]:
    """File endings, lower case, of the pictures that can be read here."""
    Image.init()
    return tuple(ext for ext, format in _FORMATS.items() if format in Image.OPEN)


def read_header(path: Path) -> Header:
    """The header of a picture file. Errors: `PictureError` naming the file and what is wrong with it."""
    with named_faults(path), open(path, "rb") as file:
        return parse_header(path, file)


def parse_header(path: Path, file: BinaryIO) -> Header:
    """As `read_header`, from the start of an open file. `path` is only for messages."""
    format = _format_of(path, file)
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    said = {"PNG": _png, "GIF": _gif, "WEBP": _webp}.get(format, _by_plugin)(file, format)
    (width, height), mode, num_frames, orientation = said
    if width < 1 or height < 1:
        raise PictureError(path, "has no pixels, by its header")
    what = "is of several pages" if format == "TIFF" else "is animated"
    return Header(
        size=(height, width) if orientation >= 5 else (width, height),
        format=format,
        mode=mode,
        num_bytes=num_bytes,
        num_frames=num_frames,
        orientation=orientation,
        warnings=(f"{what} ({num_frames}); only the first is used",) if num_frames > 1 else (),
    )


def open_plugin(file: BinaryIO, format: str) -> ImageFile:
    """The file opened by Pillow's plugin for `format` alone; pixels are not decoded."""
    file.seek(0)
    # Pillow's JPEG entry turns phone pictures with a second view into its MPO format; the first view is the picture.
    if format == "JPEG":
        return JpegImagePlugin.JpegImageFile(file, "")
    Image.init()
    return Image.OPEN[format][0](file, "")  # type: ignore[return-value]


def printable(path: str | os.PathLike[str]) -> str:
    """A path for messages and names: what cannot be written as UTF-8 is escaped."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(type, length) of each PNG chunk to the end; the file then stands at its data and may be moved in between."""
    position = len(PNG_SIGNATURE)
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        length = int.from_bytes(head[:4], "big")
        yield head[4:], length
        position += 12 + length


@contextmanager
def named_faults(path: Path) -> Iterator[None]:
    """What goes wrong inside becomes a `PictureError` about `path`."""
    try:
        yield
    except PictureError:
        raise
    except MemoryError as error:
        raise PictureError(path, "does not fit into memory", "is too large") from error
    except FAULTS as error:
        if isinstance(error, OSError) and error.strerror:
            raise PictureError(path, f"cannot be opened: {error.strerror}", "cannot be opened") from error
        raise PictureError(path, f"cannot be read, it may be damaged: {error or type(error).__name__}") from error


def _format_of(path: Path, file: BinaryIO) -> str:
    start = file.read(32)
    if not start:
        raise PictureError(path, "is empty (0 bytes)", "is empty")
    Image.init()
    for format in dict.fromkeys(_FORMATS.values()):
        accept = Image.OPEN[format][1] if format in Image.OPEN else None
        accepted = accept(start) if accept else False
        if isinstance(accepted, str):
            raise PictureError(path, f"is {format}, which the installed Pillow cannot read", "cannot be read here")
        if accepted:
            return format
    if not start.strip(b"\0"):
        raise PictureError(path, "is not a picture: it begins with zeros, as after an interrupted copy", _NO_PICTURE)
    known = ", ".join(sorted(set(_FORMATS.values())))
    raise PictureError(path, f"is not a picture of a known kind ({known})", _NO_PICTURE)


def _png(file: BinaryIO, format: str) -> _Said:
    size, mode, num_frames, orientation = None, "", 1, 1
    file.seek(len(PNG_SIGNATURE))
    for kind, length in png_chunks(file):
        if kind == b"IHDR":
            width, height, depth, color = struct.unpack(">IIBB", file.read(10))
            size, mode = (width, height), _PNG_MODES.get(color, "")
            if mode == "L" and depth in (1, 16):
                mode = "1" if depth == 1 else "I;16"
        elif kind == b"acTL":
            num_frames = int.from_bytes(file.read(4), "big")
        elif kind == b"eXIf":
            orientation = _orientation(file.read(min(length, 1 << 20)))
        elif kind in (b"IDAT", b"IEND"):
            # What follows the pixels is not looked at: it may be far away, and viewers do not wait for it.
            break
    if size is None or not mode:
        raise ValueError("the PNG header is broken")
    return size, mode, num_frames, orientation


def _gif(file: BinaryIO, format: str) -> _Said:
    _, width, height, flags = struct.unpack("<6sHHB", file.read(11))
    _skip(file, 2 + _palette_bytes(flags))
    num_frames = 0
    while (block := file.read(1)) not in (b"", b";"):
        if block == b"!":
            _skip(file, 1)
            _skip_blocks(file)
        elif block == b",":
            frame = file.read(9)
            if len(frame) < 9:
                break
            left, top, frame_w, frame_h, flags = struct.unpack("<HHHHB", frame)
            if num_frames == 0:
                # Pillow widens the canvas for a first frame that reaches beyond it.
                width, height = max(width, left + frame_w), max(height, top + frame_h)
            num_frames += 1
            _skip(file, _palette_bytes(flags) + 1)
            _skip_blocks(file)
    if num_frames == 0:
        raise ValueError("the GIF holds no picture")
    return (width, height), "P", num_frames, 1


def _webp(file: BinaryIO, format: str) -> _Said:
    file.seek(12)
    kind, _, data = *struct.unpack("<4sI", file.read(8)), file.read(10)
    if kind == b"VP8L" and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        return ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), "RGBA" if bits >> 28 & 1 else "RGB", 1, 1
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[6:10])
        return (width & 0x3FFF, height & 0x3FFF), "RGB", 1, 1
    if kind != b"VP8X" or len(data) < 10:
        raise ValueError("the WebP header is broken")
    flags, size = data[0], (int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1)
    animated, orientation, num_frames, position = flags & 0x02, 1, 0, 30
    while flags & 0x0A:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            break
        kind, length = struct.unpack("<4sI", head)
        num_frames += kind == b"ANMF"
        if kind == b"EXIF":
            orientation = _orientation(file.read(min(length, 1 << 20)))
        position += 8 + length + length % 2
    return size, "RGBA" if flags & 0x10 else "RGB", max(1, num_frames) if animated else 1, orientation


def _by_plugin(file: BinaryIO, format: str) -> _Said:
    image = open_plugin(file, format)
    size, orientation = image.size, _orientation(image.info.get("exif", b""))
    if format == "TIFF":
        # Whether Pillow's size is turned here already depends on its version.
        tags = image.tag_v2  # type: ignore[attr-defined]
        size, orientation = (int(tags[256]), int(tags[257])), tags.get(_ORIENTATION_TAG, 1)
    return size, image.mode, getattr(image, "n_frames", 1), orientation if orientation in range(1, 9) else 1


def _orientation(exif: bytes) -> int:
    """The orientation in a block of EXIF, 1 where it says nothing that counts."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return 1
    start = struct.unpack_from(order + "I", exif, 4)[0]
    entries = exif[start + 2 : start + 2 + 12 * struct.unpack(order + "H", exif[start : start + 2].ljust(2, b"\0"))[0]]
    for i in range(0, len(entries) - 11, 12):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", entries, i)
        if tag == _ORIENTATION_TAG:
            return value if kind == 3 and count == 1 and 1 <= value <= 8 else 1
    return 1


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip(file: BinaryIO, num_bytes: int) -> None:
    file.seek(num_bytes, os.SEEK_CUR)


def _skip_blocks(file: BinaryIO) -> None:
    while length := file.read(1):
        if length == b"\0":
            return
        _skip(file, length[0])
