"""Taggers of the WD14 type give the known answers of models that were made for it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from onnx_writer import write_tagger
from PIL import Image
from sd_atelier.lib.config import from_dict
from sd_atelier.lib.data import caption_files
from sd_atelier.lib.data.tagger import (
    CHARACTER,
    GENERAL,
    RATING,
    Tagger,
    TaggingConfig,
    TagName,
    chosen_tags,
    read_tags,
    tag_pictures,
    tagger_input,
)

# In the layout of the published tables; v3's first rows are ratings, and characters come last.
TABLE = """tag_id,name,category,count
9999999,general,9,807858
9999998,sensitive,9,3771700
470575,1girl,0,4225150
212816,solo,0,3515897
13197,long_hair,0,2982517
3843,o_o,0,5000
563949,hatsune_miku,4,72058
1388799,saber_(fate),4,20000
"""

ROWS = [[1, "rating", 9, 1], [2, "red_thing", 0, 9], [3, "green_thing", 0, 9], [4, "blue_thing", 0, 9]]
# the mean of a channel above 100 says yes; the input is BGR
WEIGHTS, BIAS = [[0, 0, 0], [0, 0, 0.1], [0, 0.1, 0], [0.1, 0, 0]], [5, -10, -10, -10]


def config(**values):
    return from_dict(TaggingConfig, values)


def test_a_table_in_the_published_layout_is_read(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "t.csv").write_text(TABLE, encoding)
        tags = read_tags(tmp_path / "t.csv")
        assert len(tags) == 8 and tags[0] == TagName("general", RATING)
        assert tags[4] == TagName("long_hair", GENERAL) and tags[7] == TagName("saber_(fate)", CHARACTER)


# What the published tables have beside the plain rows: commas and quotes in names, further columns and categories.
ODD = r'''tag_id,name,category,count,ips
9999999,general,9,807858,[]
1279,"don't_say_""lazy""",3,900,[]
77,"1,000_thighs",0,30,[]
88,;),0,7000,[]
99,\||/,0,6000,[]
100,hatsune_miku_(append),4,5000,"[""vocaloid""]"
101,some_artist,1,10,[]
102,highres,5,9,[]
'''


def test_what_published_tables_have_beside_plain_rows_is_read_and_only_tags_are_taken(tmp_path):
    (tmp_path / "t.csv").write_text(ODD.replace("\n", "\r\n"), "utf-8", newline="")
    tags = read_tags(tmp_path / "t.csv")
    assert [tag.name for tag in tags][1:5] == ['don\'t_say_"lazy"', "1,000_thighs", ";)", "\\||/"]
    found = chosen_tags(np.ones(len(tags), np.float32), tags, config(order="csv", escape=True))
    assert [tag.tag for tag in found] == ["1,000 thighs", ";\\)", "\\\\||/", r"hatsune miku \(append\)"]


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "tag_id,name,category,count\n1,x,general,3\n", "name,category\nx\n"]
)
def test_another_table_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "t.csv").write_text(text, "utf-8")
    if text:
        with pytest.raises(ValueError, match=r"t.csv must be a table with the columns tag_id, name, category"):
            read_tags(tmp_path / "t.csv")
    else:
        assert read_tags(tmp_path / "t.csv") == ()


@pytest.fixture
def tags(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE, "utf-8")
    return read_tags(tmp_path / "t.csv")


SCORES = np.array([0.99, 0.98, 0.5, 0.9, 0.35, 0.4, 0.86, 0.84], np.float32)


def test_tags_are_chosen_by_the_threshold_of_their_category_and_ratings_never(tags):
    assert [t.tag for t in chosen_tags(SCORES, tags, config())] == ["solo", "hatsune miku", "1girl", "o_o", "long hair"]
    assert [t.tag for t in chosen_tags(SCORES, tags, config(character_threshold=0.8, general_threshold=0.6))] == [
        "solo",
        "hatsune miku",
        "saber (fate)",
    ]
    assert chosen_tags(np.zeros(8, np.float32), tags, config()) == []


def test_tags_are_in_the_order_that_is_asked_for(tags):
    by_table = [t.tag for t in chosen_tags(SCORES, tags, config(order="csv"))]
    assert by_table == ["1girl", "solo", "long hair", "o_o", "hatsune miku"]
    found = chosen_tags(SCORES, tags, config())
    assert [t.score for t in found] == sorted((t.score for t in found), reverse=True)


def test_tags_are_written_as_asked_and_faces_keep_their_underscore(tags):
    everything = np.ones(8, np.float32)
    written = {t.tag for t in chosen_tags(everything, tags, config(escape=True))}
    assert {"long hair", "o_o", r"saber \(fate\)"} <= written
    assert {"long_hair", "o_o", "saber_(fate)"} <= {t.tag for t in chosen_tags(everything, tags, config(spaces=False))}
    assert {"solo", "long hair"}.isdisjoint(
        t.tag for t in chosen_tags(everything, tags, config(exclude="Long hair, solo"))
    )


def test_the_input_is_a_white_square_in_bgr_with_the_picture_in_its_middle():
    values = tagger_input(Image.new("RGB", (4, 2), (10, 20, 30)), 4)
    assert values.shape == (4, 4, 3) and values.dtype == np.float32
    assert (values[[0, 3]] == 255).all() and (values[1:3] == [30, 20, 10]).all()
    assert tagger_input(Image.new("RGB", (30, 50), "black"), 8).shape == (8, 8, 3)


# From here on the models really run.


@pytest.fixture
def ort():
    return pytest.importorskip("onnxruntime", reason="taggers need onnxruntime (the extra tagger)")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    colours = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0), "white": (255, 255, 255)}
    for name, colour in colours.items():
        Image.new("RGB", (20, 20), colour).save(folder / f"{name}.png")
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    clear.save(folder / "clear.png")
    return folder


def paths(folder):
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_the_known_answers_are_given_whatever_the_batch(ort, tmp_path, pictures, batch):
    write_tagger(tmp_path / "model", WEIGHTS, BIAS, ROWS, batch=batch)
    tagger = Tagger(tmp_path / "model")
    assert tagger.side_px == 8 and tagger.model.provider == "CPUExecutionProvider"
    progress = []
    found = tag_pictures(
        paths(pictures), tagger, config(order="csv"), batch_size=2, on_progress=lambda *n: progress.append(n)
    )
    everything = ["red thing", "green thing", "blue thing"]
    assert {path.stem: [t.tag for t in tags] for path, tags in found.tags.items()} == {
        "blue": ["blue thing"],
        "clear": everything,  # transparency is white
        "green": ["green thing"],
        "red": ["red thing"],
        "white": everything,
    }
    assert found.tags[pictures / "red.png"][0].score == pytest.approx(1 / (1 + np.exp(-(0.1 * 255 - 10))), rel=1e-5)
    assert progress[-1] == (5, 5) and len(progress) == {"N": 3, 1: 5, 3: 2}[batch]


def test_a_model_without_a_named_side_gets_the_usual_one(ort, tmp_path):
    write_tagger(tmp_path / "model", WEIGHTS, BIAS, ROWS, side_px="S")
    tagger = Tagger(tmp_path / "model")
    assert tagger.side_px == 448 and tagger.scores([Image.new("RGB", (9, 9))]).shape == (1, 4)


def test_stopping_keeps_what_is_done(ort, tmp_path, pictures):
    write_tagger(tmp_path / "model", WEIGHTS, BIAS, ROWS)
    progress = []
    found = tag_pictures(
        paths(pictures),
        Tagger(tmp_path / "model"),
        config(),
        batch_size=2,
        on_progress=lambda *n: progress.append(n),
        stopped=lambda: bool(progress),
    )
    assert [path.stem for path in found.tags] == ["blue", "clear"] and progress == [(2, 5)] and found.stopped
    changes = caption_files.plan_words(found.words())
    caption_files.apply(changes, pictures, "tags")
    rest = tag_pictures(paths(pictures), Tagger(tmp_path / "model"), config())
    assert [path.stem for path in rest.tags] == [
        "green",
        "red",
        "white",
    ] and not rest.stopped  # the others have captions now


def test_captions_that_are_there_are_passed_over_unless_asked_for(ort, tmp_path, pictures):
    write_tagger(tmp_path / "model", WEIGHTS, BIAS, ROWS)
    (pictures / "red.txt").write_text("mine", "utf-8")
    tagger = Tagger(tmp_path / "model")
    assert pictures / "red.png" not in tag_pictures(paths(pictures), tagger, config()).tags
    assert pictures / "red.png" in tag_pictures(paths(pictures), tagger, config(existing="append")).tags


def test_a_picture_that_cannot_be_decoded_stops_nothing_and_is_named(ort, tmp_path, pictures):
    write_tagger(tmp_path / "model", WEIGHTS, BIAS, ROWS)
    (pictures / "green.png").write_bytes((pictures / "green.png").read_bytes()[:50])
    found = tag_pictures(paths(pictures), Tagger(tmp_path / "model"), config(), batch_size=2)
    assert len(found.tags) == 4 and [str(p) for p in found.problems] == [f"{pictures / 'green.png'} is truncated"]


def test_a_model_that_is_not_there_is_one_sentence_with_what_to_put_where(tmp_path):
    for there, missing in (((), "model.onnx"), (("model.onnx",), "selected_tags.csv")):
        for name in there:
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"put model.onnx and selected_tags.csv .* \\(missing: {missing}\\)"):
            Tagger(tmp_path)


def test_without_onnxruntime_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "selected_tags.csv").write_text(TABLE, "utf-8")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="need onnxruntime: pip install onnxruntime"):
        Tagger(tmp_path)


def test_files_that_are_no_tagger_are_refused(ort, tmp_path):
    write_tagger(tmp_path, WEIGHTS, BIAS, ROWS[:3])
    with pytest.raises(ValueError, match=r"gives \(4,\) numbers .* has 3 tags; take both from the same model"):
        Tagger(tmp_path).scores([Image.new("RGB", (8, 8))])
    (tmp_path / "model.onnx").write_bytes(b"hello")
    with pytest.raises(ValueError, match="cannot be opened as an ONNX model"):
        Tagger(tmp_path)


def test_the_hosts_device_is_used_where_there_is_a_provider(ort, tmp_path):
    write_tagger(tmp_path, WEIGHTS, BIAS, ROWS)
    provider = Tagger(tmp_path, "cuda:0").model.provider
    assert (provider == "CUDAExecutionProvider") == ("CUDAExecutionProvider" in ort.get_available_providers())
    assert Tagger(tmp_path, "no such device").model.provider == "CPUExecutionProvider"
