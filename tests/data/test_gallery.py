"""The gallery of a folder says what is there, changes what was shown, and takes it back byte for byte."""

from __future__ import annotations

import io
import os
import random
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from sd_atelier.lib import files
from sd_atelier.lib.data import gallery as module
from sd_atelier.lib.data.caption_files import journals
from sd_atelier.lib.data.gallery import EVERYTHING, Gallery, GalleryFilter, gallery_filter, opened
from sd_atelier.lib.data.tag_edits import TagFilter
from sd_atelier.lib.data.thumbnails import Thumbnails

CAPTIONS = {
    "a.png": "1girl, red hat, long hair",
    "b.jpg": "1boy, blue_hat",
    "c.png": "",
    "sub/d.png": "1girl, Long_Hair, <b>bold</b>, hat",
    "sub/e é.png": None,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for i, (name, caption) in enumerate(CAPTIONS.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 30), (255, 0, 0)).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, "utf-8")
    return root


def everything(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_every_picture_is_an_item_with_its_caption_tags_and_size(folder):
    page = Gallery(folder).page()
    assert [item.name for item in page.items] == sorted(CAPTIONS) and page.num_all == page.num_found == 5
    items = {item.name: item for item in page.items}
    assert {name: item.caption for name, item in items.items()} == {n: c or "" for n, c in CAPTIONS.items()}
    assert items["sub/d.png"].tags == ("1girl", "Long_Hair", "<b>bold</b>", "hat")
    assert items["sub/d.png"].size == (43, 30) and items["sub/d.png"].caption_file == "d.txt"
    assert items["sub/e é.png"].caption_file == "" and items["c.png"].caption_file == "c.txt"
    assert all(item.is_editable for item in items.values())


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, "a.png b.jpg c.png sub/d.png sub/e é.png"),
        ({"all": "1girl, long hair"}, "a.png sub/d.png"),
        ({"all": ["1girl", "hat"]}, "sub/d.png"),
        ({"any": "blue hat, hat"}, "b.jpg sub/d.png"),
        ({"none": "1girl"}, "b.jpg c.png sub/e é.png"),
        ({"least": 3}, "a.png sub/d.png"),
        ({"most": "0"}, "c.png sub/e é.png"),
        ({"least": "2", "most": 2}, "b.jpg"),
        ({"text": "HAT"}, "a.png b.jpg sub/d.png"),
        ({"text": "sub/"}, "sub/d.png sub/e é.png"),
        ({"any": "1girl", "none": "red hat", "text": "bold"}, "sub/d.png"),
        ({"text": "nothing of it"}, ""),
    ],
)
def test_a_filter_finds_what_it_says(folder, values, names):
    found = Gallery(folder).names(gallery_filter(values))
    assert found == [name for name in sorted(CAPTIONS) if name in found] and " ".join(found) == names


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"al": "x"}, 'unknown filter "al"'),
        ({"all": 3}, "the filter all must be tags"),
        ({"any": [1]}, "the filter any must be tags"),
        ({"least": "-1"}, "least must be a whole number"),
        ({"most": True}, "most must be a whole number"),
        ({"most": 1.5}, "most must be a whole number"),
        ({"text": ["x"]}, "text must be words"),
        ({"with_problems": "yes"}, "with_problems true or false"),
    ],
)
def test_a_filter_that_is_none_is_refused_by_its_field(values, said):
    with pytest.raises(ValueError, match=said):
        gallery_filter(values)


def test_pages_put_together_are_the_whole_in_order(folder):
    gallery = Gallery(folder)
    names = [item.name for offset in range(0, 6, 2) for item in gallery.page(EVERYTHING, offset, 2).items]
    assert names == gallery.names() and gallery.page(EVERYTHING, 99, 2).items == ()
    for offset, limit in ((-1, 2), (0, 0), (0, 501)):
        with pytest.raises(ValueError, match="a page"):
            gallery.page(EVERYTHING, offset, limit)


