"""Captions: reading them in any encoding, and what a visit makes of them."""

from __future__ import annotations

import codecs
import random
from collections import Counter

import pytest
from sd_atelier.lib.data.captions import (
    MAX_CAPTION_BYTES,
    compose,
    find_caption,
    read_text,
    split_tags,
    with_ending,
    with_trigger,
)

OFF = {"shuffle": False, "keep_tags": 0, "tag_dropout": 0.0, "caption_dropout": 0.0}
TEXT = "café, naïve “quotes” …, €5"
ENCODINGS = {
    "utf-8": (b"", "utf-8"),
    "utf-8 with mark": (codecs.BOM_UTF8, "utf-8"),
    "utf-16 little": (codecs.BOM_UTF16_LE, "utf-16-le"),
    "utf-16 big": (codecs.BOM_UTF16_BE, "utf-16-be"),
    "utf-32 little": (codecs.BOM_UTF32_LE, "utf-32-le"),
    "windows-1252": (b"", "cp1252"),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_caption_reads_the_same_in_every_encoding(tmp_path, name):
    mark, encoding = ENCODINGS[name]
    path = tmp_path / "a.txt"
    path.write_bytes(mark + TEXT.encode(encoding))
    text, note = read_text(path)
    assert text == TEXT
    assert (note is None) == name.startswith("utf-8")
    assert ("Windows-1252" in (note or "")) == (name == "windows-1252")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_recognised_by_its_zeros(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("1girl, red hair".encode(encoding))
    assert read_text(path) == ("1girl, red hair", "has no byte order mark; read as UTF-16")


@pytest.mark.parametrize("name", ENCODINGS)
def test_mutated_captions_never_crash_and_are_always_writable(tmp_path, name):
    mark, encoding = ENCODINGS[name]
    original = mark + (TEXT * 3).encode(encoding)
    rng = random.Random(name)
    path = tmp_path / "a.txt"
    for _ in range(400):
        data = bytearray(original[: rng.choice([len(original), rng.randrange(len(original))])])
        for _ in range(rng.randrange(6)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        text, _ = read_text(path)
        text.encode("utf-8")
        assert text == text.strip()
        assert not any(c in text for c in "\0\r\n\x1a")
        split_tags(text)


def test_bytes_that_windows_1252_does_not_know_are_said(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 \x81\x8d")
    text, note = read_text(path)
    assert text.startswith("café ")
    assert note is not None and "2 characters could not be read" in note


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"  a, b \n", "a, b"),
        (b"a photo\r\n\r\n  of a dog  \r\n", "a photo of a dog"),
        (b"a\rb", "a b"),
        (b"a  b,\tc", "a  b,\tc"),
        (b"a\x00b\x07c", "a b c"),
        (b"", ""),
        (b" \n \n", ""),
        (codecs.BOM_UTF8, ""),
    ],
)
def test_lines_are_trimmed_and_joined_and_the_inside_of_a_line_is_kept(tmp_path, raw, text):
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    assert read_text(path) == (text, None)


def test_a_file_beyond_a_mebibyte_is_no_caption(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * MAX_CAPTION_BYTES)
    assert len(read_text(path)[0]) == MAX_CAPTION_BYTES
    path.write_bytes(b"a" * (MAX_CAPTION_BYTES + 1))
    with pytest.raises(ValueError, match=r"a\.txt is larger than 1 MiB"):
        read_text(path)


def test_txt_comes_before_caption_before_the_name_before_nothing(tmp_path):
    image = tmp_path / "00012-red_car.v2.png"
    assert find_caption(image, False) == ("", "", None)
    assert find_caption(image, True) == ("red car.v2", "name", None)
    (tmp_path / "00012-red_car.v2.caption").write_text("from caption")
    assert find_caption(image, True) == ("from caption", "00012-red_car.v2.caption", None)
    (tmp_path / "00012-red_car.v2.txt").write_text("from txt")
    assert find_caption(image, True) == ("from txt", "00012-red_car.v2.txt", None)


def test_an_empty_caption_file_means_no_caption_even_where_names_count(tmp_path):
    (tmp_path / "dog.txt").write_text("")
    assert find_caption(tmp_path / "dog.png", True) == ("", "dog.txt", None)


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("00012-a_b.png", "a b"),
        ("0001.jpg", ""),
        ("2girls.png", "2girls"),
        ("01. red car.png", "red car"),
        ("_x__y_.png", "x y"),
        ("\udcffä.png", "?ä"),
    ],
)
def test_captions_from_names(tmp_path, name, caption):
    assert find_caption(tmp_path / name, True)[0] == caption


def test_an_unreadable_caption_file_is_an_error_not_an_empty_caption(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError):
        find_caption(tmp_path / "a.png", True)


