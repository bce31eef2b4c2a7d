"""Equal files and near-duplicates are found, and different pictures are not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sd_atelier.lib.data import duplicates


def scene(seed: int, size: int = 160) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


ALIKE = {
    "smaller": lambda image: image.resize((64, 64), Image.Resampling.LANCZOS),
    "brighter": lambda image: image.point(lambda v: min(255, int(v * 1.15 + 6))),
    "softer": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "compressed": lambda image: image,
}


def test_near_duplicates_are_found_and_others_are_not(tmp_path):
    paths = []
    for seed in range(40):
        paths.append(tmp_path / f"{seed:02d}.png")
        scene(seed).save(paths[-1])
    for seed, (name, change) in enumerate(ALIKE.items()):
        paths.append(tmp_path / f"{name}.jpg")
        change(scene(seed)).save(paths[-1], quality=60)
    found = duplicates.find(duplicates.hashes(paths), {path: str(path) for path in paths})
    expected = {(tmp_path / f"{seed:02d}.png", tmp_path / f"{name}.jpg") for seed, name in enumerate(ALIKE)}
    assert {group.paths for group in found} == expected and not any(group.equal for group in found)


def test_equal_files_are_one_group_and_named_once(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    for path, seed in zip(paths, (1, 1, 2, 1), strict=True):
        scene(seed).save(path)
    found = duplicates.find(duplicates.hashes(paths), {path: path.read_bytes().hex() for path in paths})
    assert found == [duplicates.Duplicates((paths[0], paths[1], paths[3]), True)]


def test_plain_and_broken_pictures_are_nobodys_duplicate(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, colour in zip(paths, ((0, 0, 0), (255, 255, 255), (9, 9, 9)), strict=False):
        Image.new("RGB", (50, 50), colour).save(path)
    paths[3].write_bytes(b"broken")
    assert duplicates.hashes(paths) == {}


@pytest.mark.parametrize("num_bits", [1, 6, 7, 12])
def test_pairs_are_those_within_the_distance(num_bits):
    rng = np.random.default_rng(num_bits)
    values = [int.from_bytes(rng.bytes(8), "big") >> 1 for _ in range(60)]
    flipped = [value ^ sum(1 << int(b) for b in rng.choice(63, num_bits, replace=False)) for value in values]
    pairs = set(duplicates._near_pairs([*values, *flipped]))
    assert pairs == ({(i, i + 60) for i in range(60)} if num_bits <= duplicates.NEAR else set())