def test_tags_are_counted_among_what_the_filter_finds(folder):
    gallery = Gallery(folder)
    assert [(c.tag, c.num_captions) for c in gallery.tag_counts()][:2] == [("1girl", 2), ("long hair", 2)]
    assert {c.tag for c in gallery.tag_counts(gallery_filter({"any": "1boy"}))} == {"1boy", "blue_hat"}


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "sub", "", "a.txt", "sub/../a.png", "a.png\0", "\ud800"])
def test_a_name_that_is_no_picture_of_the_folder_is_refused(folder, name):
    Image.new("RGB", (4, 4)).save(folder.parent / "x.png")
    gallery, before = Gallery(folder), everything(folder.parent)
    for ask in (
        lambda: gallery.item(name),
        lambda: gallery.thumbnail(name),
        lambda: gallery.set_caption(name, "x", ""),
        lambda: gallery.plan([("prepend", "x")], [name]),
        lambda: gallery.plan_words({name: ["x"]}, "replace", "x"),
    ):
        with pytest.raises(ValueError, match="there is no picture"):
            ask()
    assert everything(folder.parent) == before


def test_what_changes_on_disk_is_seen_and_nothing_else_is_read(folder):
    gallery = Gallery(folder)
    assert gallery.refresh() == 0
    (folder / "a.txt").write_text("new", "utf-8")
    (folder / "sub/e é.caption").write_text("comes", "utf-8")
    assert gallery.refresh() == 2
    assert gallery.item("a.png").caption == "new" and gallery.item("sub/e é.png").caption_file == "e é.caption"
    (folder / "b.jpg").unlink()
    assert gallery.refresh() == 0 and len(gallery) == 4 and gallery.page().num_found == 4
    Image.new("RGB", (9, 9)).save(folder / "z.png")
    assert gallery.item("z.png").size == (9, 9), "a name that is new is looked for"


def test_a_page_looks_again_by_itself(folder, monkeypatch):
    gallery = Gallery(folder)
    assert gallery.page(gallery_filter({"any": "new"})).num_found == 0
    (folder / "a.txt").write_text("new", "utf-8")
    monkeypatch.setattr(module, "REFRESH_SECONDS", -1.0)
    assert gallery.page(gallery_filter({"any": "new"})).num_found == 1


@pytest.mark.parametrize("seed", range(6))
def test_undoing_every_edit_of_a_random_sequence_restores_every_byte(folder, seed):
    gallery, rng = Gallery(folder), random.Random(seed)
    before, num = everything(folder), 0
    for _ in range(6):
        kind = rng.randrange(3)
        if kind == 0:
            edits = [rng.choice([("prepend", "zwx"), ("remove", "*hat"), ("spaces", ""), ("append", "end")])]
            num += bool(gallery.apply(gallery.plan(edits, rng.choice([EVERYTHING, gallery_filter({"least": 1})]))))
        elif kind == 1:
            name = rng.choice(gallery.names())
            caption = f"caption {rng.random()}"
            item = gallery.set_caption(name, caption, gallery.item(name).caption)
            assert item.caption == gallery.item(name).caption == caption
            num += 1
        else:
            words = {name: [f"word {rng.random()}"] for name in rng.sample(gallery.names(), 2)}
            num += bool(gallery.apply(gallery.plan_words(words, rng.choice(["append", "replace"]), "words")))
    assert num > 2 and len(journals(folder)) == num and everything(folder) != before
    for _ in range(num):
        assert gallery.newest_edit()
        gallery.undo()
    assert everything(folder) == before and gallery.newest_edit() == ""
    assert {item.name: item.caption for item in gallery.page().items} == {n: c or "" for n, c in CAPTIONS.items()}


