"""Steps that pictures are prepared by, each a table of settings with what it makes of one picture.

A step gets a piece, one picture with its caption, and gives pieces: none leaves the picture out, several are named
apart by their suffixes. Originals are never changed. A new step is a frozen dataclass of settings here and a line in
`STEPS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageFilter

from ..config import checked, from_dict, setting, to_dict
from ..registry import nearest
from .buckets import Size, bucket_sizes, crop_geometry, nearest_bucket
from .captions import split_tags
from .focal_point import FocalWeights, face_boxes, focal_point
from .pictures import fit
from .pieces import Piece, Step, Tools


@dataclass(frozen=True, kw_only=True)
class _Focused:
    focal: bool = setting(False, "cut around the focal point instead of the middle")
    face: float = setting(0.9, "weight of faces in the focal point", min=0.0, max=100.0, advanced=True)
    edges: float = setting(0.5, "weight of corners in the focal point", min=0.0, max=100.0, advanced=True)
    entropy: float = setting(0.15, "weight of information in the focal point", min=0.0, max=100.0, advanced=True)

    def _cut(self, piece: Piece, size: Size, tools: Tools) -> list[Piece]:
        focus = (0.5, 0.5)
        if self.focal:
            weights = FocalWeights(self.face, self.edges, self.entropy)
            focus = focal_point(piece.image, size, weights, tools.detect_faces)
        geometry = crop_geometry(piece.image.size, size, focus)
        if geometry.resized[0] > piece.image.width or geometry.resized[1] > piece.image.height:
            piece = piece.noted(f"is enlarged to {geometry.resized[0] / piece.image.width:.3g} of its size")
        return [replace(piece, image=fit(piece.image, geometry, size))]


@dataclass(frozen=True, kw_only=True)
class Crop(_Focused):
    """Resize a picture so that it just covers a size, and cut that out."""

    width: int = setting(512, "width of what is cut out", min=8, max=16384, unit="px")
    height: int = setting(512, "height of what is cut out", min=8, max=16384, unit="px")

    def pieces(self, piece: Piece, tools: Tools) -> list[Piece]:
        return self._cut(piece, (self.width, self.height), tools)


@dataclass(frozen=True, kw_only=True)
class Bucket(_Focused):
    """Cut a picture to its bucket, as training would; then training has nothing left to cut."""

    resolution: int = setting(512, "side of the square whose area each bucket has at most", min=8, max=8192, unit="px")
    step_px: int = setting(64, "bucket sides are multiples of this, rounded up to 8", min=1, max=512, unit="px")
    min_px: int = setting(256, "shortest side of a bucket", min=8, max=8192, unit="px", advanced=True)
    max_px: int = setting(1024, "longest side of a bucket", min=8, max=16384, unit="px", advanced=True)
    upscale: bool = setting(True, "enlarge pictures that are smaller than their bucket", advanced=True)

    def pieces(self, piece: Piece, tools: Tools) -> list[Piece]:
        step_px = -(-self.step_px // 8) * 8  # of the autoencoder's pixels, as a scan does it
        sizes = bucket_sizes(self.resolution, step_px, self.min_px, self.max_px)
        return self._cut(piece, nearest_bucket(piece.image.size, sizes, self.upscale, step_px), tools)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Cut a picture that is far longer than a shape into overlapping parts of that shape.

    A picture is split when the shape's aspect ratio is at most `threshold` of its own, into the fewest equally spaced
    parts whose neighbours share at least `overlap` of their length.
    """

    threshold: float = setting(0.5, "split where the shape is at most so much of the picture's ratio", min=0.01, max=1)
    overlap: float = setting(0.2, "share of its length that a part has in common with the next", min=0.0, max=0.9)
    width: int = setting(1, "width of the shape; only the ratio counts", min=1, max=16384)
    height: int = setting(1, "height of the shape; only the ratio counts", min=1, max=16384)

    def pieces(self, piece: Piece, tools: Tools) -> list[Piece]:
        parts = self.parts(piece.image.size)
        if len(parts) == 1:
            return [piece]
        return [
            replace(piece, image=piece.image.crop(box), suffix=f"{piece.suffix}-{number}")
            for number, box in enumerate(parts, 1)
        ]

    def parts(self, size: Size) -> list[tuple[int, int, int, int]]:
        """The boxes (left, top, right, bottom) of the parts of a picture, one where it is not split."""
        width, height = size
        ratio = width * self.height / (height * self.width)
        if min(ratio, 1 / ratio) > self.threshold or ratio == 1:
            return [(0, 0, width, height)]
        tall = ratio < 1
        long = height if tall else width
        part = min(long, max(1, round(width * self.height / self.width if tall else height * self.width / self.height)))
        # a hair is taken off, so that what divides evenly does not become one more by rounding
        num = max(2, math.ceil((long - self.overlap * part) / (part * (1 - self.overlap)) - 1e-9))
        starts = [round(i * (long - part) / (num - 1)) for i in range(num)]
        return [(0, s, width, s + part) if tall else (s, 0, s + part, height) for s in starts]


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Add each picture mirrored, and warn where its caption names what a mirror changes."""

    def pieces(self, piece: Piece, tools: Tools) -> list[Piece]:
        image = piece.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mirrored = replace(piece, image=image, suffix=f"{piece.suffix}-flip", notes=())
        one_sided = [tag for tag in split_tags(piece.caption) if tools.rules.is_asymmetric(tag)]
        if one_sided:
            mirrored = mirrored.noted(f"is mirrored, and its caption names what is then wrong: {', '.join(one_sided)}")
        return [piece, mirrored]


@dataclass(frozen=True, kw_only=True)
class Background:
    """Put what is not the subject on white, or make it transparent.

    The subject is what the picture's own transparency leaves, else what the segmentation model finds.
    """

    to: str = setting("white", "what becomes of the background", choices=("white", "alpha"))

    def pieces(self, piece: Piece, tools: Tools) -> list[Piece]:
        image = piece.image
        if image.mode != "RGBA":
            if tools.background_mask is None:
                return [piece.noted("keeps its background: it has no transparency, and no segmentation model is given")]
            mask = tools.background_mask(image)
            if mask.size != image.size or mask.mode != "L":
                raise ValueError(f"a mask must be L {image.size}; the segmentation gave {mask.mode} {mask.size}")
            if mask.getextrema()[1] == 0:
                return [piece.noted("keeps its background: no subject is found in it")]
            image = image.copy()
            image.putalpha(mask)
        if self.to == "white":
            image = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, "white"), image.getchannel("A"))
        return [replace(piece, image=image)]


@dataclass(frozen=True, kw_only=True)
class Faces:
    """Cut out each face, square, the largest first."""

    margin: float = setting(0.6, "margin on each side, in longer sides of the face", min=0.0, max=10.0)
    min_px: int = setting(64, "smaller faces are left out", min=1, max=8192, unit="px")
    keep_others: bool = setting(False, "keep pictures without a face whole instead of leaving them out")

    def pieces(self, piece: Piece, tools: Tools) -> list[Piece]:
        if tools.detect_faces is None:
            raise ValueError("the step faces needs a face detector, and none is given")
        image = piece.image
        boxes = face_boxes(image.convert("RGB"), tools.detect_faces)
        boxes = [box for box in boxes if max(box[2] - box[0], box[3] - box[1]) >= self.min_px]
        if not boxes:
            return [piece.noted("has no face, and is kept whole")] if self.keep_others else []
        found = []
        for number, box in enumerate(sorted(boxes, key=lambda b: -(b[2] - b[0]) * (b[3] - b[1])), 1):
            side = round(max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * self.margin))
            side = max(1, min(side, image.width, image.height))
            left = min(max(0, round((box[0] + box[2] - side) / 2)), image.width - side)
            top = min(max(0, round((box[1] + box[3] - side) / 2)), image.height - side)
            cut = image.crop((left, top, left + side, top + side))
            found.append(replace(piece, image=cut, suffix=f"{piece.suffix}-face{number}"))
        return found


@dataclass(frozen=True, kw_only=True)
class Unsharp:
    """Sharpen: add what a blurred copy lacks. Transparency stays as it is."""

    radius_px: float = setting(2.0, "deviation of the blur", min=0.1, max=100.0, unit="px")
    percent: int = setting(60, "how much of the difference is added", min=1, max=500, unit="%")
    threshold: int = setting(2, "smaller differences are noise, and stay", min=0, max=255)

    def pieces(self, piece: Piece, tools: Tools) -> list[Piece]:
        image = piece.image.convert("RGB").filter(
            ImageFilter.UnsharpMask(radius=self.radius_px, percent=self.percent, threshold=self.threshold)
        )
        if piece.image.mode == "RGBA":
            image.putalpha(piece.image.getchannel("A"))
        return [replace(piece, image=image)]


@dataclass(frozen=True, kw_only=True)
class Upscale:
    """Enlarge small pictures by the host's upscaler."""

    least_px: int = setting(768, "shorter side that smaller pictures get", min=8, max=16384, unit="px")

    def pieces(self, piece: Piece, tools: Tools) -> list[Piece]:
        before = piece.image.size
        if min(before) >= self.least_px:
            return [piece]
        if tools.upscale is None:
            raise ValueError("the step upscale needs a host's upscaler, and none is given")
        image = piece.image.convert("RGB")
        while min(image.size) < self.least_px:
            larger = tools.upscale(image)
            if larger.mode != "RGB" or min(larger.size) <= min(image.size):
                raise ValueError(
                    f"an upscaler gives RGB that is larger; it made {larger.mode} {larger.size} of {image.size}"
                )
            image = larger
        factor = self.least_px / min(before)
        size = max(self.least_px, round(before[0] * factor)), max(self.least_px, round(before[1] * factor))
        image = image.resize(size, Image.Resampling.LANCZOS)
        if piece.image.mode == "RGBA":
            image.putalpha(piece.image.getchannel("A").resize(size, Image.Resampling.BILINEAR))
        return [replace(piece, image=image).noted(f"is enlarged to {factor:.3g} of its size by the upscaler")]


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Write each picture several times, as name_1, name_2, ..., for trainers that know no repeats.

    In training here the repeats of a concept do the same without files.
    """

    num: int = setting(2, "how often each picture is written", min=1, max=1000)

    def pieces(self, piece: Piece, tools: Tools) -> list[Piece]:
        # what is said of a picture is said once
        copies = [replace(piece, suffix=f"{piece.suffix}_{i}", notes=()) for i in range(1, self.num + 1)]
        return [replace(copies[0], notes=piece.notes), *copies[1:]]


@dataclass(frozen=True, kw_only=True)
class Dedupe:
    """Of pictures that show the same keep the one with the most pixels. The originals are compared, so it is first."""

    def pieces(self, piece: Piece, tools: Tools) -> list[Piece]:
        return [piece]


STEPS: Mapping[str, type[Any]] = {
    "dedupe": Dedupe,
    "background": Background,
    "split": Split,
    "faces": Faces,
    "upscale": Upscale,
    "crop": Crop,
    "bucket": Bucket,
    "unsharp": Unsharp,
    "flip": Flip,
    "copies": Copies,
}


def steps_from(values: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Steps from tables `{"step": name, setting: value, ...}`, in their order.

    Errors: `ValueError` naming the step and setting, for unknown names and wrong values.
    """
    steps: list[Step] = []
    for i, value in enumerate(values):
        settings = dict(value)
        name = settings.pop("step", None)
        if name not in STEPS:
            raise ValueError(f'steps[{i}]: unknown step "{name}"; {nearest(str(name), STEPS)}')
        steps.append(from_dict(STEPS[name], settings, f"steps[{i}] ({name})"))
    return tuple(steps)


