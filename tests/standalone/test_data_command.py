"""`atelier data` names every planted fault, edits what it shows, and takes it back."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sd_atelier.lib.standalone.cli import main


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    captions = {
        "a": "1girl, hair ornament, star hair ornament",
        "b": "1girl, lollipop, holding",
        "c": "1girl, open mouth, closed mouth",
        "d": "1girl, smile",
    }
    for name, caption in captions.items():
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption, "utf-8")
    with Image.open(tmp_path / "d.png") as image:
        image.resize((80, 80), Image.Resampling.LANCZOS).save(tmp_path / "e.jpg", quality=80)
    (tmp_path / "e.txt").write_text("1girl", "utf-8")
    return tmp_path


def test_check_names_the_faults_and_fails_on_errors_alone(folder, capsys):
    assert main(["data", "check", str(folder)]) == 0
    said = capsys.readouterr().out
    assert 'a.png has "hair ornament", which "star hair ornament" says already' in said
    assert "c.png has tags that contradict each other: open mouth, closed mouth" in said
    assert "d.png shows nearly the same as e.jpg" in said
    assert "5 pictures, 0 left out, 3 warnings" in said
    (folder / "f.png").write_bytes((folder / "a.png").read_bytes()[:400])
    assert main(["data", "check", str(folder)]) == 1
    assert "left out (1):" in capsys.readouterr().out


def test_an_edit_is_shown_then_written_then_taken_back(folder, capsys):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert main(["data", "edit", str(folder), "subsumed", "join", "prepend=zwx", "--none", "smile"]) == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    said = capsys.readouterr().out
    assert "a.txt: +zwx, -hair ornament" in said and "4 captions would change; --apply writes them" in said
    assert main(["data", "edit", str(folder), "subsumed", "join", "prepend=zwx", "--none", "smile", "--apply"]) == 0
    assert (folder / "b.txt").read_text() == "zwx, 1girl, holding lollipop"
    assert (folder / "d.txt").read_bytes() == before["d.txt"]
    assert main(["data", "undo", str(folder)]) == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert main(["data", "undo", str(folder)]) == 2
    assert "there is no edit to undo" in capsys.readouterr().err


def test_tags_are_counted_and_duplicates_named(folder, capsys):
    assert main(["data", "tags", str(folder), "--least", "2"]) == 0
    assert capsys.readouterr().out.split() == ["5", "1girl"]
    assert main(["data", "dedupe", str(folder)]) == 0
    assert "1 groups of pictures that show the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["edit", "subsume"], 'unknown edit "subsume"; did you mean "subsumed"'),
        (["edit", "remove"], "the edit remove needs tags"),
        (["check", "--rules", "missing.json"], "missing.json cannot be read as a table of tag rules"),
        (["check", "--tokenizer", "."], "holds no vocab.json"),
    ],
)
def test_wrong_words_are_one_sentence(folder, capsys, words, said):
    assert main(["data", words[0], str(folder), *words[1:]]) == 2
    assert said in capsys.readouterr().err
