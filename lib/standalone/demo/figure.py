"""A little figure with a large head: its limbs, poses, expressions and accessories.

Who it is, a species or a character, is a `Look` (see `species` and `characters`); everything else is the same for all,
so that a model which has learned the poses of one can draw them of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .scenes import WHITE, Colour, Point, Stage, turned

INK: Colour = (52, 33, 74)
PINK: Colour = (246, 150, 176)
MOUTH, TONGUE = (110, 28, 66), (240, 110, 130)
LINE = 0.1  # thickness of outlines, in head radii

POSES = ("standing", "sitting", "waving", "jumping")
EXPRESSIONS = ("smile", "open mouth", "closed eyes")
ACCESSORIES = ("crown", "top hat", "scarf", "glasses", "bow")


class Pen:
    """Draws in the figure's coordinates: head radii from the middle of its head, y down; tilted, perhaps mirrored."""

    def __init__(
        self, stage: Stage, x: float, y: float, radius: float, tilt: float = 0.0, mirrored: bool = False
    ) -> None:
        """`x`, `y` are parts of the picture's sides, `radius` a part of its shorter side, `tilt` in radians."""
        self.stage, self.tilt, self.mirror = stage, tilt, -1 if mirrored else 1
        self.x, self.y, self.radius = x * stage.width, y * stage.height, radius * stage.unit

    def _at(self, point: Point) -> Point:
        x, y = turned(point[0] * self.mirror, point[1], self.tilt)
        return self.x + x * self.radius, self.y + y * self.radius

    def shape(self, points: Sequence[Point], fill: Colour, outlined: bool = True) -> None:
        """A polygon."""
        self.stage.draw.polygon([self._at(p) for p in points], fill=fill)
        if outlined:
            self.line([*points, points[0], points[1]])

    def blob(
        self, x: float, y: float, wide: float, high: float, fill: Colour, *, angle: float = 0.0, outlined: bool = True
    ) -> None:
        """An ellipse of half axes `wide` and `high`, turned clockwise by `angle`."""
        points = [turned(wide * c, high * s, angle) for c, s in _CIRCLE]
        self.shape([(x + px, y + py) for px, py in points], fill, outlined)

    def line(self, points: Sequence[Point], colour: Colour = INK, thickness: float = LINE) -> None:
        """A line with round ends."""
        width = max(1, round(thickness * self.radius))
        placed = [self._at(p) for p in points]
        self.stage.draw.line(placed, fill=colour, width=width, joint="curve")
        for x, y in (placed[0], placed[-1]):
            self.stage.draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)


@dataclass(frozen=True, kw_only=True)
class Look:
    """Who a figure is: its colours and what it draws that others do not have."""

    body: Colour
    belly: Colour
    behind: Callable[[Pen], None] = lambda pen: None  # before everything else: a tail, ears behind the head
    head: Callable[[Pen], None]
    front: Callable[[Pen], None] = lambda pen: None  # after the face
    torso: Callable[[Pen], None] | None = None  # instead of the round body
    eyes: tuple[float, float] = (0.4, -0.05)  # how far from the middle, and how low
    eye_size: float = 1.0
    mouth_y: float = 0.48
    limb: Colour | None = None  # arms and legs, where they are not of the body's colour
    hat_y: float = 0.0  # how much higher than usual a hat sits


def draw_figure(pen: Pen, look: Look, pose: str, expression: str, accessory: str | None) -> None:
    """Draw the whole figure; what lies outside the picture is cut off."""
    limb = look.limb or look.body
    look.behind(pen)
    _legs(pen, limb, pose)
    raised = {"waving": (False, True), "jumping": (True, True)}.get(pose, (False, False))
    for side, up in zip((-1, 1), raised, strict=True):
        if not up:
            _arm(pen, side, 0.6 if pose == "standing" else 0.95, limb)
    if look.torso is None:
        pen.blob(0, 1.5, 0.74, 0.8, look.body)
        pen.blob(0, 1.62, 0.44, 0.52, look.belly, outlined=False)
    else:
        look.torso(pen)
    for side, up in zip((-1, 1), raised, strict=True):
        if up:
            _arm(pen, side, 2.45 if pose == "waving" else 2.1, limb)
    if pose == "sitting":
        for side in (-1, 1):
            pen.blob(side * 0.62, 2.12, 0.4, 0.34, limb)
            pen.blob(side * 0.66, 2.14, 0.2, 0.17, look.belly, outlined=False)
    if accessory == "scarf":
        _scarf(pen)
    look.head(pen)
    _face(pen, look, expression)
    look.front(pen)
    if accessory in _WORN:
        _WORN[accessory](pen, look)


