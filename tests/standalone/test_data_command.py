"""`atelier data` names every planted fault, edits what it shows, and takes it back."""

from __future__ import annotations

import runpy
from pathlib import Path

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


def test_file_names_and_other_encodings_become_captions(folder, capsys):
    (folder / "a.png").rename(folder / "0001-red_car.png")
    (folder / "d.txt").write_bytes("1girl, caf\u00e9".encode("cp1252"))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert main(["data", "tags", str(folder), "--from-names"]) == 0
    assert "     1  red car" in capsys.readouterr().out
    assert main(["data", "edit", str(folder), "--from-names", "--utf8", "--apply"]) == 0
    assert "0001-red_car.txt: +red car\nd.txt: encoding or spaces\n2 captions changed" in capsys.readouterr().out
    assert (folder / "0001-red_car.txt").read_text("utf-8") == "red car"
    assert (folder / "d.txt").read_text("utf-8") == "1girl, caf\u00e9"
    assert main(["data", "edit", str(folder), "prepend=zwx", "--from-names", "--any", "red car"]) == 0
    assert "0001-red_car.txt: +zwx" in capsys.readouterr().out
    assert main(["data", "undo", str(folder)]) == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_check_looks_at_tokens_mirrors_and_names_where_asked(folder, tmp_path_factory, capsys):
    (folder / "b.txt").unlink()
    (folder / "c.txt").write_text(
        "1girl, eyepatch, " + ", ".join(f"{letter}-word" for letter in "abcdefghijklmnop" * 3)
    )
    words = ["data", "check", str(folder)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "b.png" in said and "has no caption" in said and "mirror" not in said and "tokens not counted" in said
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    runpy.run_path(str(Path(__file__).parents[1] / "data" / "planted_faults.py"))["write_tokenizer"](tokenizer)
    assert main([*words, "--flip", "--from-names", "--tokenizer", str(tokenizer)]) == 0
    said = capsys.readouterr().out
    assert "is mirrored, and its caption names what is then wrong (1): c.png" in said
    assert "c.png has a caption of" in said and "tokens; what comes after the first 75 counts less" in said
    assert "has no caption" not in said and "tokens not counted" not in said
    assert main([*words, "--all", "--flip"]) == 0
    assert f"captions name what is then wrong: c.png (eyepatch)\n    {folder / 'c.png'}" in capsys.readouterr().out


def test_pictures_are_scored_the_best_first(folder, tmp_path_factory, capsys):
    pytest.importorskip("onnxruntime", reason="aesthetic scores need onnxruntime (the extra tagger)")
    writer = runpy.run_path(str(Path(__file__).parents[1] / "data" / "onnx_writer.py"))
    out = tmp_path_factory.mktemp("model")
    writer["write_picture_scorer"](out / "scorer.onnx", [[1, 1, 1]])
    Image.new("RGB", (50, 50), "white").save(folder / "white.png")
    words = ["data", "score", str(folder), "--model", str(out / "scorer.onnx"), "--save", str(out / "scores.csv")]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[1] == "white.png"
    rows = (out / "scores.csv").read_text("utf-8").splitlines()
    assert rows[0] == "image,score" and rows[1].startswith("white.png,") and len(rows) == 7


def test_copies_are_written_beside_each_other(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("new") / "out"
    assert main(["data", "prepare", str(folder), str(out), "--copies", "2"]) == 0
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {f"{name}_{i}.{ending}" for name in "abcde" for i in (1, 2) for ending in ("png", "txt")}
    assert (out / "a_1.png").read_bytes() == (out / "a_2.png").read_bytes()


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
        (["edit"], "there is nothing to do; name an edit (subsumed, "),
        (["score", "--model", "."], "there is no aesthetic predictor in"),
        (["prepare", "../out", "--copies", "0"], "num must be at least 1, got 0"),
        (["check", "--rules", "missing.json"], "missing.json cannot be read as a table of tag rules"),
        (["check", "--tokenizer", "."], "holds no vocab.json"),
        (["tag", "--model", "."], "put model.onnx and selected_tags.csv of a WD14-type tagger there"),
        (["tag", "--model", ".", "--existing", "merge"], "existing is"),
        (["tag", "--model", ".", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["prepare", "../out"], "there is nothing to do; name a step"),
        (["prepare", "../out", "--crop", "768"], '--crop must be WxH in pixels, as in 768x768, got "768"'),
        (["prepare", "../out", "--crop", "4x768"], "width must be at least 8, got 4"),
        (["prepare", "../out", "--flip", "--focal"], "--focal says where to cut; it needs --crop or --buckets"),
        (["prepare", "../out", "--crop", "64x64", "--buckets", "64"], "two ways to cut; take one"),
        (["prepare", "../out", "--background", "black"], "choices: alpha, white"),
        (["prepare", "../out", "--flip", "--segmenter", "."], "there is no segmentation model in"),
        (["buckets", "--resolution", "0"], "resolution must be at least 8, got 0"),
    ],
)
def test_wrong_words_are_one_sentence(folder, capsys, words, said):
    assert main(["data", words[0], str(folder), *words[1:]]) == 2
    assert said in capsys.readouterr().err


def test_prepare_says_what_it_would_make_makes_it_and_goes_on(folder, tmp_path_factory, capsys):
    out = tmp_path_factory.mktemp("new") / "out"
    words = [
        "data",
        "prepare",
        str(folder),
        str(out),
        "--dedupe",
        "--crop",
        "64x48",
        "--focal",
        "--unsharp",
        "50",
        "--flip",
    ]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "a.png -> a.png 64 x 48, a-flip.png 64 x 48" in said and "8 pictures would be made, 0 were there" in said
    assert "left out (1):\n  e.jpg shows nearly the same as d.png" in said and not out.exists()
    assert main(words) == 0
    assert "8 pictures made, 0 were there" in capsys.readouterr().out
    with Image.open(out / "a-flip.png") as image:
        assert image.size == (64, 48)
    assert (out / "c-flip.txt").read_text("utf-8") == "1girl, open mouth, closed mouth"
    assert main(words) == 0
    assert "0 pictures made, 8 were there" in capsys.readouterr().out
    assert main([*words[:4], "--split"]) == 2
    assert "was prepared from other steps" in capsys.readouterr().err


def test_buckets_are_counted_and_what_is_cut_away_is_shown(folder, tmp_path_factory, capsys):
    Image.new("RGB", (300, 20)).save(folder / "long.png")
    out = tmp_path_factory.mktemp("previews")
    assert main(["data", "buckets", str(folder), "--resolution", "256", "--save", str(out)]) == 0
    said = capsys.readouterr().out
    assert "     6  256 x 256" in said and "long.png loses 93%" in said and "1 of 6 pictures lose 20% or more" in said
    assert [p.name for p in out.iterdir()] == ["long.png.png"]


def test_pictures_are_tagged_and_taken_back(folder, tmp_path_factory, capsys):
    pytest.importorskip("onnxruntime", reason="taggers need onnxruntime (the extra tagger)")
    writer = runpy.run_path(str(Path(__file__).parents[1] / "data" / "onnx_writer.py"))
    model = tmp_path_factory.mktemp("model") / "tagger"
    rows = [[1, "general", 9, 1], [2, "long_hair", 0, 9], [3, "saber_(fate)", 4, 9], [4, "hat", 0, 9]]
    writer["write_tagger"](model, [[0, 0, 0]] * 4, [5, 1, 5, -5], rows)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    (folder / "a.txt").unlink()
    words = ["data", "tag", str(folder), "--model", str(model)]
    assert main(words) == 0
    assert "a.txt: +saber (fate), +long hair" in capsys.readouterr().out and not (folder / "a.txt").exists()
    assert main([*words, "--apply", "--escape", "--existing", "append"]) == 0
    assert (folder / "a.txt").read_text("utf-8") == r"saber \(fate\), long hair"
    assert (folder / "d.txt").read_text("utf-8") == r"1girl, smile, saber \(fate\), long hair"
    assert main(["data", "undo", str(folder)]) == 0
    del before["a.txt"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_folder_in_quotes_is_found_and_a_missing_one_is_named(folder, capsys):
    assert main(["data", "tags", f'"{folder}"', "--least", "5"]) == 0
    assert capsys.readouterr().out.split() == ["5", "1girl"]
    assert main(["data", "undo", str(folder / "nowhere")]) == 2
    assert "FOLDER: there is no folder" in capsys.readouterr().err


def test_what_prepare_says_of_many_pictures_is_one_line(folder, tmp_path_factory, capsys):
    out = tmp_path_factory.mktemp("new") / "out"
    assert main(["data", "prepare", str(folder), str(out), "--crop", "128x128"]) == 0
    said = capsys.readouterr().out
    assert "  is enlarged to ... of its size (5): a.png, b.png, c.png, d.png, e.jpg" in said
    assert len(said.splitlines()) == 3
