"""Faults in each phase of a run: the host is left as it was, what is promised is on disk, and the run can go on."""

from __future__ import annotations

import errno
import gc
import re
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sd_atelier.lib import files, trainer
from sd_atelier.lib.memory import OutOfMemoryError
from sd_atelier.lib.preparation import Prepared
from sd_atelier.lib.records import read_losses, read_run
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.lib.trainer import NotFiniteError
from toy_host import ToyHost
from toy_run import all_bytes, checkpoint, outcome, records, resume, settings, start, unlike


class InterruptedByHost(BaseException):
    """What a host throws through everything to end what is running."""


def raise_at(host: ToyHost, phase: str, step: int, error: BaseException, occurrence: int = 1) -> None:
    """Raise the error, once, when the run comes to `phase` for the n-th time in update `step` (from 1)."""
    num_left = occurrence

    def at(name: str) -> None:
        nonlocal num_left
        if name == phase and host.step == step:
            num_left -= 1
            if num_left == 0:
                raise error

    host.at = at


DEVICE_FULL = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU_FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
IN_A_STEP = {
    "device full in the first pass": ("forward", 1, DEVICE_FULL, OutOfMemoryError),
    "device full in the second pass": ("forward", 2, DEVICE_FULL, OutOfMemoryError),
    "memory full in the backward pass": ("backward", 1, CPU_FULL, OutOfMemoryError),
    "memory full in the second backward pass": ("backward", 2, RuntimeError("not enough memory"), OutOfMemoryError),
    "Python's memory full": ("forward", 2, MemoryError(), OutOfMemoryError),
    "keyboard in the forward pass": ("forward", 2, KeyboardInterrupt(), KeyboardInterrupt),
    "keyboard in the backward pass": ("backward", 2, KeyboardInterrupt(), KeyboardInterrupt),
    "host's interrupt": ("forward", 2, InterruptedByHost(), InterruptedByHost),
    "fault of the model": ("backward", 1, ZeroDivisionError("of the model"), ZeroDivisionError),
    "fault of the stop button": ("asked to stop", 1, OSError("of the button"), OSError),
}


