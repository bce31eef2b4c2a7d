"""Latents are found again by content, whatever happened to names, processes and disks."""

import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sd_atelier.lib.data import encode, pictures, shards
from sd_atelier.lib.data.cache import LatentCache, LatentEntry, manifest_difference
from sd_atelier.lib.data.sample import Sample


class FakeAutoencoder:
    """Four channels: the means of the colours over 8 x 8 pixels, and their horizontal slope."""

    scale_px = 8

    def __init__(self, key="fake", fails_after=None, not_finite=()):
        self.key = key
        self.num_encoded = 0
        self.batches = []
        self.fails_after = fails_after
        self.not_finite = set(not_finite)  # which pictures, counted from 0, give NaN

    def encode(self, x):
        assert not torch.is_grad_enabled()
        assert x.dtype in (torch.float32, torch.bfloat16)
        assert x.min() >= -1
        assert x.max() <= 1
        if self.fails_after is not None and self.num_encoded >= self.fails_after:
            raise RuntimeError("out of memory")
        means = torch.nn.functional.avg_pool2d(x.float(), 8)
        slope = torch.nn.functional.avg_pool2d(x.float() * torch.linspace(-1, 1, x.shape[3]), 8).mean(1, keepdim=True)
        latents = torch.cat([means, slope], 1)
        for i in range(len(x)):
            if self.num_encoded + i in self.not_finite:
                latents[i] = torch.nan
        self.num_encoded += len(x)
        self.batches.append(tuple(x.shape))
        return latents


