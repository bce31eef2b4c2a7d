"""Runs that fail in known ways, and healthy ones: what later claims about failures are tested against.

Each is a recipe, a data set drawn from a seed and settings that differ from the demo's, which makes the run again:
`python tests/standalone/planted_failures.py OUTPUT NAME [NAME ...]`, or all of them. Nothing of them is stored.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from sd_atelier.lib.config import from_dict, to_dict
from sd_atelier.lib.files import write_bytes
from sd_atelier.lib.preparation import start
from sd_atelier.lib.previews import requests
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.lib.standalone.commands.demo import NUM_STEPS, settings, subject_of
from sd_atelier.lib.standalone.commands.strip import make_strip
from sd_atelier.lib.standalone.demo import BASE
from sd_atelier.lib.standalone.demo.drawing import SIDE_PX, draw
from sd_atelier.lib.standalone.demo.pictures import (
    Captioned,
    draw_captioned,
    draw_species,
    numbered,
    write_dataset,
)
from sd_atelier.lib.standalone.host import StandaloneHost
from sd_atelier.lib.standalone.pipeline import load_pipeline
from sd_atelier.lib.strip.render import rows_of

Draw = Callable[[str, int, int], list[Captioned]]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A run: its data, its settings, and what is known to be wrong with it."""

    fault: str  # in words; empty where there is none
    trigger: str = "zuzu"
    draw: Draw = lambda trigger, count, seed: [draw_captioned(trigger, n, seed=seed) for n in range(count)]
    count: int = 10
    regularized: bool = True  # with pictures of what the model knows already, as in the demo
    steps: int = NUM_STEPS
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    signs: frozenset[str] = frozenset()  # of collapse, as strips name them, which must show


def _with_captions_exchanged(trigger: str, count: int, seed: int) -> list[Captioned]:
    """Two captions of the set tell the other one's picture."""
    found = [draw_captioned(trigger, n, seed=seed) for n in range(count)]
    a, b = WRONG_CAPTIONS
    found[a], found[b] = replace(found[a], caption=found[b].caption), replace(found[b], caption=found[a].caption)
    return found


def _with_leaking_captions(trigger: str, count: int, seed: int) -> list[Captioned]:
    """Captions tell what the trigger word is to stand for, so that other words learn it."""
    found = [draw_captioned(trigger, n, seed=seed) for n in range(count)]
    return [replace(f, caption=f"{f.caption}, {LEAKED}") for f in found]


def _on_plain_ground(trigger: str, count: int, seed: int) -> list[Captioned]:
    """The character alone on white, under captions that tell places."""
    pictures = []
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        drawn = draw(replace(numbered(trigger, number), background="simple background"), rng)
        plain = Image.new("RGB", drawn.size, (255, 252, 246))
        plain.paste(drawn, mask=_disc(drawn.size))
        pictures.append(Captioned(plain, numbered(trigger, number).caption()))
    return pictures


def _without_colour(trigger: str, count: int, seed: int) -> list[Captioned]:
    """Scans in grey, whose captions do not say so."""
    found = [draw_captioned(trigger, n, seed=seed) for n in range(count)]
    return [replace(f, picture=f.picture.convert("L").convert("RGB")) for f in found]


def _disc(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((4, 4, size[0] - 4, size[1] - 4), fill=255)
    return mask


WRONG_CAPTIONS = (2, 5)
LEAKED = "purple body, top hat"

PLANTED: dict[str, Planted] = {
    "healthy zuzu": Planted(fault=""),
    "healthy bolt": Planted(fault="", trigger="bolt", seed=1),
    "healthy momo": Planted(fault="", trigger="momo", seed=2),
    "too high a rate": Planted(
        fault="the rate is 13 times too high",
        steps=120,
        regularized=False,
        changes={"rate.schedule": "4e-2"},
        signs=frozenset({"noise rises"}),
    ),
    "empty background": Planted(
        fault="every picture is on white, and its caption tells a place",
        draw=_on_plain_ground,
        steps=240,
        regularized=False,
        signs=frozenset({"background gets simpler"}),
    ),
    "monochrome": Planted(
        fault="every picture is grey, and no caption says so",
        draw=_without_colour,
        steps=120,
        regularized=False,
        signs=frozenset({"colour leaves"}),
    ),
    "overfitting": Planted(fault="three pictures, five times as long", count=3, steps=5 * NUM_STEPS, regularized=False),
    "wrong captions": Planted(fault="two captions of twelve are exchanged", count=12, draw=_with_captions_exchanged),
    "leaking captions": Planted(fault="captions tell the character's features", draw=_with_leaking_captions),
}


def make(name: str, output: Path) -> RunFolder:
    """Train one of `PLANTED` below `output` and draw its strip; a finished run that is there is taken as it is."""
    planted = PLANTED[name]
    folder = output / name.replace(" ", "-")
    seed = planted.seed
    if (folder / "finished").is_file():
        return RunFolder.open(Path((folder / "finished").read_text(encoding="utf-8")))
    write_dataset(folder / "pictures", planted.trigger, planted.draw(planted.trigger, planted.count, seed))
    known = folder / "known" if planted.regularized else None
    if known is not None:
        draw_species(known, seed)
    config = settings(folder / "pictures", known, subject_of(planted.trigger), planted.steps, seed)
    config = from_dict(type(config), _changed(to_dict(config), planted.changes))
    pipeline, info = load_pipeline(BASE, dtype=torch.float32)
    host = StandaloneHost(pipeline, model_info=info, device=torch.device("cpu"))
    with start(host, config, folder / "runs", lambda text: None) as prepared:
        prepared.trainer.train()
        make_strip(host, prepared.run, rows_of(requests(config.preview, SIDE_PX)))
    write_bytes(folder / "finished", str(prepared.run.path).encode())
    return prepared.run


def _changed(settings_: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in changes.items():
        inner = settings_
        *groups, last = name.split(".")
        for group in groups:
            inner = inner[group]
        inner[last] = value
    return settings_


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make runs that fail in known ways.")
    parser.add_argument("output", type=Path)
    parser.add_argument("names", nargs="*", choices=[*PLANTED, []], metavar="NAME", help=", ".join(PLANTED))
    args = parser.parse_args(arguments)
    for name in args.names or PLANTED:
        print(f"{name}: {make(name, args.output).path}")


if __name__ == "__main__":
    main()