def lowest(pose: str) -> float:
    """How far below the middle of its head a figure's feet are, in head radii; of a jumping one, its shadow."""
    return {"sitting": 2.42, "jumping": 3.3}.get(pose, 2.6)


def _legs(pen: Pen, limb: Colour, pose: str) -> None:
    if pose == "jumping":
        for side in (-1, 1):
            pen.blob(side * 0.72, 2.2, 0.27, 0.5, limb, angle=-side * 0.9)
    elif pose != "sitting":
        for side in (-1, 1):
            pen.blob(side * 0.36, 2.2, 0.27, 0.42, limb)


def _arm(pen: Pen, side: int, angle: float, colour: Colour) -> None:
    """An arm from the shoulder; it hangs down at angle 0 and points sideways at pi / 2."""
    length = 0.5
    x, y = math.sin(angle) * length, math.cos(angle) * length
    pen.blob(side * (0.55 + x), 1.15 + y, 0.23, 0.56, colour, angle=-side * angle)


def _face(pen: Pen, look: Look, expression: str) -> None:
    away, low = look.eyes
    size = look.eye_size
    for side in (-1, 1):
        x = side * away
        if expression == "closed eyes":
            arc = [(x + 0.2 * c, low + 0.03 + 0.12 * math.cos(c * math.pi / 2)) for c in np.linspace(-1, 1, 12)]
            pen.line(arc, INK, 0.13)
        else:
            pen.blob(x, low, 0.2 * size, 0.25 * size, INK, outlined=False)
            pen.blob(x - 0.05, low - 0.1, 0.085, 0.09, WHITE, outlined=False)
    y = look.mouth_y
    if expression == "open mouth":
        pen.shape([(0.26 * c, y + 0.02 + 0.34 * max(0.0, s)) for c, s in _CIRCLE], MOUTH, outlined=False)
        pen.blob(0, y + 0.24, 0.13, 0.08, TONGUE, outlined=False)
    else:
        pen.line([(0.24 * c, y + 0.13 * math.cos(c * math.pi / 2)) for c in np.linspace(-1, 1, 14)], INK, 0.1)


def _scarf(pen: Pen) -> None:
    red, dark = (222, 58, 62), (176, 34, 52)
    pen.shape([(0.2, 1.0), (0.62, 0.95), (0.66, 1.75), (0.3, 1.75)], dark)
    pen.blob(0, 0.95, 0.72, 0.24, red)


def _crown(pen: Pen, look: Look) -> None:
    y = -0.72 - look.hat_y
    points = [(-0.5, y), (-0.6, y - 0.7), (-0.27, y - 0.35), (0, y - 0.85), (0.27, y - 0.35), (0.6, y - 0.7), (0.5, y)]
    pen.shape(points, (255, 206, 64))
    pen.blob(0, y - 0.2, 0.11, 0.11, (222, 58, 62), outlined=False)


def _top_hat(pen: Pen, look: Look) -> None:
    y, black = -0.68 - look.hat_y, (44, 42, 58)
    pen.shape([(-0.48, y), (-0.54, y - 0.95), (0.54, y - 0.95), (0.48, y)], black)
    pen.shape([(-0.48, y - 0.1), (-0.5, y - 0.34), (0.5, y - 0.34), (0.48, y - 0.1)], (214, 64, 92), outlined=False)
    pen.blob(0, y, 0.86, 0.15, black)


def _glasses(pen: Pen, look: Look) -> None:
    away, low = look.eyes
    for side in (-1, 1):
        pen.line([(side * away + 0.33 * c, low + 0.33 * s) for c, s in [*_CIRCLE, _CIRCLE[0]]], (30, 24, 40), 0.13)
    pen.line([(-away + 0.33, low), (away - 0.33, low)], (30, 24, 40), 0.13)


def _bow(pen: Pen, look: Look) -> None:
    x, y, pink = 0.5, -0.82 - look.hat_y, (250, 92, 160)
    for side in (-1, 1):
        pen.shape([(x, y), (x + side * 0.52, y - 0.36), (x + side * 0.52, y + 0.36)], pink)
    pen.blob(x, y, 0.16, 0.17, pink)


_WORN: dict[str | None, Callable[[Pen, Look], None]] = {
    "crown": _crown,
    "top hat": _top_hat,
    "glasses": _glasses,
    "bow": _bow,
}
_CIRCLE: list[Point] = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 40, endpoint=False)]
