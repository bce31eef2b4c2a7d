"""Preparing makes a new folder from an old one, goes on where it was stopped, and loses nobody's work."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image, ImageCms
from sd_atelier.lib.config import ConceptConfig, DataConfig
from sd_atelier.lib.data import preparing
from sd_atelier.lib.data.image_steps import Tools, steps_from
from sd_atelier.lib.data.pictures import load
from sd_atelier.lib.data.preparing import RECORD, prepare
from sd_atelier.lib.data.scan import scan

CROP = [{"step": "crop", "width": 32, "height": 32}]


def noise(width=48, height=40, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    noise(seed=1).save(folder / "a.png")
    (folder / "a.txt").write_bytes("caf\u00e9, 1girl\n".encode("cp1252"))
    noise(seed=2).save(folder / "a.jpg", quality=95)
    noise(seed=3).save(folder / "sub" / "b.png")
    (folder / "sub" / "b.caption").write_text("1girl, eyepatch", "utf-8")
    noise(seed=4).save(folder / "c.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder


def everything(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def visible(root):
    return {name: data for name, data in everything(root).items() if not name.startswith(".")}


def test_a_new_folder_is_made_and_the_originals_stay(folder, tmp_path):
    before, out = everything(folder), tmp_path / "out"
    result = prepare(folder, out, steps_from(CROP))
    assert everything(folder) == before
    assert sorted(visible(out)) == ["a.png", "a.txt", "a~2.png", "a~2.txt", "c.png", "sub/b.png", "sub/b.txt"]
    assert (out / "a.txt").read_text("utf-8") == "caf\u00e9, 1girl" == (out / "a~2.txt").read_text("utf-8")
    assert (out / "sub" / "b.txt").read_text("utf-8") == "1girl, eyepatch"
    assert result.num_made == 4 and result.num_kept == 0 and not result.stopped
    assert [(p.source, p.left_out) for p in result.pictures if p.left_out] == [("broken.png", "is truncated")]
    for path in ("a.png", "a~2.png", "c.png", "sub/b.png"):
        assert Image.open(out / path).size == (32, 32)


@pytest.mark.parametrize("step_px", [5, 8, 12])
def test_a_bucket_is_what_training_would_use_pixel_for_pixel(folder, tmp_path, step_px):
    out = tmp_path / "out"
    bucket = {"step": "bucket", "resolution": 48, "step_px": step_px, "min_px": 16, "max_px": 64}
    prepare(folder, out, steps_from([bucket]))
    data = {"resolution": 48, "bucket_step": step_px, "bucket_min_px": 16, "bucket_max_px": 64}

    def trained(root, name):
        samples = scan(DataConfig(concepts=(ConceptConfig(folder=str(root)),), **data)).samples
        sample = next(s for s in samples if s.name.endswith(name))
        return load(sample.path, sample.bucket, False, 200.0).pixels

    for original, made in (("a.jpg", "a.png"), ("c.png", "c.png"), ("sub/b.png", "sub/b.png")):
        assert (trained(folder, original) == trained(out, made)).all()


def test_orientation_profile_and_transparency_are_honoured(tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    turned = noise(48, 40, 5)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.png", exif=exif)
    clear = noise(48, 40, 6).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / "clear.png")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    noise(48, 40, 7).save(folder / "odd.png", icc_profile=profile)
    result = prepare(folder, out, steps_from([{"step": "dedupe"}]))
    upright = Image.open(out / "turned.png")
    assert upright.size == (40, 48) and not upright.getexif()
    assert (np.asarray(upright) == np.asarray(turned.transpose(Image.Transpose.ROTATE_270))).all()
    assert (np.asarray(Image.open(out / "clear.png")) == np.asarray(clear)).all()
    odd = next(p for p in result.pictures if p.source == "odd.png")
    assert "icc_profile" not in Image.open(out / "odd.png").info and "colour profile" in odd.notes[0]


def test_a_second_call_makes_only_what_is_missing_or_has_changed(folder, tmp_path):
    out, steps = tmp_path / "out", steps_from(CROP)
    prepare(folder, out, steps)
    made = visible(out)
    again = prepare(folder, out, steps)
    assert (again.num_made, again.num_kept) == (0, 4) and visible(out) == made
    (out / "c.png").unlink()
    assert prepare(folder, out, steps).num_made == 1 and visible(out) == made
    noise(seed=9).save(folder / "c.png")
    third = prepare(folder, out, steps)
    assert [p.source for p in third.pictures if p.made] == ["c.png"]
    assert visible(out)["c.png"] != made["c.png"]
    (folder / "sub" / "b.caption").write_text("2girls", "utf-8")
    prepare(folder, out, steps)
    assert (out / "sub" / "b.txt").read_text("utf-8") == "2girls"
    (folder / "sub" / "b.caption").unlink()
    prepare(folder, out, steps)
    assert not (out / "sub" / "b.txt").exists() and (out / "sub" / "b.png").exists()


def test_stopping_keeps_what_is_done_and_the_next_call_goes_on(folder, tmp_path):
    whole, out, steps = tmp_path / "whole", tmp_path / "out", steps_from([*CROP, {"step": "flip"}])
    prepare(folder, whole, steps)
    progress = []
    first = prepare(folder, out, steps, on_progress=lambda *n: progress.append(n), stopped=lambda: len(progress) == 2)
    assert first.stopped and progress == [(1, 5), (2, 5)] and first.num_made == 4
    second = prepare(folder, out, steps)
    assert (second.num_made, second.num_kept, second.stopped) == (4, 4, False)
    assert visible(out) == visible(whole)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 7])
def test_a_fault_at_any_write_is_made_good_by_the_next_call(folder, tmp_path, monkeypatch, at):
    whole, out, steps = tmp_path / "whole", tmp_path / "out", steps_from(CROP)
    prepare(folder, whole, steps)
    num = 0

    def counted(write):
        def failing(*args):
            nonlocal num
            num += 1
            if num == at:
                raise OSError(28, "no room")
            return write(*args)

        return failing

    with monkeypatch.context() as patched:
        patched.setattr(preparing, "write_bytes", counted(preparing.write_bytes))
        patched.setattr(preparing, "append_bytes", counted(preparing.append_bytes))
        with pytest.raises(OSError, match="no room"):
            prepare(folder, out, steps)
    prepare(folder, out, steps)
    assert visible(out) == visible(whole)


def test_a_line_that_was_cut_off_never_counted(folder, tmp_path):
    out, steps = tmp_path / "out", steps_from(CROP)
    prepare(folder, out, steps)
    made, record = visible(out), (out / RECORD).read_bytes()
    (out / RECORD).write_bytes(record[:-20])
    assert prepare(folder, out, steps).num_made == 1
    assert (out / RECORD).read_bytes() == record and visible(out) == made


def test_what_somebody_changed_meanwhile_stays_and_is_said(folder, tmp_path):
    out, steps = tmp_path / "out", steps_from(CROP)
    prepare(folder, out, steps)
    (out / "sub" / "b.txt").write_text("my own words", "utf-8")
    assert prepare(folder, out, steps).num_made == 0
    (folder / "sub" / "b.caption").write_text("2girls", "utf-8")
    result = prepare(folder, out, steps)
    assert (out / "sub" / "b.txt").read_text("utf-8") == "my own words"
    assert any("sub/b.txt" in note and "it stays" in note for p in result.pictures for note in p.notes)


def test_what_is_no_longer_made_goes_unless_it_was_changed(tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    steps = steps_from([{"step": "split"}])
    noise(200, 40).save(folder / "long.png")
    prepare(folder, out, steps)
    assert "long-3.png" in visible(out) and "long.png" not in visible(out)
    noise(40, 40, 8).save(out / "long-2.png")
    noise(40, 40).save(folder / "long.png")
    prepare(folder, out, steps)
    assert sorted(visible(out)) == ["long-2.png", "long.png"]


def test_a_dry_run_says_the_same_and_writes_nothing(folder, tmp_path):
    out, steps = tmp_path / "out", steps_from([{"step": "dedupe"}, *CROP, {"step": "flip"}])
    dry = prepare(folder, out, steps, dry_run=True)
    assert not out.exists()
    assert dry == prepare(folder, out, steps)
    again = everything(out)
    noise(seed=9).save(folder / "c.png")
    assert prepare(folder, out, steps, dry_run=True).num_made == 2
    assert everything(out) == again


def test_of_pictures_that_show_the_same_the_largest_is_kept(folder, tmp_path):
    noise(seed=4).resize((96, 80), Image.Resampling.LANCZOS).save(folder / "c_large.png")
    (folder / "c_copy.png").write_bytes((folder / "c_large.png").read_bytes())
    result = prepare(folder, tmp_path / "out", steps_from([{"step": "dedupe"}]))
    left = {p.source: p.left_out for p in result.pictures if p.left_out and p.source != "broken.png"}
    assert left.keys() == {"c.png", "c_large.png"} or left.keys() == {"c.png", "c_copy.png"}
    assert "shows nearly the same as" in left["c.png"]
    assert sum(name.startswith("c") for name in visible(tmp_path / "out")) == 1


def test_of_equal_files_one_that_has_a_caption_is_kept(tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        noise(seed=4).save(tmp_path / "set" / name)
    (tmp_path / "set" / "b.txt").write_text("a toy", "utf-8")
    prepare(tmp_path / "set", tmp_path / "out", steps_from([{"step": "dedupe"}]))
    assert sorted(visible(tmp_path / "out")) == ["b.png", "b.txt"]


def test_a_picture_that_no_step_leaves_anything_of_is_named(folder, tmp_path):
    tools = Tools(detect_faces=lambda pixels: [], names=("none",))
    result = prepare(folder, tmp_path / "out", steps_from([{"step": "faces"}]), tools)
    said = {p.source: p.left_out for p in result.pictures}
    assert said.pop("broken.png") == "is truncated"
    assert set(said.values()) == {"no step left anything of it"} and len(said) == 4 and result.num_made == 0


def test_pieces_never_take_the_name_of_another_picture(tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    noise(200, 40, 1).save(folder / "a.png")
    for seed, name in ((2, "a-1"), (3, "A-2")):
        noise(40, 40, seed).save(folder / f"{name}.png")
    for _ in range(2):
        result = prepare(folder, out, steps_from([{"step": "split"}]))
        names = [name for p in result.pictures for name in p.outputs]
        assert len({name.casefold() for name in names}) == len(names) == 8
        assert sorted(names) == sorted(visible(out))


@pytest.mark.parametrize("where", ["pictures", "pictures/out", "."])
def test_the_new_folder_lies_elsewhere(folder, tmp_path, where):
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="must not lie in each other"):
        prepare(folder, tmp_path / where, steps_from(CROP))
    assert everything(tmp_path) == before


def test_a_folder_with_other_files_or_of_other_steps_is_refused(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds other files \(mine.png ...\)"):
        prepare(folder, other, steps_from(CROP))
    out = tmp_path / "out"
    prepare(folder, out, steps_from(CROP))
    with pytest.raises(ValueError, match="prepared from other steps"):
        prepare(folder, out, steps_from([{"step": "split"}]))
    with pytest.raises(ValueError, match="prepared from other tools"):
        prepare(folder, out, steps_from(CROP), Tools(names=("another",)))
    with pytest.raises(ValueError, match="prepared from other source"):
        prepare(folder / "sub", out, steps_from(CROP))


@pytest.mark.parametrize(
    "line",
    [
        b'{"source": "c.png"}\n',
        b"[]\n",
        b"\xff\n",
        b'{"source": "c.png", "picture": "", "caption": "", "notes": [], "outputs": {"c.png": {}}}\n',
        b'{"source": "c.png", "picture": "", "caption": "", "notes": [], "outputs": {"../c.png": '
        b'{"size": [1, 1], "sha256": "", "caption": null}}}\n',
    ],
)
def test_a_damaged_record_is_refused_and_never_leads_outside(folder, tmp_path, line):
    out, steps = tmp_path / "out", steps_from(CROP)
    prepare(folder, out, steps)
    with open(out / RECORD, "ab") as file:
        file.write(line)
    with pytest.raises(ValueError, match=r"is damaged|is not in the folder"):
        prepare(folder, out, steps)


def many(folder, num=16):
    folder.mkdir(exist_ok=True)
    for i in range(num):
        noise(300 + 20 * i, 400, i).save(folder / f"{i:02d}.png")
        if i % 3:
            (folder / f"{i:02d}.txt").write_text(f"number {i}", "utf-8")
    return folder


LONG = [*CROP, {"step": "unsharp"}, {"step": "flip"}]


def test_threads_make_the_same_as_one_after_the_other_record_and_all(tmp_path, monkeypatch):
    folder = many(tmp_path / "pictures")
    (folder / "05.png").write_bytes(b"")
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:-400])
    by_threads = prepare(folder, tmp_path / "threads", steps_from(LONG))
    monkeypatch.setattr(preparing, "in_order", lambda work, items: (work(item) for item in items))
    assert by_threads == prepare(folder, tmp_path / "one", steps_from(LONG))
    assert everything(tmp_path / "threads") == everything(tmp_path / "one")


def test_models_are_called_in_the_callers_thread(tmp_path):
    seen = set()

    def detect(pixels):
        seen.add(threading.current_thread())
        return []

    folder = many(tmp_path / "pictures", 4)
    steps = steps_from([{"step": "crop", "width": 32, "height": 32, "focal": True}])
    prepare(folder, tmp_path / "out", steps, Tools(detect_faces=detect, names=("one",)))
    assert seen == {threading.current_thread()}


KILLED = """
import sys
from pathlib import Path
from sd_atelier.lib.data.image_steps import steps_from
from sd_atelier.lib.data.preparing import prepare
steps = steps_from([{"step": "crop", "width": 32, "height": 32}, {"step": "unsharp"}, {"step": "flip"}])
prepare(Path(sys.argv[1]), Path(sys.argv[2]), steps, on_progress=lambda *n: print(*n, flush=True))
"""


@pytest.mark.parametrize("after", [2, 9])
def test_killed_at_any_moment_it_goes_on(tmp_path, after):
    folder, out = many(tmp_path / "pictures"), tmp_path / "out"
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(out)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    for _ in range(after):
        assert run.stdout.readline()
    time.sleep(0.003 * after)  # somewhere in the next picture
    run.kill()
    run.communicate()
    going_on = prepare(folder, out, steps_from(LONG))
    assert going_on.num_kept >= 2 * after and going_on.num_made + going_on.num_kept == 32
    prepare(folder, tmp_path / "whole", steps_from(LONG))
    assert visible(out) == visible(tmp_path / "whole")
    assert not [name for name in everything(out) if name.endswith(".part")]
