"""Comparisons: pairs give the interval of Student's t, and pictures are compared only at the same t."""

import itertools
import math

import numpy as np
import pytest
from sd_atelier.lib import comparison

# Upper 2.5 % points as printed in tables.
TABLE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 10: 2.2281, 31: 2.0395, 100: 1.9840}


@pytest.mark.parametrize("degrees", TABLE)
def test_student_t_equals_the_tables(degrees):
    assert comparison.student_t(degrees) == pytest.approx(TABLE[degrees], abs=6e-5)


def test_student_t_falls_smoothly_to_the_normal_value_also_where_the_method_changes():
    values = [comparison.student_t(d) for d in range(1, 400)]
    assert all(a > b for a, b in itertools.pairwise(values))
    assert comparison.student_t(200) - comparison.student_t(201) == pytest.approx(6e-5, abs=1e-5)
    assert comparison.student_t(10**9) == pytest.approx(1.959964, abs=1e-6)


def test_paired_interval_of_three_differences_by_hand():
    mean, low, high = comparison.paired_interval(np.array([1.0, 2.0, 3.0]))
    half = 4.302653 * 1.0 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((2.0, 2 - half, 2 + half))


@pytest.mark.parametrize("num_pairs", [4, 15])
def test_paired_interval_holds_the_truth_95_times_in_100(num_pairs):
    samples = np.random.default_rng(0).normal(0.3, 1.0, (4000, num_pairs))
    held = [low <= 0.3 <= high for _, low, high in map(comparison.paired_interval, samples)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


def test_too_few_pairs_claim_nothing():
    assert all(math.isnan(v) for v in comparison.paired_interval(np.array([])))
    assert comparison.paired_interval(np.array([0.5])) == (0.5, -math.inf, math.inf)
    assert all(math.isnan(v) for v in comparison.paired_interval(np.array([0.5, math.nan])))


def test_each_picture_counts_once_however_many_rows_it_has():
    image, values = np.array(["b", "a", "b", "b"]), np.array([1.0, 7.0, 2.0, 6.0])
    assert comparison.picture_means(image, values).tolist() == [3.0, 7.0]


def test_bins_hold_every_row_and_their_means_and_errors():
    t = np.array([0, 49, 50, 999, 1000, 951])
    loss = np.array([1.0, 3.0, 5.0, 2.0, 4.0, 6.0])
    bins = comparison.bins_of(t, loss)
    assert bins.count.sum() == t.size
    assert bins.mean[0] == 2.0 and bins.standard_error[0] == pytest.approx(1.0)
    assert bins.mean[1] == 5.0 and math.isnan(bins.standard_error[1])
    assert bins.mean[-1] == 4.0 and math.isnan(bins.mean[10])
    assert bins.centre[0] == 25.0


def test_flow_times_have_bins_from_0_to_1():
    assert comparison.bins_of(np.array([0.1, 0.9]), np.ones(2)).edges[-1] == 1.0
    assert comparison.bins_of(np.array([0.0, 1.0, 1.0]), np.ones(3)).edges[-1] == 1000.0
    assert comparison.bins_of(np.array([]), np.array([])).count.sum() == 0


def test_picture_that_was_only_shown_at_hard_timesteps_is_not_called_hard():
    rng = np.random.default_rng(0)
    t = np.concatenate([rng.uniform(0, 100, 400), rng.uniform(900, 1000, 400)])
    loss = np.where(t < 500, 1.0, 0.1) * rng.lognormal(0, 0.2, 800)
    # "low" sees only low t, where every loss is high; "both" sees both; "hard" has 1.5 times the loss wherever it is.
    image = np.array((["low"] * 200 + ["both"] * 100 + ["hard"] * 100) + (["both"] * 200 + ["hard"] * 200))
    loss = loss * np.where(image == "hard", 1.5, 1.0)
    pictures = {p.image: p for p in comparison.by_picture(image, t, loss)}
    assert pictures["low"].mean > 1.5 * pictures["hard"].mean
    assert pictures["low"].relative < 1.05
    assert pictures["hard"].relative > 1.15
    assert next(iter(pictures)) == "hard"
    assert pictures["hard"].relative_error == pytest.approx(0.2 * 1.3 / math.sqrt(300), rel=0.5)


def test_picture_keeps_its_last_loss_and_counts_what_is_not_finite():
    image = np.array(["a", "b", "a", "a", "c"])
    loss = np.array([1.0, 2.0, 3.0, math.nan, math.inf])
    pictures = {p.image: p for p in comparison.by_picture(image, np.arange(5.0), loss)}
    assert (pictures["a"].num_rows, pictures["a"].num_nonfinite, pictures["a"].latest) == (2, 1, 3.0)
    assert pictures["a"].mean == 2.0
    assert pictures["c"].num_rows == 0 and math.isnan(pictures["c"].mean) and math.isnan(pictures["c"].relative)
    assert pictures["b"].num_rows == 1 and math.isnan(pictures["b"].relative_error)


def test_losses_of_zero_do_not_divide_by_zero():
    pictures = comparison.by_picture(np.array(["a", "b"]), np.array([5.0, 5.0]), np.zeros(2))
    assert [p.relative for p in pictures] == [1.0, 1.0]
