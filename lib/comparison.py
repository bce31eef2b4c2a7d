"""Comparing losses fairly: the same noise in pairs, and other pictures only at the same t.

A raw loss depends on t far more than on anything else, so a mean over whatever t happened to be drawn compares
nothing. Arrays are one-dimensional, one entry a row of the records.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def paired_interval(differences: Floats) -> tuple[float, float, float]:
    """Mean of paired differences with its 95 % interval by Student's t: (mean, low, high).

    Assumes independent pairs. One pair says nothing about the spread: the interval is then (-inf, inf). No pairs: nan.
    Differences that are not finite make all three nan, since leaving them out would hide a fault.
    """
    differences = np.asarray(differences, dtype=np.float64)
    num_pairs = differences.size
    if num_pairs == 0 or not np.isfinite(differences).all():
        return math.nan, math.nan, math.nan
    mean = float(differences.mean())
    if num_pairs == 1:
        return mean, -math.inf, math.inf
    half = student_t(num_pairs - 1) * float(differences.std(ddof=1)) / math.sqrt(num_pairs)
    return mean, mean - half, mean + half


def picture_means(image: Iterable[str], values: Floats) -> Floats:
    """The mean of each picture's values, (pictures,). The pairs of one picture share its noise, so that it is pictures,
    not pairs of picture and timestep, that are independent of each other."""
    _, owner = owners(image)
    return np.bincount(owner, np.asarray(values, dtype=np.float64)) / np.bincount(owner)


def owners(image: Iterable[str]) -> tuple[list[str], NDArray[np.intp]]:
    """The pictures' names in the order in which they first appear, and the index of each row's picture, (rows,)."""
    codes: dict[str, int] = {}
    owner = np.fromiter((codes.setdefault(str(name), len(codes)) for name in image), dtype=np.intp)
    return list(codes), owner


@functools.lru_cache(maxsize=1024)
def student_t(degrees: int) -> float:
    """The value below which 97.5 % of Student's t with so many degrees of freedom (>= 1) lies.

    Bisection on the finite series for whole degrees (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4); the expansion
    around the normal distribution (26.7.5) above 200 degrees, where it is right to 1e-7.
    """
    if degrees > 200:
        z = 1.959963984540054
        return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    low, high = 1.9, 12.8
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, degrees) < 0.95 else (low, middle)
    return (low + high) / 2


def _central_mass(t: float, degrees: int) -> float:
    """Probability that Student's t lies within (-t, t)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    total, term = 0.0, cosine if odd else 1.0
    for k in range(odd + 1, degrees, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


@dataclass(frozen=True)
class Bins:
    """Rows sorted into equal parts of the range of t. Bins without rows have nan."""

    edges: Floats  # (num_bins + 1,)
    index: NDArray[np.intp]  # (rows,) the bin of each row
    count: NDArray[np.intp]  # (num_bins,)
    mean: Floats  # (num_bins,) mean loss
    standard_error: Floats  # (num_bins,) nan where a bin has fewer than two rows

    @property
    def centre(self) -> Floats:
        return (self.edges[:-1] + self.edges[1:]) / 2


def bins_of(t: Floats, loss: Floats, num_bins: int = 20) -> Bins:
    """Mean loss in equal bins of t: over 0..1 where no t is above 1 (flow), else over 0..1000 (diffusion)."""
    t, loss = np.asarray(t, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    top = 1.0 if t.size and t.max() <= 1 and not (t == np.round(t)).all() else 1000.0
    edges = np.linspace(0.0, top, num_bins + 1)
    index = np.clip((t / top * num_bins).astype(np.intp), 0, num_bins - 1)
    count = np.bincount(index, minlength=num_bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(index, loss, num_bins) / count
        squares = np.bincount(index, (loss - mean[index]) ** 2, num_bins)
        standard_error = np.sqrt(squares / (count - 1) / count)
    return Bins(edges, index, count, mean, np.where(count > 1, standard_error, np.nan))


@dataclass(frozen=True)
class PictureLoss:
    """What the records say of one picture."""

    image: str
    num_rows: int  # rows with a finite loss
    num_nonfinite: int
    mean: float  # nan without a finite row, as all below
    latest: float
    relative: float  # mean of loss / (mean loss of all pictures in the same bin of t); 1 is like the others
    relative_error: float  # its standard error; nan below two rows


def by_picture(image: Iterable[str], t: Floats, loss: Floats, num_bins: int = 20) -> list[PictureLoss]:
    """One entry a picture, highest relative loss first. Rows are in the order in which they were recorded."""
    loss = np.asarray(loss, dtype=np.float64)
    names, owner = owners(image)
    finite = np.isfinite(loss)
    num_bad = np.bincount(owner[~finite], minlength=len(names))
    owner, t, loss = owner[finite], np.asarray(t, dtype=np.float64)[finite], loss[finite]
    bins = bins_of(t, loss, num_bins)
    usual = bins.mean[bins.index]
    # where every loss of a bin is 0 no picture differs from the others
    ratio = np.divide(loss, usual, out=np.ones_like(loss), where=usual > 0)
    count = np.bincount(owner, minlength=len(names))
    latest = np.full(len(names), np.nan)
    latest[owner] = loss  # of repeated indices the last one stays
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(owner, loss, len(names)) / count
        relative = np.bincount(owner, ratio, len(names)) / count
        squares = np.bincount(owner, (ratio - relative[owner]) ** 2, len(names))
        error = np.where(count > 1, np.sqrt(squares / (count - 1) / count), np.nan)
    columns = (count, num_bad, mean, latest, relative, error)
    entries = [PictureLoss(n, *v) for n, *v in zip(names, *(c.tolist() for c in columns), strict=True)]
    return sorted(entries, key=lambda e: (-e.relative if math.isfinite(e.relative) else math.inf, e.image))
