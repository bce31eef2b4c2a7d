"""Half a cosine wave: flat at both ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..registry import CURVES
from .curve import Curve


@CURVES.register("cosine")
@dataclass(frozen=True)
class Cosine(Curve):
    """stop + (start - stop) (1 + cos(pi p)) / 2. Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5."""

    def rate(self, start: float, stop: float, progress: float) -> float:
        # Halved before the product, so that the largest rates do not overflow.
        return stop + (start - stop) * ((1 + math.cos(math.pi * progress)) / 2)
