"""The straight line."""

from __future__ import annotations

from dataclasses import dataclass

from ..registry import CURVES
from .curve import Curve


@CURVES.register("linear")
@dataclass(frozen=True)
class Linear(Curve):
    """start + (stop - start) p"""

    def rate(self, start: float, stop: float, progress: float) -> float:
        return start + (stop - start) * progress
