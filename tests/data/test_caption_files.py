"""Every edit can be undone, byte for byte, wherever it was cut; what somebody else wrote is never overwritten."""

from __future__ import annotations

import base64
import json
import random
import threading
from pathlib import Path

import pytest
from sd_atelier.lib import files
from sd_atelier.lib.data import caption_files
from sd_atelier.lib.data.tag_edits import EDITS, TagFilter, edit
from sd_atelier.lib.data.tag_rules import tag_rules

RULES = tag_rules()
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "cp1252"]
WORDS = {"remove": "hat", "replace": "hat -> cap", "prepend": "zwx", "append": "end", "trigger": "zwx", "first": "hat"}


def folder_of(path: Path, seed: int, num: int = 12) -> list[Path]:
    rng = random.Random(seed)
    pictures = []
    for i in range(num):
        picture = path / rng.choice(["", "sub/"]) / f"{i:02d} é.png"
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(b"no picture, and never opened")
        pictures.append(picture)
        if rng.random() < 0.8:
            tags = rng.choices(["hat", "red hat", "1girl", "blue hair", "holding", "cup", "long_hair", "café"], k=5)
            text = ", ".join(tags) + rng.choice(["", "\n", "\r\n"])
            suffix = rng.choice([".txt", ".caption"])
            picture.with_suffix(suffix).write_bytes(text.encode(rng.choice(ENCODINGS)))
    return pictures


def everything(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("seed", range(12))
def test_undoing_a_random_sequence_of_edits_restores_every_byte(tmp_path, seed):
    pictures, rng = folder_of(tmp_path, seed), random.Random(seed)
    states = [everything(tmp_path)]
    for _ in range(5):
        name = rng.choice(list(EDITS))
        changes = caption_files.plan(pictures, edit(name, WORDS.get(name, ""), RULES))
        if caption_files.apply(changes, tmp_path, name) is not None:
            states.append(everything(tmp_path))
    assert len(states) > 2
    for before in states[-2::-1]:
        caption_files.undo(tmp_path)
        left = {name: data for name, data in everything(tmp_path).items() if not name.startswith(".atelier-undo/")}
        assert left == {name: data for name, data in before.items() if not name.startswith(".atelier-undo/")}
    assert everything(tmp_path) == states[0] and not (tmp_path / ".atelier-undo").exists()
    with pytest.raises(ValueError, match="there is no edit to undo"):
        caption_files.undo(tmp_path)


def captions_of(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in everything(path).items() if not name.startswith(".atelier-undo/")}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_done_undone_and_cut_in_turn_comes_back_byte_for_byte(tmp_path, monkeypatch, seed):
    pictures, rng = folder_of(tmp_path, seed), random.Random(1000 + seed)
    first, states = everything(tmp_path), [captions_of(tmp_path)]
    write, num_undone, num_cut = caption_files.write_bytes, 0, 0

    def change() -> list[caption_files.CaptionChange]:
        kind = rng.choice(["edit", "edit", "edit", "words", "names", "utf8"])
        some = rng.sample(pictures, rng.randint(1, len(pictures)))
        if kind == "words":
            found = {picture: rng.sample(["cat", "hat", "caf\u00e9", "red hat"], 2) for picture in some}
            return caption_files.plan_words(found, rng.choice(caption_files.EXISTING))
        if kind == "edit":
            name = rng.choice(list(EDITS))
            chosen = TagFilter(any=("hat", "cup"), most=rng.randint(1, 8))
            return caption_files.plan(some, edit(name, WORDS.get(name, ""), RULES), chosen.matches)
        return caption_files.plan(some, str.strip, from_name=kind == "names", as_utf8=True)

    for _ in range(25):
        if rng.random() < 0.3 and len(states) > 1:
            caption_files.undo(tmp_path)
            states.pop()
            num_undone += 1
            assert captions_of(tmp_path) == states[-1]
            continue
        changes = change()
        if changes and rng.random() < 0.2:
            # the program dies somewhere in the middle of it
            left = rng.randrange(len(changes))
            lost = {one.path for one in rng.sample(changes, len(changes) - left)}

            def dying(path, data, lost=lost):
                if path in lost:
                    raise OSError(5, "cut here")
                return write(path, data)

            monkeypatch.setattr(caption_files, "write_bytes", dying)
            with pytest.raises(OSError, match="cut here"):
                caption_files.apply(changes, tmp_path, "cut")
            monkeypatch.setattr(caption_files, "write_bytes", write)
            num_cut += 1
            caption_files.undo(tmp_path)
            assert captions_of(tmp_path) == states[-1]
        elif caption_files.apply(changes, tmp_path, "edit") is not None:
            states.append(captions_of(tmp_path))
            assert states[-1] != states[-2]
    assert num_undone + num_cut > 2
    for state in states[-2::-1]:
        caption_files.undo(tmp_path)
        assert captions_of(tmp_path) == state
    assert everything(tmp_path) == first


@pytest.mark.parametrize("cut_after", range(6))
def test_an_edit_that_was_cut_anywhere_can_be_undone(tmp_path, monkeypatch, cut_after):
    pictures = folder_of(tmp_path, 3)
    before = everything(tmp_path)
    changes = caption_files.plan(pictures, edit("prepend", "zwx", RULES))
    num_written, write, one_at_a_time = 0, files.write_bytes, threading.Lock()

    def failing(path, data):
        nonlocal num_written
        with one_at_a_time:
            if num_written == cut_after:
                raise OSError(5, "cut here")
            num_written += 1
        return write(path, data)

    monkeypatch.setattr(caption_files, "write_bytes", failing)
    with pytest.raises(OSError, match="cut here"):
        caption_files.apply(changes, tmp_path, "prepend")
    monkeypatch.undo()
    assert caption_files.undo(tmp_path) == ("prepend", cut_after)
    assert everything(tmp_path) == before


def test_the_plan_writes_nothing_and_what_it_writes_is_utf8(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes("hat, café\n".encode("utf-16"))
    before = everything(tmp_path)
    (change,) = caption_files.plan([tmp_path / "a.png"], edit("prepend", "zwx", RULES))
    assert everything(tmp_path) == before and change.diff() == "a.txt: +zwx"
    caption_files.apply([change], tmp_path, "prepend")
    assert (tmp_path / "a.txt").read_bytes().decode("utf-8") == "zwx, hat, café\n"


def test_the_parts_of_a_change_are_the_caption_before_and_after(tmp_path):
    change = caption_files.CaptionChange(tmp_path / "a.txt", "dog, cat, day", "toy, dog, night, day", b"")
    parts = change.parts()
    assert [word for sign, word in parts if sign != "+"] == ["dog", "cat", "day"]
    assert [word for sign, word in parts if sign != "-"] == ["toy", "dog", "night", "day"]
    assert change.diff() == "a.txt: +toy, -cat, +night"


def test_a_file_that_changed_meanwhile_is_never_overwritten(tmp_path):
    pictures = folder_of(tmp_path, 1)
    changes = caption_files.plan(pictures, edit("prepend", "zwx", RULES))
    changes[2].path.write_text("somebody else")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="was changed since the edit was planned; plan it again"):
        caption_files.apply(changes, tmp_path, "prepend")
    assert everything(tmp_path) == before

    changes = caption_files.plan(pictures, edit("prepend", "zwx", RULES))
    caption_files.apply(changes, tmp_path, "prepend")
    changes[0].path.write_text("somebody else")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match='was changed after "prepend"; undoing it would lose that change'):
        caption_files.undo(tmp_path)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("path", ["../out.txt", "/etc/x.txt", "a.png", "../../x.caption"])
