"""The arithmetic of the step benchmark; no timings."""

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("bench_step", Path(__file__).with_name("step.py"))
step = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = step  # dataclasses look their module up
_spec.loader.exec_module(step)


def test_speed_is_the_median_of_the_ratio_in_each_round():
    # the machine was busy in the second round and slowed both down
    result = step.summary([1.0, 10.0, 1.0], [2.0, 20.0, 4.0])
    assert result == {"seconds": 1.0, "min": 1.0, "max": 10.0, "speed": 2.0}


def test_rounds_must_match():
    with pytest.raises(ValueError):
        step.summary([1.0], [1.0, 2.0])


def test_disagreement_is_relative_and_finds_the_odd_one_out():
    assert step.disagreement({"a": 2.0, "b": 2.0}) == 0
    assert step.disagreement({"a": 2.0, "b": 2.0, "c": 2.5}) == pytest.approx(0.25)


def test_a_loss_that_is_not_a_number_disagrees():
    assert not step.agree({"a": 1.0, "b": float("nan")}, 1e-2)
    assert step.agree({"a": 1.0, "b": 1.001}, 1e-2)


def test_those_who_do_not_fit_together_meet_the_first_in_pairs():
    assert step.groups(["a", "b", "c"], 2) == [["a", "b"], ["a", "c"]]
    assert step.groups(["a", "b", "c"], 3) == [["a", "b", "c"]]
    assert step.groups(["a"], 2) == [["a"]]