def steps_to_values(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The tables that `steps_from` takes, with every setting. Errors: `ValueError` for a wrong setting or order."""
    names = {kind: name for name, kind in STEPS.items()}
    twice = {names[type(step)] for i, step in enumerate(steps) if type(step) in map(type, steps[:i])}
    if twice:
        raise ValueError(f"each step can be taken once; twice: {', '.join(sorted(twice))}")
    if any(isinstance(step, Dedupe) for step in steps[1:]):
        raise ValueError("the step dedupe compares the originals, so it must be the first step")
    return [{"step": names[type(step)], **to_dict(checked(step))} for step in steps]


def take(piece: Piece, steps: Sequence[Step], tools: Tools) -> list[Piece]:
    """The pieces that all steps, one after the other, make of one."""
    pieces = [piece]
    for step in steps:
        pieces = [made for one in pieces for made in step.pieces(one, tools)]
    return pieces


def calls_models(steps: Sequence[Step], tools: Tools) -> bool:
    """Whether any of the steps may call a model."""
    return tools.models and any(
        isinstance(step, Background | Faces | Upscale) or (isinstance(step, _Focused) and step.focal) for step in steps
    )


def with_alpha(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """A decoded picture and its alpha as one."""
    if alpha is None:
        return image
    image = image.copy()
    image.putalpha(alpha)
    return image
