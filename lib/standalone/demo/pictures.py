"""Training pictures that the pack draws itself: one little creature in many places, with captions.

The creature is round and purple and wears a yellow hat; captions name it by a trigger word and describe only what
changes. Everything is drawn several times larger and reduced, so that edges are smooth at 64 to 128 pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ...files import make_folder, write_bytes, write_image
from .scenes import CREAM, SCENES, WHITE, YELLOW, Colour, Point, Scene, Stage, turned

TRIGGER = "zuzu"
ENLARGED = 8  # drawn so many times larger than it is saved
RATIOS = ((1, 1), (3, 2), (2, 3))  # width to height; all have about the same area

MOODS = ("smiling", "laughing", "sleeping", "surprised", "winking")

INK = (52, 33, 74)
BODY, BODY_LIGHT, BODY_DARK = (139, 92, 208), (190, 154, 246), (98, 56, 164)
BELLY, CHEEK, MOUTH, TONGUE = (206, 178, 250), (246, 124, 168), (110, 28, 66), (240, 110, 130)
HAT_DARK = (232, 142, 40)
LINE = 0.055  # thickness of outlines, in body radii


def draw_dataset(folder: Path | str, count: int = 12, size_px: int = 128, seed: int = 0) -> list[Path]:
    """Draw `count` pictures NAME.png with captions NAME.txt into a folder, in turn square, wide and tall.

    `size_px` is the side of the square ones; the others have about their area. The same arguments give the same
    pictures. Returns the paths of the pictures. Errors: `ValueError` below 1 picture or 16 pixels; `OSError`.
    """
    if count < 1 or size_px < 16:
        raise ValueError(f"a data set needs count >= 1 and size_px >= 16, got {count} and {size_px}")
    folder = Path(folder)
    make_folder(folder)
    paths = []
    for number in range(count):
        picture, caption = draw_picture(number, size_px, seed)
        path = folder / f"{TRIGGER}-{number + 1:02d}.png"
        write_image(path, picture)
        write_bytes(path.with_suffix(".txt"), (caption + "\n").encode())
        paths.append(path)
    return paths


def draw_picture(number: int, size_px: int, seed: int = 0) -> tuple[Image.Image, str]:
    """One picture and its caption; `number` chooses the place, the mood and the shape, `seed` all the rest."""
    rng = random.Random(f"{seed} {number}")
    across, down = RATIOS[number % len(RATIOS)]
    width = _multiple_of_8(size_px * math.sqrt(across / down))
    height = _multiple_of_8(size_px * math.sqrt(down / across))
    # places and moods repeat with periods that share no factor, so that longer sets have new combinations
    scene = SCENES[number % len(SCENES)]
    mood = MOODS[(number + number // len(SCENES)) % len(MOODS)]
    stage = Stage((width * ENLARGED, height * ENLARGED), rng)
    scene.draw(stage)
    where = _creature(stage, scene, mood)
    picture = stage.image.resize((width, height), Image.Resampling.LANCZOS)
    return picture, ", ".join([TRIGGER, mood, *where, *scene.tags])


def _multiple_of_8(length: float) -> int:
    return max(8, round(length / 8) * 8)


def _creature(stage: Stage, scene: Scene, mood: str) -> list[str]:
    """Draw the creature; what captions say of where it is."""
    rng = stage.rng
    close = rng.random() < 0.25
    side = 0 if close else rng.choice((-1, 0, 1))
    radius = rng.uniform(0.3, 0.33) if close else rng.uniform(0.2, 0.25)
    room = 0.5 - 1.35 * radius * stage.unit / stage.width
    floor = 1.02 if close else scene.floor + rng.uniform(-0.03, 0.05)
    x = 0.5 + side * max(0.0, room) * rng.uniform(0.75, 1)
    body = _Body(stage, x, floor, radius, rng.uniform(-0.12, 0.12), flip=rng.random() < 0.5)
    body.draw_all(mood, waving=rng.random() < 0.5)
    return ["close-up"] * close + [["on the left"], [], ["on the right"]][side + 1]


class _Body:
    """The creature in its own coordinates: body radii from the middle of the body, tilted, x perhaps mirrored."""

    def __init__(self, stage: Stage, x: float, floor: float, radius: float, tilt: float, flip: bool) -> None:
        self.stage, self.tilt, self.mirror = stage, tilt, -1 if flip else 1
        self.radius = radius * stage.unit
        self.x, self.y = x * stage.width, floor * stage.height - 1.08 * self.radius

    def draw_all(self, mood: str, waving: bool) -> None:
        self._shadow()
        for side in (-1, 1):
            self._blob(side * 0.46, 0.92, 0.34, 0.2, BODY_DARK)
        self._arm(-1, 2.3 if waving else 0.75)
        self._arm(1, 0.75)
        self._shaded(_egg())
        self._blob(0, 0.42, 0.56, 0.42, BELLY, outlined=False)
        self._face(mood)
        self._hat()

    def _at(self, x: float, y: float) -> Point:
        px, py = turned(x * self.mirror, y, self.tilt)
        return self.x + px * self.radius, self.y + py * self.radius

    def _polygon(self, points: Sequence[Point], colour: Colour, outlined: bool = True) -> None:
        placed = [self._at(x, y) for x, y in points]
        self.stage.draw.polygon(placed, fill=colour)
        if outlined:
            self._line([*points, points[0], points[1]], INK, LINE)

    def _line(self, points: Sequence[Point], colour: Colour, thickness: float) -> None:
        width = max(1, round(thickness * self.radius))
        placed = [self._at(x, y) for x, y in points]
        self.stage.draw.line(placed, fill=colour, width=width, joint="curve")
        for x, y in (placed[0], placed[-1]):
            self.stage.draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)

    def _blob(self, x: float, y: float, wide: float, high: float, colour: Colour, *, outlined: bool = True) -> None:
        self._polygon([(x + wide * c, y + high * s) for c, s in _circle()], colour, outlined)

    def _shadow(self) -> None:
        s = self.stage
        shade = Image.new("L", s.image.size)
        x, y, r = self.x, self.y + 1.1 * self.radius, self.radius
        ImageDraw.Draw(shade).ellipse((x - 1.05 * r, y - 0.16 * r, x + 1.05 * r, y + 0.16 * r), fill=90)
        s.image.paste(INK, mask=shade.filter(ImageFilter.BoxBlur(0.06 * r)))

    def _arm(self, side: int, angle: float) -> None:
        """An arm that hangs down at angle 0.75 and is raised beyond 1.6."""
        points = []
        for c, s in _circle():
            x, y = turned(0.15 * c, 0.3 * s + 0.22, -angle)
            points.append((side * (0.84 + x), 0.12 + y))
        self._polygon(points, BODY)

    def _shaded(self, points: list[Point]) -> None:
        """The body: light from above, darker below, with its outline."""
        s = self.stage
        mask = Image.new("L", s.image.size)
        ImageDraw.Draw(mask).polygon([self._at(x, y) for x, y in points], fill=255)
        box = mask.getbbox()
        assert box is not None
        ys, xs = np.mgrid[box[1] : box[3], box[0] : box[2]]
        distance = np.hypot((xs - self.x) / self.radius + 0.35, (ys - self.y) / self.radius + 0.5) / 1.75
        stops = np.stack(
            [np.interp(distance, [0.1, 0.55, 1], [c[i] for c in (BODY_LIGHT, BODY, BODY_DARK)]) for i in range(3)], -1
        )
        s.image.paste(Image.fromarray(stops.round().astype(np.uint8)), box[:2], mask.crop(box))
        self._line([*points, points[0], points[1]], INK, LINE)

    def _face(self, mood: str) -> None:
        for side in (-1, 1):
            self._blob(side * 0.66, 0.2, 0.15, 0.1, CHEEK, outlined=False)
            closed = mood == "sleeping" or (mood == "winking" and side == 1)
            if closed:
                dip = 0.1 if mood == "sleeping" else -0.12
                self._line(
                    [(side * 0.34 + 0.19 * c, -0.1 + dip * math.cos(c * math.pi / 2)) for c in np.linspace(-1, 1, 12)],
                    INK,
                    0.08,
                )
            else:
                wide = 1.15 if mood == "surprised" else 1.0
                self._blob(side * 0.33, -0.14, 0.23 * wide, 0.28 * wide, WHITE)
                self._blob(side * 0.33 + 0.04, -0.11, 0.13, 0.17, INK, outlined=False)
                self._blob(side * 0.33 - 0.01, -0.19, 0.055, 0.06, WHITE, outlined=False)
        if mood == "laughing":
            mouth = [(0.28 * c, 0.22 + 0.3 * max(0.0, s)) for c, s in _circle()]
            self._polygon(mouth, MOUTH)
            self._blob(0, 0.42, 0.13, 0.08, TONGUE, outlined=False)
        elif mood == "surprised":
            self._blob(0, 0.38, 0.11, 0.14, MOUTH)
        else:
            deep = 0.07 if mood == "sleeping" else 0.15
            self._line([(0.24 * c, 0.24 + deep * math.cos(c * math.pi / 2)) for c in np.linspace(-1, 1, 16)], INK, 0.07)

    def _hat(self) -> None:
        left = [_curve((-0.66, -0.66), (-0.4, -1.5), (0.1, -1.75), (0.5, -1.7), p) for p in np.linspace(0, 1, 20)]
        right = [_curve((0.5, -1.7), (0.3, -1.55), (0.55, -1.2), (0.66, -0.66), p) for p in np.linspace(0, 1, 20)]
        self._polygon([*left, *right], YELLOW, outlined=False)
        stripe = [left[6], left[9], right[10], right[13]]
        self._polygon(stripe, HAT_DARK, outlined=False)
        self._line([*left, *right], INK, LINE)
        self._blob(0.52, -1.7, 0.19, 0.19, CREAM)
        brim = [(x, -0.66 - 0.16 * math.cos(x * 1.5) + 0.02) for x in np.linspace(-0.72, 0.72, 20)]
        self._line(brim, INK, 0.27 + 2 * LINE)
        self._line(brim, CREAM, 0.27)


def _circle(num_points: int = 48) -> list[Point]:
    return [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, num_points, endpoint=False)]


def _egg() -> list[Point]:
    """The body's outline: a circle that sits a little heavy."""
    return [(c * (1 + 0.07 * s), 0.95 * s + 0.03) for c, s in _circle(96)]


def _curve(a: Point, b: Point, c: Point, d: Point, p: float) -> Point:
    """The point at p in 0..1 of a cubic Bezier curve."""
    weights = ((1 - p) ** 3, 3 * p * (1 - p) ** 2, 3 * p * p * (1 - p), p**3)
    x, y = (sum(w * point[i] for w, point in zip(weights, (a, b, c, d), strict=True)) for i in (0, 1))
    return x, y
