"""The demo's little world: what a description says is drawn, and captions say what is to be seen."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from sd_atelier.lib.standalone.demo import style
from sd_atelier.lib.standalone.demo.characters import CHARACTERS
from sd_atelier.lib.standalone.demo.drawing import (
    BACKGROUNDS,
    FRAMINGS,
    Description,
    any_description,
    draw,
    words,
)
from sd_atelier.lib.standalone.demo.figure import ACCESSORIES, EXPRESSIONS, POSES
from sd_atelier.lib.standalone.demo.species import COLOURS, SPECIES

CAT = Description(who="cat", colour="red")
EVERY = {
    "who": [*SPECIES, *CHARACTERS],
    "colour": list(COLOURS),
    "pose": POSES,
    "expression": EXPRESSIONS,
    "accessory": [None, *ACCESSORIES],
    "background": list(BACKGROUNDS),
    "framing": FRAMINGS,
}


def drawn(description: Description, seed: int = 5) -> np.ndarray:
    return np.asarray(draw(description, random.Random(seed))).astype(int)


@pytest.mark.parametrize("part", EVERY)
def test_each_value_of_each_part_draws_another_picture(part: str) -> None:
    # the same seed: nothing but the part differs
    pictures = [drawn(dataclasses.replace(CAT, **{part: value})) for value in EVERY[part]]
    for i, one in enumerate(pictures):
        for two in pictures[i + 1 :]:
            assert (np.abs(one - two).max(axis=2) > 30).mean() > 0.003


def test_the_same_seed_draws_the_same_picture_and_another_seed_another() -> None:
    assert np.array_equal(drawn(CAT), drawn(CAT))
    assert not np.array_equal(drawn(CAT), drawn(CAT, seed=6))


def test_captions_tell_what_is_to_be_seen_and_nothing_else() -> None:
    description = Description(
        who="dog", colour="blue", pose="jumping", expression="smile", accessory="crown", background="beach"
    )
    assert description.caption() == "dog, blue body, jumping, smile, crown, beach, sea, umbrella, full body"
    close = dataclasses.replace(description, framing="close-up", accessory=None)
    assert close.caption() == "dog, blue body, smile, beach, sea, umbrella, close-up"


def test_any_description_reaches_every_value_of_every_part() -> None:
    rng = random.Random(0)
    found = [any_description(rng) for _ in range(2000)]
    for part, values in EVERY.items():
        expected = set(SPECIES) if part == "who" else set(values)
        assert {getattr(d, part) for d in found} == expected


def test_no_trigger_is_a_word_of_the_base_models_captions() -> None:
    assert not {*CHARACTERS, style.TRIGGER} & set(words())


def test_prints_have_four_inks_with_soft_edges_between_them() -> None:
    rng = random.Random(0)
    for _ in range(12):
        pixels = np.asarray(style.printed(draw(any_description(rng), rng))).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) < 0.25 * len(pixels)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 128)])
def test_pictures_have_the_size_that_is_asked_for(size: tuple[int, int]) -> None:
    picture = draw(CAT, random.Random(0), size)
    assert picture.size == size and picture.mode == "RGB"
