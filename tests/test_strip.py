"""Strips: every picture in its place, every step readable, no finished cell made again."""

import dataclasses
import itertools
import json
import re
import weakref

import numpy as np
import pytest
from PIL import Image, ImageFont
from sd_atelier.lib import strip
from sd_atelier.lib.host import SampleRequest

REQUEST = SampleRequest(prompt="a photo of zwx toy", seed=3)


def plain(colour, size=(200, 200)):
    return Image.new("RGB", size, colour)


def shown(path, colour):
    """Where exactly this colour is: (left, top, right, bottom), both ends included."""
    with Image.open(path) as image:
        found = np.argwhere((np.asarray(image.convert("RGB")) == colour).all(axis=2))
    (top, left), (bottom, right) = found.min(axis=0), found.max(axis=0)
    assert len(found) == (bottom - top + 1) * (right - left + 1)
    return left, top, right, bottom


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("x-000800", 800), ("x-1600", 1600), ("checkpoint-2400", 2400), ("epoch-10", 10), ("last", None), ("x", None),
        ("toy-000800.safetensors", 800), ("x_step00000800.safetensors", 800), ("step 800", 800), ("Epoch3", 3),
        ("000800", 800), ("sd15", None), ("model-v1.5.safetensors", None), ("", None), ("x-800.PT", 800),
        ("x-" + "9" * 40, None), ("toy-000800-2.safetensors", 800), ("toy-12-2", 2),
    ],
)  # fmt: skip
def test_step_is_read_from_the_end_of_a_name(name, step):
    assert strip.natural_step(name) == step


def test_order_is_that_of_steps_not_of_letters():
    names = ["x-1600.safetensors", "x.safetensors", "x-000800.safetensors", "x-200.safetensors", "last"]
    wanted = ["x-200.safetensors", "x-000800.safetensors", "x-1600.safetensors", "last", "x.safetensors"]
    assert all(strip.natural_order(p) == wanted for p in itertools.permutations(names))


def test_every_setting_is_in_the_key_of_a_cell():
    others = {
        "prompt": "b", "negative_prompt": "b", "steps": 21, "guidance": 6.5, "seed": 4, "width": 520, "height": 520,
    }  # fmt: skip
    assert set(others) == {f.name for f in dataclasses.fields(SampleRequest)}
    keys = [strip.cell_key("model", dataclasses.replace(REQUEST, **{k: v})) for k, v in others.items()]
    keys += [strip.cell_key("model", REQUEST), strip.cell_key("other", REQUEST)]
    keys += [strip.cell_key("model", REQUEST, sampler="Euler"), strip.cell_key("model", REQUEST, strength=0.8)]
    assert len(set(keys)) == len(keys)
    assert strip.cell_key("model", dataclasses.replace(REQUEST)) == strip.cell_key("model", REQUEST)


def test_finished_cell_comes_back_and_a_damaged_one_does_not(tmp_path):
    store, key = strip.CellStore(tmp_path / "cells"), strip.cell_key("model", REQUEST)
    assert store.get(key) is None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    path = store.put(key, image, {"prompt": REQUEST.prompt})
    assert np.array_equal(np.asarray(store.get(key)), np.asarray(image))
    assert json.loads(path.with_suffix(".json").read_text())["prompt"] == REQUEST.prompt

    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert store.get(key) is None
    path.write_bytes(whole)
    path.with_suffix(".json").write_text("[")
    assert store.get(key) is None
    path.with_suffix(".json").unlink()
    assert store.get(key) is None


