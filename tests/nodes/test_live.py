"""Runs that go on: what a page is told of them, and what it may ask."""

import pytest
from sd_atelier.lib.host import Progress
from sd_atelier.nodes import live
from sd_atelier.nodes.live import LiveRun, Runs


def progress(step, note=""):
    return Progress(
        step=step,
        num_steps=10,
        loss=0.5,
        rate=1e-4,
        seconds_per_step=0.1,
        seconds_left=1.0,
        memory_mb=10.0,
        step_loss=step / 10,
        note=note,
    )


@pytest.fixture
def told():
    return []


@pytest.fixture
def run(told):
    run = LiveRun("3", lambda event, payload: told.append((event, payload)))
    run.update(state="running", num_steps=10)
    return run


def test_every_point_is_told_once_however_seldom_events_are_sent(run, told, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    for step in range(1, 10):
        now[0] += 0.1
        run.progress(progress(step), saved_step=None)
    run.end("finished", "done", "x.safetensors")
    events = [payload for event, payload in told if event == "atelier.progress"]
    assert 2 <= len(events) < 9
    assert [point[0] for event in events for point in event["points"]] == list(range(1, 10))


def test_a_step_that_is_shown_again_is_no_new_point(run):
    for note in ("", "paused", "paused"):
        run.progress(progress(4, note), saved_step=4)
    assert [point[0] for point in run.history()["points"]] == [4]
    assert run.about()["note"] == "paused"


def test_the_history_of_a_long_run_is_thinned_and_keeps_the_newest(run):
    for step in range(1, 10_002):
        run.progress(progress(step), saved_step=None)
    points = run.history()["points"]
    assert len(points) <= live.MAX_POINTS
    assert points[-1][0] == 10_001


@pytest.mark.parametrize(
    ("what", "state"), [("stop", "stopping"), ("pause", "paused"), ("save", "running"), ("sample", "running")]
)
def test_what_is_asked_reaches_the_run_and_the_page(run, told, what, state):
    assert run.ask(what) == state
    control = run.control
    assert control.stop_requested == (what == "stop")
    assert control.paused == (what == "pause")
    assert control.taken() == ({what} if what in ("save", "sample") else set())
    assert told[-1][1]["state"] == state


def test_a_pause_does_not_hide_that_the_run_stops(run):
    run.ask("stop")
    assert run.ask("pause") == "stopping"


def test_nothing_else_can_be_asked(run):
    for what in ("", "taken", "__class__", "stop_requested"):
        with pytest.raises(ValueError, match="a run can be asked"):
            run.ask(what)


def test_the_run_of_a_node_is_the_one_that_goes_on():
    runs = Runs()
    first, second = (runs.begin("3", lambda *told: None) for _ in range(2))
    second.end("failed", "no")
    assert runs.find("node:3") is first
    first.end("finished", "done")
    assert runs.find("node:3") is second
    assert runs.find(first.id) is first
    assert runs.find("node:4") is None


def test_ended_runs_are_forgotten_and_those_that_go_on_never():
    runs = Runs()
    kept = runs.begin("1", lambda *told: None)
    for _ in range(3 * live.NUM_KEPT):
        runs.begin("2", lambda *told: None).end("finished", "done")
    assert len(runs.all()) <= live.NUM_KEPT + 3
    assert runs.find(kept.id) is kept


def test_a_node_whose_run_was_stopped_is_to_be_run_again():
    runs = Runs()
    before = runs.fingerprint("3")
    runs.ended_unfinished("3")
    assert runs.fingerprint("3") != before
    assert runs.fingerprint("4") == before
