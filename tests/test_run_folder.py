"""The run folder: never another run's, never two owners, never going on as another run; kills lose nothing."""

import dataclasses
import json
import os
import random
import signal
import time
import traceback

import pytest
import torch
from sd_atelier.lib import files
from sd_atelier.lib.checkpoints import MARKER, NoCheckpointError, TrainState
from sd_atelier.lib.config import RunConfig, from_dict, merge
from sd_atelier.lib.fingerprint import fingerprint
from sd_atelier.lib.manifest import DamagedError
from sd_atelier.lib.owner import FolderInUseError
from sd_atelier.lib.recorder import Recorder
from sd_atelier.lib.records import read_losses, read_run
from sd_atelier.lib.run_folder import ResumeRefused, RunFolder, differences

CONFIG = from_dict(RunConfig, {"name": "cat", "loop": {"steps": 40}, "data": {"concepts": [{"folder": "/a/cats"}]}})
BASE = fingerprint([("unet.a", torch.arange(40.0)), ("unet.b", torch.ones(3))])
DATA = {"cats/1.png": {"sha256": "aa"}, "cats/2.png": {"sha256": "bb"}}
VERSIONS = {"torch": "2.1.2", "atelier": "0.1.0"}
GIVEN = {"versions": VERSIONS, "base": BASE, "data_manifest": DATA}


def create(parent, name="cat", **given):
    return RunFolder.create(parent, name, CONFIG, **{**GIVEN, **given})


def recorder_of(run):
    return Recorder(run.path, CONFIG.record, CONFIG.loop.seed, ["unet"])


def first_state():
    return TrainState(step=0, images_seen=0, tensors={"trainable.w": torch.zeros(50)}, values={"position": 0})


def trained(state, recorder):
    """One step of a run in which everything depends on everything before."""
    generator = torch.Generator().manual_seed(state.step)
    noise = torch.randn(50, generator=generator)
    weight = state.tensors["trainable.w"] * 0.97 + noise * 0.1
    losses = (weight[:2] - noise[:2]) ** 2
    recorder.add(state.step, 0, ("a.png", "b,c.png"), ("x", "y"), torch.tensor([5, 6]), losses, torch.ones(2), 1e-4)
    recorder.end_step(state.step, {"unet": 1e-4}, losses.norm())
    return TrainState(
        step=state.step + 1,
        images_seen=state.images_seen + 2,
        tensors={"trainable.w": weight},
        values={"position": state.values["position"] + 2},
    )


def save(run, state, recorder=None, **options):
    if recorder:
        state = dataclasses.replace(state, records=recorder.offsets())
    return run.save(state, {"w": state.tensors["trainable.w"]}, lambda stem: {"ss_output_name": stem}, **options)


def train(run, num_steps, *, say=lambda step: None, **options):
    """Go on to `num_steps`, a checkpoint at each step. The state."""
    recorder = recorder_of(run)
    try:
        state, _, notes = run.load()
        assert notes == []
    except NoCheckpointError:
        state = first_state()
    recorder.restore(state.records)
    while state.step < num_steps:
        state = trained(state, recorder)
        save(run, state, recorder, **options)
        say(state.step)


def test_a_new_run_has_its_folders_its_marker_and_everything_that_decides_it(tmp_path):
    run = create(tmp_path / "deep" / "runs")
    assert run.path == tmp_path / "deep" / "runs" / "cat"
    assert {p.name for p in run.path.iterdir()} == {MARKER, "run.json", "checkpoints", "state", "previews"}
    again = RunFolder.open(run.path)
    assert again.description == run.description
    assert again.config == CONFIG
    assert (again.id, again.previews) == (run.id, run.path / "previews")
    description = json.loads((run.path / "run.json").read_bytes())
    assert (description["base"], description["data"], description["versions"]) == (BASE, DATA, VERSIONS)
    assert description["lineage"] is None
    assert description["config"]["optimizer"]["weight_decay"] == CONFIG.optimizer.weight_decay


