"""Laws of memory: what counts as running out of it, and a peak that is this program's own."""

from __future__ import annotations

import gc
import subprocess
import sys
import traceback
import weakref

import pytest
import torch
from sd_atelier.lib.memory import (
    available_mb,
    drop_unfinished_backward,
    is_out_of_memory,
    let_go_of_frames,
    peak_mb,
    reset_peak,
)


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_counts_as_running_out_of_memory(error: BaseException, counts: bool) -> None:
    assert is_out_of_memory(error) == counts


def test_the_allocators_own_refusal_counts() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_what_a_failures_frames_hold_is_free_while_the_error_is_kept() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def activations() -> torch.Tensor:
        tensor = torch.zeros(8)
        held.append(weakref.ref(tensor))
        return tensor

    def inner() -> None:
        first = activations()
        raise RuntimeError(f"the first, of {first.shape}")

    def outer() -> None:
        second = activations()
        try:
            inner()
        except RuntimeError as error:
            raise ValueError(f"the second, of {second.shape}") from error

    with pytest.raises(ValueError) as caught:
        outer()
    assert [reference() is None for reference in held] == [False, False]
    let_go_of_frames(caught.value)
    assert [reference() is None for reference in held] == [True, True]
    lines = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert lines[-1] == "outer" and isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak counts the program that started this one")
def test_the_peak_is_this_programs_own() -> None:
    ballast = torch.ones(400 * 2**20, dtype=torch.uint8)
    code = "import torch; from sd_atelier.lib.memory import peak_mb; print(peak_mb(torch.device('cpu')))"
    alone = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    own = peak_mb(torch.device("cpu"))
    assert ballast.sum() == len(ballast)
    assert own > 400 and 10 < alone < own - 50
    more = torch.ones(int(own + 200) * 2**20, dtype=torch.uint8)
    assert peak_mb(torch.device("cpu")) > own + 150
    assert more[0] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak cannot start anew")
def test_a_peak_starts_anew_and_counts_what_is_used_from_there() -> None:
    cpu = torch.device("cpu")
    big = torch.ones(600 * 2**20, dtype=torch.uint8)
    high = peak_mb(cpu)
    del big
    if not reset_peak(cpu):
        pytest.skip("this container does not let a program reset its peak")
    low = peak_mb(cpu)
    assert low < high - 400
    more = torch.ones(200 * 2**20, dtype=torch.uint8)
    assert 150 < peak_mb(cpu) - low < 300
    assert more[0] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not known")
def test_what_there_is_counts_what_this_program_has_already() -> None:
    before = available_mb(torch.device("cpu"))
    ballast = torch.ones(300 * 2**20, dtype=torch.uint8)
    after = available_mb(torch.device("cpu"))
    assert before is not None and after is not None and ballast[0] == 1
    assert after > 300


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_what_is_not_known_is_not_guessed(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert available_mb(torch.device("cpu")) is None
    assert reset_peak(torch.device("cpu")) is False


class _Kept:
    """Stands for the activations of a step."""


def test_a_backward_pass_that_failed_leaves_nothing_behind() -> None:
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, kept):
            ctx.kept = kept
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return grad, None

    class Fails(Keeps):
        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("injected")

    def step() -> weakref.ref:
        weight, kept = torch.ones(3, requires_grad=True), _Kept()
        early = Keeps.apply(weight * 2, kept)  # its turn comes after that of the later one
        with pytest.raises(RuntimeError, match="injected"):
            (early + Fails.apply(weight * 3, None)).sum().backward()
        return weakref.ref(kept)

    held = step()
    gc.collect()
    drop_unfinished_backward(torch.device("cpu"))
    assert held() is None
