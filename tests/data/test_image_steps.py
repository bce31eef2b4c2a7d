"""Each step makes of a picture what it says; settings are checked by name."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sd_atelier.lib.data.buckets import bucket_sizes, crop_geometry, nearest_bucket
from sd_atelier.lib.data.image_steps import STEPS, Split, calls_models, steps_from, steps_to_values, take, with_alpha
from sd_atelier.lib.data.pieces import Piece, Tools


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def through(image, *values, caption="1girl", tools=None):
    return take(Piece(image, caption), steps_from(values), tools or Tools())


def pixels(image):
    return np.asarray(image)


def test_every_step_goes_to_values_and_back():
    for name in STEPS:
        (step,) = steps_from([{"step": name}])
        (values,) = steps_to_values([step])
        assert values["step"] == name and steps_from([values]) == (step,)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([{"step": "cropp"}], 'unknown step "cropp"; did you mean "crop"'),
        ([{}], 'unknown step "None"'),
        ([{"step": "crop", "width": 4}], r"steps\[0\] \(crop\).width must be at least 8, got 4"),
        ([{"step": "flip"}, {"step": "split", "overlap": 0.95}], r"steps\[1\] \(split\).overlap must be at most 0.9"),
        ([{"step": "background", "to": "black"}], "choices: alpha, white"),
    ],
)
def test_wrong_settings_are_named(values, said):
    with pytest.raises(ValueError, match=said):
        steps_from(values)


def test_an_order_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="dedupe compares the originals, so it must be the first"):
        steps_to_values(steps_from([{"step": "flip"}, {"step": "dedupe"}]))
    with pytest.raises(ValueError, match="twice: flip"):
        steps_to_values(steps_from([{"step": "flip"}, {"step": "unsharp"}, {"step": "flip"}]))


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (64, 64), (200, 100)])
def test_crop_gives_the_size_and_says_when_it_enlarges(size):
    (piece,) = through(noise(100, 80), {"step": "crop", "width": size[0], "height": size[1]})
    assert piece.image.size == size
    assert bool(piece.notes) == (size[0] > 100 or size[1] > 80)


def test_bucket_gives_the_bucket_that_training_gives():
    settings = {"resolution": 64, "step_px": 8, "min_px": 32, "max_px": 128}
    sizes = bucket_sizes(64, 8, 32, 128)
    for size in ((100, 80), (80, 200), (64, 64)):
        (piece,) = through(noise(*size), {"step": "bucket", **settings})
        assert piece.image.size == nearest_bucket(size, sizes, True)


def test_focal_cuts_around_the_focus_and_weights_are_handed_on():
    image = Image.new("RGB", (300, 100), "grey")
    ImageDraw.Draw(image).rectangle([10, 40, 30, 60], fill="white")
    crop = {"step": "crop", "width": 100, "height": 100}
    (middle,) = through(image, crop)
    (focal,) = through(image, {**crop, "focal": True})
    assert pixels(middle.image).max() < 200 < pixels(focal.image).max()
    tools = Tools(detect_faces=lambda seen: [(250, 40, 290, 60)])
    (face,) = through(image, {**crop, "focal": True, "edges": 0.0, "entropy": 0.0}, tools=tools)
    left = crop_geometry(image.size, (100, 100), (0.9, 0.5)).crop_left
    assert (pixels(face.image) == pixels(image.crop((left, 0, left + 100, 100)))).all()


@pytest.mark.parametrize(
    ("size", "num"), [((100, 100), 1), ((199, 100), 1), ((200, 100), 3), ((100, 260), 3), ((100, 261), 4), ((1, 9), 12)]
)
def test_split_covers_the_picture_with_the_fewest_parts(size, num):
    parts = Split().parts(size)
    assert len(parts) == num or size == (1, 9)  # of one pixel, neighbours can share all or nothing
    assert parts[0][:2] == (0, 0) and parts[-1][2:] == size
    for box in parts:
        assert num == 1 or box[2] - box[0] == box[3] - box[1] == min(size)
    if min(size) > 1 and num > 1:
        axis = 0 if size[0] > size[1] else 1
        shared = [a[axis + 2] - b[axis] for a, b in pairwise(parts)]
        assert min(shared) >= 0.2 * min(size) - 1  # whole pixels
        fewer = (num - 2) * 0.8 * min(size) + min(size)
        assert fewer < max(size), "one part less would not do"


def test_split_takes_the_shape_and_the_threshold():
    assert len(Split(width=2).parts((400, 100))) == 3
    assert len(Split(width=2).parts((390, 100))) == 1
    assert len(Split(width=2).parts((100, 100))) == 3  # twice as tall as the shape
    assert len(Split(threshold=0.9).parts((120, 100))) == 2
    assert len(Split(threshold=1.0).parts((100, 100))) == 1


def test_split_parts_are_the_picture_and_are_named_apart():
    image = noise(300, 100)
    parts = through(image, {"step": "split", "overlap": 0.0})
    assert [p.suffix for p in parts] == ["-1", "-2", "-3"]
    assert (np.concatenate([pixels(p.image) for p in parts], axis=1) == pixels(image)).all()


def test_flip_adds_the_mirror_and_warns_of_what_is_on_one_side():
    image = noise(20, 10)
    plain, mirrored = through(image, {"step": "flip"})
    assert plain.suffix == "" and mirrored.suffix == "-flip" and not mirrored.notes
    assert (pixels(mirrored.image) == pixels(image)[:, ::-1]).all()
    plain, mirrored = through(image, {"step": "flip"}, caption="1girl, eyepatch, hair over one eye, smile")
    assert not plain.notes
    assert mirrored.notes == ("is mirrored, and its caption names what is then wrong: eyepatch, hair over one eye",)


def test_the_background_becomes_white_or_transparent_by_the_mask():
    image = noise(20, 10)
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (5, 0, 20, 10))
    tools = Tools(background_mask=lambda seen: mask if seen.mode == "RGB" else None)
    (white,) = through(image, {"step": "background"}, tools=tools)
    assert white.image.mode == "RGB" and (pixels(white.image)[:, :5] == 255).all()
    assert (pixels(white.image)[:, 5:] == pixels(image)[:, 5:]).all()
    (alpha,) = through(image, {"step": "background", "to": "alpha"}, tools=tools)
    assert (pixels(alpha.image)[..., 3] == pixels(mask)).all() and (pixels(alpha.image)[..., :3] == pixels(image)).all()


def test_a_pictures_own_transparency_comes_before_a_model():
    def model(seen):
        raise AssertionError("was asked")

    image = noise(20, 10).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    (white,) = through(image, {"step": "background"}, tools=Tools(background_mask=model))
    assert (pixels(white.image) == 255).all()


def test_a_background_that_cannot_be_told_stays_and_is_said():
    image = noise(20, 10)
    (piece,) = through(image, {"step": "background"})
    assert (pixels(piece.image) == pixels(image)).all() and "no segmentation model is given" in piece.notes[0]
    empty = Tools(background_mask=lambda seen: Image.new("L", seen.size, 0))
    (piece,) = through(image, {"step": "background"}, tools=empty)
    assert (pixels(piece.image) == pixels(image)).all() and "no subject is found" in piece.notes[0]
    small = Tools(background_mask=lambda seen: Image.new("L", (3, 3), 9))
    with pytest.raises(ValueError, match=r"a mask must be L \(20, 10\)"):
        through(image, {"step": "background"}, tools=small)


def test_faces_are_cut_out_square_with_their_margin_the_largest_first():
    image = noise(400, 200)
    tools = Tools(detect_faces=lambda seen: [(10, 10, 74, 74), (200, 50, 300, 150), (0, 0, 20, 20)])
    large, small = through(image, {"step": "faces", "margin": 0.25}, tools=tools)
    assert (large.suffix, small.suffix) == ("-face1", "-face2")
    assert (pixels(large.image) == pixels(image.crop((175, 25, 325, 175)))).all()
    assert small.image.size == (96, 96) and (pixels(small.image) == pixels(image.crop((0, 0, 96, 96)))).all()
    nobody = Tools(detect_faces=lambda seen: [])
    assert through(image, {"step": "faces"}, tools=nobody) == []
    assert len(through(image, {"step": "faces", "keep_others": True}, tools=nobody)) == 1
    with pytest.raises(ValueError, match="needs a face detector"):
        through(image, {"step": "faces"})


def test_unsharp_makes_edges_steeper_and_leaves_flats_and_transparency():
    image = Image.new("RGB", (40, 20), (100, 100, 100))
    image.paste((150, 150, 150), (20, 0, 40, 20))
    (sharp,) = through(image, {"step": "unsharp", "percent": 100})
    row = pixels(sharp.image)[10, :, 0].astype(int)
    assert row[0] == 100 and row[39] == 150 and row[19] < 100 and row[20] > 150
    alpha = Image.linear_gradient("L").resize(image.size)
    (piece,) = through(with_alpha(image, alpha), {"step": "unsharp", "percent": 100})
    assert (pixels(piece.image)[..., :3] == pixels(sharp.image)).all()
    assert (pixels(piece.image)[..., 3] == pixels(alpha)).all()


def test_upscale_enlarges_by_the_hosts_model_until_the_shorter_side_is_there():
    sizes = []

    def twice(image):
        sizes.append(image.size)
        return image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)

    image = noise(40, 30)
    (piece,) = through(image, {"step": "upscale", "least_px": 90}, tools=Tools(upscale=twice))
    assert piece.image.size == (120, 90) and sizes == [(40, 30), (80, 60)]
    larger = image.resize((160, 120), Image.Resampling.NEAREST)
    assert (pixels(piece.image) == pixels(larger.resize((120, 90), Image.Resampling.LANCZOS))).all()
    assert piece.notes == ("is enlarged to 3 of its size by the upscaler",)
    (alpha,) = through(image.convert("RGBA"), {"step": "upscale", "least_px": 60}, tools=Tools(upscale=twice))
    assert alpha.image.mode == "RGBA" and alpha.image.size == (80, 60)


def test_upscale_leaves_what_is_large_enough_and_needs_a_model_that_enlarges():
    (piece,) = through(noise(100, 90), {"step": "upscale", "least_px": 90})
    assert piece.image.size == (100, 90) and not piece.notes
    with pytest.raises(ValueError, match="needs a host's upscaler"):
        through(noise(100, 80), {"step": "upscale", "least_px": 90})
    for wrong in (lambda image: image, lambda image: image.convert("L").resize((999, 999))):
        with pytest.raises(ValueError, match="an upscaler gives RGB that is larger"):
            through(noise(100, 80), {"step": "upscale", "least_px": 90}, tools=Tools(upscale=wrong))


def test_copies_are_equal_and_numbered_and_said_once():
    image = noise(20, 10)
    copies = through(image, {"step": "crop", "width": 40, "height": 20}, {"step": "copies", "num": 3})
    assert [piece.suffix for piece in copies] == ["_1", "_2", "_3"] and len({piece.caption for piece in copies}) == 1
    assert all((pixels(piece.image) == pixels(copies[0].image)).all() for piece in copies)
    assert [bool(piece.notes) for piece in copies] == [True, False, False]


def test_which_steps_may_call_a_model_is_known():
    some = Tools(detect_faces=lambda seen: [])
    for values, calls in (
        ([{"step": "crop"}], False),
        ([{"step": "flip"}, {"step": "crop", "focal": True}], True),
        ([{"step": "bucket", "focal": True}], True),
        ([{"step": "faces"}], True),
        ([{"step": "background"}], True),
        ([{"step": "upscale"}], True),
    ):
        assert calls_models(steps_from(values), some) == calls
        assert not calls_models(steps_from(values), Tools())


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_no_step_changes_the_picture_that_it_gets(name, mode):
    tools = Tools(
        detect_faces=lambda seen: [(10, 10, 90, 90)],
        background_mask=lambda seen: Image.linear_gradient("L").resize(seen.size),
        upscale=lambda seen: seen.resize((2 * seen.width, 2 * seen.height)),
    )
    image = noise(260, 120).convert(mode)
    before = image.tobytes()
    (step,) = steps_from([{"step": name}])
    pieces = step.pieces(Piece(image, "1girl, eyepatch"), tools)
    assert image.tobytes() == before and image.mode == mode
    assert pieces and len({piece.suffix for piece in pieces}) == len(pieces)
    for piece in pieces:
        assert piece.image.mode in ("RGB", "RGBA") and min(piece.image.size) > 0 and piece.caption == "1girl, eyepatch"