@pytest.mark.parametrize("fault", IN_A_STEP)
def test_a_step_that_fails_is_undone_and_what_came_before_it_is_saved(
    fault: str, uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    phase, occurrence, error, expected = IN_A_STEP[fault]
    host = ToyHost()
    before = host.everything()
    raise_at(host, phase, 7, error, occurrence)
    prepared: list[Prepared] = []
    with pytest.raises(expected) as caught:
        start(host, settings(pictures), tmp_path, prepared.append)
    assert unlike(host.everything(), before) == []
    assert all(p.grad is None for p in prepared[0].trainer.trainable.parameters().values()), "memory is given back"
    assert checkpoint(tmp_path / "run")["step"] == 7
    if expected is OutOfMemoryError:
        assert caught.value.__cause__ is error
        assert "saved at step 7" in str(caught.value) and "loop.block_checkpointing" in str(caught.value)
    resume(host, tmp_path / "run")
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []
    assert unlike(host.everything(), before) == []


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("error", [DEVICE_FULL, ZeroDivisionError("of the model")], ids=["memory", "fault"])
def test_the_activations_of_a_step_that_fails_are_free_before_anything_is_saved(
    phase: str, error: BaseException, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Graph:
        """Lives as long as the graph of a prediction, and the activations in it."""

    host = ToyHost()
    if phase == "backward":
        raise_at(host, phase, 7, error)
    graphs: list[weakref.ref[Graph]] = []
    free: list[bool] = []
    forward, save = host.parts["unet"].forward, RunFolder.save

    def noted(*given: torch.Tensor) -> torch.Tensor:
        prediction = forward(*given)
        if prediction.grad_fn is not None:
            prediction.grad_fn.metadata["alive"] = graph = Graph()
            graphs.append(weakref.ref(graph))
            if phase == "forward" and host.step == 7:
                raise error
        return prediction

    def saved(*given: Any, **more: Any) -> None:
        free.append(all(graph() is None for graph in graphs))
        save(*given, **more)

    monkeypatch.setattr(host.parts["unet"], "forward", noted)
    monkeypatch.setattr(RunFolder, "save", saved)
    gc.disable()  # they are let go of, not found later
    try:
        with pytest.raises((OutOfMemoryError, ZeroDivisionError)):
            start(host, settings(pictures), tmp_path)
    finally:
        gc.enable()
    assert len(graphs) > 6 and all(free) and checkpoint(tmp_path / "run")["step"] == 7


def test_what_is_trained_is_saved_where_the_device_no_longer_answers(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(error: BaseException, device: torch.device) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    host = ToyHost()
    raise_at(host, "forward", 7, ZeroDivisionError("of the model"))
    monkeypatch.setattr(trainer, "give_back", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        start(host, settings(pictures), tmp_path)
    assert checkpoint(tmp_path / "run")["step"] == 7


@pytest.mark.parametrize(("phase", "step"), [("progress", 8), ("measure", 5), ("measure", 10)])
def test_a_fault_between_two_steps_costs_nothing(
    phase: str, step: int, uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    host = ToyHost()
    before = host.everything()
    # what comes after update 5 is still shown as at step 4
    raise_at(host, phase, step if phase == "progress" else step - 1, DEVICE_FULL)
    with pytest.raises(OutOfMemoryError, match=f"saved at step {step}"):
        start(host, settings(pictures), tmp_path)
    assert unlike(host.everything(), before) == []
    resume(host, tmp_path / "run")
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []


def test_a_fault_under_other_switches_of_torch_puts_them_back(pictures: Path, tmp_path: Path) -> None:
    config = settings(pictures, loop__deterministic=True, loop__block_checkpointing=True)
    with torch.inference_mode():
        host = ToyHost()
        before = host.everything()
        raise_at(host, "backward", 1, DEVICE_FULL)
        with pytest.raises(OutOfMemoryError):
            start(host, config, tmp_path)
        assert unlike(host.everything(), before) == []
    with torch.no_grad():
        host = ToyHost()
        before = host.everything()
        raise_at(host, "backward", 3, DEVICE_FULL)
        with pytest.raises(OutOfMemoryError):
            resume(host, tmp_path / "run")
        assert unlike(host.everything(), before) == []


def in_the_optimizer(prepared: Prepared) -> tuple[Any, str]:
    return prepared.trainer.optimizer.inner, "step"


def in_the_average(prepared: Prepared) -> tuple[Any, str]:
    return prepared.trainer.ema, "update"


def in_the_records(prepared: Prepared) -> tuple[Any, str]:
    return prepared.trainer.recorder, "end_step"


@pytest.mark.parametrize("save_every", [0, 3])
@pytest.mark.parametrize("place", [in_the_optimizer, in_the_average, in_the_records])
def test_a_fault_while_weights_are_updated_goes_back_to_the_last_checkpoint(
    place: Callable[[Prepared], tuple[Any, str]],
    save_every: int,
    uninterrupted: dict[str, Any],
    pictures: Path,
    tmp_path: Path,
) -> None:
    host = ToyHost()
    before = host.everything()

    def fail_after_it_was_done(prepared: Prepared) -> None:
        thing, name = place(prepared)
        done = getattr(thing, name)

        def failing(*args: Any, **kwargs: Any) -> Any:
            done(*args, **kwargs)
            if host.step == 5:
                raise DEVICE_FULL

        setattr(thing, name, failing)

    config = settings(pictures, save__every_steps=save_every)
    said = r"goes on from its last checkpoint \(step 3\)" if save_every else "no checkpoint was saved yet"
    with pytest.raises(OutOfMemoryError, match=said):
        start(host, config, tmp_path, fail_after_it_was_done)
    assert unlike(host.everything(), before) == []
    assert RunFolder.open(tmp_path / "run").steps() == ([3] if save_every else [])
    resume(host, tmp_path / "run")
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []


def test_a_fault_in_the_first_step_claims_no_checkpoint(
    uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    host = ToyHost()
    raise_at(host, "backward", -1, DEVICE_FULL)
    with pytest.raises(OutOfMemoryError, match="no checkpoint was saved yet"):
        start(host, settings(pictures), tmp_path)
    resume(host, tmp_path / "run")
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []


@pytest.mark.parametrize("error", [DEVICE_FULL, CPU_FULL, MemoryError()], ids=["device", "CPU", "Python"])
def test_a_preview_without_memory_is_made_smaller_and_the_run_goes_on(
    error: BaseException, uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    host, prepared = ToyHost(), []
    raise_at(host, "denoise a preview", 5, error, occurrence=2)
    start(host, settings(pictures, preview__width=128, preview__height=192), tmp_path, prepared.append)
    assert prepared[0].trainer.notes == ["preview 1 of step 6 ran out of memory and was made at half size"]
    sizes = {path.name[:6]: Image.open(path).size for path in (tmp_path / "run/previews").iterdir()}
    assert sizes == {"000000": (128, 192), "000006": (64, 64), "000012": (128, 192)}
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []


def test_a_preview_without_any_memory_is_left_out_and_the_run_goes_on(
    uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    host, prepared = ToyHost(), []

    def at(phase: str) -> None:
        if phase == "preview":
            raise DEVICE_FULL

    host.at = at
    start(host, settings(pictures), tmp_path, prepared.append)
    assert len(prepared[0].trainer.notes) == 3 and "left out" in prepared[0].trainer.notes[0]
    assert list((tmp_path / "run/previews").iterdir()) == []
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []


def test_any_other_fault_of_a_preview_ends_the_run_which_makes_it_up(
    uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    host = ToyHost()
    before = host.everything()
    raise_at(host, "preview", 5, ValueError("the sampler has no such size"))
    with pytest.raises(ValueError, match="no such size"):
        start(host, settings(pictures), tmp_path)
    assert unlike(host.everything(), before) == []
    assert RunFolder.open(tmp_path / "run").steps() == [6]
    assert len(list((tmp_path / "run/previews").iterdir())) == 1
    resume(host, tmp_path / "run")
    assert sorted(p.name[:6] for p in (tmp_path / "run/previews").iterdir()) == ["000000", "000006", "000012"]
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_counted_and_never_taken(factor: float, pictures: Path, tmp_path: Path) -> None:
    def host(stop_at: int | None = None) -> ToyHost:
        made = ToyHost(stop_at=stop_at)
        made.at = lambda phase: factor if phase == "forward" and made.step == 7 else None
        return made

    config = settings(pictures, save__every_steps=1)
    run, ended = start(host(), config, tmp_path)
    assert (ended.reason, ended.step) == ("finished", 12)
    changed = unlike(checkpoint(run, 8), checkpoint(run, 7))
    assert {name.split()[0] for name in changed} == {"step", "images_seen", "records", "value", "metadata"}
    assert [checkpoint(run, step)["value num_nonfinite"] for step in (7, 8, 9)] == ["0", "1", "0"]
    losses, means = read_losses(run / "loss.csv"), read_run(run / "run.csv")
    assert set(losses["step"][~torch.isfinite(torch.from_numpy(losses["loss"])).numpy()]) == {7}
    assert torch.from_numpy(means["loss_window"]).isfinite().all()

    cut, _ = start(host(stop_at=6), config, tmp_path)
    resume(host(stop_at=9), cut)
    resume(host(), cut)
    assert unlike(outcome(cut), outcome(run)) == []


def test_many_steps_in_a_row_that_are_not_finite_end_the_run_saved(pictures: Path, tmp_path: Path) -> None:
    host = ToyHost()
    before = host.everything()
    host.at = lambda phase: float("nan") if phase == "forward" and host.step >= 6 else None
    config = settings(pictures, save__every_steps=1, loop__max_nonfinite=3)
    with pytest.raises(NotFiniteError, match=r"step 8: .* 3 steps in a row"):
        start(host, config, tmp_path)
    assert unlike(host.everything(), before) == []
    run = tmp_path / "run"
    last, good = checkpoint(run), checkpoint(run, 6)
    assert last["step"] == 9
    assert not any(name.startswith(("published", "state ")) for name in unlike(last, good))
    assert set(read_losses(run / "loss.csv")["step"]) == set(range(9))

    with pytest.raises(NotFiniteError, match="step 9"):  # nothing changed, so one more is one too many
        host.step = 9
        resume(host, run)
    host.at = lambda phase: None
    assert resume(host, run).reason == "finished"
    assert checkpoint(run)["value num_nonfinite"] == "0"


def test_a_fault_in_the_loader_is_that_of_the_run(
    uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    host = ToyHost()
    before = host.everything()
    num_left = 30

    def let_the_disk_fail(prepared: Prepared) -> None:
        read = prepared.trainer.cache.get

        def get(name: str, flipped: bool = False) -> Any:
            nonlocal num_left
            num_left -= threading.current_thread() is not threading.main_thread()
            if num_left == 0:
                raise OSError(errno.EIO, "the disk with the latents failed")
            return read(name, flipped)

        prepared.trainer.cache.get = get

    with pytest.raises(OSError, match="disk with the latents"):
        start(host, settings(pictures), tmp_path, let_the_disk_fail)
    assert num_left == 0
    assert unlike(host.everything(), before) == []
    assert checkpoint(tmp_path / "run")["step"] == host.step > 6
    resume(host, tmp_path / "run")
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "RETRY_SECONDS", 0.0)


def calls_of_a_save(pictures: Path, tmp_path: Path, failing_disk: Any) -> list[int]:
    """The disk calls from the backward pass of step 5 to its checkpoint, of a row of equal ones the first and last."""
    host = ToyHost()

    def at(phase: str) -> None:
        if host.step == 5 and phase == "backward":
            failing_disk.disarm()
        if host.step == 5 and phase == "preview":
            raise KeyboardInterrupt

    host.at = at
    with pytest.raises(KeyboardInterrupt):
        start(host, settings(pictures), tmp_path)
    calls = ["", *failing_disk.calls, ""]
    return [i - 1 for i in range(1, len(calls) - 1) if not calls[i - 1] == calls[i] == calls[i + 1]]


@pytest.mark.slow
def test_a_full_disk_at_any_call_of_a_save_pauses_the_run_and_loses_nothing(
    uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path, failing_disk: Any, no_waiting: None
) -> None:
    calls = calls_of_a_save(pictures, tmp_path, failing_disk)
    assert len(calls) > 30
    for call in calls:
        host = ToyHost()
        pauses = 0

        def at(phase: str, host: ToyHost = host, call: int = call) -> None:
            nonlocal pauses
            if host.step == 5 and phase == "backward":
                failing_disk.arm(call, errno.ENOSPC, lasting=True)
            if phase == "pause":
                assert "the disk is full" in host.shown[-1].note
                pauses += 1
                if pauses == 2:
                    failing_disk.disarm()

        host.at = at
        run, ended = start(host, settings(pictures), tmp_path)
        assert (ended.reason, pauses) == ("finished", 2), f"call {call}"
        assert unlike(outcome(run), uninterrupted) == [], f"call {call}"
        assert not list(run.rglob("*.part"))


@pytest.mark.parametrize(
    ("every", "phase"),
    [
        ("save__every_steps", "backward"),
        ("record__flush_every_steps", "backward"),
        ("record__probe_every_steps", "measure"),
        ("preview__every_steps", "preview"),
    ],
)
def test_every_write_of_a_run_waits_for_room(
    every: str, phase: str, pictures: Path, tmp_path: Path, failing_disk: Any, no_waiting: None
) -> None:
    off = {"preview__every_steps": 0, "record__probe_every_steps": 0, "record__flush_every_steps": 1000}
    config = settings(pictures, **{**off, every: 4})
    expected, _ = start(ToyHost(), config, tmp_path)
    host = ToyHost()
    pauses = 0

    def at(name: str) -> None:
        nonlocal pauses
        if host.step == 3 and name == phase and not pauses:
            failing_disk.arm(0, errno.ENOSPC, lasting=True)
        if name == "pause":
            pauses += 1
            failing_disk.disarm()

    host.at = at
    run, ended = start(host, config, tmp_path)
    assert (ended.reason, ended.step, pauses) == ("finished", 12, 1)
    assert unlike(outcome(run), outcome(expected)) == []
    assert [p.name for p in (run / "previews").iterdir()] == [p.name for p in (expected / "previews").iterdir()]


def test_a_disk_with_less_than_twice_a_checkpoint_free_is_waited_for(
    uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    host, free = ToyHost(), files.free_bytes

    def at(phase: str) -> None:
        if host.step == 5 and phase == "backward":
            monkeypatch.setattr(files, "free_bytes", lambda folder: 1000)
        if phase == "pause":
            monkeypatch.setattr(files, "free_bytes", free)

    host.at = at
    start(host, settings(pictures), tmp_path)
    assert re.match(r"paused, will try again: .*\d MB are needed", next(p.note for p in host.shown if p.note))
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []


def test_stopping_while_the_disk_is_full_leaves_the_last_checkpoint(
    uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path, failing_disk: Any, no_waiting: None
) -> None:
    host = ToyHost()
    before = host.everything()
    saved: dict[str, bytes] = {}

    def at(phase: str) -> None:
        if host.step == 5 and phase == "backward" and not saved:
            saved.update(all_bytes(tmp_path / "run"))
            failing_disk.arm(4, errno.ENOSPC, lasting=True)
        if phase == "pause":
            host.stop_at = 0

    host.at = at
    with pytest.raises(files.DiskFullError):
        start(host, settings(pictures, save__every_steps=3), tmp_path)
    failing_disk.disarm()
    assert unlike(host.everything(), before) == []
    now = all_bytes(tmp_path / "run")
    assert [n for n in saved if n.startswith(("state", "checkpoints")) and now[n] != saved[n]] == []
    assert RunFolder.open(tmp_path / "run").steps() == [3]
    resume(ToyHost(), tmp_path / "run")
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("call", range(0, 8, 2))
def test_a_disk_that_fails_ends_the_run_and_costs_no_checkpoint(
    call: int,
    lasting: bool,
    uninterrupted: dict[str, Any],
    pictures: Path,
    tmp_path: Path,
    failing_disk: Any,
) -> None:
    host = ToyHost()
    before = host.everything()
    saved: dict[str, bytes] = {}

    def at(phase: str) -> None:
        if host.step == 7 and phase == "backward" and not saved:
            saved.update(all_bytes(tmp_path / "run"))
            failing_disk.arm(call, errno.EIO, lasting=lasting)

    host.at = at
    with pytest.raises(OSError, match=r"Input/output error"):
        start(host, settings(pictures, save__every_steps=3), tmp_path)
    failing_disk.disarm()
    assert unlike(host.everything(), before) == []
    now = all_bytes(tmp_path / "run")
    assert [n for n in saved if n.startswith(("state", "checkpoints")) and now[n] != saved[n]] == []
    assert RunFolder.open(tmp_path / "run").steps() == ([3, 6] if lasting else [3, 6, 8])
    assert records(tmp_path / "run")["loss.csv"].startswith(saved["loss.csv"])
    resume(ToyHost(), tmp_path / "run")
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []
