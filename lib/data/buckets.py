"""Aspect-ratio buckets: which sizes there are, which one a picture gets, and how it is cut to it.

All sizes are (width, height) in pixels. Whole-number arithmetic throughout, so every machine gives the same answer.
Aspect-ratio buckets: NovelAI 2022, "NovelAI Improvements on Stable Diffusion".
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import NamedTuple

Size = tuple[int, int]

# Sides of a latent that a denoiser takes: those of the transformers are cut into tokens of 2 x 2. U-Nets take any.
LATENT_STEP = {"sd3": 2, "flux": 2}


class Geometry(NamedTuple):
    """What was done to a picture: resized to `resized`, then the bucket was cut out at (`crop_left`, `crop_top`)."""

    resized: Size
    crop_left: int
    crop_top: int


def bucket_sizes(resolution_px: int, step_px: int, min_px: int, max_px: int) -> tuple[Size, ...]:
    """All bucket sizes, sorted: sides are multiples of `step_px` in [min_px, max_px], areas at most resolution_px^2.

    For each width the largest height, the same turned, and the largest square. Errors: `ValueError` when nothing
    fits.
    """
    area = resolution_px * resolution_px
    shortest, longest = max(1, -(-min_px // step_px)) * step_px, max_px // step_px * step_px
    sizes = set()
    square = resolution_px // step_px * step_px
    if shortest <= square <= longest:
        sizes.add((square, square))
    for width in range(shortest, longest + 1, step_px):
        height = min(longest, area // width // step_px * step_px)
        if height >= shortest:
            sizes |= {(width, height), (height, width)}
    if not sizes:
        if shortest <= longest:
            fix = f"raise data.resolution to at least {shortest} or lower data.bucket_min_px and data.bucket_step"
        else:
            fix = f"raise data.bucket_max_px to at least {shortest} or lower data.bucket_min_px and data.bucket_step"
        raise ValueError(
            f"no bucket fits: sides must be multiples of data.bucket_step ({step_px}) from data.bucket_min_px "
            f"({min_px}) to data.bucket_max_px ({max_px}), with areas of at most data.resolution "
            f"({resolution_px}) squared; {fix}"
        )
    return tuple(sorted(sizes))


def nearest_bucket(size: Size, sizes: tuple[Size, ...], upscale: bool, step_px: int = 8) -> Size:
    """The bucket whose aspect ratio is nearest to that of `size` in log space; of equally near ones the larger.

    With `upscale` off a picture is not enlarged: where it is smaller than that bucket, each side of the bucket is cut
    to the picture's side in whole steps (at least one), also below the shortest bucket side.
    """
    width, height = size
    ratios, buckets = _by_ratio(sizes)
    right = bisect_left(ratios, width / height)
    if right == len(ratios):
        bucket = buckets[-1]
    elif right == 0:
        bucket = buckets[0]
    else:
        (lw, lh), (rw, rh) = buckets[right - 1], buckets[right]
        # log(ratio / left) against log(right / ratio), as products of whole numbers, so that a tie is a tie
        to_left, to_right = width * width * lh * rh, height * height * lw * rw
        left_wins = to_left < to_right or (to_left == to_right and lw * lh >= rw * rh)
        bucket = buckets[right - 1] if left_wins else buckets[right]
    if upscale or (width >= bucket[0] and height >= bucket[1]):
        return bucket
    return _whole_steps(min(width, bucket[0]), step_px), _whole_steps(min(height, bucket[1]), step_px)


def crop_geometry(size: Size, bucket: Size, focus: tuple[float, float] = (0.5, 0.5)) -> Geometry:
    """Resize `size` so that it just covers `bucket`, then cut the bucket out around `focus`.

    `focus` is a point of the picture, 0 to 1 from left and from top; the cut is centred on it as far as the picture
    reaches.
    """
    (width, height), (bucket_w, bucket_h) = size, bucket
    if bucket_w * height >= bucket_h * width:
        resized = bucket_w, max(bucket_h, _rounded(height * bucket_w, width))
    else:
        resized = max(bucket_w, _rounded(width * bucket_h, height)), bucket_h
    left = min(max(0, round(focus[0] * resized[0] - bucket_w / 2)), resized[0] - bucket_w)
    top = min(max(0, round(focus[1] * resized[1] - bucket_h / 2)), resized[1] - bucket_h)
    return Geometry(resized, left, top)


@lru_cache(maxsize=16)
def _by_ratio(sizes: tuple[Size, ...]) -> tuple[list[float], list[Size]]:
    """Ratios width / height in rising order and the largest bucket of each."""
    if not sizes:
        raise ValueError("there are no buckets to choose from")
    largest = {w / h: (w, h) for w, h in sorted(sizes, key=lambda s: s[0] * s[1])}
    ratios = sorted(largest)
    return ratios, [largest[ratio] for ratio in ratios]


def _whole_steps(side: int, step_px: int) -> int:
    return max(step_px, side // step_px * step_px)


def _rounded(a: int, b: int) -> int:
    return (2 * a + b) // (2 * b)
