"""Verdicts: what is said follows from the records, and nothing is said that they do not hold."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from sd_atelier.lib.comparison import PictureLoss
from sd_atelier.lib.verdicts import flags, verdicts


def probes(change, num_pictures=8, num_timesteps=4, spread=0.02, steps=(0, 50, 100)):
    """Probe rows in which the loss of the last step is (1 + change) times that of the first, with some spread."""
    rng = np.random.default_rng(0)
    rows = []
    for k, step in enumerate(steps):
        for i in range(num_pictures):
            for t in range(num_timesteps):
                base = 0.1 + 0.05 * i + 0.01 * t
                now = base * (1 + (change + spread * rng.normal()) * k / max(len(steps) - 1, 1))
                rows.append((step, f"toy/{i}.png", float(t), now, base))
    columns = zip(*rows, strict=True) if rows else [()] * 5
    values = dict(zip(("step", "image", "t", "loss", "loss_base"), map(list, columns), strict=True))
    return {k: np.array(v, dtype=object if k == "image" else None) for k, v in values.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (-0.3, r"The controlled loss fell by (29|30)\.\d %"),
        (0.25, r"The controlled loss rose by (24|25)\.\d %"),
        (0.0, "The controlled loss did not change measurably from step 0 to step 100"),
    ],
)
def test_change_is_said_only_where_its_interval_excludes_none(change, said):
    (line,) = map(str, verdicts(probes(change), []))
    assert re.match(said, line)
    assert "from step 0 to step 100" in line and "8 pictures at 4 timesteps, the same noise" in line


def test_percent_and_interval_are_those_of_the_pairs():
    rows = probes(-0.5, num_pictures=2, num_timesteps=1, spread=0.0, steps=(0, 7))
    rows["loss"] = np.array([1.0, 3.0, 0.5, 1.0])  # by 0.5 and by 2.0, of 2.0 on average
    (line,) = map(str, verdicts(rows, []))
    half = 12.7062 * math.sqrt(2 * 0.75**2) / math.sqrt(2)
    low, high = 100 * (-1.25 - half) / 2, 100 * (-1.25 + half) / 2
    assert f"{-62.5:+.1f} % (95 % interval of the change {low:+.1f} to {high:+.1f} %" in line


@pytest.mark.parametrize("steps", [(), (0,), (300,)])
def test_nothing_is_claimed_without_two_probes(steps):
    (line,) = map(str, verdicts(probes(-0.3, steps=steps), []))
    assert "was not measured" in line and "%" not in line


def test_one_picture_gives_no_interval():
    (line,) = map(str, verdicts(probes(-0.3, num_pictures=1), []))
    assert "fell by" in line and "gives no interval" in line


def test_probe_that_is_not_finite_says_so():
    rows = probes(-0.3)
    rows["loss"][-1] = math.nan
    (line,) = map(str, verdicts(rows, []))
    assert "cannot be said" in line and "%" not in line


def test_pairs_are_matched_by_picture_and_timestep_not_by_order():
    rows = probes(-0.3)
    order = np.random.default_rng(1).permutation(rows["step"].size)
    shuffled = {k: v[order] for k, v in rows.items()}
    assert verdicts(shuffled, []) == verdicts(rows, [])


def picture(relative=1.0, error=0.02, num_rows=50, num_nonfinite=0):
    return PictureLoss("toy/a.png", num_rows, num_nonfinite, 0.1, 0.1, relative, error)


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (picture(), []),
        (picture(1.5), ["high"]),
        (picture(0.7), ["low"]),
        (picture(1.05, 0.001), []),  # sure, but too small to matter
        (picture(1.5, 0.4), []),  # large, but far from sure
        (picture(1.5, num_rows=3), ["few rows"]),
        (picture(num_nonfinite=2), ["not finite"]),
        (picture(math.nan, math.nan, 0, 4), ["few rows", "not finite"]),
    ],
)
def test_flags_need_a_large_and_a_sure_difference(entry, found):
    assert flags(entry) == found


def test_what_stands_out_is_named():
    lines = [str(v) for v in verdicts(probes(-0.3), [picture(1.5), picture(0.6), picture(num_nonfinite=3)])]
    assert [line.split(":")[0] for line in lines[1:]] == [
        "Losses that were not finite",
        "Harder than the others at the same timesteps",
        "Easier than the others at the same timesteps",
    ]
    many = str(verdicts(probes(-0.3), [picture(1.5)] * 20)[1])
    assert many.endswith("toy/a.png, … (+12).")


def test_what_is_filled_in_is_no_template_itself():
    (_, line) = verdicts(probes(-0.3), [replace(picture(1.5), image="{percent}/{0}.png")])
    assert str(line).endswith(": {percent}/{0}.png.")
