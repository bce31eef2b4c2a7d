"""Verdicts: what the records of a run say, in words, with what they do not say left unsaid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .comparison import PictureLoss, paired_interval, picture_means

MIN_ROWS = 8  # fewer losses of a picture say little about it

Columns = Mapping[str, NDArray]


def verdicts(probes: Columns, pictures: Sequence[PictureLoss]) -> list[str]:
    """What the records say, in words: how the controlled loss changed, and what stands out."""
    lines = [_progress(probes)]
    bad = [p for p in pictures if p.num_nonfinite]
    if bad:
        num_rows = sum(p.num_nonfinite for p in bad)
        lines.append(f"Losses that were not finite: {num_rows}, of {_named([p.image for p in bad])}.")
    for flag, words in (("high", "harder"), ("low", "easier")):
        names = [p.image for p in pictures if flag in flags(p)]
        if names:
            lines.append(f"{words.capitalize()} than the others at the same timesteps: {_named(names)}.")
    return lines


def flags(picture: PictureLoss) -> list[str]:
    """What stands out: high or low (by more than a tenth and three standard errors), few rows, not finite."""
    found = []
    if picture.num_rows < MIN_ROWS:
        found.append("few rows")
    else:
        above = picture.relative - 1
        if abs(above) > max(0.1, 3 * picture.relative_error):
            found.append("high" if above > 0 else "low")
    return found + (["not finite"] if picture.num_nonfinite else [])


def _progress(probes: Columns) -> str:
    """First probe against last, pair by pair at the same picture, timestep and noise."""
    at = np.unique(probes["step"])
    if at.size < 2:
        return (
            "How far the loss fell was not measured: that needs a probe at two steps or more "
            "(record.probe_every_steps). The loss in training says little, since each step draws other timesteps."
        )
    first, last = (dict(_pairs(probes, step)) for step in (at[0], at[-1]))
    pairs = [key for key in first if key in last]
    before = np.array([first[key] for key in pairs])
    change = np.array([last[key] for key in pairs]) - before
    names = [image for image, _ in pairs]
    span = f"from step {at[0]} to step {at[-1]}"
    mean, low, high = paired_interval(picture_means(names, change))
    whole = float(picture_means(names, before).mean()) if pairs else math.nan
    if not (math.isfinite(mean) and whole > 0):
        return f"How the controlled loss changed {span} cannot be said: the two probes are not finite throughout."
    num_pictures = len(set(names))
    measured = f"{num_pictures} pictures at {len(pairs) // num_pictures} timesteps, the same noise at both steps"
    percent = abs(100 * mean / whole)
    word = "fell" if mean < 0 else "rose"
    if not math.isfinite(low):
        return f"The controlled loss {word} by {percent:.1f} % {span}; one picture alone gives no interval."
    interval = f"95 % interval of the change {100 * low / whole:+.1f} to {100 * high / whole:+.1f} %; {measured}"
    if low <= 0 <= high:
        return f"The controlled loss did not change measurably {span}: {100 * mean / whole:+.1f} % ({interval})."
    return f"The controlled loss {word} by {percent:.1f} % {span} ({interval})."


def _pairs(probes: Columns, step: int) -> Iterable[tuple[tuple[str, float], float]]:
    here = probes["step"] == step
    keys = zip(probes["image"][here], probes["t"][here].tolist(), strict=True)
    return zip(keys, probes["loss"][here].tolist(), strict=True)


def _named(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