def test_a_plan_shows_what_would_change_and_writes_nothing(folder):
    gallery, before = Gallery(folder), everything(folder)
    plan = gallery.plan([("replace", "1girl -> girl"), ("append", "end")], gallery_filter({"all": "1girl"}))
    assert plan.diff() == "a.txt: -1girl, +girl, +end\nd.txt: -1girl, +girl, +end"
    assert plan.diff(1) == "a.txt: -1girl, +girl, +end\nand 1 more"
    assert (plan.title, plan.num_meant, plan.num_left_out) == ("replace=1girl -> girl append=end", 2, 0)
    assert everything(folder) == before
    with pytest.raises(ValueError, match="at least one edit"):
        gallery.plan([], EVERYTHING)
    with pytest.raises(ValueError, match="unknown edit"):
        gallery.plan([("delete", "x")], EVERYTHING)


def test_only_what_was_shown_is_applied(folder):
    gallery = Gallery(folder)
    shown = gallery.plan([("prepend", "zwx")], EVERYTHING).digest
    (folder / "c.txt").write_text("changed", "utf-8")
    before = everything(folder)
    with pytest.raises(ValueError, match="changed since the edit was shown"):
        gallery.apply(gallery.plan([("prepend", "zwx")], EVERYTHING), shown)
    assert everything(folder) == before
    again = gallery.plan([("prepend", "zwx")], EVERYTHING)
    assert gallery.apply(again, again.digest) == 5 and gallery.item("c.png").caption == "zwx, changed"


def test_a_caption_that_changed_meanwhile_is_not_overwritten(folder):
    gallery = Gallery(folder)
    (folder / "a.txt").write_text("by somebody else", "utf-8")
    with pytest.raises(ValueError, match="changed meanwhile"):
        gallery.set_caption("a.png", "mine", CAPTIONS["a.png"])
    assert (folder / "a.txt").read_text("utf-8") == "by somebody else" == gallery.item("a.png").caption
    gallery.set_caption("a.png", "mine", "by somebody else")
    (folder / "a.txt").write_text("again", "utf-8")
    with pytest.raises(ValueError, match="lose that change"):
        gallery.undo()
    assert (folder / "a.txt").read_text("utf-8") == "again"


def test_a_caption_is_one_line_whatever_is_typed(folder):
    item = Gallery(folder).set_caption("a.png", " one,\r\n  two\x00three\n", CAPTIONS["a.png"])
    assert item.caption == "one, two three" and (folder / "a.txt").read_bytes() == b"one, two three"


def test_an_edit_that_is_cut_shows_what_is_on_disk(folder, monkeypatch):
    gallery, before, num = Gallery(folder), everything(folder), 0
    write, one_at_a_time = files.write_bytes, threading.Lock()

    def failing(path, data, **more):
        nonlocal num
        with one_at_a_time:
            num += 1
        if num == 3:
            raise OSError(28, "No space left on device")
        return write(path, data, **more)

    monkeypatch.setattr(module.caption_files, "write_bytes", failing)
    plan = gallery.plan([("prepend", "zwx")], EVERYTHING)
    with pytest.raises(OSError, match="No space"):
        gallery.apply(plan)
    monkeypatch.undo()
    for item in gallery.page().items:
        path = item.path.with_suffix(".txt")
        assert item.caption == (path.read_text("utf-8") if path.exists() else "")
    gallery.undo()
    assert everything(folder) == before


