"""Buckets: which sizes there are, which one a picture gets, how it is cut."""

from __future__ import annotations

import math
import random
import time

import pytest
from sd_atelier.lib.data.buckets import bucket_sizes, crop_geometry, nearest_bucket

SETTINGS = [(512, 64, 256, 1024), (1024, 64, 512, 2048), (512, 8, 256, 1024), (768, 32, 320, 1280), (64, 8, 16, 128)]


@pytest.mark.parametrize(("resolution", "step", "low", "high"), SETTINGS)
def test_buckets_stay_within_area_and_sides_and_are_symmetric(resolution, step, low, high):
    sizes = bucket_sizes(resolution, step, low, high)
    assert sizes == tuple(sorted(set(sizes)))
    assert {(h, w) for w, h in sizes} == set(sizes)
    for w, h in sizes:
        assert w % step == h % step == 0
        assert w * h <= resolution**2
        assert low <= min(w, h) and max(w, h) <= high


@pytest.mark.parametrize(("resolution", "step", "low", "high"), SETTINGS)
def test_each_width_has_its_largest_height_and_the_square_is_there(resolution, step, low, high):
    sizes = set(bucket_sizes(resolution, step, low, high))
    assert (resolution // step * step,) * 2 in sizes
    for width in range(math.ceil(low / step) * step, high + 1, step):
        fitting = [h for h in range(step, high + 1, step) if h >= low and width * h <= resolution**2]
        assert max((h for w, h in sizes if w == width), default=None) == max(fitting, default=None)


def test_the_buckets_of_512_in_steps_of_64_are_the_usual_ones():
    assert bucket_sizes(512, 64, 256, 1024) == (
        (256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576), (512, 512),
        (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256),
    )  # fmt: skip


@pytest.mark.parametrize("settings", [(64, 64, 256, 1024), (512, 64, 300, 310), (32, 64, 8, 1024)])
def test_no_bucket_at_all_names_the_settings_and_a_fix_that_works(settings):
    with pytest.raises(ValueError, match="no bucket fits") as error:
        bucket_sizes(*settings)
    for name in ("data.resolution", "data.bucket_step", "data.bucket_min_px", "data.bucket_max_px"):
        assert name in str(error.value)
    resolution, step, low, high = settings
    needed = int(str(error.value).split("to at least ")[1].split()[0])
    if "raise data.resolution" in str(error.value):
        assert bucket_sizes(needed, step, low, high)
    else:
        assert bucket_sizes(resolution, step, low, needed)


@pytest.mark.parametrize(("resolution", "step", "low", "high"), SETTINGS)
def test_nearest_bucket_is_the_nearest_in_log_aspect_and_of_equal_ones_the_larger(resolution, step, low, high):
    sizes = (*bucket_sizes(resolution, step, low, high), (low, low))
    rng = random.Random(0)
    for _ in range(2000):
        size = rng.randint(1, 3000), rng.randint(1, 3000)

        def distance(bucket, size=size):
            return abs(math.log(bucket[0] / bucket[1]) - math.log(size[0] / size[1]))

        got = nearest_bucket(size, sizes, upscale=True)
        assert distance(got) <= min(map(distance, sizes)) + 1e-12
        equal = [b for b in sizes if b[0] * got[1] == b[1] * got[0]]
        assert got == max(equal, key=lambda b: b[0] * b[1])


def test_exact_ties_go_to_the_larger_area_on_both_sides():
    assert nearest_bucket((100, 100), ((256, 512), (1024, 512)), True) == (1024, 512)
    assert nearest_bucket((100, 100), ((512, 1024), (512, 256)), True) == (512, 1024)


def test_every_bucket_is_its_own_nearest():
    sizes = bucket_sizes(512, 64, 256, 1024)
    assert all(nearest_bucket(size, sizes, upscale) == size for size in sizes for upscale in (True, False))


def test_without_upscale_no_picture_is_enlarged_and_the_bucket_is_whole_steps():
    sizes = bucket_sizes(512, 64, 256, 1024)
    rng = random.Random(1)
    smaller = 0
    for _ in range(5000):
        size = rng.randint(1, 1500), rng.randint(1, 1500)
        bucket, nearest = nearest_bucket(size, sizes, False, 64), nearest_bucket(size, sizes, True)
        assert all(side % 64 == 0 and side >= 64 for side in bucket)
        assert bucket[0] <= max(64, size[0]) and bucket[1] <= max(64, size[1])
        assert bucket[0] <= nearest[0] and bucket[1] <= nearest[1]
        # the largest that does so: one more step on either side would enlarge or leave the nearest bucket
        for side in (0, 1):
            assert bucket[side] + 64 > min(size[side], nearest[side])
        smaller += bucket not in sizes
    assert smaller > 100
    assert nearest_bucket((5, 3), sizes, False, 64) == (64, 64)


def test_a_hundred_thousand_look_ups_take_little_time():
    sizes = bucket_sizes(1024, 8, 256, 4096)
    rng = random.Random(2)
    pictures = [(rng.randint(100, 9000), rng.randint(100, 9000)) for _ in range(100_000)]
    start = time.process_time()
    for size in pictures:
        nearest_bucket(size, sizes, True)
    assert time.process_time() - start < 5


def test_the_crop_covers_the_bucket_and_loses_only_one_direction():
    sizes = bucket_sizes(512, 64, 256, 1024)
    rng = random.Random(3)
    for _ in range(5000):
        size, bucket = (rng.randint(1, 4000), rng.randint(1, 4000)), rng.choice(sizes)
        focus = rng.random(), rng.random()
        (w, h), left, top = crop_geometry(size, bucket, focus)
        assert w == bucket[0] or h == bucket[1]
        assert w >= bucket[0] and h >= bucket[1]
        assert 0 <= left <= w - bucket[0] and 0 <= top <= h - bucket[1]
        scale = max(bucket[0] / size[0], bucket[1] / size[1])
        assert abs(w - size[0] * scale) <= 0.5 + 1e-6 * w and abs(h - size[1] * scale) <= 0.5 + 1e-6 * h


def test_the_crop_is_in_the_middle_and_follows_the_focus_to_the_edges():
    assert crop_geometry((1000, 500), (512, 512)) == ((1024, 512), 256, 0)
    assert crop_geometry((1000, 500), (512, 512), (0.0, 0.0)) == ((1024, 512), 0, 0)
    assert crop_geometry((1000, 500), (512, 512), (1.0, 1.0)) == ((1024, 512), 512, 0)
    assert crop_geometry((1000, 500), (512, 512), (0.4, 0.9)).crop_left == round(0.4 * 1024 - 256)
    assert crop_geometry((512, 512), (512, 512)) == ((512, 512), 0, 0)
