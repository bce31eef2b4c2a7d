"""REX: holds the rate up for long, then falls fast."""

from __future__ import annotations

from dataclasses import dataclass

from ..registry import CURVES
from .curve import Curve


@CURVES.register("rex")
@dataclass(frozen=True)
class Rex(Curve):
    """stop + (start - stop) (1 - p) / (1 - p / 2). Chen, Wolfe and Kyrillidis 2021, arXiv:2107.04197."""

    def rate(self, start: float, stop: float, progress: float) -> float:
        return stop + (start - stop) * ((1 - progress) / (1 - progress / 2))
