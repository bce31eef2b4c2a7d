"""A run that is stopped and taken up again, at any step, with objects made anew, is the run that never stopped."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from sd_atelier.lib.config import RunConfig, merge
from sd_atelier.lib.preparation import StoppedError
from sd_atelier.lib.registry import OPTIMIZERS
from toy_host import ToyHost
from toy_run import checkpoint, outcome, records, resume, settings, start, unlike

NUM_STEPS = 40


def optimizer(name: str) -> object:
    library = OPTIMIZERS.get(name).library
    absent = library is not None and importlib.util.find_spec(library) is None
    return pytest.param(name, marks=pytest.mark.skipif(absent, reason=f"{library} is not installed"))


def settings_for(name: str, pictures: Path) -> RunConfig:
    if not OPTIMIZERS.get(name).one_rate:
        return settings(pictures, optimizer__name=name, loop__steps=NUM_STEPS)
    # one rate for everything that is trained, as a factor on the step size that the optimizer finds
    rates = {"rate__schedule": "0->1:+3, 1->0.5", "rate__text_encoder": "", "trainable__rules": []}
    return settings(pictures, optimizer__name=name, loop__steps=NUM_STEPS, **rates)


@pytest.mark.slow
@pytest.mark.parametrize("name", [optimizer(name) for name in OPTIMIZERS.names()])
def test_a_run_stopped_and_resumed_at_every_step_is_the_one_that_never_stopped(
    name: str, pictures: Path, tmp_path: Path
) -> None:
    config = settings_for(name, pictures)
    plain, _ = start(ToyHost(), config, tmp_path / "plain")
    expected = outcome(plain)
    saved_often, _ = start(ToyHost(), merge(config, {"save": {"every_steps": 1}}), tmp_path / "often")
    assert unlike(outcome(saved_often), expected) == [], "saving changes the run"

    run, ended = start(ToyHost(stop_at=1), config, tmp_path / "stopped")
    for step in range(1, NUM_STEPS):
        assert (ended.reason, ended.step) == ("stopped", step)
        assert unlike(checkpoint(run), checkpoint(saved_often, step)) == [], f"stopped at step {step}"
        for file, content in records(run).items():
            assert expected[file].startswith(content), f"{file} at step {step}"
        # one step further, and from here and there in one go to the end; 7 shares no factor with any rhythm of the run
        if step % 7 == 3:
            copy = tmp_path / "stopped" / f"copy {step}"
            shutil.copytree(run, copy)
            assert resume(ToyHost(), copy).reason == "finished"
            assert unlike(outcome(copy), expected) == [], f"resumed at step {step}"
        ended = resume(ToyHost(stop_at=step + 1), run)
    assert ended.reason == "finished"
    assert unlike(outcome(run), expected) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"preview__every_steps": 0},
        {"trainable__text_encoder": False},
        {"trainable__text_encoder": False, "data__shuffle_tags": False, "data__tag_dropout": 0.0},
        {"loop__block_checkpointing": True},
        {"loop__compute_dtype": "bf16", "save__dtype": "bf16"},
        {"loop__deterministic": True},
        {"loop__steps": None, "loop__epochs": 4},
        {"loop__accumulate": 1},
        {"objective__stratified": False, "objective__weighting": "debiased", "objective__loss": "huber"},
        {"rate__schedule": "3 x (0->1e-3:+1, 1e-3->1e-4:+3)", "trainable__rules": []},
        {"rate__schedule": "1e-3:8", "rate__stop_at_end": True},
    ],
    ids=lambda changes: ", ".join(f"{k.split('__')[1]} {v}" for k, v in changes.items()),
)
def test_so_it_is_with_other_settings(changes: dict, pictures: Path, tmp_path: Path) -> None:
    config = settings(pictures, **changes)
    whole, _ = start(ToyHost(), config, tmp_path)
    run, _ = start(ToyHost(stop_at=2), config, tmp_path)
    resume(ToyHost(stop_at=5), run)
    for _ in range(2):  # the second time there is nothing left to do
        assert resume(ToyHost(), run).reason == "finished"
        assert unlike(outcome(run), outcome(whole)) == []


@pytest.mark.parametrize("before", [False, True])
def test_block_checkpointing_may_change_on_the_way(before: bool, uninterrupted, pictures: Path, tmp_path: Path) -> None:
    run, _ = start(ToyHost(stop_at=4), settings(pictures, loop__block_checkpointing=before), tmp_path)
    assert resume(ToyHost(), run, loop__block_checkpointing=not before).reason == "finished"
    said = "metadata ss_gradient_checkpointing"
    assert [name for name in unlike(outcome(run), uninterrupted) if said not in name] == []


def test_fp16_resumes_with_its_loss_scale(pictures: Path, tmp_path: Path) -> None:
    if torch.__version__.startswith("2.1."):
        pytest.skip("torch 2.1 cannot convolve fp16 on the CPU")

    def host(stop_at: int | None = None) -> ToyHost:
        made = ToyHost(dtype=torch.float16, stop_at=stop_at)
        # in these steps the scaled gradient is more than fp16 holds, and the loss is not
        made.at = lambda phase: 300.0 if phase == "forward" and made.step in (2, 3, 7) else None
        return made

    config = settings(
        pictures, loop__compute_dtype="fp16", loop__max_nonfinite=1, save__dtype="fp16", save__every_steps=1
    )
    whole, _ = start(host(), config, tmp_path)
    scales = [json.loads(checkpoint(whole, step)["value loss_scaler"])["scale"] for step in range(1, 13)]
    assert scales == [2.0**16] * 2 + [2.0**15] + [2.0**14] * 4 + [2.0**13] * 5
    for step in (2, 3, 7):
        changed = unlike(checkpoint(whole, step), checkpoint(whole, step + 1))
        assert not any(name.startswith(("published", "state")) for name in changed)
    run, _ = start(host(stop_at=4), config, tmp_path)
    resume(host(stop_at=6), run)
    resume(host(), run)
    assert unlike(outcome(run), outcome(whole)) == []


def test_a_run_stopped_before_its_first_step_goes_on_from_there(uninterrupted, pictures: Path, tmp_path: Path) -> None:
    host = ToyHost()

    def stop_now(prepared: object) -> None:
        host.stop_at = -1

    run, ended = start(host, settings(pictures), tmp_path, stop_now)
    assert (ended.reason, ended.step) == ("stopped", 0)
    resume(ToyHost(), run)
    assert unlike(outcome(run), uninterrupted) == []


def test_a_stop_while_pictures_are_encoded_leaves_no_run(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        start(ToyHost(stop_at=-1), settings(pictures), tmp_path)
    assert not list(tmp_path.glob("run*"))


def test_a_run_killed_before_its_first_checkpoint_begins_again(uninterrupted, pictures: Path, tmp_path: Path) -> None:
    host, killed = ToyHost(), tmp_path / "killed"

    def copy_the_folder(phase: str) -> None:
        if host.step == 5 and phase == "progress":
            shutil.copytree(tmp_path / "run", killed)

    host.at = copy_the_folder
    start(host, settings(pictures), tmp_path)
    assert len(records(killed)["loss.csv"].splitlines()) > 10 and not list((killed / "state").iterdir())
    resume(ToyHost(), killed)
    assert unlike(outcome(killed), uninterrupted) == []


def test_a_stop_acts_after_the_step_in_which_it_is_asked_for(uninterrupted, pictures: Path, tmp_path: Path) -> None:
    host = ToyHost()

    def ask(phase: str) -> None:
        if host.step == 4 and phase == "backward":
            host.stop_at = 0

    host.at = ask
    run, ended = start(host, settings(pictures), tmp_path)
    assert (ended.reason, ended.step) == ("stopped", 5)
    assert checkpoint(run)["step"] == 5
    resume(ToyHost(), run)
    assert unlike(outcome(run), uninterrupted) == []


def test_it_is_the_same_run_in_a_program_that_runs_in_inference_mode(
    uninterrupted, pictures: Path, tmp_path: Path
) -> None:
    with torch.inference_mode():
        run, _ = start(ToyHost(stop_at=5), settings(pictures), tmp_path)
        resume(ToyHost(), run)
        assert torch.is_inference_mode_enabled()
    assert unlike(outcome(run), uninterrupted) == []
