"""The scan of a data set: what is found, how it is named, and that everything wrong is said."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from sd_atelier.lib.config import ConceptConfig, DataConfig
from sd_atelier.lib.data import scan as scan_module
from sd_atelier.lib.data.sample import Sample
from sd_atelier.lib.data.scan import counts, scan, verify

PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "photos"


def picture(path: Path, size: tuple[int, int] = (80, 60), caption: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def data(*folders: Path | str | ConceptConfig, **settings) -> DataConfig:
    concepts = tuple(f if isinstance(f, ConceptConfig) else ConceptConfig(folder=str(f)) for f in folders)
    return DataConfig(concepts=concepts, **settings)


def found(config: DataConfig) -> dict[str, Sample]:
    return {sample.name: sample for sample in scan(config).samples}


def said(config: DataConfig, severity: str) -> list[str]:
    return [str(p) for p in scan(config).problems if p.severity == severity]


def test_pictures_of_all_kinds_are_found_below_the_folder_and_nothing_else(tmp_path):
    root = tmp_path / "cats"
    for name in (
        "b.PNG",
        "a.jpg",
        "c.jpeg",
        "d.webp",
        "e.bmp",
        "f.gif",
        "g.tif",
        "sub/deep/h.TIFF",
        "sub/b.png",
        "z.png",
    ):
        picture(root / name)
    for name in (".hidden.png", ".git/x.png", "sub/.thumbs/y.png"):
        picture(root / name)
    (root / "notes.md").write_text("x")
    names = [s.name for s in scan(data(root)).samples]
    assert names == sorted(
        f"cats/{n}"
        for n in (
            "a.jpg",
            "b.PNG",
            "c.jpeg",
            "d.webp",
            "e.bmp",
            "f.gif",
            "g.tif",
            "sub/b.png",
            "sub/deep/h.TIFF",
            "z.png",
        )
    )


def test_the_order_depends_on_names_alone(tmp_path, monkeypatch):
    names = [f"{folder}{i}.png" for folder in ("", "b/", "a/", "a/z/") for i in (10, 9, 1)]
    picture(tmp_path / "source.png")
    for order, root in enumerate((tmp_path / "1" / "set", tmp_path / "2" / "set")):
        for name in random.Random(order).sample(names, len(names)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(tmp_path / "source.png", root / name)
    first, second = (scan(data(tmp_path / n / "set")).samples for n in "12")
    assert [s.name for s in first] == [s.name for s in second]
    real = os.scandir

    class Shuffled:
        def __init__(self, path):
            self.entries = list(real(path))
            random.Random(len(self.entries)).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert scan(data(tmp_path / "1" / "set")).samples == first


def test_samples_carry_what_their_concept_says(tmp_path):
    picture(tmp_path / "wolf" / "a.png", (100, 50), "grass, outdoors")
    picture(tmp_path / "dogs" / "b.png", (50, 100))
    samples = found(
        data(
            ConceptConfig(folder=str(tmp_path / "wolf"), repeats=3, weight=2.0, trigger="w0lf"),
            ConceptConfig(folder=str(tmp_path / "dogs"), weight=0.5, regularization=True, trigger="dog"),
            prior_weight=0.25,
        )
    )
    wolf, dog = samples["wolf/a.png"], samples["dogs/b.png"]
    assert (wolf.caption, wolf.repeats, wolf.weight, wolf.concept, wolf.size) == (
        "w0lf, grass, outdoors",
        3,
        2,
        0,
        (100, 50),
    )
    assert (dog.caption, dog.repeats, dog.weight, dog.concept, dog.size) == ("dog", 1, 0.125, 1, (50, 100))
    assert wolf.path == tmp_path / "wolf" / "a.png"
    assert wolf.bucket == dog.bucket[::-1] and wolf.bucket[0] > wolf.bucket[1]


def test_sizes_are_those_after_the_exif_orientation(tmp_path):
    block = Image.Exif()
    block[0x0112] = 6
    picture(tmp_path / "a" / "a.jpg", (100, 50), exif=block)
    (sample,) = scan(data(tmp_path / "a")).samples
    assert sample.size == (50, 100) and sample.bucket[0] < sample.bucket[1]


def test_the_bucket_step_is_rounded_up_to_the_autoencoders_step(tmp_path):
    for i in range(12):
        picture(tmp_path / "a" / f"{i}.png", (60 + 20 * i, 100))
    for step, latent in ((64, 8), (40, 16), (1, 8), (20, 8)):
        config = data(tmp_path / "a", bucket_step=step, resolution=256, bucket_min_px=64)
        sides = {side for s in scan(config, latent).samples for side in s.bucket}
        used = -(-step // latent) * latent
        assert all(side % used == 0 for side in sides), (step, latent)
    config = dataclasses.replace(config, bucket_upscale=False)
    assert all(s.bucket[0] <= max(24, s.size[0]) for s in scan(config, 8).samples)


def test_settings_that_fit_no_bucket_are_named(tmp_path):
    picture(tmp_path / "a" / "a.png")
    with pytest.raises(ValueError, match=r"data\.resolution"):
        scan(data(tmp_path / "a", resolution=64))


def test_folders_of_one_name_are_told_apart(tmp_path):
    for parent in "xyz":
        picture(tmp_path / parent / "cats" / "a.png")
    picture(tmp_path / "cats~2" / "a.png")
    folders = [tmp_path / "x" / "cats", tmp_path / "cats~2", tmp_path / "y" / "cats", tmp_path / "z" / "cats"]
    names = [s.name for s in scan(data(*folders)).samples]
    assert names == ["cats/a.png", "cats~2/a.png", "cats~3/a.png", "cats~4/a.png"]


def test_names_are_composed_unicode_and_unique_while_paths_are_as_on_disk(tmp_path):
    composed, split = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    for name in {composed, split, "日本 語", "it's 100%, 'q'"}:
        picture(tmp_path / "a" / f"{name}.png", caption=f"caption of {name}")
    samples = found(data(tmp_path / "a"))
    assert all(unicodedata.is_normalized("NFC", name) for name in samples)
    assert all(s.path.exists() for s in samples.values())
    on_disk = sorted(os.listdir(tmp_path / "a"))
    if len(on_disk) == 8:  # a file system that keeps both spellings apart
        assert {f"a/{composed}.png", f"a/{composed}.png~2"} < samples.keys()
        assert {s.caption for n, s in samples.items() if composed in n} == {
            f"caption of {composed}",
            f"caption of {split}",
        }


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="this system has no such file names")
def test_names_that_are_no_unicode_work_and_can_be_written(tmp_path):
    source = picture(tmp_path / "source.png")
    (tmp_path / "a").mkdir()
    broken = tmp_path / "a" / os.fsdecode(b"caf\xe9.png")
    os.link(source, broken)
    os.mkfifo(os.fsencode(tmp_path / "a") + b"/\xff.png")
    result = scan(data(tmp_path / "a", caption_from_name=True))
    (sample,) = result.samples
    assert sample.path == broken and sample.path.exists()
    for text in (sample.name, sample.caption, *map(str, result.problems)):
        text.encode("utf-8")
    assert sample.name == r"a/caf\udce9.png"


@pytest.mark.parametrize("form", ['"{}"', "'{}'", ' "{}" ', "  {}  ", "{}/"])
def test_quotes_and_spaces_around_a_folder_do_not_count(tmp_path, form):
    picture(tmp_path / "my cats" / "a.png")
    assert list(found(data(form.format(tmp_path / "my cats")))) == ["my cats/a.png"]


def test_a_folder_that_cannot_be_used_is_named_with_its_setting(tmp_path):
    good = tmp_path / "good"
    picture(good / "a.png")
    (tmp_path / "file.txt").write_text("x")
    for bad, text in (
        ("", "is empty"),
        ('""', "is empty"),
        (str(tmp_path / "missing"), "there is no folder"),
        (str(tmp_path / "file.txt"), "is a file"),
        ("a\0b", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
    ):
        with pytest.raises(ValueError) as error:
            scan(data(good, bad))
        assert "data.concepts[1].folder" in str(error.value) and text in str(error.value)
        assert bad.strip('"')[:20].split("\0")[0] in str(error.value)
    with pytest.raises(ValueError, match=r"data\.concepts is empty"):
        scan(data())


def test_no_picture_at_all_is_an_error_that_says_why(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"no picture that can be used.*\.png.*in .*a$"):
        scan(data(tmp_path / "a"))
    (tmp_path / "a" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 errors, the first: .*x\.png is empty"):
        scan(data(tmp_path / "a"))


def test_one_concept_without_pictures_is_a_warning(tmp_path):
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "full" / "a.png")
    config = data(tmp_path / "empty", tmp_path / "full")
    assert [s.concept for s in scan(config).samples] == [1]
    (warning,) = said(config, "warning")
    assert "data.concepts[0].folder" in warning and str(tmp_path / "empty") in warning


def test_bad_pictures_are_named_and_left_out_and_the_rest_is_used(tmp_path):
    root = tmp_path / "a"
    picture(root / "good.png")
    (root / "empty.png").write_bytes(b"")
    (root / "page.jpg").write_bytes(b"<html>")
    picture(root / "large.png", (1100, 1000))
    (root / "gone.png").symlink_to(root / "nowhere.png")
    (root / "self.png").symlink_to(root / "self.png")
    config = data(root, max_megapixels=1.0)
    assert list(found(config)) == ["a/good.png"]
    errors = said(config, "error")
    assert len(errors) == 5
    for name in ("empty.png", "page.jpg", "large.png", "gone.png", "self.png"):
        assert sum(f"{root / name} " in text for text in errors) == 1, name
    assert "data.max_megapixels" in next(e for e in errors if "large" in e)


def test_animations_are_said(tmp_path):
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    (tmp_path / "a").mkdir()
    frames[0].save(tmp_path / "a" / "a.gif", save_all=True, append_images=frames[1:])
    assert any("a.gif is animated (2); only the first is used" in text for text in said(data(tmp_path / "a"), "note"))


def test_captions_that_are_not_utf_8_are_named_and_unreadable_ones_leave_the_picture_out(tmp_path):
    root = tmp_path / "a"
    for name in ("plain", "latin", "wide", "large"):
        picture(root / f"{name}.png")
    (root / "plain.txt").write_text("ok", encoding="utf-8-sig")
    (root / "latin.txt").write_bytes(b"caf\xe9")
    (root / "wide.txt").write_text("wide", encoding="utf-16")
    (root / "large.txt").write_bytes(b"x" * (1 << 21))
    captions = {name: s.caption for name, s in found(data(root)).items()}
    assert captions == {"a/plain.png": "ok", "a/latin.png": "café", "a/wide.png": "wide"}
    warnings, errors = said(data(root), "warning"), said(data(root), "error")
    assert any(f"{root / 'latin.txt'} is not UTF-8" in text for text in warnings)
    assert any(f"{root / 'wide.txt'} read as UTF-16" in text for text in warnings)
    assert not any("plain" in text for text in warnings)
    assert len(errors) == 1 and str(root / "large.png") in errors[0] and "1 MiB" in errors[0]


def test_pictures_of_one_stem_are_both_used_with_one_caption_and_it_is_said(tmp_path):
    picture(tmp_path / "a" / "x.png", caption="shared")
    picture(tmp_path / "a" / "x.jpg")
    picture(tmp_path / "a" / "y.jpg", caption="own")
    assert {n: s.caption for n, s in found(data(tmp_path / "a")).items()} == {
        "a/x.jpg": "shared",
        "a/x.png": "shared",
        "a/y.jpg": "own",
    }
    assert any("x.jpg and x.png" in text for text in said(data(tmp_path / "a"), "note"))


def test_what_lies_about_is_said(tmp_path):
    root = tmp_path / "a"
    picture(root / "x.png", caption="one")
    (root / "x.caption").write_text("two")
    picture(root / "bare.png")
    for i in range(8):
        (root / f"old{i}.txt").write_text("x")
    (root / "phone.HEIC").write_bytes(b"x")
    notes, warnings = said(data(root), "note"), said(data(root), "warning")
    assert any("without a picture: old0.txt, " in text and "and 3 more" in text for text in notes)
    assert any("1 of 2 pictures without a caption" in text for text in notes)
    assert any("x.caption and x.txt" in text and ".txt counts" in text for text in warnings)
    assert any("phone.HEIC" in text for text in warnings)
    assert found(data(root))["a/x.png"].caption == "one"


def test_names_serve_as_captions_where_asked(tmp_path):
    picture(tmp_path / "a" / "0001-red_car.png")
    config = data(ConceptConfig(folder=str(tmp_path / "a"), trigger="c4r"), caption_from_name=True)
    assert found(config)["a/0001-red_car.png"].caption == "c4r, red car"


def test_links_are_followed_once_and_never_for_ever(tmp_path):
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    picture(root / "a.png")
    picture(root / "sub" / "b.png")
    picture(elsewhere / "c.png")
    (root / "sub" / "up").symlink_to(root, target_is_directory=True)
    (root / "linked").symlink_to(elsewhere, target_is_directory=True)
    (root / "linked again").symlink_to(elsewhere, target_is_directory=True)
    (root / "d.png").symlink_to(elsewhere / "c.png")
    names = list(found(data(root)))
    assert names == ["set/a.png", "set/d.png", "set/linked/c.png", "set/sub/b.png"]
    assert sum("is a link to a folder that is searched anyway" in text for text in said(data(root), "note")) == 2
    assert list(found(data(root / "linked again"))) == ["linked again/c.png"]


def test_one_folder_in_two_concepts_counts_for_both_and_is_said(tmp_path):
    picture(tmp_path / "a" / "sub" / "x.png")
    config = data(tmp_path / "a", tmp_path / "a" / "sub")
    assert list(found(config)) == ["a/sub/x.png", "sub/x.png"]
    (warning,) = said(config, "warning")
    assert "data.concepts[0] and data.concepts[1]" in warning


def test_an_unreadable_folder_is_named_and_the_rest_is_used(tmp_path, monkeypatch):
    picture(tmp_path / "a" / "x.png")
    picture(tmp_path / "a" / "closed" / "y.png")
    real = os.scandir

    def refusing(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    # a super-user may read everything, so the refusal is made here
    monkeypatch.setattr(os, "scandir", refusing)
    assert list(found(data(tmp_path / "a"))) == ["a/x.png"]
    assert said(data(tmp_path / "a"), "error") == [f"{tmp_path / 'a' / 'closed'} cannot be searched: Permission denied"]


def test_a_folder_called_like_a_picture_is_a_folder(tmp_path):
    picture(tmp_path / "a" / "set.png" / "x.png")
    assert list(found(data(tmp_path / "a"))) == ["a/set.png/x.png"]


def test_a_relative_folder_becomes_absolute(tmp_path, monkeypatch):
    picture(tmp_path / "a" / "x.png")
    monkeypatch.chdir(tmp_path / "a")
    (sample,) = scan(data(".")).samples
    assert sample.name == "a/x.png" and sample.path.is_absolute()


def test_verify_names_each_bad_picture_once_in_order_and_reports_progress(tmp_path):
    root = tmp_path / "a"
    for i in range(30):
        path = picture(root / f"{i:02}.jpg", (200, 200), quality=95)
        if i % 7 == 3:
            path.write_bytes(path.read_bytes()[:-200])
    samples = scan(data(root, root)).samples
    assert len(samples) == 60
    progress = []
    problems = verify(samples, 200.0, lambda done, total: progress.append((done, total)))
    assert [p.path.name for p in problems] == ["03.jpg", "10.jpg", "17.jpg", "24.jpg"]
    assert all(p.severity == "error" and "truncated" in p.text for p in problems)
    assert progress == [(i, 30) for i in range(1, 31)]
    assert verify([], 200.0) == ()


def test_verify_stops_soon_when_progress_raises(tmp_path, monkeypatch):
    samples = [Sample(name=str(i), path=Path(f"{i}.png"), caption="", size=(8, 8), bucket=(8, 8)) for i in range(1000)]
    checked = []
    monkeypatch.setattr(scan_module, "check", lambda path, limit: checked.append(path) or [])

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(samples, 200.0, stop)
    assert len(checked) < 50


def samples_of(buckets: list[tuple[tuple[int, int], int]]) -> list[Sample]:
    return [
        Sample(name=str(i), path=Path(str(i)), caption="", size=bucket, bucket=bucket, repeats=repeats)
        for i, (bucket, repeats) in enumerate(buckets)
    ]


def test_the_step_counts_of_the_usual_example():
    result = counts(samples_of([((512, 512), 10)] * 476), 6, 1, 30)
    assert (result.by_formula, result.by_buckets) == (794 * 30, 794 * 30)


def test_step_counts_equal_counting_the_batches():
    rng = random.Random(0)
    sides = [(512, 512), (576, 448), (448, 576)]
    for _ in range(200):
        samples = samples_of([(rng.choice(sides), rng.randint(1, 5)) for _ in range(rng.randint(1, 40))])
        batch, accumulate, epochs = rng.randint(1, 7), rng.randint(1, 4), rng.randint(1, 3)
        shown = [s.bucket for s in samples for _ in range(s.repeats)]
        batches = [b for side in sides for b in range(0, shown.count(side), batch)]
        result = counts(samples, batch, accumulate, epochs)
        assert result.by_buckets == epochs * len(range(0, len(batches), accumulate))
        assert result.by_formula == epochs * len(range(0, len(shown), batch * accumulate))
        assert result.by_formula <= result.by_buckets


MEASURE = """
import json, sys, time
from pathlib import Path
from sd_atelier.lib.config import ConceptConfig, DataConfig
from sd_atelier.lib.data.scan import scan
start = time.monotonic()
result = scan(DataConfig(concepts=(ConceptConfig(folder=sys.argv[1], trigger="w0lf"),)))
seconds = time.monotonic() - start
# not getrusage, whose peak is still that of the program which started this one
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10
print(json.dumps({
    "seconds": seconds, "peak_mb": peak, "samples": len(result.samples), "problems": len(result.problems),
    "captions": len({s.caption for s in result.samples}),
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_hundred_thousand_pictures_are_scanned_in_two_minutes_and_400_mb(tmp_path):
    sources = [picture(tmp_path / f"{i}.{'png' if i % 2 else 'jpg'}", (200 + 3 * i, 500)) for i in range(100)]
    texts = []
    for i in range(100):
        texts.append(tmp_path / f"{i}.txt")
        texts[-1].write_text(
            f"a grey wolf plushie, number {i}, lying on a green bench, outdoors, from side, blurry background"
        )
    for i in range(100):
        folder = tmp_path / "set" / f"{i:03}"
        folder.mkdir(parents=True)
        for j in range(1000):
            source = sources[(i + j) % 100]
            os.link(source, folder / f"picture {j:05}{source.suffix}")
            os.link(texts[j % 100], folder / f"picture {j:05}.txt")
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "set")], capture_output=True, text=True, timeout=300, check=True
    )
    measured = json.loads(run.stdout)
    assert measured["samples"] == 100_000 and measured["problems"] == 0 and measured["captions"] == 100
    assert measured["seconds"] < 120, measured
    assert measured["peak_mb"] < 400, measured


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photographs at {PHOTOS}")
def test_the_photographs_are_found_whole():
    concepts = [
        ConceptConfig(folder=str(PHOTOS / name), trigger=trigger)
        for name, trigger in (("monster_toy", "m0nster"), ("robot_toy", "r0bo"), ("wolf_plushie", "w0lf"))
    ]
    result = scan(data(*concepts))
    assert len(result.samples) == 15 and result.problems == ()
    assert all(s.caption.startswith(concepts[s.concept].trigger + " ") for s in result.samples)
    assert len({s.bucket for s in result.samples}) > 1
    assert verify(result.samples, 200.0) == ()