def test_what_cannot_be_read_is_said_and_left_out_of_edits(folder):
    (folder / "a.txt").write_bytes(b"x" * ((1 << 20) + 1))
    (folder / "b.jpg").write_bytes(b"no picture")
    (folder / "c.txt").write_bytes("café".encode("cp1252"))
    gallery = Gallery(folder)
    items = {item.name: item for item in gallery.page().items}
    assert not items["a.png"].is_editable and "larger than 1 MiB" in items["a.png"].problems[0].text
    assert items["b.jpg"].size is None and items["b.jpg"].is_editable
    assert items["c.png"].caption == "café" and "Windows-1252" in items["c.png"].problems[0].text
    assert gallery.names(gallery_filter({"with_problems": True})) == ["a.png", "b.jpg", "c.png"]
    plan = gallery.plan([("prepend", "zwx")], EVERYTHING)
    assert (plan.num_meant, plan.num_left_out, len(plan.changes)) == (5, 1, 4)
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        gallery.set_caption("a.png", "x", "")
    with pytest.raises(ValueError, match=r"b\.jpg"):
        gallery.thumbnail("b.jpg")


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="needs links")
def test_captions_elsewhere_are_never_written_through_a_link(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (4, 4)).save(elsewhere / "x.png")
    (elsewhere / "x.txt").write_text("theirs", "utf-8")
    (folder / "link").symlink_to(elsewhere, target_is_directory=True)
    gallery = Gallery(folder)
    assert gallery.item("link/x.png").caption == "theirs" and not gallery.item("link/x.png").is_editable
    plan = gallery.plan([("prepend", "zwx")], EVERYTHING)
    assert plan.num_left_out == 1 and gallery.apply(plan) == 5
    assert (elsewhere / "x.txt").read_text("utf-8") == "theirs" and len(os.listdir(elsewhere)) == 2
    with pytest.raises(ValueError, match="elsewhere through a link"):
        gallery.set_caption("link/x.png", "mine", "theirs")
    gallery.undo()


def test_a_thumbnail_is_upright_small_and_made_once_for_a_file(folder, monkeypatch):
    left_red = Image.new("RGB", (400, 100), "blue")
    left_red.paste("red", (0, 0, 200, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    left_red.save(folder / "t.jpg", exif=exif, quality=95)
    gallery = Gallery(folder)
    with Image.open(io.BytesIO(gallery.thumbnail("t.jpg", 64))) as small:
        assert small.format == "JPEG" and small.size == (16, 64)
        assert small.getpixel((8, 8))[0] > 200 and small.getpixel((8, 56))[2] > 200
    first = gallery.thumbnail("t.jpg", 64)
    assert gallery.thumbnail("t.jpg", 64) is first
    left_red.save(folder / "t.jpg")
    gallery.refresh()
    assert gallery.thumbnail("t.jpg", 64) != first
    with pytest.raises(ValueError, match="32 to 1024"):
        gallery.thumbnail("t.jpg", 20_000)


def test_transparency_is_shown_on_white(folder):
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 32, 64))
    picture.save(folder / "t.png")
    with Image.open(io.BytesIO(Gallery(folder).thumbnail("t.png", 64))) as small:
        assert (
            min(small.getpixel((56, 32))) > 245 and small.getpixel((8, 32))[2] > 200 > 60 > small.getpixel((8, 32))[0]
        )


def test_thumbnails_keep_to_their_memory(folder):
    kept = Thumbnails(max_bytes=2000)
    for side in range(32, 132, 4):
        assert len(kept.of(folder / "a.png", "1", side)) < 2000
    assert sum(map(len, kept._kept.values())) == kept._num_bytes <= 2000 and len(kept._kept) > 1


def test_a_folder_is_opened_once(folder, monkeypatch):
    assert opened(folder) is opened(str(folder) + "/") is opened(f'"{folder}"')
    with pytest.raises(ValueError, match="there is no folder"):
        opened(folder / "nothing")


def test_two_thousand_captions_are_filtered_in_a_moment(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    data = (tmp_path / "0.png").read_bytes()
    for i in range(2000):
        (tmp_path / f"{i:04d}.png").write_bytes(data)
        (tmp_path / f"{i:04d}.txt").write_bytes(b"tag %d, " % (i % 50) + b", ".join(b"word %d" % j for j in range(20)))
    gallery = Gallery(tmp_path)
    start = time.perf_counter()
    page = gallery.page(GalleryFilter(TagFilter(any=("tag 1", "tag 2"))), 0, 100)
    assert page.num_found == 80 and time.perf_counter() - start < 2.0