@pytest.mark.parametrize("key", ["", "../" + "0" * 61, "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_key_that_is_not_a_hash_names_no_file(key, tmp_path):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        strip.CellStore(tmp_path).get(key)


def test_each_picture_stands_in_its_column_and_row(tmp_path):
    colours = {(c, r): (10 + 40 * c, 200 - 50 * r, 99) for c in range(3) for r in range(2)}
    cells = [strip.Cell(c, r, plain(colour)) for (c, r), colour in colours.items()]
    strip.compose(["base", "x-100", "x-200"], ["one", "two"], iter(cells), tmp_path / "strip.png")
    boxes = {place: shown(tmp_path / "strip.png", colour) for place, colour in colours.items()}
    for (column, row), (left, top, right, bottom) in boxes.items():
        assert (right - left, bottom - top) == (199, 199)
        assert top == boxes[0, row][1] and left == boxes[column, 0][0]
    assert boxes[0, 0][2] < boxes[1, 0][0] and boxes[1, 0][2] < boxes[2, 0][0]
    assert boxes[0, 0][3] < boxes[0, 1][1]


def test_cell_of_another_shape_keeps_its_proportions(tmp_path):
    cells = [strip.Cell(0, 0, plain((255, 0, 0), (200, 100))), strip.Cell(1, 0, plain((0, 0, 255), (50, 100)))]
    strip.compose(["a", "b"], ["row"], cells, tmp_path / "strip.png")
    left, top, right, bottom = shown(tmp_path / "strip.png", (0, 0, 255))
    assert (right - left + 1, bottom - top + 1) == (50, 100)


def test_small_pictures_are_enlarged_by_a_whole_factor(tmp_path):
    strip.compose(["a"], ["row"], [strip.Cell(0, 0, plain((255, 0, 0), (64, 48)))], tmp_path / "strip.png")
    left, top, right, bottom = shown(tmp_path / "strip.png", (255, 0, 0))
    assert (right - left + 1, bottom - top + 1) == (192, 144)
    about = json.loads((tmp_path / "strip.json").read_text())
    assert (about["cell_size_px"], about["shown_size_px"]) == ([64, 48], [192, 144])


def test_strip_says_what_is_in_it(tmp_path):
    cells = [strip.Cell(1, 0, plain("red"), key="k1", file="cells/k1.png")]
    metadata = {"atelier": '{"steps": 20, "name": "ünï"}'}
    strip.compose(["base", "x-000100"], ["a cat\nseed 1"], cells, tmp_path / "s.png", title="toy", metadata=metadata)
    about = json.loads((tmp_path / "s.json").read_text("utf-8"))
    assert about["columns"] == [{"label": "base", "step": None}, {"label": "x-000100", "step": 100}]
    assert about["rows"] == ["a cat\nseed 1"] and about["title"] == "toy"
    assert about["cells"] == [{"column": 1, "row": 0, "key": "k1", "file": "cells/k1.png"}]
    with Image.open(tmp_path / "s.png") as image:
        assert image.text["atelier"] == metadata["atelier"] and image.text["Title"] == "toy"


FONTS = [strip._font(16), strip._font(16, True), ImageFont.load_default()]
if hasattr(ImageFont, "load_default_imagefont"):  # the bitmap font, all there is before Pillow 10.1
    FONTS.append(ImageFont.load_default_imagefont())


@pytest.mark.parametrize("font", FONTS, ids=range(len(FONTS)))
@pytest.mark.parametrize("width", [0, 1, 20, 90, 300])
@pytest.mark.parametrize(
    "text", ["", "a", "a-very-long-run-name-" * 9, "日本語のとても長い名前" * 5, "tab\tnul\0bell\a", "é" * 5000]
)
def test_text_never_grows_wider_than_its_room(text, width, font):
    for front in (False, True):
        cut = strip._ellipsis(text, width, font, front=front)
        assert font.getlength(cut) <= width
    if width >= 90:
        lines = strip._wrapped(text, width, font, 3)
        assert len(lines) <= 3 and all(font.getlength(line) <= width for line in lines)


def test_front_is_cut_and_the_end_is_kept():
    cut = strip._ellipsis("a-very-long-run-name-", 90, strip._font(15), front=True)
    assert cut.startswith("…") and cut.endswith("name-")


def test_wrapped_text_is_whole_where_it_fits():
    font = strip._font(15)
    words = "a photo of zwx monster toy on the beach, in the sun, with a towel"
    lines = strip._wrapped(words, 250, font, 3)
    assert len(lines) > 1 and " ".join(lines) == words
    assert strip._wrapped(words * 20, 250, font, 3)[-1].endswith("…")


@pytest.mark.parametrize(
    "label", ["x-000800", "n" * 500 + "-123456789012345678", "step 12", "x-000800-2", "no network", "w" * 300]
)
def test_step_of_a_label_is_never_cut(label, tmp_path):
    drawn = []

    class Recording(strip.ImageDraw.ImageDraw):
        def text(self, xy, text, fill=None, font=None):
            drawn.append((xy[0], text, font))
            super().text(xy, text, fill, font)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strip.ImageDraw, "Draw", Recording)
        strip.compose([label, "x-1"], ["row"], [strip.Cell(0, 0, plain("red", (20, 192)))], tmp_path / "s.png")
    step = re.search(r"(\d{6}-)?\d*$", label).group()
    ends = [x + font.getlength(text) for x, text, font in drawn[:2]]
    if step:
        assert drawn[1][1] == step
    # the next column starts behind the end of this one's label
    assert max(ends) <= drawn[2][0]


def test_no_cell_is_held_once_it_is_in_its_place(tmp_path):
    made = []

    def cells():
        for row in range(6):
            # the one before this is still in the caller's loop variable, and only that one
            assert all(image() is None for image in made[:-1])
            image = plain((row, 0, 0))
            made.append(weakref.ref(image))
            yield strip.Cell(0, row, image)
            del image

    strip.compose(["a"], ["row"] * 6, cells(), tmp_path / "s.png")
    assert len(made) == 6 and all(image() is None for image in made)


@pytest.mark.parametrize(
    ("columns", "rows", "cells", "said"),
    [
        ([], ["a"], [], "at least one column and one row, got 0 and 1"),
        (["a"], ["b"], [], "at least one picture, got none"),
        (["a"], ["b"], [strip.Cell(1, 0, plain("red"))], r"cell \(1, 0\) lies outside 1 columns, 1 rows"),
        (["a"], ["b"], [strip.Cell(0, -1, plain("red"))], r"cell \(0, -1\) lies outside"),
    ],
)
def test_impossible_strips_are_refused(columns, rows, cells, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        strip.compose(columns, rows, cells, tmp_path / "s.png")
    assert not list(tmp_path.iterdir())
