"""The data sets that the demo draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sd_atelier.lib.standalone.demo import style
from sd_atelier.lib.standalone.demo.characters import CHARACTERS
from sd_atelier.lib.standalone.demo.drawing import BACKGROUNDS, FRAMINGS
from sd_atelier.lib.standalone.demo.figure import ACCESSORIES, EXPRESSIONS, POSES
from sd_atelier.lib.standalone.demo.pictures import SHAPES, draw_captioned, draw_dataset, draw_species, numbered
from sd_atelier.lib.standalone.demo.species import SPECIES


@pytest.fixture(scope="module")
def zuzu(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_dataset(tmp_path_factory.mktemp("pictures"), count=12)


def test_each_picture_has_a_caption_of_its_own_that_begins_with_the_trigger(zuzu: list[Path]) -> None:
    captions = [path.with_suffix(".txt").read_text("utf-8").strip() for path in zuzu]
    assert len(set(captions)) == len(zuzu) == 12
    for caption in captions:
        assert caption.startswith("zuzu, ")
        # what belongs to the character is what the trigger word stands for
        assert not {"purple", "yellow"} & set(caption.replace(",", "").split())


@pytest.mark.parametrize("trigger", CHARACTERS)
def test_a_set_of_ten_shows_every_value_of_every_part(trigger: str) -> None:
    shown = [numbered(trigger, number) for number in range(10)]
    assert {d.pose for d in shown if d.framing == "full body"} == set(POSES)
    assert {d.background for d in shown} == set(BACKGROUNDS)
    assert {d.framing for d in shown} == set(FRAMINGS)
    assert {d.expression for d in shown} == set(EXPRESSIONS)
    assert {d.accessory for d in shown} == {None, *ACCESSORIES}


def test_regularization_pictures_show_each_species_once_and_name_no_character(tmp_path: Path) -> None:
    captions = [path.with_suffix(".txt").read_text("utf-8").strip() for path in draw_species(tmp_path)]
    assert sorted(caption.split(",")[0] for caption in captions) == sorted(SPECIES)


def test_prints_have_four_inks_and_no_colour_in_their_captions() -> None:
    for number in range(12):
        captioned = draw_captioned(style.TRIGGER, number)
        assert captioned.caption.startswith(f"{style.TRIGGER}, ") and " body" not in captioned.caption.replace(
            "full body", ""
        )
        pixels = np.asarray(captioned.picture).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) < 0.25 * len(pixels)


def test_shapes_come_in_turn_and_are_multiples_of_8_of_about_one_area(tmp_path: Path) -> None:
    paths = draw_dataset(tmp_path, count=6, size_px=96, shapes=SHAPES)
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            assert image.mode == "RGB"
            sizes.append(image.size)
    assert sizes[:3] == sizes[3:] and len(set(sizes)) == 3
    for width, height in sizes:
        assert height % 8 == width % 8 == 0
        assert 0.85 < height * width / 96**2 < 1.15


def test_same_seed_draws_the_same_bytes_and_another_seed_others(zuzu: list[Path], tmp_path: Path) -> None:
    again = draw_dataset(tmp_path / "a", count=3)
    other = draw_dataset(tmp_path / "b", count=3, seed=1)
    for first, second, third in zip(zuzu, again, other, strict=False):
        assert first.name == second.name and first.read_bytes() == second.read_bytes()
        assert first.read_bytes() != third.read_bytes()


@pytest.mark.parametrize("arguments", [{"count": 0}, {"size_px": 8}])
def test_impossible_sets_are_refused(arguments: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count >= 1 and size_px >= 16"):
        draw_dataset(tmp_path, **arguments)


def test_an_unknown_trigger_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures are drawn of 'nobody'; there are zuzu, bolt, momo, risoprint"):
        draw_dataset(tmp_path, "nobody")
