"""Where a picture is looked at: faces, corners and the part with most information, weighed into one point.

    focus = sum_k w_k c_k / sum_k w_k,    w = 0.9 for faces, 0.5 for edges, 0.15 for entropy,

over the kinds k that found something; c_k is the mean of the points of that kind, so many points of one kind count no
more than one. Without a face the other weights are thereby renormalised; where nothing is found the focus is the
middle. The three kinds, their weights, the lowest tenth that is not searched for corners and the third of a face that
counts are those of the focal-point crop of AUTOMATIC1111's WebUI. Nothing in this prefers the upper part of a picture:
where no detector finds a face, the cut may go through the top of a head, and a look at it is due.

All points are (x, y) in 0 to 1 from left and from top.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .buckets import Size, crop_geometry

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture
FaceDetector = Callable[[np.ndarray], Sequence[Box]]  # uint8 (H, W, 3) RGB -> faces

_ANALYSED_PX = 256  # longest side of what is looked at; finer detail is noise here
_MAX_CORNERS = 100
_QUALITY = 0.04  # of the strongest corner
_DISTANCE = 0.06  # of the shorter side, between corners
_BOTTOM = 0.1  # of the height, where watermarks and floors are; corners there do not count
_FACE_HEIGHT = 1 / 3  # of a face, from its top: nearer to the top of the head than to the chin
_LEVELS = 32  # of grey, for the entropy
_NEARLY = 0.01  # bits: windows whose entropy is that near to the best are equally good


@dataclass(frozen=True)
class FocalWeights:
    """How much each kind of point counts; only their ratios matter."""

    face: float = 0.9
    edges: float = 0.5
    entropy: float = 0.15

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1e6:
                raise ValueError(f"the focal weight {name} must be between 0 and 1e6, got {value}")
        if not any(vars(self).values()):
            raise ValueError("the focal weights are all 0; give at least one of face, edges and entropy")


def focal_point(
    image: Image.Image, bucket: Size, weights: FocalWeights | None = None, detect_faces: FaceDetector | None = None
) -> Point:
    """The point around which `image` is cut to `bucket`, for `buckets.crop_geometry`.

    Transparency counts as white. Errors: `ValueError` where the detector gives something else than boxes.
    """
    weights = weights or FocalWeights()
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    grey = _grey(image)
    found = (
        (weights.face, face_point(image, detect_faces) if detect_faces is not None and weights.face else None),
        (weights.edges, edge_point(grey) if weights.edges else None),
        (weights.entropy, entropy_point(grey, bucket) if weights.entropy else None),
    )
    return weighted([(weight, point) for weight, point in found if point is not None])


def weighted(points: Sequence[tuple[float, Point]]) -> Point:
    """The mean of (weight, point); the middle of the picture where there is none."""
    total = sum(weight for weight, _ in points)
    if not total:
        return 0.5, 0.5
    return sum(w * x for w, (x, _) in points) / total, sum(w * y for w, (_, y) in points) / total


def face_boxes(image: Image.Image, detect_faces: FaceDetector) -> list[Box]:
    """The faces in an RGB picture, cut to it. Errors: `ValueError` where the detector gives something else."""
    boxes = []
    for box in detect_faces(np.asarray(image)):
        values = tuple(float(value) for value in box)
        if len(values) != 4 or not np.isfinite(values).all():
            raise ValueError(f"a face is (left, top, right, bottom) in pixels; the face detector gave {box!r}")
        left, right = (min(max(0.0, value), float(image.width)) for value in values[0::2])
        top, bottom = (min(max(0.0, value), float(image.height)) for value in values[1::2])
        if right > left and bottom > top:
            boxes.append((left, top, right, bottom))
    return boxes


def face_point(image: Image.Image, detect_faces: FaceDetector) -> Point | None:
    """The mean of the faces in an RGB picture, each alike: its middle, a third below its top. None without one."""
    boxes = face_boxes(image, detect_faces)
    if not boxes:
        return None
    left, top, right, bottom = np.mean(boxes, axis=0)
    return float(left + right) / 2 / image.width, float(top + (bottom - top) * _FACE_HEIGHT) / image.height


def edge_point(grey: np.ndarray) -> Point | None:
    """The mean of the strongest corners, at most 100, of a picture (H, W) in [0, 1]; None without one.

    A corner is a local maximum of the smaller eigenvalue of the structure tensor, at least 0.04 of the largest, and
    none lies nearer than 0.06 of the shorter side to a stronger one, or in the lowest tenth of the picture. Shi and
    Tomasi 1994, "Good Features to Track".
    """
    from kornia.feature import gftt_response

    height, width = grey.shape
    if min(height, width) < 8:
        return None
    values = torch.from_numpy(grey).to(torch.float32)[None, None]
    with torch.no_grad():
        strength = gftt_response(values)[0, 0].numpy().copy()
    strength[round((1 - _BOTTOM) * height) :] = 0
    if not strength.max() > 1e-6:
        return None
    order = np.argsort(-strength, axis=None, kind="stable")
    order = order[strength.reshape(-1)[order] >= _QUALITY * strength.max()]
    apart_px = max(1, round(_DISTANCE * min(height, width)))
    free = np.ones((height, width), bool)
    corners: list[tuple[int, int]] = []
    for y, x in zip(*np.unravel_index(order, strength.shape), strict=True):
        if not free[y, x]:
            continue
        corners.append((int(x), int(y)))
        if len(corners) == _MAX_CORNERS:
            break
        free[max(0, y - apart_px) : y + apart_px + 1, max(0, x - apart_px) : x + apart_px + 1] = False
    x, y = np.mean(corners, axis=0) + 0.5
    return float(x) / width, float(y) / height


def entropy_point(grey: np.ndarray, bucket: Size) -> Point | None:
    """The middle of the window of the bucket's shape, as large as fits, whose grey levels have the highest entropy.

    Shannon's entropy of 32 levels, in bits; of windows that are equally good the mean counts. None where the whole
    picture (H, W) in [0, 1] has no information, or where the window is the picture.
    """
    height, width = grey.shape
    geometry = crop_geometry((width, height), bucket)
    window_w = max(1, round(bucket[0] * width / geometry.resized[0]))
    window_h = max(1, round(bucket[1] * height / geometry.resized[1]))
    if window_w >= width and window_h >= height:
        return None
    levels = np.minimum((grey * _LEVELS).astype(np.int64), _LEVELS - 1)
    counts = np.zeros((_LEVELS, height + 1, width + 1), np.int32)
    counts[:, 1:, 1:] = (levels[None] == np.arange(_LEVELS)[:, None, None]).cumsum(1).cumsum(2)
    inside = (
        counts[:, window_h:, window_w:]
        - counts[:, :-window_h, window_w:]
        - counts[:, window_h:, :-window_w]
        + counts[:, :-window_h, :-window_w]
    )
    share = inside / (window_w * window_h)
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(0)
    if not entropy.max() > _NEARLY:
        return None
    tops, lefts = np.nonzero(entropy >= entropy.max() - _NEARLY)
    return (float(lefts.mean()) + window_w / 2) / width, (float(tops.mean()) + window_h / 2) / height


def _grey(image: Image.Image) -> np.ndarray:
    """Grey (H, W) in [0, 1], its longest side at most 256 px."""
    scale = min(1.0, _ANALYSED_PX / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    grey = image.convert("L")
    if size != image.size:
        grey = grey.resize(size, Image.Resampling.BOX)
    return np.asarray(grey, np.float32) / 255