def test_a_strangers_journal_writes_nothing_outside_the_captions_of_the_data_set(tmp_path, path):
    root = tmp_path / "set"
    (root / ".atelier-undo").mkdir(parents=True)
    entry = {"path": path, "old": base64.b64encode(b"evil").decode(), "new_sha256": "0" * 64}
    (root / ".atelier-undo/000001.json").write_text(json.dumps({"title": "t", "files": [entry]}))
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="is no caption of this data set"):
        caption_files.undo(root)
    assert everything(tmp_path) == before


def test_only_chosen_captions_are_planned_and_nothing_to_do_leaves_no_journal(tmp_path):
    pictures = folder_of(tmp_path, 2)
    before = everything(tmp_path)
    assert caption_files.plan(pictures, edit("prepend", "zwx", RULES), lambda caption: False) == []
    assert caption_files.apply([], tmp_path, "nothing") is None
    assert everything(tmp_path) == before


FOUND = ["blue sky", "Cat", "blue_sky"]


@pytest.mark.parametrize(
    ("existing", "before", "after"),
    [
        ("skip", None, "blue sky, Cat"),
        ("skip", "mine", "mine"),
        ("append", None, "blue sky, Cat"),
        ("append", "a dog, cat", "a dog, cat, blue sky"),
        ("append", "cat, blue_sky, ", "cat, blue_sky, "),
        ("replace", "a dog", "blue sky, Cat"),
    ],
)
def test_words_that_a_model_found_never_overwrite_unasked(tmp_path, existing, before, after):
    picture = tmp_path / "a.png"
    if before is not None:
        picture.with_suffix(".txt").write_text(before, "utf-8")
    caption_files.apply(caption_files.plan_words({picture: FOUND}, existing), tmp_path, "tags")
    assert picture.with_suffix(".txt").read_text("utf-8") == after
    if after != before:
        caption_files.undo(tmp_path)
    assert picture.with_suffix(".txt").exists() == (before is not None)


def test_pictures_that_share_a_caption_get_the_words_of_both(tmp_path):
    found = {tmp_path / "a.png": ["one", "two"], tmp_path / "b.png": ["three"], tmp_path / "a.jpg": ["two", "four"]}
    changes = caption_files.plan_words(found)
    assert {c.path.name: c.after for c in changes} == {"a.txt": "one, two, four", "b.txt": "three"}
    assert caption_files.plan_words({tmp_path / "a.png": []}, "replace") == []
    with pytest.raises(ValueError, match="skip, append, replace"):
        caption_files.plan_words(found, "merge")


def test_a_folder_may_be_named_relative_to_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    picture = tmp_path / "set" / "a.png"
    picture.write_bytes(b"no picture, and never opened")
    monkeypatch.chdir(tmp_path)
    caption_files.apply(caption_files.plan([picture], lambda _: "new"), Path("set"), "words")
    assert picture.with_suffix(".txt").read_text() == "new" and caption_files.newest_title(Path("set")) == "words"
    assert caption_files.undo(Path("set")) == ("words", 1) and not picture.with_suffix(".txt").exists()
    assert caption_files.newest_title(Path("set")) == ""


def test_nothing_is_written_where_undo_would_not_reach(tmp_path):
    (tmp_path / "set").mkdir()
    picture = tmp_path / "elsewhere.png"
    with pytest.raises(ValueError, match="does not lie in"):
        caption_files.apply(caption_files.plan([picture], lambda _: "new"), tmp_path / "set", "words")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
