"""Memory: how much is used, whether an error means that it ran out, and giving back what a failure holds."""

from __future__ import annotations

import sys
import traceback
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


def reset_peak(device: torch.device) -> bool:
    """Let the peak start from what is used now. Whether that can be done: on CUDA, and on Linux for the CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False  # some containers forbid it
    return True


def available_mb(device: torch.device) -> float | None:
    """Memory that this program can have in all, MiB: what is free and what it uses already; None where unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return (free + torch.cuda.memory_reserved(device)) / 2**20
    if sys.platform != "linux":
        return None
    return (_kilobytes("/proc/meminfo", "MemAvailable:") + _kilobytes("/proc/self/status", "VmRSS:")) / 2**10


def peak_mb(device: torch.device) -> float:
    """Peak memory, MiB: on CUDA what torch allocated, on the CPU the process's resident set; 0.0 where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return 0.0
    if sys.platform == "linux":
        # not getrusage: after an exec that still counts the memory of the program which started this one
        return _kilobytes("/proc/self/status", "VmHWM:") / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _kilobytes(file: str, name: str) -> int:
    return int(Path(file).read_text(encoding="ascii", errors="replace").split(name)[1].split()[0])


def give_back(error: BaseException, device: torch.device) -> None:
    """Give back what work that ended in `error` still holds on the device and on the CPU, to torch and to others."""
    let_go_of_frames(error)
    for place in {device, torch.device("cpu")}:  # a host may keep its text encoders on the CPU
        drop_unfinished_backward(place)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def let_go_of_frames(error: BaseException) -> None:
    """Let go of what the frames of a failure hold, such as activations, and those of the errors that it came from.

    A host keeps the error, and an error its frames, until garbage is collected: memory that the next picture would
    lack. The lines of the traceback stay, and frames that still run keep what they have.
    """
    chain, seen = [error], {id(error)}
    while chain:
        now = chain.pop()
        traceback.clear_frames(now.__traceback__)
        for origin in (now.__cause__, now.__context__):
            if origin is not None and id(origin) not in seen:
                seen.add(id(origin))
                chain.append(origin)


def drop_unfinished_backward(device: torch.device) -> None:
    """Let go of what a backward pass that ended in an error has left, with the activations that belong to it.

    Autograd keeps the steps that it did not come to in a queue of the device, and looks at them in the next pass only.
    """
    with torch.inference_mode(False), torch.enable_grad():
        torch.zeros(1, device=device, requires_grad=True).sum().backward()
