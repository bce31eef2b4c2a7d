"""The demo's pictures: the same creature in different places, drawn from a seed alone."""

import numpy as np
import pytest
from PIL import Image
from sd_atelier.lib.standalone.demo import pictures
from sd_atelier.lib.standalone.demo.pictures import draw_dataset, draw_picture
from sd_atelier.lib.standalone.demo.scenes import SCENES


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("pictures"), size_px=96)


def pixels(path):
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def test_each_picture_has_a_caption_of_its_own_that_begins_with_the_trigger(drawn):
    captions = [path.with_suffix(".txt").read_text("utf-8").strip() for path in drawn]
    assert len(set(captions)) == len(drawn) == 12
    for caption in captions:
        tags = caption.split(", ")
        assert tags[0] == pictures.TRIGGER and tags[1] in pictures.MOODS and len(tags) >= 4
        # what belongs to the creature is what the trigger word stands for
        assert not {"purple", "hat", "creature"} & set(caption.replace(",", "").split())


def test_shapes_differ_and_are_multiples_of_8_of_about_one_area(drawn):
    sizes = {pixels(path).shape[:2] for path in drawn}
    assert len(sizes) == 3
    for height, width in sizes:
        assert height % 8 == width % 8 == 0
        assert 0.85 < height * width / 96**2 < 1.15


def near(image, colour, distance=40):
    return float((np.abs(image - colour).max(axis=2) < distance).mean())


@pytest.mark.parametrize("number", range(12))
def test_creature_is_in_every_picture(number, drawn):
    image = pixels(drawn[number])
    purple = sum(near(image, c, 25) for c in (pictures.BODY, pictures.BODY_DARK, pictures.BELLY))
    assert purple > 0.04
    assert near(image, pictures.YELLOW, 30) > 0.005


def test_same_seed_draws_the_same_bytes_and_another_seed_others(drawn, tmp_path):
    again = draw_dataset(tmp_path / "a", count=3, size_px=96)
    other = draw_dataset(tmp_path / "b", count=3, size_px=96, seed=1)
    for first, second, third in zip(drawn, again, other, strict=False):
        assert first.name == second.name and first.read_bytes() == second.read_bytes()
        assert first.read_bytes() != third.read_bytes()


def test_longer_sets_combine_places_moods_and_shapes_anew():
    def kind(number):
        return (
            number % len(SCENES),
            (number + number // len(SCENES)) % len(pictures.MOODS),
            number % len(pictures.RATIOS),
        )

    assert len({kind(n) for n in range(60)}) == 60


@pytest.mark.parametrize("size_px", [16, 64])
def test_small_pictures_are_drawn_too(size_px):
    image, _ = draw_picture(0, size_px)
    assert image.size == (size_px, size_px)


@pytest.mark.parametrize("arguments", [{"count": 0}, {"size_px": 8}])
def test_impossible_sets_are_refused(arguments, tmp_path):
    with pytest.raises(ValueError, match="count >= 1 and size_px >= 16"):
        draw_dataset(tmp_path, **arguments)