def paint(path, seed=0, size=(96, 64), alpha=False):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (size[1], size[0], 4 if alpha else 3), np.uint8)
    if alpha:
        pixels[..., 3] = 255
        pixels[:, : size[0] // 2, 3] = 0
    Image.fromarray(pixels).save(path)
    return path


def make_sample(path, bucket=(64, 64), size=(96, 64), **facts):
    facts = {"caption": f"caption of {path.name}", **facts}
    return Sample(name=f"set/{path.name}", path=path, size=size, bucket=bucket, **facts)


@pytest.fixture
def samples(tmp_path):
    return [make_sample(paint(tmp_path / "pictures" / f"{i}.png", i)) for i in range(5)]


def build(tmp_path, samples, autoencoder=None, **options):
    """cache, problems, autoencoder"""
    autoencoder = autoencoder or FakeAutoencoder()
    options = {"flip": False, "alpha_mask": False, "max_megapixels": 100.0, "device": "cpu", **options}
    return *LatentCache.build(tmp_path / "cache", samples, autoencoder, **options), autoencoder


def shard_paths(tmp_path):
    return sorted((tmp_path / "cache").iterdir())


def expected(sample, flipped=False):
    pixels = pictures.load(sample.path, sample.bucket, False, 100.0).pixels
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        return FakeAutoencoder().encode(x.flip(3) if flipped else x)[0]


def test_latents_are_those_of_the_autoencoder_in_float32(tmp_path, samples):
    cache, problems, _ = build(tmp_path, samples)
    assert problems == []
    assert cache.complete
    assert len(cache) == 5
    for s in samples:
        latents, mask = cache.get(s.name)
        assert latents.dtype == torch.float32
        assert torch.equal(latents, expected(s))
        assert mask is None
        assert s.name in cache
    assert "set/other.png" not in cache


def test_the_mirrored_picture_is_encoded_rather_than_its_latents_mirrored(tmp_path, samples):
    cache, _, autoencoder = build(tmp_path, samples, flip=True)
    assert autoencoder.num_encoded == 10
    for s in samples:
        assert torch.equal(cache.get(s.name, True)[0], expected(s, True))
        assert torch.equal(cache.get(s.name, False)[0], expected(s))
        assert not torch.allclose(cache.get(s.name, True)[0], cache.get(s.name, False)[0].flip(2))
    plain, _, _ = build(tmp_path, samples)
    with pytest.raises(ValueError, match="build the cache with flip"):
        plain.get(samples[0].name, True)


def test_a_second_run_encodes_nothing_and_reads_the_same_bits(tmp_path, samples):
    first, _, _ = build(tmp_path, samples, flip=True)
    before = {p.name: p.stat().st_mtime_ns for p in shard_paths(tmp_path)}
    second, problems, autoencoder = build(tmp_path, samples, flip=True)
    assert autoencoder.num_encoded == 0
    assert problems == []
    assert {p.name: p.stat().st_mtime_ns for p in shard_paths(tmp_path)} == before
    for s in samples:
        for flipped in (False, True):
            assert torch.equal(first.get(s.name, flipped)[0], second.get(s.name, flipped)[0])
            assert first.sizes(s.name, flipped) == second.sizes(s.name, flipped)


def test_only_new_and_changed_pictures_are_encoded(tmp_path, samples):
    build(tmp_path, samples)
    paint(samples[2].path, 100)
    new = make_sample(paint(samples[0].path.with_name("new.png"), 101))
    cache, _, autoencoder = build(tmp_path, [*samples, new])
    assert autoencoder.num_encoded == 2
    for s in [*samples, new]:
        assert torch.equal(cache.get(s.name)[0], expected(s))


def test_renamed_pictures_are_found_and_equal_ones_share_an_entry(tmp_path, samples):
    build(tmp_path, samples)
    renamed = [make_sample(s.path.rename(s.path.with_name(f"renamed {s.path.name}"))) for s in samples]
    copy = renamed[0].path.with_name("copy.png")
    copy.write_bytes(renamed[0].path.read_bytes())
    cache, _, autoencoder = build(tmp_path, [*renamed, make_sample(copy)])
    assert autoencoder.num_encoded == 0
    assert torch.equal(cache.get("set/copy.png")[0], cache.get("set/renamed 0.png")[0])


def test_equal_pictures_are_encoded_once(tmp_path, samples):
    copy = samples[0].path.with_name("copy.png")
    copy.write_bytes(samples[0].path.read_bytes())
    cache, _, autoencoder = build(tmp_path, [*samples, make_sample(copy)])
    assert autoencoder.num_encoded == 5
    assert len(cache) == 6


@pytest.mark.parametrize("change", ["autoencoder", "alpha_mask", "dtype", "bucket", "preparation"])
def test_whatever_changes_the_latents_changes_the_key(tmp_path, samples, change, monkeypatch):
    build(tmp_path, samples)
    key, options = "fake", {}
    if change == "autoencoder":
        key = "other"
    elif change == "alpha_mask":
        options = {"alpha_mask": True}
    elif change == "dtype":
        options = {"dtype": torch.bfloat16}
    elif change == "bucket":
        samples = [make_sample(s.path, (64, 56)) for s in samples]
    else:
        monkeypatch.setattr(encode, "PREPARATION", encode.PREPARATION + 1)
    assert [build(tmp_path, samples, FakeAutoencoder(key), **options)[2].num_encoded for _ in range(2)] == [5, 0]


def test_flip_turned_on_later_encodes_only_the_mirrored_pictures(tmp_path, samples):
    build(tmp_path, samples)
    _, _, autoencoder = build(tmp_path, samples, flip=True, batch_size=2)
    assert autoencoder.num_encoded == 5


def test_batches_hold_pictures_of_one_bucket(tmp_path, samples):
    mixed = [make_sample(s.path, ((64, 64), (96, 64))[i % 2]) for i, s in enumerate(samples)]
    cache, _, autoencoder = build(tmp_path, mixed, batch_size=2)
    assert sorted(autoencoder.batches) == [(1, 3, 64, 64), (2, 3, 64, 64), (2, 3, 64, 96)]
    for s in mixed:
        assert torch.allclose(cache.get(s.name)[0], expected(s), atol=1e-6)
        assert cache.get(s.name)[0].shape == (4, s.bucket[1] // 8, s.bucket[0] // 8)


def test_masks_are_area_averages_and_mirrored_with_their_picture(tmp_path):
    path = paint(tmp_path / "a.png", alpha=True, size=(64, 64))
    cache, _, _ = build(tmp_path, [make_sample(path, size=(64, 64))], flip=True, alpha_mask=True)
    mask = cache.get("set/a.png")[1]
    assert mask.shape == (1, 8, 8)
    assert mask.dtype == torch.float32
    assert mask[0, 3].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(cache.get("set/a.png", True)[1], mask.flip(2))
    # the edge of the alpha in the middle of a latent pixel: half of it counts
    shifted = tmp_path / "b.png"
    pixels = np.full((64, 64, 4), 255, np.uint8)
    pixels[:, :28, 3] = 0
    Image.fromarray(pixels).save(shifted)
    cache, _, _ = build(tmp_path, [make_sample(shifted, size=(64, 64))], alpha_mask=True)
    assert cache.get("set/b.png")[1][0, 0].tolist() == [0, 0, 0, 0.5, 1, 1, 1, 1]


def test_sizes_say_what_was_done_to_the_picture_and_to_its_mirror_image(tmp_path):
    path = paint(tmp_path / "a.png", size=(201, 100))
    cache, _, _ = build(tmp_path, [make_sample(path, size=(201, 100))], flip=True)
    width, height, left, top, bucket_w, bucket_h = cache.sizes("set/a.png")
    assert (width, height, top, bucket_w, bucket_h) == (201, 100, 0, 64, 64)
    geometry = pictures.load(path, (64, 64), False, 100.0).geometry
    assert left == geometry.crop_left > 0
    mirrored = cache.sizes("set/a.png", True)
    assert left + mirrored[2] == geometry.resized[0] - 64
    assert mirrored[:2] == (201, 100)


def test_bad_pictures_are_named_and_left_out(tmp_path, samples):
    bad = samples[1].path.with_name("bad.png")
    bad.write_bytes(samples[1].path.read_bytes()[:500])
    empty = bad.with_name("empty.png")
    empty.touch()
    gone = bad.with_name("gone.png")
    named = [make_sample(p) for p in (bad, empty, gone)]
    cache, problems, _ = build(tmp_path, [named[0], *samples, *named[1:]])
    assert [(p.path, p.severity) for p in problems] == [(bad, "error"), (empty, "error"), (gone, "error")]
    assert all(p.text for p in problems)
    assert cache.samples == samples
    assert cache.complete
    assert cache.manifest.keys() == {s.name for s in samples}


def test_a_picture_over_the_limit_is_left_out(tmp_path, samples):
    cache, problems, _ = build(tmp_path, samples, max_megapixels=0.001)
    assert len(problems) == 5
    assert "max_megapixels" in problems[0].text
    assert len(cache) == 0


def test_latents_that_are_not_finite_are_named_and_never_cached(tmp_path, samples):
    cache, problems, _ = build(tmp_path, samples, FakeAutoencoder(not_finite=[1]), batch_size=2)
    assert [(p.path, p.severity) for p in problems] == [(samples[1].path, "error")]
    assert problems[0].text == "has latents that are not finite; run the autoencoder in fp32 or bf16"
    assert len(cache) == 4
    cache, problems, autoencoder = build(tmp_path, samples)
    assert (len(cache), problems, autoencoder.num_encoded) == (5, [], 1)


def test_notes_on_a_picture_are_said_in_every_run(tmp_path):
    path = paint(tmp_path / "a.png", alpha=True)
    _, first, _ = build(tmp_path, [make_sample(path)])
    assert [(p.path, p.severity) for p in first] == [(path, "note")]
    assert build(tmp_path, [make_sample(path)])[1] == first


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip_bit_of_tensors(path):
    data = bytearray(path.read_bytes())
    data[-50] ^= 4
    path.write_bytes(data)


def flip_bit_of_header(path):
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


def overwrite(path):
    path.write_bytes(b"\xff" * 1000)


@pytest.mark.parametrize("damage", [truncate, empty, flip_bit_of_tensors, flip_bit_of_header, overwrite])
def test_a_damaged_shard_is_noticed_and_only_its_entries_are_encoded_again(tmp_path, samples, damage):
    build(tmp_path, samples[:2])
    whole = shard_paths(tmp_path)
    build(tmp_path, samples)
    (path,) = set(shard_paths(tmp_path)) - set(whole)
    damage(path)
    cache, problems, autoencoder = build(tmp_path, samples)
    assert [(p.path, p.severity) for p in problems] == [(path, "warning")]
    assert autoencoder.num_encoded == 3
    for s in samples:
        assert torch.equal(cache.get(s.name)[0], expected(s))
    _, problems, autoencoder = build(tmp_path, samples)
    assert (autoencoder.num_encoded, problems) == (0, [])


def test_a_lost_shard_is_encoded_again(tmp_path, samples):
    build(tmp_path, samples)
    shard_paths(tmp_path)[0].unlink()
    assert build(tmp_path, samples)[2].num_encoded == 5


def test_shards_are_bounded_and_name_their_own_bytes(tmp_path, samples, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SHARD_ENTRIES", 2)
    build(tmp_path, samples)
    assert len(shard_paths(tmp_path)) == 3
    for path in shard_paths(tmp_path):
        assert path.name == f"latents-{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}.safetensors"
        with safe_open(path, "pt") as shard:
            assert len(list(shard.keys())) <= 2
            assert len(json.loads(shard.metadata()["facts"])) <= 2
    monkeypatch.setattr(shards, "MAX_SHARD_ENTRIES", 512)
    for num_bytes, num_shards in ((2 * 4 * 8 * 8 * 4, 3), (4 * 8 * 8 * 4, 5), (1, 5)):
        num_before = len(shard_paths(tmp_path))
        monkeypatch.setattr(shards, "MAX_SHARD_BYTES", num_bytes)
        cache, _, _ = build(tmp_path, samples, FakeAutoencoder(str(num_bytes)))
        assert len(shard_paths(tmp_path)) - num_before == num_shards
        assert torch.equal(cache.get(samples[4].name)[0], expected(samples[4]))


def test_open_files_are_bounded(tmp_path, samples, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SHARD_ENTRIES", 1)
    monkeypatch.setattr(shards, "MAX_OPEN", 2)
    cache, _, _ = build(tmp_path, samples)
    for s in [*samples, *samples[::-1]]:
        assert torch.equal(cache.get(s.name)[0], expected(s))
        assert len(cache._store._open) <= 2


def test_what_was_read_stays_when_the_file_is_closed_and_overwritten(tmp_path, samples, monkeypatch):
    monkeypatch.setattr(shards, "MAX_OPEN", 1)
    monkeypatch.setattr(shards, "MAX_SHARD_ENTRIES", 1)
    cache, _, _ = build(tmp_path, samples)
    latents = cache.get(samples[0].name)[0]
    before = latents.clone()
    cache.get(samples[1].name)
    for path in shard_paths(tmp_path):
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(latents, before)


@pytest.mark.parametrize("num_allowed", range(6))
def test_a_stop_keeps_what_is_done_and_the_next_run_does_the_rest(tmp_path, samples, num_allowed):
    first = FakeAutoencoder()
    progress = []
    cache, problems, _ = build(
        tmp_path,
        samples,
        first,
        stop_requested=lambda: (bool(progress) and progress[-1][0] >= num_allowed) or num_allowed == 0,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert problems == []
    assert first.num_encoded == len(cache) == num_allowed
    assert cache.complete == (num_allowed == 5)
    assert progress == [(i + 1, 5) for i in range(num_allowed)]
    cache, _, autoencoder = build(tmp_path, samples)
    assert cache.complete
    assert autoencoder.num_encoded == 5 - num_allowed


def test_an_error_of_the_autoencoder_keeps_what_is_done(tmp_path, samples):
    with pytest.raises(RuntimeError, match="out of memory"):
        build(tmp_path, samples, FakeAutoencoder(fails_after=3))
    assert build(tmp_path, samples)[2].num_encoded == 2


def test_an_error_of_the_disk_surfaces_and_leaves_the_folder_usable(tmp_path, samples, monkeypatch):
    build(tmp_path, samples[:2])

    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shards.files, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            build(tmp_path, samples)
    cache, _, autoencoder = build(tmp_path, samples)
    assert (autoencoder.num_encoded, cache.complete) == (3, True)


def test_manifest_is_json_and_says_what_the_data_set_is(tmp_path, samples):
    cache, _, _ = build(tmp_path, samples)
    manifest = json.loads(json.dumps(cache.manifest))
    assert manifest == cache.manifest
    assert list(manifest) == sorted(s.name for s in samples)
    content = hashlib.sha256(samples[0].path.read_bytes()).hexdigest()[:16]
    caption = hashlib.sha256(samples[0].caption.encode()).hexdigest()[:16]
    assert manifest[samples[0].name] == {
        "content": content,
        "caption": caption,
        "repeats": 1,
        "weight": 1.0,
        "bucket": [64, 64],
    }
    assert manifest_difference(manifest, cache.manifest) == []


def test_manifest_difference_names_each_change(tmp_path, samples):
    old = build(tmp_path, samples)[0].manifest
    paint(samples[1].path, 50)
    changed = [
        make_sample(samples[1].path),
        make_sample(samples[2].path, caption="other"),
        make_sample(samples[3].path, repeats=4, weight=0.5),
        make_sample(samples[4].path, bucket=(96, 64)),
        make_sample(paint(samples[0].path.with_name("new.png"), 60)),
    ]
    new = build(tmp_path, changed)[0].manifest
    assert manifest_difference(old, new) == [
        "set/0.png: removed",
        "set/1.png: picture changed",
        "set/2.png: caption changed",
        "set/3.png: repeats 1 -> 4",
        "set/3.png: weight 1.0 -> 0.5",
        "set/4.png: bucket [64, 64] -> [96, 64]",
        "set/new.png: added",
    ]


def test_latents_from_memory_have_the_same_face():
    sample = Sample(name="a", path=Path("a"), caption="c", size=(300, 200), bucket=(96, 64))
    latents, flipped = torch.randn(4, 8, 12), torch.randn(4, 8, 12)
    mask = torch.rand(1, 8, 12)
    cache = LatentCache.from_latents(
        [LatentEntry(sample=sample, latents=latents.half(), flipped=flipped, mask=mask, resized=(100, 64), crop=(1, 0))]
    )
    assert cache.complete
    assert torch.equal(cache.get("a")[0], latents.half().float())
    assert torch.equal(cache.get("a", True)[0], flipped)
    assert torch.equal(cache.get("a")[1], mask)
    assert torch.equal(cache.get("a", True)[1], mask.flip(2))
    assert cache.sizes("a") == (300, 200, 1, 0, 96, 64)
    assert cache.sizes("a", True) == (300, 200, 3, 0, 96, 64)
    other = LatentCache.from_latents([LatentEntry(sample=sample, latents=latents + 1)])
    assert manifest_difference(cache.manifest, other.manifest) == ["a: picture changed"]
    flipped.fill_(0)  # the host's own tensor
    assert cache.get("a", True)[0].abs().sum() > 0


def test_latents_from_memory_of_the_wrong_shape_are_refused():
    sample = Sample(name="a", path=Path("a"), caption="", size=(64, 64), bucket=(64, 64))
    other = Sample(name="b", path=Path("b"), caption="", size=(64, 64), bucket=(64, 64))
    good = torch.zeros(4, 8, 8)
    for wrong in (
        [LatentEntry(sample=sample, latents=good[None])],
        [LatentEntry(sample=other, latents=torch.zeros(4, 8, 9)), LatentEntry(sample=sample, latents=good)],
        [LatentEntry(sample=sample, latents=good, flipped=good[:3])],
        [LatentEntry(sample=sample, latents=good, mask=torch.zeros(8, 8))],
    ):
        with pytest.raises(ValueError, match=r"a: .*must be"):
            LatentCache.from_latents(wrong)
    with pytest.raises(ValueError, match="two samples are called a"):
        LatentCache.from_latents([LatentEntry(sample=sample, latents=good)] * 2)


MEMORY = """
    import sys
    from pathlib import Path
    import numpy as np
    import torch
    from PIL import Image
    from sd_atelier.lib.data import shards
    from sd_atelier.lib.data.cache import LatentCache
    from sd_atelier.lib.data.sample import Sample
    from sd_atelier.lib.memory import peak_mb

    shards.MAX_SHARD_BYTES = 4 * 2**20

    class Autoencoder:
        scale_px, key = 8, "fake"
        def encode(self, x):
            return torch.nn.functional.avg_pool2d(x, 8).repeat(1, 2, 1, 1)[:, :4]

    def build(first, num):
        samples = []
        for i in range(first, first + num):
            path = Path(sys.argv[1], f"{i}.bmp")
            Image.fromarray(np.full((512, 512, 3), i % 256, np.uint8)).save(path)
            with path.open("ab") as file:
                file.write(str(i).encode())  # the same colour, another file
            samples.append(Sample(name=str(i), path=path, caption="", size=(512, 512), bucket=(512, 512)))
        cache, problems = LatentCache.build(Path(sys.argv[1], "cache"), samples, Autoencoder(), device="cpu",
            flip=True, alpha_mask=False, max_megapixels=1.0, batch_size=2)
        assert len(cache) == num and not problems
        for s in samples:
            cache.get(s.name, True)

    build(0, 40)
    before = peak_mb(torch.device("cpu"))
    build(40, 160)
    print(peak_mb(torch.device("cpu")) - before)
"""


def test_memory_does_not_grow_with_pixels(tmp_path):
    if sys.platform != "linux":
        pytest.skip("elsewhere the peak of memory counts the program that started this one")
    script = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path)]
    result = subprocess.run(script, capture_output=True, text=True, check=True)
    # as bytes the pictures would be 126 MB, as floats 503 MB
    assert float(result.stdout) < 60
