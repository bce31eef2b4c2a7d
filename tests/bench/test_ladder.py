"""The arithmetic of the memory ladder's benchmark; no timings."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ladder():
    sys.path.insert(0, str(HERE))  # for step, which it takes its contenders from
    try:
        spec = importlib.util.spec_from_file_location("bench_ladder", HERE / "ladder.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(HERE))


def test_the_first_rung_is_the_plain_step_and_every_other_differs(ladder):
    options = [tuple(o) for o in ladder.RUNGS.values()]
    assert options[0] == () and len(set(options)) == len(options)


def test_bf16_storage_is_no_rung_of_a_model_in_bf16(ladder):
    assert set(ladder.rungs_of("fp32")) == set(ladder.RUNGS)
    assert set(ladder.RUNGS) - set(ladder.rungs_of("bf16")) == {"checkpointing, bf16"}


def test_a_row_says_how_many_times_as_long_a_step_takes_as_the_plain_one(ladder):
    row = {"dtype": "bf16", "rung": "r", "cpu_seconds": 1.0, "peak_mb": 7.0, "kept_mb": 2.0, "rest_mb": 5.0}
    row |= {"first_loss": 0.5, **ladder.summary([3.0, 30.0, 3.0], [2.0, 20.0, 1.0])}
    assert ladder.table_line(row) == "| bf16 | r | 3.000 | 1.50 | 1.000 | 7 | 2 | 5 | 0.50000 |"
    assert ladder.HEADER.splitlines()[0].count("|") == ladder.table_line(row).count("|")
