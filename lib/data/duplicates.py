"""Pictures that show the same: equal files, and near-duplicates by a perceptual hash."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .headers import FAULTS
from .pictures import decode, on_white
from .pool import in_order

_SIDE = 32
LEAST_PX = 4 * _SIDE  # of the shorter side, for a picture that is decoded smaller
_BITS = 8
NEAR = 6  # of 63 bits: what resizing and compressing change; two pictures of one scene differ in more
_BANDS = NEAR + 1  # of two hashes that differ in NEAR bits, at least one of so many parts is equal


@dataclass(frozen=True)
class Duplicates:
    """Pictures that show the same, in the order in which they were given."""

    paths: tuple[Path, ...]
    equal: bool  # equal files, not only alike


def perceptual_hash(image: Image.Image) -> int:
    """63 bits: which of the lowest 8 x 8 frequencies of the picture lie above their median, without the constant one.

    A DCT-II of the picture in grey at 32 x 32 pixels. Zauner 2010, "Implementation and Benchmarking of Perceptual Image
    Hash Functions", section 3.2.1. A picture without any structure gives 0.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    k, n = np.arange(_BITS)[:, None], np.arange(_SIDE)[None]
    basis = np.cos(np.pi / _SIDE * (n + 0.5) * k)
    low = (basis @ grey @ basis.T).reshape(-1)[1:]
    if np.abs(low).max() < 1e-6 * _SIDE * _SIDE:
        return 0
    return int("".join("1" if bit else "0" for bit in low > np.median(low)), 2)


def hashes(paths: Iterable[Path]) -> dict[Path, int]:
    """The perceptual hash of each picture that can be read, as it is seen: upright, in sRGB, transparency on white.

    Pictures without structure are left out.
    """

    def one(path: Path) -> int:
        try:
            return perceptual_hash(on_white(*decode(path, math.inf, LEAST_PX))[0])
        except FAULTS:
            return 0  # the scan says what is wrong with it

    paths = list(paths)
    return {path: value for path, value in zip(paths, in_order(one, paths, ahead=3), strict=True) if value}


def find(hash_of: Mapping[Path, int], content_of: Mapping[Path, str]) -> list[Duplicates]:
    """Groups of equal files, by their content, and of near-duplicates, whose hashes differ in at most `NEAR` bits."""
    by_content: dict[str, list[Path]] = defaultdict(list)
    for path, content in content_of.items():
        by_content[content].append(path)
    groups = [Duplicates(tuple(same), True) for same in by_content.values() if len(same) > 1]
    # of equal files one stands for all
    first = {same[0] for same in by_content.values()}
    paths = [path for path in hash_of if path in first or path not in content_of]
    for members in _linked(len(paths), _near_pairs([hash_of[path] for path in paths])):
        groups.append(Duplicates(tuple(paths[i] for i in members), False))
    return groups


def _near_pairs(values: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs that differ in at most `NEAR` bits; only those with an equal part are compared."""
    width = -(-63 // _BANDS)
    seen: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        buckets: dict[int, list[int]] = defaultdict(list)
        for i, value in enumerate(values):
            buckets[value >> (band * width) & ((1 << width) - 1)].append(i)
        for bucket in buckets.values():
            for place, i in enumerate(bucket):
                for j in bucket[place + 1 :]:
                    if (i, j) not in seen and bin(values[i] ^ values[j]).count("1") <= NEAR:
                        seen.add((i, j))
                        yield i, j


def _linked(num: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Groups of what is linked by pairs, each in order."""
    parent = list(range(num))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    linked = set()
    for i, j in pairs:
        parent[max(root(i), root(j))] = min(root(i), root(j))
        linked |= {i, j}
    groups: dict[int, list[int]] = defaultdict(list)
    for i in sorted(linked):
        groups[root(i)].append(i)
    return list(groups.values())
