"""Strips: every picture in its place, every step readable, no finished cell made again."""

import json
import re
import weakref

import numpy as np
import pytest
from PIL import Image
from sd_atelier.lib.strip import page
from sd_atelier.lib.strip.cells import Cell
from sd_atelier.lib.strip.publish import Overview, compose


def plain(colour, size=(200, 200)):
    return Image.new("RGB", size, colour)


def shown(path, colour):
    """Where exactly this colour is: (left, top, right, bottom), both ends included."""
    with Image.open(path) as image:
        found = np.argwhere((np.asarray(image.convert("RGB")) == colour).all(axis=2))
    (top, left), (bottom, right) = found.min(axis=0), found.max(axis=0)
    assert len(found) == (bottom - top + 1) * (right - left + 1)
    return left, top, right, bottom


def test_each_picture_stands_in_its_column_and_row(tmp_path):
    colours = {(c, r): (10 + 40 * c, 200 - 50 * r, 99) for c in range(3) for r in range(2)}
    cells = [Cell(c, r, plain(colour)) for (c, r), colour in colours.items()]
    compose(["base", "x-100", "x-200"], ["one", "two"], iter(cells), tmp_path / "strip.png")
    boxes = {place: shown(tmp_path / "strip.png", colour) for place, colour in colours.items()}
    for (column, row), (left, top, right, bottom) in boxes.items():
        assert (right - left, bottom - top) == (199, 199)
        assert top == boxes[0, row][1] and left == boxes[column, 0][0]
    assert boxes[0, 0][2] < boxes[1, 0][0] and boxes[1, 0][2] < boxes[2, 0][0]
    assert boxes[0, 0][3] < boxes[0, 1][1]


def test_cell_of_another_shape_keeps_its_proportions(tmp_path):
    cells = [Cell(0, 0, plain((255, 0, 0), (200, 100))), Cell(1, 0, plain((0, 0, 255), (50, 100)))]
    compose(["a", "b"], ["row"], cells, tmp_path / "strip.png")
    left, top, right, bottom = shown(tmp_path / "strip.png", (0, 0, 255))
    assert (right - left + 1, bottom - top + 1) == (50, 100)


def test_small_pictures_are_enlarged_by_a_whole_factor(tmp_path):
    compose(["a"], ["row"], [Cell(0, 0, plain((255, 0, 0), (64, 48)))], tmp_path / "strip.png")
    left, top, right, bottom = shown(tmp_path / "strip.png", (255, 0, 0))
    assert (right - left + 1, bottom - top + 1) == (192, 144)
    about = json.loads((tmp_path / "strip.json").read_text())
    assert (about["cell_size_px"], about["shown_size_px"]) == ([64, 48], [192, 144])


def test_strip_says_what_is_in_it(tmp_path):
    cells = [Cell(1, 0, plain("red"), key="k1", file="cells/k1.png")]
    metadata = {"atelier": '{"steps": 20, "name": "ünï"}'}
    compose(["base", "x-000100"], ["a cat\nseed 1"], cells, tmp_path / "s.png", title="toy", metadata=metadata)
    about = json.loads((tmp_path / "s.json").read_text("utf-8"))
    assert about["columns"] == [{"label": "base", "step": None}, {"label": "x-000100", "step": 100}]
    assert about["rows"] == ["a cat\nseed 1"] and about["title"] == "toy"
    assert about["cells"] == [{"column": 1, "row": 0, "key": "k1", "file": "cells/k1.png"}]
    with Image.open(tmp_path / "s.png") as image:
        assert image.text["atelier"] == metadata["atelier"] and image.text["Title"] == "toy"


@pytest.mark.parametrize(
    "label", ["x-000800", "n" * 500 + "-123456789012345678", "step 12", "x-000800-2", "no network", "w" * 300]
)
def test_step_of_a_label_is_never_cut(label, tmp_path):
    drawn = []

    class Recording(page.ImageDraw.ImageDraw):
        def text(self, xy, text, fill=None, font=None):
            drawn.append((xy[0], text, font))
            super().text(xy, text, fill, font)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page.ImageDraw, "Draw", Recording)
        compose([label, "x-1"], ["row"], [Cell(0, 0, plain("red", (20, 192)))], tmp_path / "s.png")
    step = re.search(r"(\d{6}-)?\d*$", label).group()
    ends = [x + font.getlength(text) for x, text, font in drawn[:2]]
    if step:
        assert drawn[1][1] == step
    # the next column starts behind the end of this one's label
    assert max(ends) <= drawn[2][0]


def kept(folder, column, row, size=(64, 48)):
    """A cell whose picture lies in a file."""
    path = folder / f"{column}-{row}.png"
    plain((column % 256, row % 256, 7), size).save(path)
    return Cell(column, row, path, file=path.name)


