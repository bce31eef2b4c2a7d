"""A bucket preview shows what training uses, pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sd_atelier.lib.config import ConceptConfig, DataConfig
from sd_atelier.lib.data.bucket_preview import bucket_counts, bucket_cut, bucket_preview
from sd_atelier.lib.data.cache import LatentCache
from sd_atelier.lib.data.pictures import load
from sd_atelier.lib.data.scan import scan

SIZES = ((64, 64), (90, 64), (64, 90), (300, 40), (33, 200))


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(rng.integers(0, 256, (50, 90, 4), dtype=np.uint8)).save(tmp_path / "clear.png")
    data = {"resolution": 64, "bucket_step": 8, "bucket_min_px": 32, "bucket_max_px": 128}
    return scan(DataConfig(concepts=(ConceptConfig(folder=str(tmp_path)),), **data)).samples


def test_what_is_shown_as_trained_is_what_training_loads(samples):
    for sample in samples:
        preview = bucket_preview(sample, 200.0)
        picture = load(sample.path, sample.bucket, False, 200.0)
        assert (preview.trained == picture.pixels).all() and preview.cut.geometry == picture.geometry
        assert preview.trained.shape == (sample.bucket[1], sample.bucket[0], 3)


class Keeping:
    """An autoencoder whose latents are the pixels."""

    scale_px, key = 8, "keeping"

    def encode(self, x):
        return torch.nn.functional.pixel_unshuffle(x, 8)


@pytest.mark.parametrize("upscale", [True, False])
def test_what_is_shown_is_what_the_model_is_trained_on_pixel_for_pixel(samples, tmp_path_factory, upscale):
    if not upscale:
        data = {"resolution": 64, "bucket_step": 8, "bucket_min_px": 32, "bucket_max_px": 128, "bucket_upscale": False}
        concepts = (ConceptConfig(folder=str(samples[0].path.parent)),)
        samples = scan(DataConfig(concepts=concepts, **data)).samples
    options = {"device": "cpu", "flip": True, "alpha_mask": False, "max_megapixels": 200.0}
    cache, problems = LatentCache.build(tmp_path_factory.mktemp("cache"), samples, Keeping(), **options)
    assert len(cache) == len(samples) == 7 and not [p for p in problems if p.severity == "error"]
    for sample in samples:
        shown = bucket_preview(sample, 200.0).trained
        for flipped in (False, True):
            x = torch.nn.functional.pixel_shuffle(cache.get(sample.name, flipped)[0][None], 8)[0]
            pixels = ((x + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
            assert (pixels == (shown[:, ::-1] if flipped else shown)).all()


def test_the_box_is_the_part_of_the_original_that_training_sees(samples):
    for sample in (s for s in samples if "clear" not in s.name):
        cut = bucket_cut(sample)
        left, top, right, bottom = cut.box
        assert -1e-9 <= left < right <= sample.size[0] + 1 and -1e-9 <= top < bottom <= sample.size[1] + 1
        image = Image.open(sample.path)
        if "turned" in sample.name:
            image = image.transpose(Image.Transpose.ROTATE_270)
        box = (left, top, min(right, image.width), min(bottom, image.height))
        enlarged = cut.geometry.resized[0] > image.width or cut.geometry.resized[1] > image.height
        filter = Image.Resampling.BICUBIC if enlarged else Image.Resampling.LANCZOS
        expected = np.asarray(image.convert("RGB").resize(sample.bucket, filter, box=box))
        assert (bucket_preview(sample, 200.0).trained == expected).all()


def test_what_is_cut_away_is_darkened_and_nothing_else(samples):
    sample = next(s for s in samples if s.size == (300, 40))
    preview = bucket_preview(sample, 200.0)
    whole, original = np.asarray(preview.whole), np.asarray(Image.open(sample.path))
    left, right = round(preview.cut.box[0]), round(preview.cut.box[2])
    assert preview.whole.size == (300, 40) and 0 < left < right < 300
    assert (whole[1:39, left + 1 : right - 1] == original[1:39, left + 1 : right - 1]).all()
    assert (whole[:, : left - 1] <= original[:, : left - 1] * 0.36 + 1).all()
    assert (whole[:, right + 1 :] <= original[:, right + 1 :] * 0.36 + 1).all()
    assert preview.cut.lost == pytest.approx(1 - (right - left) / 300, abs=0.01)
    assert bucket_preview(sample, 200.0, 100).whole.size == (100, 13)


def test_a_picture_of_the_buckets_shape_loses_nothing(samples):
    cut = bucket_cut(next(s for s in samples if s.size == (64, 64)))
    assert cut.lost == 0 and cut.scale == 1


def test_buckets_are_counted_the_fullest_first(samples):
    counts = bucket_counts(samples)
    assert sum(counts.values()) == len(samples) == 7
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
