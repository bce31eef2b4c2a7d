"""One picture of the data set, and one batch of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor  # finding pictures needs no torch


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture that will be trained. Sizes are (width, height) in pixels, after the EXIF orientation is applied."""

    name: str  # folder name and relative path, posix; unique in the data set; the `image` column of the records
    path: Path
    caption: str  # as read, the concept's trigger put in front
    size: tuple[int, int]
    bucket: tuple[int, int]
    repeats: int = 1
    weight: float = 1.0  # the concept's weight, times prior_weight for regularization pictures
    concept: int = 0  # index into data.concepts


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one bucket. Tensors are on the CPU, float32; the trainer moves them."""

    latents: Tensor  # (B, C, h, w)
    names: tuple[str, ...]
    visits: tuple[int, ...]  # how often this picture has been drawn before, copies counted apart
    captions: tuple[str, ...]  # exactly what is encoded, after shuffle and dropout
    weight: Tensor  # (B,)
    mask: Tensor | None  # (B, 1, h, w) in [0, 1], 1 = trained; None where no picture of the batch has one
    sizes: tuple[tuple[int, int, int, int, int, int], ...]  # per sample: original w, h, crop left, top, bucket w, h
    epoch: int
