"""Means of losses: equal to plain sums over the window, exactly, whatever the order or the interruptions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from sd_atelier.lib.means import Means


def losses_of(generator, num_steps):
    steps = []
    for step in range(num_steps):
        names = [f"p{i}" for i in generator.integers(0, 6, size=generator.integers(1, 5))]
        values = np.exp(generator.normal(-2, 3, size=len(names))).astype(np.float32)
        values[generator.random(len(names)) < 0.1] = generator.choice([np.nan, np.inf, -np.inf])
        steps.append((step, [(n, float(v)) for n, v in zip(names, values, strict=True)]))
    return steps


def equal(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


@pytest.mark.parametrize("window_steps", [2, 3, 10, 1000])
def test_means_equal_numpy_over_the_window(window_steps):
    steps = losses_of(np.random.default_rng(window_steps), 80)
    means, latest = Means(window_steps), {}
    for step, samples in steps:
        got = means.add(step, samples)
        latest |= {name: loss for name, loss in samples if math.isfinite(loss)}
        window = [x for s, pairs in steps[: step + 1] if s > step - window_steps for _, x in pairs if math.isfinite(x)]
        own = [x for _, x in samples if math.isfinite(x)]
        assert got.n == len(window)
        assert equal(got.loss, pytest.approx(np.mean(own), rel=1e-12) if own else math.nan)
        assert equal(got.latest, pytest.approx(np.mean(list(latest.values())), rel=1e-12) if latest else math.nan)
        assert equal(got.window, pytest.approx(np.mean(window), rel=1e-12) if window else math.nan)
        error = np.std(window, ddof=1) / math.sqrt(len(window)) if len(window) > 1 else math.nan
        assert equal(got.window_se, pytest.approx(error, rel=1e-9) if len(window) > 1 else math.nan)
    assert means.num_nonfinite == sum(not math.isfinite(x) for _, pairs in steps for _, x in pairs) > 0


def test_means_are_the_correctly_rounded_ones_over_the_whole_range_of_float32():
    tiny, huge = 2.0**-149, float(np.finfo(np.float32).max)
    means = Means(10)
    got = means.add(0, [("a", tiny), ("b", huge), ("c", -huge), ("d", 3 * tiny)])
    assert got.loss == float(Fraction(tiny) * 4 / 4) == tiny
    assert got.latest == tiny
    assert Means(10).add(0, [("a", huge), ("b", huge)]).window_se == 0.0


def test_the_order_of_samples_changes_no_bit():
    generator = np.random.default_rng(3)
    samples = [(f"p{i}", float(x)) for i, x in enumerate(generator.lognormal(-3, 4, 500).astype(np.float32))]
    forwards = Means(5).add(0, samples)
    assert forwards == Means(5).add(0, samples[::-1])


def test_steps_without_a_finite_loss_are_nan_and_leave_the_window_as_it_was():
    means = Means(5)
    assert math.isnan(means.add(0, [("a", math.nan)]).window)
    means.add(1, [("a", 1.0), ("b", 3.0)])
    got = means.add(2, [("a", math.inf)])
    assert math.isnan(got.loss)
    assert (got.latest, got.window, got.window_se, got.n) == (2.0, 2.0, 1.0, 2)
    assert means.num_nonfinite == 2
