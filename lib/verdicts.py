"""Verdicts: what the records of a run say, in words, with what they do not say left unsaid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .comparison import PictureLoss, paired_interval, picture_means

MIN_ROWS = 8  # fewer losses of a picture say little about it

Columns = Mapping[str, NDArray]


_MEASURED = (
    "95 % interval of the change {low} to {high} %; {pictures} pictures at {timesteps} timesteps, the same noise at "
    "both steps"
)
WORDS = {
    "unmeasured": "How far the loss fell was not measured: that needs a probe at two steps or more "
    "(record.probe_every_steps). The loss in training says little, since each step draws other timesteps.",
    "unsayable": "How the controlled loss changed from step {first} to step {last} cannot be said: the two probes are "
    "not finite throughout.",
    "fell": f"The controlled loss fell by {{percent}} % from step {{first}} to step {{last}} ({_MEASURED}).",
    "rose": f"The controlled loss rose by {{percent}} % from step {{first}} to step {{last}} ({_MEASURED}).",
    "fell, one picture": "The controlled loss fell by {percent} % from step {first} to step {last}; one picture alone "
    "gives no interval.",
    "rose, one picture": "The controlled loss rose by {percent} % from step {first} to step {last}; one picture alone "
    "gives no interval.",
    "unchanged": "The controlled loss did not change measurably from step {first} to step {last}: {percent} % "
    f"({_MEASURED}).",
    "not finite": "Losses that were not finite: {rows}, of {names}.",
    "harder": "Harder than the others at the same timesteps: {names}.",
    "easier": "Easier than the others at the same timesteps: {names}.",
}


@dataclass(frozen=True)
class Verdict:
    """One sentence: a key of `WORDS`, and what is filled in; `str()` gives it in English."""

    kind: str
    values: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return WORDS[self.kind].format_map(self.values)


def verdicts(probes: Columns, pictures: Sequence[PictureLoss]) -> list[Verdict]:
    """What the records say, in words: how the controlled loss changed, and what stands out."""
    found = [_progress(probes)]
    bad = [p for p in pictures if p.num_nonfinite]
    if bad:
        num_rows = sum(p.num_nonfinite for p in bad)
        found.append(Verdict("not finite", {"rows": str(num_rows), "names": _named([p.image for p in bad])}))
    for flag, kind in (("high", "harder"), ("low", "easier")):
        names = [p.image for p in pictures if flag in flags(p)]
        if names:
            found.append(Verdict(kind, {"names": _named(names)}))
    return found


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


def _progress(probes: Columns) -> Verdict:
    """First probe against last, pair by pair at the same picture, timestep and noise."""
    at = np.unique(probes["step"])
    if at.size < 2:
        return Verdict("unmeasured")
    first, last = (dict(_pairs(probes, step)) for step in (at[0], at[-1]))
    pairs = [key for key in first if key in last]
    before = np.array([first[key] for key in pairs])
    change = np.array([last[key] for key in pairs]) - before
    names = [image for image, _ in pairs]
    values = {"first": str(at[0]), "last": str(at[-1])}
    mean, low, high = paired_interval(picture_means(names, change))
    whole = float(picture_means(names, before).mean()) if pairs else math.nan
    if not (math.isfinite(mean) and whole > 0):
        return Verdict("unsayable", values)
    word, percent = ("fell" if mean < 0 else "rose"), 100 * mean / whole
    values["percent"] = f"{abs(percent):.1f}"
    if not math.isfinite(low):
        return Verdict(f"{word}, one picture", values)
    num_pictures = len(set(names))
    values |= {
        "low": f"{100 * low / whole:+.1f}",
        "high": f"{100 * high / whole:+.1f}",
        "pictures": str(num_pictures),
        "timesteps": str(len(pairs) // num_pictures),
    }
    if low <= 0 <= high:
        return Verdict("unchanged", {**values, "percent": f"{percent:+.1f}"})
    return Verdict(word, values)


def _pairs(probes: Columns, step: int) -> Iterable[tuple[tuple[str, float], float]]:
    here = probes["step"] == step
    keys = zip(probes["image"][here], probes["t"][here].tolist(), strict=True)
    return zip(keys, probes["loss"][here].tolist(), strict=True)


def _named(names: list[str], most: int = 8) -> str:
    """The first of them; how many more there are is said without a word, since each language has its own."""
    return ", ".join(names[:most]) + (f", … (+{len(names) - most})" if len(names) > most else "")
