"""What a user may ask of a run, from any thread."""

from __future__ import annotations

import threading

from sd_atelier.lib.control import Control


def test_nothing_is_asked_at_first():
    control = Control()
    assert not control.stop_requested and not control.paused and control.taken() == set()


def test_saving_and_sampling_are_done_once_for_each_time_they_are_asked_for():
    control = Control()
    control.save()
    control.save()
    control.sample()
    assert control.taken() == {"save", "sample"} and control.taken() == set()
    control.sample()
    assert control.taken() == {"sample"}


def test_stopping_stays_and_a_pause_ends():
    control = Control()
    threads = [threading.Thread(target=ask) for ask in (control.stop, control.pause)]
    for thread in threads:
        thread.start()
        thread.join()
    assert control.stop_requested and control.paused
    control.go_on()
    assert control.stop_requested and not control.paused
