"""What the page may ask of a gallery, and how a request that is none is refused. No host is needed."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from sd_atelier.lib.named_folders import existing_folder
from sd_atelier.nodes import gallery, paths


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, caption in {"a.png": "hat, red hat", "b.png": "<b>x</b>", "sub/c.png": "hat"}.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(path)
        path.with_suffix(".txt").write_text(caption, "utf-8")

    def named(text, what="folder"):
        return existing_folder(text, [tmp_path], False, tmp_path / "atelier.json", what)

    monkeypatch.setattr(paths, "named_folder", named)
    return tmp_path / "set"


def asked(what, **values):
    """The answer as it reaches the page."""
    return json.loads(json.dumps(gallery.ANSWERS[what]({"folder": "set", **values})))


def test_a_page_holds_what_is_shown(folder):
    answer = asked("page", offset=0, limit=2)
    assert (answer["num_found"], answer["num_all"], answer["undo"]) == (3, 3, "")
    assert [item["name"] for item in answer["items"]] == ["a.png", "b.png"]
    first = answer["items"][0]
    assert (first["caption"], first["size"], first["editable"]) == ("hat, red hat", [40, 30], True)
    assert first["problems"][0]["severity"] == "warning"
    found = asked("page", filter={"all": "hat", "text": "sub"})
    assert [item["name"] for item in found["items"]] == ["sub/c.png"]
    assert asked("tags")["tags"] == [["hat", 2], ["<b>x</b>", 1], ["red hat", 1]]


def test_an_edit_is_shown_then_applied_then_taken_back(folder):
    edits = [["replace", "hat -> cap"]]
    shown = asked("plan", edits=edits, filter={"all": "hat"})
    assert (shown["num"], shown["num_meant"], shown["title"]) == (2, 2, "replace=hat -> cap")
    assert [change["name"] for change in shown["changes"]] == ["a.txt", "sub/c.txt"]
    assert shown["changes"][0]["parts"] == [["-", "hat"], ["+", "cap"], [" ", "red hat"]]
    assert (folder / "a.txt").read_text() == "hat, red hat"
    applied = asked("apply", edits=edits, filter={"all": "hat"}, digest=shown["digest"])
    assert applied == {"num": 2, "undo": "replace=hat -> cap"}
    assert (folder / "a.txt").read_text() == "cap, red hat"
    assert asked("undo") == {"title": "replace=hat -> cap", "num": 2, "undo": ""}
    assert (folder / "a.txt").read_text() == "hat, red hat"


def test_what_was_not_shown_is_not_applied(folder):
    with pytest.raises(ValueError, match="changed since the edit was shown"):
        asked("apply", edits=[["prepend", "x"]], digest="")
    assert (folder / "a.txt").read_text() == "hat, red hat"


def test_an_edit_may_be_for_named_pictures(folder):
    assert asked("plan", edits=[["prepend", "x"]], names=["sub/c.png"])["num"] == 1


def test_one_caption_is_written_where_it_is_the_one_that_was_shown(folder):
    answer = asked("caption", name="b.png", caption="new", before="<b>x</b>")
    assert answer["item"]["caption"] == "new" and (folder / "b.txt").read_text() == "new"
    with pytest.raises(ValueError, match="changed meanwhile"):
        asked("caption", name="b.png", caption="newer", before="<b>x</b>")


def test_every_edit_is_offered_with_what_it_needs(folder):
    offered = {one["name"]: one["needs"] for one in asked("edits")["edits"]}
    assert offered["replace"] == "old -> new" and offered["spaces"] == ""


def test_a_thumbnail_is_a_picture(folder):
    with Image.open(io.BytesIO(gallery.thumbnail({"folder": "set", "name": "a.png", "side": "32"}))) as small:
        assert small.size == (32, 24)


@pytest.mark.parametrize("what", sorted(gallery.ANSWERS.keys() - {"edits"}))
@pytest.mark.parametrize("given", ["..", "/etc", "../elsewhere", "set/../.."])
def test_folders_outside_the_roots_are_refused_by_every_request(folder, what, given):
    with pytest.raises(ValueError, match="may not be used"):
        asked(what, folder=given)
    with pytest.raises(ValueError, match="may not be used"):
        gallery.thumbnail({"folder": given, "name": "a.png"})


@pytest.mark.parametrize(
    ("what", "values", "said"),
    [
        ("page", {"folder": 3}, "folder must be a text"),
        ("page", {"folder": ""}, "folder is empty"),
        ("page", {"filter": []}, "filter must be an object"),
        ("page", {"filter": {"x": 1}}, "unknown filter"),
        ("page", {"offset": "0"}, "offset must be a whole number"),
        ("page", {"limit": 10_000}, "a page"),
        ("plan", {}, "edits must be a list of pairs"),
        ("plan", {"edits": [["prepend"]]}, "edits must be a list of pairs"),
        ("plan", {"edits": [["prepend", 1]]}, "edits must be a list of pairs"),
        ("plan", {"edits": [["prepend", "x"]], "names": "a.png"}, "names must be a list"),
        ("plan", {"edits": [["prepend", "x"]], "names": ["../a.png"]}, "there is no picture"),
        ("plan", {"edits": [["prepend", ""]]}, "needs words"),
        ("caption", {"name": "a.png", "caption": None, "before": "x"}, "caption must be a text"),
        ("undo", {}, "there is no edit to undo"),
    ],
)
def test_a_request_that_is_none_is_refused_in_words_and_changes_nothing(folder, what, values, said):
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    with pytest.raises(ValueError, match=said):
        asked(what, **values)
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize(
    "values", [{"name": "../x.png"}, {"name": "a.png", "side": "-1"}, {"name": "a.png", "side": "9"}]
)
def test_a_thumbnail_that_is_none_is_refused(folder, values):
    with pytest.raises(ValueError):
        gallery.thumbnail({"folder": "set", **values})


def test_every_edit_has_its_words_in_the_page():
    english = json.loads((Path(__file__).parents[2] / "locales" / "en" / "main.json").read_text("utf-8"))
    words = english["atelier"]["gallery"]["edit"]
    for kind in gallery.edits({})["edits"]:
        assert {"name", "help"} | ({"words"} if kind["needs"] else set()) == set(words[kind["name"]])
