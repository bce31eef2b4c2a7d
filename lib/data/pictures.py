"""Pictures from files: decoded right or refused by name, turned upright, in sRGB, cut to their bucket.

Nothing is guessed silently: whatever was changed on the way stands in `Picture.notes`, and what cannot be read right
is a `PictureError` with the file and the reason.
"""

from __future__ import annotations

import io
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageFile

from .buckets import Geometry, Size, crop_geometry
from .headers import Header, PictureError, named_faults, open_plugin, parse_header, png_chunks, read_header

__all__ = [
    "Header",
    "Picture",
    "PictureError",
    "check",
    "check_size",
    "decode",
    "fit",
    "load",
    "on_white",
    "read_header",
]

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Profiles that say what is assumed anyway; converting from them would only round.
_SRGB_NAMES = {"sRGB", "sRGB IEC61966-2.1", "sRGB built-in", "GIMP built-in sRGB", "c2"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture cut to its bucket (W, H)."""

    pixels: np.ndarray  # uint8 (H, W, 3), sRGB
    mask: np.ndarray | None  # float32 (H, W) in [0, 1], 1 = opaque; None without alpha or where all of it is opaque
    geometry: Geometry
    notes: tuple[str, ...] = ()


def load(path: Path, bucket: Size, alpha_mask: bool, max_megapixels: float) -> Picture:
    """Decode a picture, turn it upright, put transparency on white, resize it over the bucket and cut out the middle.

    Resized once, from the whole picture: Lanczos down, bicubic up. Of several frames the first counts. 16-bit and
    float pixels are scaled to 8 bits, never clipped. With `alpha_mask` the transparency is also returned as a mask.
    Errors: `PictureError` naming the file and the reason (truncated, not a picture, above `max_megapixels`, ...).
    """
    with named_faults(path):
        image, alpha, notes = on_white(*decode(path, max_megapixels))
        geometry = crop_geometry(image.size, bucket)
        if alpha is not None and alpha_mask and alpha.getextrema()[1] == 0:
            notes.append("is transparent everywhere, so with data.alpha_mask nothing of it is trained")
        pixels = fit(image, geometry, bucket)
        mask = None
        if alpha is not None and alpha_mask:
            # Bilinear never leaves [0, 1]; the sharper filters ring.
            mask = np.asarray(_cut(alpha, geometry, bucket, Image.Resampling.BILINEAR), np.float32) / 255
        return Picture(pixels=np.array(pixels), mask=mask, geometry=geometry, notes=tuple(notes))


def check(path: Path, max_megapixels: float) -> list[str]:
    """What keeps a picture from being used, found by decoding all of it; empty when nothing does."""
    try:
        with named_faults(path):
            decode(path, max_megapixels)
    except PictureError as error:
        return [error.reason]
    return []


def check_size(path: Path, header: Header, max_megapixels: float) -> None:
    """Refuse a picture by the size that its header and its file have. Errors: `PictureError`.

    A large picture of more than 1,000 pixels a byte is empty or its header is damaged; decoding it could take
    gigabytes.
    """
    num_px = header.size[0] * header.size[1]
    what = f"has {header.size[0]} x {header.size[1]} = {num_px / 1e6:.4g} MP by its header"
    if num_px > max_megapixels * 1e6:
        raise PictureError(path, f"{what}; the limit data.max_megapixels is {max_megapixels:.4g}", "is too large")
    if num_px > max(10_000_000, 1000 * header.num_bytes):
        raise PictureError(
            path, f"{what}, but only {header.num_bytes} bytes; the header is damaged or the picture is empty"
        )


def decode(
    path: Path, max_megapixels: float, least_px: int | None = None
) -> tuple[Image.Image, Image.Image | None, list[str]]:
    """RGB picture in sRGB and alpha ("L", None where all is opaque), upright, and notes.

    With `least_px` a JPEG may be decoded smaller, which is many times faster, as long as its shorter side keeps so many
    pixels. Errors: `PictureError`, and what Pillow raises; `headers.named_faults` around it makes one of the other.
    """
    with open(path, "rb") as file:
        header = parse_header(path, file)
        check_size(path, header, max_megapixels)
        notes = list(header.warnings)
        _check_whole(path, file, header)
        with _pillow_set(header.size[0] * header.size[1]):
            image = open_plugin(file, header.format)
            if least_px is not None and header.format == "JPEG":
                image.draft(image.mode, (least_px, least_px))
            image.load()
        profile = image.info.get("icc_profile")
        base, alpha = _split(image, header.format, notes)
    if profile:
        base = _to_srgb(base, profile, notes)
    elif base.mode == "CMYK":
        notes.append("is CMYK without a colour profile; its colours are approximate")
    if base.mode != "RGB":
        base = base.convert("RGB")
    if alpha is not None and alpha.getextrema()[0] == 255:
        alpha = None
    # Pillow turns TIFF while loading.
    if header.format != "TIFF" and header.orientation in _UPRIGHT:
        base = base.transpose(_UPRIGHT[header.orientation])
        alpha = alpha.transpose(_UPRIGHT[header.orientation]) if alpha is not None else None
    if base.size != header.size and least_px is None:
        raise PictureError(path, f"is damaged: {base.size} when decoded, {header.size} by its header")
    return base, alpha, notes


def fit(image: Image.Image, geometry: Geometry, bucket: Size) -> Image.Image:
    """The bucket's part of a picture, resized once: Lanczos down, bicubic up. RGBA is resized premultiplied."""
    enlarged = image.width < geometry.resized[0] or image.height < geometry.resized[1]
    return _cut(image, geometry, bucket, Image.Resampling.BICUBIC if enlarged else Image.Resampling.LANCZOS)


def on_white(
    image: Image.Image, alpha: Image.Image | None, notes: list[str]
) -> tuple[Image.Image, Image.Image | None, list[str]]:
    """What `decode` gives, the transparent parts put on white, and that said."""
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
        notes.append("has transparent parts; they are put on white")
    return image, alpha, notes


def _split(image: Image.Image, format: str, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """8-bit picture without alpha, and the alpha it had."""
    transparent = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        values, alpha = np.asarray(image), None
        # Pillow turns TIFF's "0 is white" round for 8 bits only.
        if format == "TIFF" and image.mode.startswith("I;16") and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
            values = 65535 - values
        # PNG names one shade of grey as the transparent one.
        if format == "PNG" and isinstance(transparent, int):
            alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        return Image.fromarray(_to_8_bits(values, format, notes)), alpha
    if image.mode in ("P", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
    elif transparent is not None and image.mode in ("1", "L", "RGB"):
        if isinstance(transparent, tuple) and max(transparent) > 255:
            # The colour was named in 16 bits; Pillow keeps the high byte of pixels, but not of this.
            image.info["transparency"] = tuple(value >> 8 for value in transparent)
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA"):
        return image.convert("RGB" if image.mode == "RGBA" else "L"), image.getchannel("A")
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return image, None


def _to_8_bits(values: np.ndarray, format: str, notes: list[str]) -> np.ndarray:
    """Grey of more than 8 bits, whole numbers or float, as uint8.

    16 bits: the high byte. Other whole numbers and floats: 0 to 1, 0 to 255 and 0 to 65535 are taken as such ranges,
    by the largest value; anything beyond, or below 0, is stretched from its smallest to its largest value.
    """
    if values.dtype.kind == "u" or format == "PNG":
        notes.append("has 16 bits a pixel; scaled to 8")
        return (values >> 8).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        raise ValueError("values that are not finite")
    full = next((f for f in ((1.0,) if values.dtype.kind == "f" else ()) + (255.0, 65535.0) if high <= f), None)
    if full is None or low < 0:
        notes.append(f"has values from {low:g} to {high:g}; stretched to 8 bits")
        full = high - low or 1.0
    else:
        notes.append(f"has values up to {high:g}; scaled to 8 bits as if {full:g} were white")
        low = 0.0
    out = np.empty(values.shape, np.uint8)
    for i, row in enumerate(values):
        out[i] = np.rint((row.astype(np.float64) - low) * (255 / full))
    return out


def _to_srgb(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":  # type: ignore[attr-defined]
            image = image.convert("RGB")
        if image.mode == "RGB" and ImageCms.getProfileDescription(source).strip() in _SRGB_NAMES:
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError, ImportError) as error:  # ImportError: built without
        notes.append(f"has a colour profile that cannot be applied and is ignored ({error})")
        return image
    assert converted is not None, "profileToProfile returns a picture unless it works in place"
    return converted


def _cut(image: Image.Image, geometry: Geometry, bucket: Size, filter: Image.Resampling) -> Image.Image:
    """Resize and crop in one step: the bucket's rectangle, in the picture's own pixels."""
    (resized_w, resized_h), left, top = geometry
    across, down = image.width / resized_w, image.height / resized_h
    box = (
        left * across,
        top * down,
        min(image.width, (left + bucket[0]) * across),
        min(image.height, (top + bucket[1]) * down),
    )
    return image.resize(bucket, filter, box=box)


def _check_whole(path: Path, file: BinaryIO, header: Header) -> None:
    """What Pillow does not check, or not name: that PNG and WebP are there to the end, and the sums of PNG's pixels."""
    if header.format == "WEBP":
        file.seek(4)
        # One byte of padding may be missing.
        if header.num_bytes < 8 + int.from_bytes(file.read(4), "little") - 1:
            raise PictureError(path, "is truncated")
    if header.format != "PNG":
        return
    for kind, length in png_chunks(file):
        # Only what makes the picture; broken comments do no harm.
        if kind[:1].isupper():
            total = zlib.crc32(kind)
            while length > 0:
                data = file.read(min(length, 1 << 20))
                if not data:
                    raise PictureError(path, "is truncated")
                total = zlib.crc32(data, total)
                length -= len(data)
            stored = file.read(4)
            if len(stored) < 4:
                raise PictureError(path, "is truncated")
            if int.from_bytes(stored, "big") != total:
                raise PictureError(path, f"is damaged: wrong checksum in its {kind.decode('ascii', 'replace')} part")
        if kind == b"IEND":
            return
    raise PictureError(path, "is truncated")


_LOCK = threading.Lock()
_decoding: list[int] = []  # pixels of the pictures being decoded now
_found: dict[str, int] = {}  # the host's values of what had to be changed


@contextmanager
def _pillow_set(num_px: int) -> Iterator[None]:
    """Pillow's global switches as decoding needs them; the last one out puts back what the host had set.

    A host that accepts truncated files would get half a picture here, and one with a low limit of pixels would refuse
    what our own limit has let through. Nothing is touched where neither is so.
    """
    with _LOCK:
        _decoding.append(num_px)
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            _found["truncated"] = 1
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and limit < num_px:
            _found.setdefault("limit", limit)
            Image.MAX_IMAGE_PIXELS = num_px
    try:
        yield
    finally:
        with _LOCK:
            _decoding.remove(num_px)
            if not _decoding:
                if _found.pop("truncated", 0):
                    ImageFile.LOAD_TRUNCATED_IMAGES = True
                if "limit" in _found:
                    Image.MAX_IMAGE_PIXELS = _found.pop("limit")