@pytest.mark.parametrize(
    ("caption", "trigger", "result"),
    [
        ("plush, grass", "w0lf", "w0lf, plush, grass"),
        ("a photo of W0LF on grass", "w0lf", "a photo of W0LF on grass"),
        ("w0lfish, grass", "w0lf", "w0lf, w0lfish, grass"),
        ("w0lf.x plush", "w0lf.x", "w0lf.x plush"),
        ("w0lfax plush", "w0lf.x", "w0lf.x, w0lfax plush"),
        ("", "w0lf", "w0lf"),
        ("  ", "w0lf", "w0lf"),
        (" odd  caption", "", " odd  caption"),
        ("a", " w0lf, ", "w0lf, a"),
        ("a", "(w:1.2)", "(w:1.2), a"),
        ("a", "two words", "two words, a"),
    ],
)
def test_the_trigger_is_put_in_front_once(caption, trigger, result):
    assert with_trigger(caption, trigger) == result
    assert with_trigger(result, trigger) == result


@pytest.mark.parametrize(
    ("caption", "ending", "result"),
    [
        ("a cat", "film grain", "a cat, film grain"),
        ("a cat, Film Grain", "film grain", "a cat, Film Grain"),
        ("a cat,", " film grain, ", "a cat, film grain"),
        ("a bobcat", "cat", "a bobcat, cat"),
        ("", "film grain", "film grain"),
        ("a cat", "", "a cat"),
    ],
)
def test_an_ending_is_put_behind_once(caption, ending, result):
    assert with_ending(caption, ending) == result
    assert with_ending(result, ending) == result


@pytest.mark.parametrize(
    ("caption", "tags"),
    [
        ("a, b,c", ["a", "b", "c"]),
        ("A dog. It runs.", ["A dog", "It runs"]),
        ("v1.5, 1.2, w0lf.x, .5 mm", ["v1.5", "1.2", "w0lf.x", ".5 mm"]),
        ("one.., two", ["one", "two"]),
        ("wait... what", ["wait", "what"]),
        ("..., smile", ["...", "smile"]),
        ("(a.) b., c.", ["(a.) b", "c"]),
        (",, ,", []),
        ("", []),
        ("猫, 犬", ["猫", "犬"]),
    ],
)
def test_tags_split_at_commas_and_at_dots_that_end_a_word(caption, tags):
    assert split_tags(caption) == tags


def no_draws():
    raise AssertionError("nothing may be drawn when nothing is enabled")


@pytest.mark.parametrize("caption", ["a,b ,  c.", "", "  x  ", "a photo. of", ",,"])
def test_with_nothing_enabled_a_caption_comes_back_byte_for_byte(caption):
    assert compose(caption, **OFF, uniform=no_draws) == caption
    assert compose(caption, **{**OFF, "keep_tags": 5}, uniform=no_draws) == caption


def test_shuffle_permutes_all_but_the_first_and_reaches_every_order_evenly():
    rng = random.Random(0)
    seen = Counter()
    for _ in range(6000):
        tags = compose("t, a, b, c", **{**OFF, "shuffle": True, "keep_tags": 1}, uniform=rng.random).split(", ")
        assert tags[0] == "t" and sorted(tags) == ["a", "b", "c", "t"]
        seen[tuple(tags)] += 1
    assert len(seen) == 6
    assert all(abs(n - 1000) < 150 for n in seen.values())


def test_dropout_takes_its_share_and_never_a_kept_tag():
    rng = random.Random(0)
    left = Counter()
    for _ in range(4000):
        settings = {**OFF, "tag_dropout": 0.3, "keep_tags": 1}
        left.update(compose("t, a, b", **settings, uniform=rng.random).split(", "))
    assert left["t"] == 4000
    assert all(abs(left[tag] / 4000 - 0.7) < 0.03 for tag in "ab")
    assert compose("a, b", **{**OFF, "tag_dropout": 1.0}, uniform=rng.random) == ""
    assert compose("a, b", **{**OFF, "caption_dropout": 1.0, "keep_tags": 2}, uniform=rng.random) == ""


def test_caption_dropout_takes_its_share_and_leaves_the_rest_untouched():
    rng = random.Random(0)
    results = Counter(compose("a,b .", **{**OFF, "caption_dropout": 0.25}, uniform=rng.random) for _ in range(4000))
    assert set(results) == {"", "a,b ."}
    assert abs(results[""] / 4000 - 0.25) < 0.03


def test_draws_are_taken_in_the_documented_order():
    draws = [0.9, 0.1, 0.5, 0.5, 0.6, 0.0, 0.9]
    settings = {"shuffle": True, "keep_tags": 1, "tag_dropout": 0.2, "caption_dropout": 0.5}
    # caption stays (0.9); a is dropped (0.1), b, c, d stay; d <-> b (0.0 of 3), then the middle stays (0.9 of 2)
    assert compose("t, a, b, c, d", **settings, uniform=lambda: draws.pop(0)) == "t, d, c, b"
    assert not draws
