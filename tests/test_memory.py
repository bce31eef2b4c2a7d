"""Laws of memory: what counts as running out of it, and a peak that is this program's own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from sd_atelier.lib.memory import is_out_of_memory, peak_mb


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