def test_a_folder_with_content_is_never_used_again(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "mine.txt").write_text("x")
    (tmp_path / "cat-2").write_text("a file")
    (tmp_path / "cat-3").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cat-4").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [create(tmp_path).path.name for _ in range(3)] == ["cat-3", "cat-5", "cat-6"]
    assert [p.name for p in (tmp_path / "cat").iterdir()] == ["mine.txt"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert len({RunFolder.open(tmp_path / name).id for name in ("cat-3", "cat-5", "cat-6")}) == 3


def test_names_never_lead_out_of_the_parent(tmp_path):
    for name in ("../../x", "/etc/x", "..", "", "CON", "a\0b", "日本 é"):
        run = create(tmp_path / "runs", name)
        assert run.path.parent == tmp_path / "runs"
        with run.owner():
            path = save(run, dataclasses.replace(first_state(), step=1))
        assert path.parent == run.path / "checkpoints"
        assert path.name == f"{run.path.name}-000001.safetensors"


def test_what_is_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run folder \(it has no \.atelier-run\)"):
        RunFolder.open(tmp_path)
    run = create(tmp_path)
    raw = (run.path / "run.json").read_bytes()
    (run.path / "run.json").write_bytes(raw.replace(b'"steps": 40', b'"steps": 41'))
    with pytest.raises(DamagedError, match=r"run\.json was changed since it was written"):
        RunFolder.open(run.path)
    (run.path / "run.json").unlink()
    with pytest.raises(DamagedError, match=r"run\.json is missing"):
        RunFolder.open(run.path)


def test_writing_needs_the_ownership_and_reading_does_not(tmp_path):
    run = create(tmp_path)
    with pytest.raises(AssertionError):
        save(run, first_state())
    with run.owner():
        train(run, 2)
        with pytest.raises(FolderInUseError), RunFolder.open(run.path).owner():
            pass
        assert RunFolder.open(run.path).steps() == [1, 2]
    with pytest.raises(AssertionError):
        save(run, first_state())


def test_the_owner_clears_away_what_killed_writers_left(tmp_path):
    run = create(tmp_path)
    left = [run.path / f / ".atelier-999999999-0a.part" for f in ("", "checkpoints", "state", "previews")]
    for path in left:
        path.write_bytes(b"x")
    with run.owner():
        assert not any(path.exists() for path in left)


def test_an_unchanged_run_goes_on(tmp_path):
    run = create(tmp_path)
    before = (run.path / "run.json").read_bytes()
    with run.owner():
        assert run.resume(CONFIG, **GIVEN) == []
    assert (run.path / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"save": {"every_steps": 7, "every_epochs": 1, "at_cycle_ends": True, "keep_last": 3, "pins": [1, 2]}},
        {"preview": {"prompts": ["a: b\nc"], "every_steps": 5, "seed": 9}},
        {"record": {"flush_every_steps": 1}},
        {"data": {"concepts": [{"folder": "/elsewhere/cats"}]}},
    ],
)
def test_settings_without_effect_on_the_result_may_change_and_are_kept(tmp_path, change):
    run = create(tmp_path)
    config = merge(CONFIG, change)
    with run.owner():
        notes = run.resume(config, **GIVEN)
    assert notes and all(note.startswith("setting changed: ") for note in notes)
    assert RunFolder.open(run.path).config == config


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"loop": {"steps": 80}}, "loop.steps: 40 -> 80"),
        ({"loop": {"batch_size": 2}}, "loop.batch_size: 1 -> 2"),
        ({"name": "dog"}, 'name: "cat" -> "dog"'),
        ({"save": {"dtype": "fp32"}}, 'save.dtype: "fp16" -> "fp32"'),
        ({"record": {"window_steps": 50}}, "record.window_steps: 100 -> 50"),
        ({"rate": {"schedule": "1e-5"}}, 'rate.schedule: "1e-4" -> "1e-5"'),
        ({"data": {"concepts": [{"folder": "/a/cats", "repeats": 2}]}}, "data.concepts[0].repeats: 1 -> 2"),
    ],
)
def test_any_other_setting_is_refused_as_a_diff_with_the_way_out(tmp_path, change, line):
    run = create(tmp_path)
    with run.owner(), pytest.raises(ResumeRefused, match="fork the run") as caught:
        run.resume(merge(CONFIG, change), **GIVEN)
    assert caught.value.differences == [line]
    assert line in str(caught.value)
    assert RunFolder.open(run.path).config == CONFIG


def test_changed_data_and_another_base_are_refused_by_name(tmp_path):
    run = create(tmp_path)
    data = {"cats/1.png": {"sha256": "changed"}, "cats/3.png": {"sha256": "cc"}}
    base = fingerprint([("unet.a", torch.arange(40.0) + 1), ("unet.b", torch.ones(3))])
    lines = [
        "data: cats/1.png was changed",
        "data: cats/2.png is missing",
        "data: cats/3.png is new",
        "base model: weights differ in 1 of 2 layers: unet.a",
    ]
    assert differences(run.description, CONFIG, base, data) == lines
    with run.owner(), pytest.raises(ResumeRefused) as caught:
        run.resume(CONFIG, versions=VERSIONS, base=base, data_manifest=data)
    assert caught.value.differences == lines


def test_a_long_diff_is_cut_in_the_message_and_whole_in_the_error(tmp_path):
    run = create(tmp_path)
    with run.owner(), pytest.raises(ResumeRefused, match="and 82 more") as caught:
        run.resume(CONFIG, versions=VERSIONS, base=BASE, data_manifest={f"{i}.png": i for i in range(100)})
    assert len(caught.value.differences) == 102


def test_other_versions_are_said_and_not_refused(tmp_path):
    run = create(tmp_path)
    with run.owner():
        notes = run.resume(CONFIG, versions={"torch": "2.13.0"}, base=BASE, data_manifest=DATA)
        assert notes == [
            "atelier was 0.1.0 and is absent: the last bits may differ",
            "torch was 2.1.2 and is 2.13.0: the last bits may differ",
        ]
        assert run.resume(CONFIG, versions={"torch": "2.13.0"}, base=BASE, data_manifest=DATA) == []


