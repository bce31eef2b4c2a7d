"""Polynomial: a power of what is left of the way."""

from __future__ import annotations

from dataclasses import dataclass

from ..registry import CURVES
from .curve import Curve


@CURVES.register("poly")
@dataclass(frozen=True)
class Polynomial(Curve):
    """stop + (start - stop) (1 - p)^power. 1 is the straight line; above 1 it ends flat, below 1 it ends steep."""

    power: float

    def __post_init__(self) -> None:
        if self.power == 0:
            raise ValueError("poly needs a power above 0, got 0; write poly(2), or a constant rate")

    def rate(self, start: float, stop: float, progress: float) -> float:
        return stop + (start - stop) * (1 - progress) ** self.power
