"""Work in threads gives results in order, with little ahead, and its errors at their place."""

from __future__ import annotations

import threading
import time

import pytest
from sd_atelier.lib.data import pool
from sd_atelier.lib.data.pool import in_order, room_for


@pytest.fixture(params=[1, 3])
def num_threads(request, monkeypatch):
    monkeypatch.setattr(pool.os, "cpu_count", lambda: request.param)
    return request.param


def test_results_come_in_the_order_of_the_items(num_threads):
    def work(item):
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(in_order(work, range(40))) == [i * i for i in range(40)]
    assert list(in_order(work, [])) == []


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_no_more_than_was_said_is_under_way_or_waiting(num_threads, ahead):
    begun = []
    results = in_order(lambda item: begun.append(item), range(100), ahead)
    for taken in range(1, 20):
        next(results)
        assert len(begun) <= taken + (1 + ahead) * num_threads
    results.close()
    num = len(begun)
    time.sleep(0.02)
    assert len(begun) == num < 60


def test_an_error_is_raised_at_its_place_and_ends_the_work(num_threads):
    begun = []

    def work(item):
        begun.append(item)
        if item == 5:
            raise ValueError("five")
        return item

    results, got = in_order(work, range(1000)), []
    with pytest.raises(ValueError, match="five"):
        for result in results:
            got.append(result)
    assert got == [0, 1, 2, 3, 4] and len(begun) < 50


def test_the_work_is_done_by_several_threads_at_once(monkeypatch):
    monkeypatch.setattr(pool.os, "cpu_count", lambda: 4)
    meeting = threading.Barrier(4, timeout=10)
    assert list(in_order(lambda item: meeting.wait() >= 0, range(8))) == [True] * 8


def test_of_large_pictures_one_is_decoded_at_a_time():
    assert room_for((10_000, 10_000)) is room_for((8000, 8000))
    with room_for((10_000, 10_000)), room_for((100, 100)), room_for((100, 100)):
        assert not room_for((10_000, 10_000)).acquire(blocking=False)