def test_pictures_in_files_are_read_row_by_row_and_let_go(tmp_path, monkeypatch):
    columns, rows = 3, 5
    cells = [kept(tmp_path, c, r) for c in range(columns) for r in range(rows)]
    held, most = [], 0

    def loaded(cell):
        nonlocal most
        image = plain((cell.column, cell.row, 7), (64, 48))
        held.append(weakref.ref(image))
        most = max(most, sum(one() is not None for one in held))
        return image

    monkeypatch.setattr(Cell, "loaded", loaded)
    compose([f"x-{c}" for c in range(columns)], ["row"] * rows, cells, tmp_path / "s.png")
    assert most <= 2


def test_a_strip_too_large_for_one_page_takes_several_and_every_picture_is_in_one(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_PAGE_PX", 1000)
    columns, rows = 9, 7
    cells = [kept(tmp_path, c, r) for c in range(columns) for r in range(rows)]
    pages = compose([f"x-{c}" for c in range(columns)], [f"row {r}" for r in range(rows)], cells, tmp_path / "s.png")
    assert [p.name for p in pages] == ["s.png", *(f"s-{i}.png" for i in range(2, len(pages) + 1))]
    assert json.loads((tmp_path / "s.json").read_text())["pages"] == [p.name for p in pages]
    colours = set()
    for path in pages:
        with Image.open(path) as image:
            assert max(image.size) <= 1000
            colours |= set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))
    assert {(c, r, 7) for c in range(columns) for r in range(rows)} <= colours
    monkeypatch.undo()
    assert compose(["x-0"], ["row"], cells[:1], tmp_path / "s.png") == [tmp_path / "s.png"]
    assert not list(tmp_path.glob("s-*.png"))


def test_an_empty_cell_says_why(tmp_path):
    drawn = []

    class Recording(page.ImageDraw.ImageDraw):
        def text(self, xy, text, fill=None, font=None):
            drawn.append(text)
            super().text(xy, text, fill, font)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page.ImageDraw, "Draw", Recording)
        cells = [Cell(0, 0, plain("red")), Cell(1, 0, None, error="is a network for SDXL")]
        compose(["a", "b"], ["row"], cells, tmp_path / "s.png")
    assert "SDXL" in " ".join(drawn)
    assert json.loads((tmp_path / "s.json").read_text())["cells"][1]["error"] == "is a network for SDXL"


def test_metrics_stand_under_the_columns_and_signs_are_in_the_json(tmp_path):
    texture = Image.fromarray(np.random.default_rng(2).integers(60, 190, (64, 64, 3), dtype=np.uint8))
    cells = [Cell(0, 0, texture), Cell(1, 0, texture.convert("L").convert("RGB"))]
    compose(["no network", "x-100"], ["row"], cells, tmp_path / "s.png", base=0, controlled={1: -0.043})
    base, last = json.loads((tmp_path / "s.json").read_text())["columns"]
    assert base["signs"] == [] and "colour leaves" in last["signs"] and last["metrics"]["colour"] == 0
    text = (tmp_path / "s.html").read_text()
    assert "controlled loss -4.3%" in text and "class=warns" in text


def test_the_page_shows_text_of_others_only_escaped_and_loads_cells_lazily(tmp_path):
    cell = kept(tmp_path, 0, 0)
    compose(["<b>x</b>-1"], ["<script>alert(1)</script>\nseed"], [cell], tmp_path / "s.png", title='"><img src=x>')
    text = (tmp_path / "s.html").read_text()
    assert "<script" not in text and "<img src=x" not in text and "<b>x</b>" not in text
    assert 'loading="lazy"' in text and 'href="0-0.png"' in text and "default-src 'none'" in text


def test_an_overview_grows_cell_by_cell_and_stays_small(tmp_path):
    overview = Overview(40, 25, (1024, 1024), most_px=800)
    assert max(overview.image.size) <= 800
    overview.paste(Cell(39, 24, plain((9, 8, 7), (1024, 1024))))
    assert overview.image.getpixel((overview.image.width - 1, overview.image.height - 1)) == (9, 8, 7)
    overview.paste(Cell(0, 0, None, error="no"))


@pytest.mark.parametrize(
    ("columns", "rows", "cells", "said"),
    [
        ([], ["a"], [], "at least one column and one row, got 0 and 1"),
        (["a"], ["b"], [], "at least one picture, got none"),
        (["a"], ["b"], [Cell(1, 0, plain("red"))], r"cell \(1, 0\) lies outside 1 columns, 1 rows"),
        (["a"], ["b"], [Cell(0, -1, plain("red"))], r"cell \(0, -1\) lies outside"),
    ],
)
def test_impossible_strips_are_refused(columns, rows, cells, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        compose(columns, rows, cells, tmp_path / "s.png")
    assert not list(tmp_path.iterdir())