def test_a_fork_goes_on_from_its_step_with_its_lineage_and_the_source_is_as_it_was(tmp_path):
    source = create(tmp_path)
    with source.owner():
        train(source, 6)
    before = {p: p.read_bytes() for p in source.path.rglob("*") if p.is_file()}
    config = merge(CONFIG, {"rate": {"schedule": "1e-5"}})
    fork = RunFolder.fork(source, 4, tmp_path, "cat slow", config, **GIVEN)
    assert {p: p.read_bytes() for p in source.path.rglob("*") if p.is_file()} == before
    fork = RunFolder.open(fork.path)
    assert fork.config == config and fork.id != source.id
    assert fork.description["lineage"] == {"run": source.id, "name": "cat", "path": str(source.path), "step": 4}
    assert fork.steps() == [4]
    assert files.read_safetensors(fork.path / "checkpoints" / "cat slow-000004.safetensors")[1] == {
        "ss_output_name": "cat slow-000004"
    }
    with fork.owner():
        train(fork, 6)
    assert [read_losses(fork.path / "loss.csv")["step"].tolist(), read_run(fork.path / "run.csv")["step"].tolist()] == [
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5],
        [0, 1, 2, 3, 4, 5],
    ]
    # nothing in this test run depends on the rate, so the fork repeats the source to the bit
    for name in ("loss.csv", "run.csv"):
        assert (fork.path / name).read_bytes() == (source.path / name).read_bytes()
    assert torch.equal(fork.load()[1]["w"], source.load()[1]["w"])


def test_a_fork_that_fails_is_no_run(tmp_path, monkeypatch):
    source = create(tmp_path)
    with source.owner():
        train(source, 3)
    with pytest.raises(NoCheckpointError, match=r"no checkpoint of step 9 to go on from \(there: 1, 2, 3\)"):
        RunFolder.fork(source, 9, tmp_path, "fork", CONFIG, **GIVEN)
    assert [p.name for p in tmp_path.iterdir()] == ["cat"]
    (source.path / "run.csv").unlink()
    with pytest.raises(ValueError, match=r"run\.csv is missing"):
        RunFolder.fork(source, 3, tmp_path, "fork", CONFIG, **GIVEN)
    with pytest.raises(DamagedError, match=r"run\.json is missing"):
        RunFolder.open(tmp_path / "fork")


def test_a_failing_call_anywhere_in_a_run_is_made_good_by_the_next_try(tmp_path, failing_disk):
    """As the trainer does while a disk is full: what is in memory is saved later, and nothing shows of it."""
    whole = create(tmp_path, "whole")
    with whole.owner():
        train(whole, 3)
    at = 0
    while True:
        failing_disk.disarm()
        run = create(tmp_path, "tried")
        recorder, state = recorder_of(run), first_state()
        with run.owner():
            failing_disk.arm(at, 28, lasting=False)
            for _ in range(3):
                state = trained(state, recorder)
                try:
                    save(run, state, recorder)
                except OSError:
                    save(run, state, recorder)
        if failing_disk.failed is None:
            break
        for name in ("loss.csv", "run.csv"):
            assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
        assert run.steps() == [1, 2, 3]
        got, wanted = run.load()[0], whole.load()[0]
        assert torch.equal(got.tensors["trainable.w"], wanted.tensors["trainable.w"])
        assert (got.values, got.records) == (wanted.values, wanted.records)
        at += 5
    assert at > 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_50_kills_at_random_moments_lose_nothing(tmp_path):
    """A child trains and saves in a loop until SIGKILL; the next one goes on. Then against a run that was never cut."""
    run = create(tmp_path, "killed")
    generator = random.Random(0)
    promised = num_steps = 0
    began = time.monotonic()
    with run.owner():
        train(run, 10)
    seconds_per_step = (time.monotonic() - began) / 10
    for _ in range(50):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                child = RunFolder.open(run.path)
                with child.owner():
                    train(child, 10**6, keep_last=3, say=lambda step, pipe=writing: os.write(pipe, b"%d\n" % step))
            finally:
                traceback.print_exc()
                os._exit(1)
        os.close(writing)
        time.sleep(generator.uniform(0, 8) * seconds_per_step)
        os.kill(pid, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "the child ended by itself; its error is above"
        with os.fdopen(reading) as pipe:
            promised = max([promised, *map(int, pipe.read().split())])
        state, weights, notes = RunFolder.open(run.path).load()
        assert notes == []
        assert state.step >= promised
        assert len(run.steps()) >= 2
        num_steps = state.step
    assert num_steps > 20, "the children came to nothing: 10 steps were done before the first kill"
    whole = create(tmp_path, "whole")
    recorder, state = recorder_of(whole), first_state()
    while state.step < num_steps:
        state = trained(state, recorder)
    state.records = recorder.offsets()
    with run.owner():
        assert not list(run.path.rglob("*.part"))
        killed, weights, _ = run.load()
        recorder_of(run).restore(killed.records)
    assert torch.equal(killed.tensors["trainable.w"], state.tensors["trainable.w"])
    assert torch.equal(weights["w"], state.tensors["trainable.w"])
    assert (killed.values, killed.records, killed.images_seen) == (state.values, state.records, state.images_seen)
    for name in ("loss.csv", "run.csv"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
