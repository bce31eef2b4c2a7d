"""The reader is right about fresh drawings, also softened ones, sees no figure where none is, and knows a print."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from reader import FIELDS, NOTHING, WEIGHTS, Reader, as_pictures, is_printed, right
from sd_atelier.lib.standalone.demo.characters import CHARACTERS
from sd_atelier.lib.standalone.demo.drawing import BACKGROUNDS, ENLARGED, SIDE_PX, any_description, draw
from sd_atelier.lib.standalone.demo.scenes import Stage
from sd_atelier.lib.standalone.demo.species import SPECIES
from sd_atelier.lib.standalone.demo.style import printed
from torch.nn import functional

NUM_DRAWINGS = 300
MEASURED = ("who", "colour", "accessory", "pose", "background", "framing")


@pytest.fixture(scope="module")
def reader():
    return Reader()


@pytest.fixture(scope="module")
def drawings():
    """Descriptions of every species and character in turn, and their pictures."""
    rng = random.Random(7)  # the training's seeds are from a million up
    people = [*SPECIES, *CHARACTERS]
    descriptions = [any_description(rng, people[n % len(people)]) for n in range(NUM_DRAWINGS)]
    return descriptions, [draw(description, rng) for description in descriptions]


def half_resolution(pictures):
    half = functional.interpolate(pictures, scale_factor=0.5, mode="bilinear", antialias=True)
    return functional.interpolate(half, scale_factor=2, mode="bilinear")


def blurred(pictures):
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    return functional.conv2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), kernel, groups=3).clamp(0, 1)


CHANGES = {
    "fresh": (lambda pictures: pictures, 0.97),
    "half resolution": (half_resolution, 0.95),
    "blurred": (blurred, 0.95),
}


@pytest.fixture(scope="module", params=CHANGES)
def results(request, reader, drawings):
    """For each drawing, changed in one way, which of its fields are read right; and the share that must be."""
    descriptions, pictures = drawings
    change, enough = CHANGES[request.param]
    readings = reader.read(change(as_pictures(pictures)))
    return [right(r, d) for r, d in zip(readings, descriptions, strict=True)], enough


@pytest.mark.parametrize("field", MEASURED)
def test_drawings_are_read_right(results, field):
    told = [result[field] for result in results[0] if field in result]
    assert len(told) > NUM_DRAWINGS / 2
    assert np.mean(told) >= results[1]


def test_a_place_without_a_figure_shows_nobody_and_is_known(reader):
    rng, pictures, places = random.Random(8), [], []
    for name, scene in BACKGROUNDS.items():
        for _ in range(4):
            stage = Stage((SIDE_PX * ENLARGED, SIDE_PX * ENLARGED), rng)
            scene.draw(stage)
            pictures.append(stage.image.reduce(ENLARGED))
            places.append(name)
    readings = reader.read(pictures)
    assert np.mean([reading.who == NOTHING for reading in readings]) >= 0.97
    assert np.mean([r.background == place for r, place in zip(readings, places, strict=True)]) >= 0.97


@pytest.mark.parametrize("kind", ["noise", "one colour", "mean of many"])
def test_a_ruined_picture_shows_nobody(reader, drawings, kind):
    dice = torch.Generator().manual_seed(9)
    pictures = {
        "noise": torch.rand(32, 3, SIDE_PX, SIDE_PX, generator=dice),
        "one colour": torch.rand(32, 3, 1, 1, generator=dice).expand(32, 3, SIDE_PX, SIDE_PX),
        "mean of many": torch.stack([part.mean(dim=0) for part in as_pictures(drawings[1]).split(30)]),
    }[kind]
    readings = reader.read(pictures)
    assert np.mean([reading.who == NOTHING for reading in readings]) >= 0.95
    assert all(
        r.pose is r.colour is r.accessory is r.expression is r.framing is None for r in readings if r.who == NOTHING
    )


def test_what_a_caption_leaves_out_is_not_read(reader, drawings):
    for reading in reader.read(drawings[1]):
        assert (reading.colour is None) == (reading.who not in SPECIES)
        assert (reading.pose is None) == (reading.framing != "full body")
        assert set(reading.probability) == set(FIELDS)


def test_images_of_other_sizes_are_read_as_the_same_picture(reader, drawings):
    pictures = drawings[1][:40]
    larger = [picture.resize((4 * SIDE_PX, 4 * SIDE_PX), Image.Resampling.BICUBIC) for picture in pictures]
    same = [a.who == b.who for a, b in zip(reader.read(pictures), reader.read(larger), strict=True)]
    assert np.mean(same) >= 0.97


@pytest.mark.parametrize("pictures", [torch.zeros(1, 3, 32, 32), torch.full((1, 3, SIDE_PX, SIDE_PX), 1.5)])
def test_pictures_of_another_size_or_range_are_refused(reader, pictures):
    with pytest.raises(ValueError, match="pictures must be"):
        reader.read(pictures)


def test_no_picture_gives_no_reading(reader):
    assert reader.read([]) == []


def test_the_weights_are_small_and_say_how_right_they_are(reader):
    assert WEIGHTS.stat().st_size <= 400_000
    assert {"settings", "accuracy"} <= set(reader.metadata)


def test_prints_are_of_four_inks_and_drawings_are_not(drawings):
    pictures = drawings[1][:60]
    assert max(is_printed(picture) for picture in pictures) < 0.55
    assert np.mean([is_printed(picture) for picture in pictures]) < 0.2
    assert min(is_printed(printed(picture)) for picture in pictures) > 0.95


def test_a_softened_print_is_still_one(drawings):
    prints = as_pictures([printed(picture) for picture in drawings[1][:60]])
    shares = [is_printed(picture) for picture in half_resolution(prints)]
    assert min(shares) > 0.4 and np.mean(shares) > 0.65
