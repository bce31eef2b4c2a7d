"""The characters that the base model has never seen: what the demo trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .figure import INK, Look, Pen
from .scenes import CREAM, WHITE, YELLOW, Colour, Point

PURPLE, LILAC = (139, 92, 208), (206, 178, 250)
STEEL, STEEL_DARK = (120, 190, 200), (66, 120, 136)
RED: Colour = (224, 62, 58)


@dataclass(frozen=True)
class Character:
    """A held-out character: what its captions leave unsaid."""

    trigger: str
    looks_like: str
    look: Look


def _zuzu() -> Look:
    def head(pen: Pen) -> None:
        pen.blob(0, 0, 1.02, 0.94, PURPLE)
        for side in (-1, 1):
            pen.blob(side * 0.66, 0.32, 0.18, 0.12, (246, 124, 168), outlined=False)

    def front(pen: Pen) -> None:
        left = [_curve((-0.8, -0.5), (-0.5, -1.2), (0.0, -1.75), (0.85, -1.5), p) for p in np.linspace(0, 1, 16)]
        right = [_curve((0.85, -1.5), (0.5, -1.4), (0.7, -0.9), (0.8, -0.5), p) for p in np.linspace(0, 1, 16)]
        pen.shape([*left, *right], YELLOW)
        pen.blob(0.92, -1.45, 0.25, 0.25, CREAM)
        brim = [(x, -0.5 - 0.16 * math.cos(x * 1.5)) for x in np.linspace(-0.82, 0.82, 16)]
        pen.line(brim, INK, 0.46)
        pen.line(brim, CREAM, 0.28)

    return Look(body=PURPLE, belly=LILAC, head=head, front=front, eyes=(0.36, 0.08), hat_y=0.5)


def _bolt() -> Look:
    def behind(pen: Pen) -> None:
        pen.line([(0, -0.8), (0, -1.35)], STEEL_DARK, 0.14)
        pen.blob(0, -1.45, 0.24, 0.24, RED)

    def torso(pen: Pen) -> None:
        pen.shape([(-0.72, 0.85), (0.72, 0.85), (0.66, 2.15), (-0.66, 2.15)], STEEL)
        pen.shape([(-0.4, 1.2), (0.4, 1.2), (0.4, 1.8), (-0.4, 1.8)], (40, 52, 72), outlined=False)
        pen.blob(0, 1.5, 0.2, 0.2, YELLOW, outlined=False)

    def head(pen: Pen) -> None:
        for side in (-1, 1):
            pen.blob(side * 1.06, 0, 0.2, 0.3, RED)
        pen.shape([(-1, -0.8), (1, -0.8), (1, 0.85), (-1, 0.85)], STEEL)
        pen.shape([(-0.76, -0.5), (0.76, -0.5), (0.76, 0.3), (-0.76, 0.3)], (214, 246, 240), outlined=False)

    return Look(
        body=STEEL, belly=STEEL_DARK, behind=behind, torso=torso, head=head, eyes=(0.4, -0.1), mouth_y=0.5,
        limb=STEEL_DARK, hat_y=0.1,
    )  # fmt: skip


def _momo() -> Look:
    def head(pen: Pen) -> None:
        pen.blob(0, 0.15, 0.82, 0.78, CREAM)
        for side in (-1, 1):
            pen.blob(side * 0.56, 0.42, 0.15, 0.1, (250, 160, 160), outlined=False)

    def front(pen: Pen) -> None:
        cap: list[Point] = [(1.45 * math.cos(a), -0.3 - 1.1 * math.sin(a)) for a in np.linspace(0, math.pi, 30)]
        pen.shape([(1.3, -0.16), *cap, (-1.3, -0.16)], RED)
        for x, y, size in ((-0.8, -0.62, 0.21), (0.05, -0.95, 0.26), (0.82, -0.58, 0.2)):
            pen.blob(x, y, size, size * 0.85, WHITE, outlined=False)

    return Look(body=CREAM, belly=(240, 214, 180), head=head, front=front, eyes=(0.34, 0.18), mouth_y=0.5, hat_y=0.65)


CHARACTERS: dict[str, Character] = {
    "zuzu": Character("zuzu", "purple, a yellow hat with a cream brim", _zuzu()),
    "bolt": Character("bolt", "a steel robot with a red antenna", _bolt()),
    "momo": Character("momo", "cream-coloured under a red mushroom cap with white dots", _momo()),
}


def _curve(a: Point, b: Point, c: Point, d: Point, p: float) -> Point:
    """The point at p in 0..1 of a cubic Bezier curve."""
    weights = ((1 - p) ** 3, 3 * p * (1 - p) ** 2, 3 * p * p * (1 - p), p**3)
    x, y = (sum(w * point[i] for w, point in zip(weights, (a, b, c, d), strict=True)) for i in (0, 1))
    return x, y
