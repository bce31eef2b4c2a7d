"""Places that the demo's pictures are set in, drawn with ellipses and polygons."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]

WHITE, CREAM, YELLOW = (255, 255, 255), (255, 246, 226), (250, 190, 60)


class Stage:
    """The enlarged picture. Coordinates are parts of its width and height; lengths are parts of its shorter side."""

    def __init__(self, size: tuple[int, int], rng: random.Random) -> None:
        self.image = Image.new("RGB", size)
        self.draw = ImageDraw.Draw(self.image)
        self.width, self.height = size
        self.unit = min(size)
        self.rng = rng

    def sky(self, *colours: Colour) -> None:
        """Fill the picture with colours that run into each other from top to bottom."""
        places = np.linspace(0, 1, self.height)
        stops = np.linspace(0, 1, len(colours))
        rows = np.stack([np.interp(places, stops, [c[i] for c in colours]) for i in range(3)], axis=1)
        rows = np.repeat(rows[:, None].round().astype(np.uint8), self.width, axis=1)
        self.image.paste(Image.fromarray(rows))

    def ground(self, y: float, colour: Colour, *, wave: float = 0.02, phase: float = 0.0, waves: float = 1.0) -> None:
        """Land with a rolling edge from height `y` down."""
        xs = np.linspace(0, 1, 120)
        edge = y + wave * np.sin(2 * math.pi * waves * xs + phase)
        points = [(x * self.width, v * self.height) for x, v in zip(xs, edge, strict=True)]
        self.draw.polygon([*points, (self.width, self.height), (0, self.height)], fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour, squash: float = 1.0) -> None:
        """An ellipse around (x, y); `squash` is its height by its width."""
        cx, cy, r = x * self.width, y * self.height, radius * self.unit
        self.draw.ellipse((cx - r, cy - r * squash, cx + r, cy + r * squash), fill=colour)

    def box(self, x: float, y: float, width: float, height: float, colour: Colour, corner: float = 0.0) -> None:
        """A rectangle that stands on (x, y) with its middle; its size in parts of the shorter side."""
        cx, bottom, u = x * self.width, y * self.height, self.unit
        edges = (cx - width * u / 2, bottom - height * u, cx + width * u / 2, bottom)
        self.draw.rounded_rectangle(edges, corner * u, fill=colour)

    def shape(self, x: float, y: float, points: Sequence[Point], colour: Colour) -> None:
        """A polygon, its points in parts of the shorter side from (x, y)."""
        cx, cy, u = x * self.width, y * self.height, self.unit
        self.draw.polygon([(cx + px * u, cy + py * u) for px, py in points], fill=colour)

    def glow(self, x: float, y: float, radius: float, colour: Colour, strength: float) -> None:
        """Light around (x, y) that fades outwards."""
        light = Image.new("L", (self.width // 8, self.height // 8))
        cx, cy, r = x * light.width, y * light.height, radius * min(light.size)
        ImageDraw.Draw(light).ellipse((cx - r, cy - r, cx + r, cy + r), fill=round(255 * strength))
        light = light.filter(ImageFilter.GaussianBlur(r / 2)).resize(self.image.size, Image.Resampling.BICUBIC)
        self.image.paste(Image.new("RGB", self.image.size, colour), mask=light)


@dataclass(frozen=True)
class Scene:
    """A place: what it is called in captions, how it is drawn, and where one stands in it."""

    tags: tuple[str, ...]
    draw: Callable[[Stage], None]
    floor: float = 0.84  # where feet are, in parts of the height


def _meadow(s: Stage) -> None:
    s.sky((116, 190, 240), (196, 230, 250))
    s.glow(0.82, 0.16, 0.26, (255, 244, 190), 0.9)
    s.disc(0.82, 0.16, 0.09, (255, 224, 102))
    _cloud(s, 0.24, 0.2, 0.1)
    s.ground(0.58, (148, 208, 120), wave=0.05, phase=0.6)
    s.ground(0.7, (108, 184, 92), wave=0.03, phase=3.0)
    for _ in range(14):
        x, y = s.rng.random(), s.rng.uniform(0.76, 0.98)
        for k in range(5):
            angle = 2 * math.pi * k / 5
            s.disc(
                x + 0.016 * math.cos(angle) * s.unit / s.width,
                y + 0.016 * math.sin(angle) * s.unit / s.height,
                0.011,
                WHITE,
            )
        s.disc(x, y, 0.01, (250, 200, 60))


def _beach(s: Stage) -> None:
    s.sky((120, 205, 240), (214, 242, 250))
    s.ground(0.46, (44, 152, 196), wave=0.0)
    s.ground(0.56, (92, 194, 214), wave=0.012, waves=3)
    s.ground(0.63, WHITE, wave=0.012, waves=2, phase=1)
    s.ground(0.65, (246, 222, 170), wave=0.012, waves=2, phase=1)
    x = 0.84 if s.rng.random() < 0.5 else 0.16
    s.box(x, 0.8, 0.02, 0.48, (200, 160, 120))
    for k, colour in enumerate([(236, 86, 86), WHITE, (236, 86, 86), WHITE, (236, 86, 86)]):
        _slice(s, x, 0.8 - 0.46 * s.unit / s.height, 0.24, 180 + 36 * k, 216 + 36 * k, colour)


def _night(s: Stage) -> None:
    s.sky((22, 26, 72), (58, 58, 128), (110, 88, 150))
    for _ in range(36):
        s.disc(s.rng.random(), s.rng.uniform(0, 0.6), s.rng.choice((0.005, 0.008, 0.011)), (255, 250, 214))
    s.glow(0.2, 0.2, 0.3, (255, 250, 214), 0.45)
    outer = [(0.12 * math.cos(a), 0.12 * math.sin(a)) for a in np.linspace(0.3 * math.pi, 1.7 * math.pi, 40)]
    inner = [(0.04 + 0.102 * math.cos(a), 0.102 * math.sin(a)) for a in np.linspace(1.6 * math.pi, 0.4 * math.pi, 40)]
    s.shape(0.22, 0.2, [turned(x, y, -0.5) for x, y in outer + inner], (255, 246, 200))
    s.ground(0.66, (44, 62, 92), wave=0.04, phase=2)
    s.ground(0.78, (34, 48, 74), wave=0.02, phase=5)


def _snow(s: Stage) -> None:
    s.sky((168, 196, 224), (226, 236, 246))
    s.ground(0.6, (214, 228, 242), wave=0.05, phase=4)
    for x, size in ((0.1, 0.36), (0.3, 0.26), (0.9, 0.4)):
        _fir(s, x, 0.72, size, (70, 128, 116))
    s.ground(0.71, (246, 250, 255), wave=0.02, phase=1)
    for _ in range(40):
        s.disc(s.rng.random(), s.rng.random(), s.rng.choice((0.007, 0.011, 0.014)), WHITE)


def _desert(s: Stage) -> None:
    s.sky((250, 176, 110), (255, 226, 170))
    s.disc(0.5, 0.38, 0.17, (255, 244, 206))
    s.ground(0.56, (232, 160, 92), wave=0.05, phase=2.2)
    s.ground(0.7, (214, 134, 72), wave=0.04, phase=5.5)
    for x, y, size in ((0.14, 0.76, 0.3), (0.9, 0.72, 0.22)):
        _cactus(s, x, y, size)


def _forest(s: Stage) -> None:
    s.sky((190, 226, 190), (226, 242, 206))
    for y, size, colour in ((0.62, 0.5, (150, 196, 150)), (0.7, 0.56, (100, 160, 112)), (0.78, 0.6, (58, 120, 84))):
        for k in range(6):
            _fir(s, (k + s.rng.uniform(0.2, 0.8)) / 6, y, size * s.rng.uniform(0.8, 1.1), colour)
    s.ground(0.76, (92, 130, 70), wave=0.015, phase=1)
    for x in (0.12, 0.88):
        _mushroom(s, x, 0.93, 0.11)


def _room(s: Stage) -> None:
    s.sky((250, 226, 206), (246, 212, 190))
    s.box(0.72, 0.52, 0.44, 0.4, WHITE, 0.02)
    s.box(0.72, 0.5, 0.4, 0.36, (150, 210, 244))
    s.box(0.72, 0.5, 0.02, 0.36, WHITE)
    s.box(0.72, 0.5 - 0.17 * s.unit / s.height, 0.4, 0.02, WHITE)
    s.ground(0.72, (190, 128, 92), wave=0.0)
    s.disc(0.5, 0.88, 0.44, (92, 160, 170), 0.26)
    s.disc(0.5, 0.88, 0.36, (130, 194, 196), 0.26)
    s.box(0.12, 0.78, 0.12, 0.14, (206, 104, 76), 0.02)
    for angle in (-0.5, -0.2, 0.1, 0.4):
        _leaf(s, 0.12, 0.78 - 0.13 * s.unit / s.height, 0.24, angle, (86, 160, 98))


def _space(s: Stage) -> None:
    s.sky((16, 12, 44), (48, 22, 84))
    for _ in range(60):
        s.disc(s.rng.random(), s.rng.random(), s.rng.choice((0.004, 0.006, 0.009)), (230, 236, 255))
    s.disc(0.8, 0.24, 0.13, (236, 142, 110))
    s.disc(0.8 - 0.03 * s.unit / s.width, 0.22, 0.05, (246, 178, 140))
    s.disc(0.8, 0.25, 0.22, (250, 214, 160), 0.14)
    s.disc(0.8, 0.25, 0.17, (48, 24, 84), 0.1)
    s.disc(0.8, 0.22, 0.11, (236, 142, 110), 0.72)
    s.ground(0.76, (168, 170, 190), wave=0.03, phase=0.8)
    for x, y, r in ((0.12, 0.86, 0.07), (0.84, 0.9, 0.1), (0.62, 0.97, 0.05)):
        s.disc(x, y, r, (134, 136, 160), 0.4)


def _simple(s: Stage) -> None:
    """A plain colour, a little lighter where the figure stands."""
    pale = s.rng.choice(((250, 236, 214), (214, 236, 248), (236, 222, 244), (222, 242, 222)))
    s.sky(pale)
    s.disc(0.5, 0.55, 0.42, (255, 252, 246), 0.9)


SCENES = (
    Scene(("meadow", "blue sky", "sun"), _meadow),
    Scene(("beach", "sea", "umbrella"), _beach),
    Scene(("night", "stars", "moon"), _night),
    Scene(("snow", "fir trees"), _snow),
    Scene(("desert", "cactus", "sunset"), _desert),
    Scene(("forest", "mushrooms"), _forest, 0.88),
    Scene(("room", "window", "rug"), _room, 0.88),
    Scene(("space", "planet"), _space, 0.86),
    Scene(("simple background",), _simple),
)


def _cloud(s: Stage, x: float, y: float, size: float, colour: Colour = WHITE) -> None:
    for dx, dy, r in ((-0.9, 0.2, 0.55), (0, 0, 0.8), (0.9, 0.22, 0.5), (0.4, 0.3, 0.6), (-0.4, 0.32, 0.55)):
        s.disc(x + dx * size * s.unit / s.width, y + dy * size * s.unit / s.height, size * r, colour, 0.8)


def _fir(s: Stage, x: float, y: float, size: float, colour: Colour) -> None:
    s.box(x, y + 0.02, size * 0.12, size * 0.3, (112, 80, 66))
    for k in range(3):
        low, half = -size * (0.18 + 0.26 * k), size * (0.34 - 0.08 * k)
        s.shape(x, y, [(-half, low), (half, low), (0, low - size * 0.42)], colour)


def _cactus(s: Stage, x: float, y: float, size: float) -> None:
    green, u, v = (76, 148, 96), s.unit / s.width, s.unit / s.height
    s.box(x, y, size * 0.26, size, green, size * 0.13)
    s.box(x - 0.25 * size * u, y - 0.34 * size * v, size * 0.4, size * 0.15, green, size * 0.07)
    s.box(x - 0.4 * size * u, y - 0.34 * size * v, size * 0.15, size * 0.36, green, size * 0.07)
    s.box(x + 0.25 * size * u, y - 0.2 * size * v, size * 0.4, size * 0.15, green, size * 0.07)
    s.box(x + 0.4 * size * u, y - 0.2 * size * v, size * 0.15, size * 0.42, green, size * 0.07)


def _mushroom(s: Stage, x: float, y: float, size: float) -> None:
    s.box(x, y, size * 0.5, size, CREAM, size * 0.2)
    _slice(s, x, y - size * 0.75 * s.unit / s.height, size * 0.9, 180, 360, (220, 66, 60))
    for dx, dy in ((-0.45, -0.25), (0.1, -0.5), (0.5, -0.2)):
        s.disc(x + dx * size * s.unit / s.width, y + (dy - 0.75) * size * s.unit / s.height, size * 0.13, WHITE)


def _slice(s: Stage, x: float, y: float, radius: float, start: float, end: float, colour: Colour) -> None:
    """A piece of a disc between two angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 40))
    s.shape(x, y, [(0, 0), *((radius * math.cos(a), radius * math.sin(a)) for a in angles)], colour)


def _leaf(s: Stage, x: float, y: float, length: float, angle: float, colour: Colour) -> None:
    """A pointed leaf from (x, y) on; angle 0 is upwards."""
    outline = [(0.22 * math.sin(math.pi * p), -p) for p in np.linspace(0, 1, 16)]
    outline += [(-px, py) for px, py in reversed(outline)]
    s.shape(x, y, [turned(px * length, py * length, angle) for px, py in outline], colour)


def turned(x: float, y: float, angle: float) -> Point:
    """A point turned clockwise around (0, 0); y points down."""
    return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
