"""Animals in the demo's places: the world that its model knows before it meets the creature of `pictures`."""

from __future__ import annotations

import random
import re

from PIL import Image

from .pictures import MOODS
from .scenes import SCENES, Colour, Point, Stage

PLACES = SCENES[:9]  # those of a handful of pictures: what the model sees more often, it draws better
ENLARGED = 4  # drawn so many times larger than it is returned
INK = (52, 33, 74)
COLOURS = {
    "red": (222, 70, 60),
    "blue": (62, 110, 210),
    "green": (84, 176, 84),
    "white": (244, 240, 232),
    "pink": (244, 150, 180),
    "brown": (146, 96, 62),
}
ANIMALS = ("cat", "bear", "rabbit")


def words() -> list[str]:
    """Every word of a caption, also of the creature's captions; its name is none."""
    texts = [
        *COLOURS,
        *ANIMALS,
        "on the left",
        "on the right",
        *MOODS,
        "close-up",
        *(t for s in PLACES for t in s.tags),
    ]
    return list(dict.fromkeys(re.findall(r"[a-z]+", " ".join(texts))))


def draw_animal(side_px: int, rng: random.Random, any_colour: bool = False) -> tuple[Image.Image, str]:
    """A square picture of one animal somewhere, and its caption, such as "red cat, on the left, desert, sunset".

    With `any_colour` the animal's colour is none that has a name.
    """
    scene = rng.choice(PLACES)
    stage = Stage((side_px * ENLARGED, side_px * ENLARGED), rng)
    scene.draw(stage)
    name, animal, side = rng.choice(list(COLOURS)), rng.choice(ANIMALS), rng.choice((-1, 0, 1))
    colour = (rng.randrange(30, 256), rng.randrange(30, 256), rng.randrange(30, 256)) if any_colour else COLOURS[name]
    size = rng.uniform(0.22, 0.24)
    x = 0.5 + side * (0.5 - 1.3 * size) * 0.9
    y = scene.floor + rng.uniform(-0.01, 0.02)
    _Animal(stage, x, y, size, mirrored=rng.random() < 0.5).draw(animal, colour)
    where = [["on the left"], [], ["on the right"]][side + 1]
    return stage.image.reduce(ENLARGED), ", ".join([f"{name} {animal}", *where, *scene.tags])


class _Animal:
    """An animal in its own coordinates: sizes of its body from between its feet, x perhaps mirrored."""

    def __init__(self, stage: Stage, x: float, y: float, size: float, mirrored: bool) -> None:
        self.stage, self.x, self.y, self.size = stage, x, y, size
        self.mirror = -1 if mirrored else 1

    def _disc(self, x: float, y: float, radius: float, colour: Colour, squash: float = 1.0) -> None:
        self.stage.disc(
            self.x + self.mirror * x * self.size, self.y + y * self.size, radius * self.size, colour, squash
        )

    def _shape(self, points: list[Point], colour: Colour) -> None:
        self.stage.shape(self.x, self.y, [(self.mirror * x * self.size, y * self.size) for x, y in points], colour)

    def draw(self, animal: str, colour: Colour) -> None:
        dark, light = _mixed(colour, (0, 0, 0), 0.32), _mixed(colour, (255, 255, 255), 0.5)
        if animal == "cat":
            tail = [(-0.6, -0.3), (-1.3, -0.6), (-1.5, -1.5), (-1.25, -1.5), (-1.05, -0.8), (-0.5, -0.6)]
            self._shape(tail, colour)
        elif animal == "rabbit":
            self._disc(-0.85, -0.35, 0.28, light)
        for x in (-0.42, 0.42):
            self._disc(x, -0.14, 0.36, dark, 0.55)
        self._disc(0, -0.85, 0.82, colour)
        self._disc(0, -0.7, 0.5, light)
        for side in (-1, 1):
            if animal == "cat":
                self._shape([(side * 0.8, -1.9), (side * 0.78, -2.95), (0, -2.3)], colour)
            elif animal == "bear":
                self._disc(side * 0.62, -2.45, 0.36, dark)
            else:
                self._disc(side * 0.38, -2.75, 0.24, colour, 3.2)
                self._disc(side * 0.38, -2.75, 0.11, dark, 3.8)
        self._disc(0, -1.85, 0.85, colour, 0.86)
        self._disc(0.08, -1.6, 0.36, light, 0.75)
        for x in (-0.3, 0.44):
            self._disc(x, -1.95, 0.13, INK)
        self._disc(0.08, -1.72, 0.1, INK, 0.8)


def _mixed(colour: Colour, other: Colour, part: float) -> Colour:
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(colour, other, strict=True))
    return red, green, blue
