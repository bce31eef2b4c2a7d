"""What training will use of each picture, before there is any training: its bucket, and what is cut away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .buckets import Geometry, Size, crop_geometry
from .headers import named_faults
from .pictures import decode, load
from .sample import Sample

_DIMMED = 0.35  # brightness of what is cut away
_FRAME = (255, 64, 64)


@dataclass(frozen=True)
class BucketCut:
    """What training uses of one picture, from its header alone."""

    sample: Sample
    geometry: Geometry
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the upright picture

    @property
    def lost(self) -> float:
        """Share of the picture that is cut away, in [0, 1)."""
        left, top, right, bottom = self.box
        return 1 - (right - left) * (bottom - top) / (self.sample.size[0] * self.sample.size[1])

    @property
    def scale(self) -> float:
        """By how much it is resized; above 1 it is enlarged."""
        return self.geometry.resized[0] / self.sample.size[0]


@dataclass(frozen=True)
class BucketPreview:
    """One picture whole, with what is cut away darkened; and what training uses, pixel for pixel."""

    cut: BucketCut
    whole: Image.Image  # RGB
    trained: np.ndarray  # uint8 (H, W, 3), the size of the bucket


def bucket_cut(sample: Sample) -> BucketCut:
    """The cut of a picture of a scan."""
    geometry = crop_geometry(sample.size, sample.bucket)
    across, down = sample.size[0] / geometry.resized[0], sample.size[1] / geometry.resized[1]
    left, top = geometry.crop_left * across, geometry.crop_top * down
    return BucketCut(sample, geometry, (left, top, left + sample.bucket[0] * across, top + sample.bucket[1] * down))


def bucket_counts(samples: Iterable[Sample]) -> dict[Size, int]:
    """How many pictures each bucket has, the fullest first."""
    counts: dict[Size, int] = {}
    for sample in samples:
        counts[sample.bucket] = counts.get(sample.bucket, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def bucket_preview(sample: Sample, max_megapixels: float, longest_px: int = 512) -> BucketPreview:
    """The preview of a picture, its longest side at most `longest_px`. Errors: `PictureError` as training has them."""
    trained = load(sample.path, sample.bucket, False, max_megapixels).pixels
    with named_faults(sample.path):
        image, alpha, _ = decode(sample.path, max_megapixels)
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    cut = bucket_cut(sample)
    scale = min(1.0, longest_px / max(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    box = tuple(round(value * scale) for value in cut.box)
    left, top, right, bottom = box[0], box[1], max(box[0] + 1, box[2]), max(box[1] + 1, box[3])
    whole = image.point(lambda value: value * _DIMMED)
    whole.paste(image.crop((left, top, right, bottom)), (left, top))
    ImageDraw.Draw(whole).rectangle((left, top, right - 1, bottom - 1), outline=_FRAME)
    return BucketPreview(cut, whole, trained)
