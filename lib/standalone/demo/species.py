"""The species that the demo's base model knows."""

from __future__ import annotations

from collections.abc import Callable

from .figure import PINK, Look, Pen
from .scenes import WHITE, Colour

BEAK: Colour = (250, 160, 50)

COLOURS: dict[str, Colour] = {
    "red": (222, 66, 62),
    "orange": (244, 146, 54),
    "yellow": (250, 214, 84),
    "green": (98, 186, 92),
    "blue": (70, 126, 222),
    "purple": (150, 98, 210),
    "brown": (140, 94, 64),
    "white": (246, 244, 240),
}


def look(species: str, colour: Colour) -> Look:
    """How one of `SPECIES` looks in a colour."""
    return SPECIES[species](colour)


def _cat(c: Colour) -> Look:
    def behind(pen: Pen) -> None:
        pen.line([(0.5, 2.1), (1.1, 2.1), (1.35, 1.7), (1.3, 1.1), (1.5, 0.9)], _dark(c), 0.3)

    def head(pen: Pen) -> None:
        for side in (-1, 1):
            pen.shape([(side * 0.95, -0.3), (side * 0.88, -1.42), (side * 0.15, -0.82)], c)
            pen.shape([(side * 0.8, -0.6), (side * 0.78, -1.1), (side * 0.42, -0.8)], PINK, outlined=False)
        pen.blob(0, 0, 1, 0.9, c)
        pen.blob(0, 0.48, 0.46, 0.3, _light(c), outlined=False)
        pen.shape([(-0.12, 0.26), (0.12, 0.26), (0, 0.4)], PINK, outlined=False)

    return Look(body=c, belly=_light(c), behind=behind, head=head)


def _dog(c: Colour) -> Look:
    def head(pen: Pen) -> None:
        pen.blob(0, 0, 0.95, 0.92, c)
        pen.blob(0, 0.42, 0.55, 0.42, _light(c), outlined=False)
        pen.blob(0, 0.22, 0.2, 0.15, (40, 30, 44), outlined=False)
        for side in (-1, 1):
            pen.blob(side * 0.98, 0.1, 0.3, 0.72, _dark(c), angle=-side * 0.25)

    return Look(body=c, belly=_light(c), head=head, eyes=(0.38, -0.12))


def _bear(c: Colour) -> Look:
    def head(pen: Pen) -> None:
        for side in (-1, 1):
            pen.blob(side * 0.72, -0.72, 0.36, 0.36, c)
            pen.blob(side * 0.72, -0.72, 0.17, 0.17, _dark(c), outlined=False)
        pen.blob(0, 0, 1, 0.9, c)
        pen.blob(0, 0.42, 0.46, 0.36, _light(c), outlined=False)
        pen.blob(0, 0.26, 0.17, 0.12, (40, 30, 44), outlined=False)

    return Look(body=c, belly=_light(c), head=head)


def _rabbit(c: Colour) -> Look:
    def head(pen: Pen) -> None:
        for side in (-1, 1):
            pen.blob(side * 0.42, -1.35, 0.27, 0.85, c, angle=side * 0.16)
            pen.blob(side * 0.43, -1.4, 0.12, 0.58, PINK, angle=side * 0.16, outlined=False)
        pen.blob(0, 0, 0.95, 0.86, c)
        pen.blob(0, 0.46, 0.4, 0.27, WHITE, outlined=False)
        pen.blob(0, 0.3, 0.1, 0.08, PINK, outlined=False)

    return Look(body=c, belly=WHITE, head=head, hat_y=0.05)


def _mouse(c: Colour) -> Look:
    def behind(pen: Pen) -> None:
        pen.line([(0.5, 2.3), (1.2, 2.4), (1.5, 2.0), (1.75, 2.05)], PINK, 0.16)

    def head(pen: Pen) -> None:
        for side in (-1, 1):
            pen.blob(side * 0.98, -0.68, 0.62, 0.62, c)
            pen.blob(side * 0.98, -0.66, 0.4, 0.4, PINK, outlined=False)
        pen.blob(0, 0.02, 0.88, 0.84, c)
        pen.blob(0, 0.34, 0.13, 0.1, PINK, outlined=False)

    return Look(body=c, belly=_light(c), behind=behind, head=head, eyes=(0.36, 0), mouth_y=0.5)


def _pig(c: Colour) -> Look:
    def head(pen: Pen) -> None:
        for side in (-1, 1):
            pen.shape([(side * 0.9, -0.35), (side * 1.02, -1.0), (side * 0.68, -0.78), (side * 0.3, -0.85)], _dark(c))
        pen.blob(0, 0, 1.06, 0.92, c)
        pen.blob(0, 0.22, 0.4, 0.28, PINK)
        for side in (-1, 1):
            pen.blob(side * 0.15, 0.22, 0.08, 0.12, (150, 60, 90), outlined=False)

    return Look(body=c, belly=_light(c), head=head, eyes=(0.5, -0.2), mouth_y=0.6)


def _frog(c: Colour) -> Look:
    def head(pen: Pen) -> None:
        for side in (-1, 1):
            pen.blob(side * 0.55, -0.68, 0.42, 0.42, c)
        pen.blob(0, 0.1, 1.15, 0.8, c)
        for side in (-1, 1):
            pen.blob(side * 0.55, -0.66, 0.29, 0.29, WHITE, outlined=False)
        pen.blob(0, 0.5, 0.7, 0.26, _light(c), outlined=False)

    return Look(body=c, belly=_light(c), head=head, eyes=(0.55, -0.64), eye_size=0.8, mouth_y=0.36, hat_y=0.12)


def _bird(c: Colour) -> Look:
    def head(pen: Pen) -> None:
        for x, height in ((-0.2, 1.2), (0.04, 1.42), (0.28, 1.2)):
            pen.shape([(x * 0.4 - 0.12, -0.75), (x * 1.6, -height), (x * 0.4 + 0.12, -0.75)], _dark(c))
        pen.blob(0, 0, 0.92, 0.9, c)
        pen.blob(0, 0.25, 0.66, 0.5, WHITE, outlined=False)

    def front(pen: Pen) -> None:
        pen.shape([(-0.32, 0.2), (0.32, 0.2), (0, 0.62)], BEAK)

    return Look(body=c, belly=WHITE, head=head, front=front, eyes=(0.42, -0.02), mouth_y=0.5, limb=BEAK)


SPECIES: dict[str, Callable[[Colour], Look]] = {
    "cat": _cat,
    "dog": _dog,
    "bear": _bear,
    "rabbit": _rabbit,
    "mouse": _mouse,
    "pig": _pig,
    "frog": _frog,
    "bird": _bird,
}


def _mixed(colour: Colour, other: Colour, part: float) -> Colour:
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _dark(colour: Colour) -> Colour:
    return _mixed(colour, (40, 20, 50), 0.3)


def _light(colour: Colour) -> Colour:
    return _mixed(colour, (255, 250, 240), 0.55)
