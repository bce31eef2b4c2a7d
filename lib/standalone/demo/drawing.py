"""Endless little pictures and their captions: a figure somewhere, every part of it told by a tag.

A caption is written as on booru boards, what is most important first, only what is to be seen:
`cat, red body, sitting, smile, crown, beach, sea, full body`. Pictures are drawn several times larger and reduced, so
that edges are smooth.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

from .characters import CHARACTERS
from .figure import ACCESSORIES, EXPRESSIONS, INK, POSES, Pen, draw_figure, lowest
from .scenes import SCENES, Colour, Scene, Stage
from .species import COLOURS, SPECIES, look

SIDE_PX = 64
ENLARGED = 4  # drawn so many times larger than it is returned
FRAMINGS = ("full body", "close-up")
BACKGROUNDS: dict[str, Scene] = {scene.tags[0]: scene for scene in SCENES}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a picture shows. `who` is a species or a character; characters have no colour of their own to tell."""

    who: str
    colour: str | None
    pose: str = "standing"
    expression: str = "smile"
    accessory: str | None = None
    background: str = "meadow"
    framing: str = "full body"

    def tags(self) -> list[str]:
        """The caption's tags. A pose that the frame cuts off is not told."""
        tags = [self.who]
        if self.colour is not None:
            tags.append(f"{self.colour} body")
        if self.framing == "full body":
            tags.append(self.pose)
        tags.append(self.expression)
        if self.accessory is not None:
            tags.append(self.accessory)
        return [*tags, *BACKGROUNDS[self.background].tags, self.framing]

    def caption(self) -> str:
        return ", ".join(self.tags())


def any_description(rng: random.Random, who: str | None = None) -> Description:
    """A description at random: of `who`, or of any species."""
    who = who or rng.choice(list(SPECIES))
    return Description(
        who=who,
        colour=rng.choice(list(COLOURS)) if who in SPECIES else None,
        pose=rng.choice(POSES),
        expression=rng.choice(EXPRESSIONS),
        accessory=rng.choice(ACCESSORIES) if rng.random() < 0.5 else None,
        background=rng.choice(list(BACKGROUNDS)),
        framing="close-up" if rng.random() < 0.25 else "full body",
    )


def draw(
    description: Description,
    rng: random.Random,
    size: tuple[int, int] = (SIDE_PX, SIDE_PX),
    colour: Colour | None = None,
) -> Image.Image:
    """An RGB picture of a width and a height in pixels. What the description leaves open comes from `rng`.

    `colour` is in place of the one that the description names.
    """
    d = description
    scene = BACKGROUNDS[d.background]
    stage = Stage((size[0] * ENLARGED, size[1] * ENLARGED), rng)
    scene.draw(stage)
    if d.who in CHARACTERS:
        who = CHARACTERS[d.who].look
    else:
        assert d.colour is not None
        who = look(d.who, colour or _varied(COLOURS[d.colour], rng))
    tilt, mirrored = rng.uniform(-0.09, 0.09), rng.random() < 0.5
    if d.framing == "close-up":
        pen = Pen(
            stage,
            0.5 + rng.uniform(-0.05, 0.05),
            0.52 + rng.uniform(-0.03, 0.03),
            rng.uniform(0.28, 0.31),
            tilt,
            mirrored,
        )
    else:
        radius = rng.uniform(0.172, 0.192)
        floor = min(0.975, scene.floor + 0.08 + rng.uniform(-0.02, 0.03))
        x = 0.5 + rng.uniform(-0.14, 0.14)
        _shadow(stage, x, floor, radius * (0.75 if d.pose == "jumping" else 1.0))
        pen = Pen(stage, x, floor - lowest(d.pose) * radius, radius, tilt, mirrored)
    draw_figure(pen, who, d.pose, d.expression, d.accessory)
    picture = stage.image if rng.random() < 0.5 else stage.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture.reduce(ENLARGED)


def words() -> list[str]:
    """Every word of the captions of all species; no trigger word is among them."""
    texts = [*(f"{c} body" for c in COLOURS), *SPECIES, *POSES, *EXPRESSIONS, *ACCESSORIES, *FRAMINGS]
    texts += [tag for scene in SCENES for tag in scene.tags]
    return list(dict.fromkeys(re.findall(r"[a-z]+", " ".join(texts))))


def _varied(colour: Colour, rng: random.Random) -> Colour:
    red, green, blue = (max(0, min(255, value + rng.randint(-9, 9))) for value in colour)
    return red, green, blue


def _shadow(stage: Stage, x: float, y: float, radius: float) -> None:
    shade = Image.new("L", stage.image.size)
    cx, cy, r = x * stage.width, y * stage.height, radius * stage.unit
    ImageDraw.Draw(shade).ellipse((cx - 1.1 * r, cy - 0.2 * r, cx + 1.1 * r, cy + 0.2 * r), fill=90)
    stage.image.paste(INK, mask=shade.filter(ImageFilter.BoxBlur(0.08 * r)))
