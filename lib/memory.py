"""Memory: how much is used, and whether an error means that it ran out."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


class OutOfMemoryError(RuntimeError):
    """The run stopped because memory ran out; the message says what was saved and what to change."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch or Python running out of memory, on any device."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    # the CPU allocator raises a plain RuntimeError
    return isinstance(error, RuntimeError) and any(
        text in str(error).lower() for text in ("not enough memory", "can't allocate memory", "out of memory")
    )


def peak_mb(device: torch.device) -> float:
    """Peak memory, MiB: on CUDA what torch allocated, on the CPU the process's resident set; 0.0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return 0.0
    if sys.platform == "linux":
        # not getrusage: after an exec that still counts the memory of the program which started this one
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
