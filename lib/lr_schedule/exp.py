"""Exponential: the same factor each step."""

from __future__ import annotations

from dataclasses import dataclass

from ..registry import CURVES
from .curve import Curve


@CURVES.register("exp")
@dataclass(frozen=True)
class Exponential(Curve):
    """start (stop / start)^p, both above 0"""

    def check(self, start: float, stop: float) -> None:
        if start == 0 or stop == 0:
            raise ValueError(
                f"exp needs both rates above 0, got {start:g}->{stop:g}; "
                f"write a small rate such as 1e-8 for the 0, or another curve such as cosine"
            )

    def rate(self, start: float, stop: float, progress: float) -> float:
        # As a product of powers it is exact at both ends and the quotient cannot overflow.
        return start ** (1 - progress) * stop**progress
