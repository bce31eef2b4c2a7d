"""Laws that hold for every registered curve."""

import dataclasses
import math
import sys
from itertools import pairwise

import pytest
from sd_atelier.lib import lr_schedule
from sd_atelier.lib.lr_schedule import ScheduleError, parse
from sd_atelier.lib.registry import CURVES

PAIRS = [
    (1e-4, 1e-6),
    (1e-6, 1e-4),
    (0.0, 1e-4),
    (1e-4, 0.0),
    (0.0, 0.0),
    (3e-4, 3e-4),
    (1.7e308, 5e-324),
    (5e-324, 1.7e308),
]
PROGRESS = [k / 512 for k in range(513)]


def curves(name):
    """The curve with several values of its numbers."""
    entry = CURVES.get(name)
    count = len(dataclasses.fields(entry))
    return [entry(*[number] * count) for number in (0.5, 1.0, 2.0, 1e-300, 1e300)] if count else [entry()]


def allowed_pairs(curve):
    """The pairs that the curve's check lets pass, and (0, 0), which the decay of a repeat can make of any."""
    pairs = []
    for pair in PAIRS:
        try:
            curve.check(*pair)
        except ValueError:
            continue
        pairs.append(pair)
    assert len(pairs) >= 4
    return [*pairs, (0.0, 0.0)]


@pytest.mark.parametrize("name", CURVES.names())
def test_a_curve_is_finite_and_between_its_rates(name):
    for curve in curves(name):
        for start, stop in allowed_pairs(curve):
            low, high = min(start, stop), max(start, stop)
            for p in PROGRESS:
                rate = curve.rate(start, stop, p)
                assert math.isfinite(rate) and rate >= 0
                assert low - 1e-12 * high <= rate <= high * (1 + 1e-12)


@pytest.mark.parametrize("name", CURVES.names())
def test_a_curve_is_monotone(name):
    for curve in curves(name):
        for start, stop in allowed_pairs(curve):
            rates = [curve.rate(start, stop, p) for p in PROGRESS]
            slack = 1e-12 * max(start, stop)
            if start >= stop:
                assert all(a >= b - slack for a, b in pairwise(rates))
            else:
                assert all(a <= b + slack for a, b in pairwise(rates))


@pytest.mark.parametrize("name", CURVES.names())
def test_a_curve_begins_at_its_first_rate_and_goes_to_its_last_where_it_says_so(name):
    for curve in curves(name):
        if not curve.continuous:
            continue
        for start, stop in allowed_pairs(curve):
            assert curve.rate(start, stop, 0.0) == pytest.approx(start, rel=1e-12, abs=1e-15 * stop)
            assert curve.rate(start, stop, 1.0) == pytest.approx(stop, rel=1e-12, abs=1e-15 * start)


@pytest.mark.parametrize("name", CURVES.names())
def test_a_curve_closes_in_on_its_last_rate(name):
    count = len(dataclasses.fields(CURVES.get(name)))
    curve = CURVES.get(name)(*[2.0] * count)
    gaps = [abs(curve.rate(1e-4, 1e-6, 1 - 2.0**-k) - 1e-6) for k in range(1, 40)]
    assert all(a > b for a, b in pairwise(gaps[:20]))
    assert max(gaps[20:]) < 1e-9 and gaps[-1] < 1e-14


@pytest.mark.parametrize("name", CURVES.names())
def test_a_schedule_with_the_curve_is_defined_on_every_step_and_one_past_the_end(name):
    numbers = "(2)" if dataclasses.fields(CURVES.get(name)) else ""
    for text in (f"2e-4->1e-6 {name}{numbers}", f"1e-6->2e-4 {name.upper()} {numbers} : 100%"):
        for num_steps in (1, 2, 3, 17, 1000):
            schedule = parse(text).resolve(num_steps)
            first, last = (2e-4, 1e-6) if text.startswith("2") else (1e-6, 2e-4)
            rates = [schedule.rate(step) for step in range(num_steps + 1)]
            assert rates[0] == pytest.approx(first, rel=1e-12)
            assert rates[-1] == last
            assert all(1e-6 * (1 - 1e-12) <= rate <= 2e-4 * (1 + 1e-12) for rate in rates)
            assert len(set(rates)) == num_steps + 1


@pytest.mark.parametrize("name", CURVES.names())
def test_a_curve_has_a_name_that_the_grammar_can_read(name):
    assert name.isascii() and name.isalpha() and name.islower()
    assert name not in ("x", "ep", "lengthen", "decay", "nan", "inf", "infinity")
    assert CURVES.get(name).__doc__


def test_the_curves_of_the_grammar_are_there():
    assert {"linear", "cosine", "exp", "rex", "poly"} <= set(CURVES.names())


def test_a_file_in_the_folder_is_all_that_a_new_curve_needs(tmp_path, monkeypatch):
    with pytest.raises(ScheduleError, match='unknown curve "latestep"'):
        parse("1->0 latestep(0.5)")
    (tmp_path / "late_step.py").write_text(
        '"""A jump."""\n'
        "from dataclasses import dataclass\n"
        "from ..registry import CURVES\n"
        "from .curve import Curve\n"
        '@CURVES.register("latestep")\n'
        "@dataclass(frozen=True)\n"
        "class LateStep(Curve):\n"
        "    at: float\n"
        "    continuous = False\n"
        "    def rate(self, start, stop, progress):\n"
        "        return start if progress < self.at else stop\n"
    )
    monkeypatch.setattr(lr_schedule, "__path__", [*lr_schedule.__path__, str(tmp_path)])
    monkeypatch.setattr(CURVES, "_entries", dict(CURVES._entries))
    monkeypatch.setattr(CURVES, "_discovered", False)
    try:
        schedule = parse("1->0 latestep(0.5)").resolve(4)
        assert [schedule.rate(step) for step in range(5)] == [1, 1, 0, 0, 0]
    finally:
        sys.modules.pop(lr_schedule.__name__ + ".late_step", None)
