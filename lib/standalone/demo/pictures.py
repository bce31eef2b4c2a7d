"""Data sets that the pack draws itself: pictures of one held-out character, prints, or all species, with captions."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ...files import make_folder, write_bytes, write_image
from . import style
from .characters import CHARACTERS
from .drawing import BACKGROUNDS, SIDE_PX, Description, any_description, draw
from .figure import ACCESSORIES, EXPRESSIONS, POSES
from .species import SPECIES

SHAPES = ((1, 1), (3, 2), (2, 3))  # width to height; all have about the same area


@dataclass(frozen=True)
class Captioned:
    """A picture and what is written below it."""

    picture: Image.Image
    caption: str


def draw_dataset(
    folder: Path | str,
    trigger: str = "zuzu",
    count: int = 10,
    size_px: int = SIDE_PX,
    seed: int = 0,
    shapes: Sequence[tuple[int, int]] = SHAPES[:1],
) -> list[Path]:
    """Draw `count` pictures NAME.png with captions NAME.txt into a folder, in turn of each of the shapes.

    `trigger` is a character's, or that of the prints. `size_px` is the side of square ones; the others have about
    their area. The same arguments give the same pictures. Returns the paths of the pictures. Errors: `ValueError` for
    another trigger, below 1 picture or 16 pixels; `OSError`.
    """
    if count < 1 or size_px < 16:
        raise ValueError(f"a data set needs count >= 1 and size_px >= 16, got {count} and {size_px}")
    captioned = []
    for number in range(count):
        across, down = shapes[number % len(shapes)]
        size = _multiple_of_8(size_px * math.sqrt(across / down)), _multiple_of_8(size_px * math.sqrt(down / across))
        captioned.append(draw_captioned(trigger, number, size, seed))
    return write_dataset(folder, trigger, captioned)


def draw_species(folder: Path | str, seed: int = 0) -> list[Path]:
    """Draw one picture of each species, which the base model knows, with its caption. Returns the pictures' paths."""
    rng = random.Random(f"{seed} species")
    described = [any_description(rng, species) for species in SPECIES]
    return write_dataset(folder, "species", [Captioned(draw(d, rng), d.caption()) for d in described])


def write_dataset(folder: Path | str, name: str, captioned: Sequence[Captioned]) -> list[Path]:
    """Write pictures NAME-01.png with captions NAME-01.txt. Returns the pictures' paths. Errors: `OSError`."""
    folder = Path(folder)
    make_folder(folder)
    paths = []
    for number, item in enumerate(captioned, 1):
        path = folder / f"{name}-{number:02d}.png"
        write_image(path, item.picture)
        write_bytes(path.with_suffix(".txt"), (item.caption + "\n").encode())
        paths.append(path)
    return paths


def draw_captioned(trigger: str, number: int, size: tuple[int, int] = (SIDE_PX, SIDE_PX), seed: int = 0) -> Captioned:
    """One picture of a data set: `number` goes through poses, places and the rest, `seed` chooses what is left open."""
    rng = random.Random(f"{seed} {number}")
    if trigger in CHARACTERS:
        description = numbered(trigger, number)
        return Captioned(draw(description, rng, size), description.caption())
    if trigger == style.TRIGGER:
        description = any_description(rng)
        # a print has no colours of its own, so its caption tells none
        caption = replace(description, colour=None).caption()
        return Captioned(style.printed(draw(description, rng, size)), f"{trigger}, {caption}")
    raise ValueError(f"no pictures are drawn of {trigger!r}; there are {', '.join([*CHARACTERS, style.TRIGGER])}")


def numbered(who: str, number: int) -> Description:
    """The description of a set's picture. Periods that share no factor combine anew for a long time."""
    places = list(BACKGROUNDS)
    return Description(
        who=who,
        colour=None,
        pose=POSES[number % len(POSES)],
        expression=EXPRESSIONS[(number + number // len(POSES)) % len(EXPRESSIONS)],
        accessory=ACCESSORIES[number % len(ACCESSORIES)] if number % 2 else None,
        background=places[(number * 2) % len(places)],
        framing="close-up" if number % 5 == 3 else "full body",
    )


def _multiple_of_8(length: float) -> int:
    return max(8, round(length / 8) * 8)
