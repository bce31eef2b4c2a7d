"""Previews: pictures at fixed seeds from the model as it is trained, made by the host's own sampler."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from .config import PreviewConfig
from .files import safe_name, write_image
from .host import Host, SampleRequest
from .memory import give_back, is_out_of_memory


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the global random states of Python, numpy and torch back: a preview must not change what follows it."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the host's state, not ours
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def requests(config: PreviewConfig, resolution: int) -> list[SampleRequest]:
    """The pictures that are asked for: one a prompt, seeds counting up from the configured one."""
    return [
        SampleRequest(
            prompt=prompt,
            negative_prompt=config.negative_prompt,
            steps=config.steps,
            guidance=config.guidance,
            seed=config.seed + i,
            width=config.width or resolution,
            height=config.height or resolution,
        )
        for i, prompt in enumerate(config.prompts)
    ]


def make_previews(host: Host, config: PreviewConfig, resolution: int, folder: Path, step: int) -> list[str]:
    """Write `<step>-<number>-<prompt>.png` for each prompt; returns what went wrong, in words.

    Out of memory costs that picture only: it is tried again at half the side, then left out, and that is said. A
    picture that the host was told to cut short is none, and no further one is made once a stop is asked for.
    """
    notes = []
    for number, request in enumerate(requests(config, resolution), start=1):
        if host.stop_requested():
            break
        path = folder / f"{step:06d}-{number}-{safe_name(request.prompt, 'prompt')[:48].strip()}.png"
        smaller = SampleRequest(**{**vars(request), "width": _half(request.width), "height": _half(request.height)})
        for attempt in (request, smaller):
            try:
                with random_state_kept():
                    image = host.sampler(attempt)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                give_back(error, host.device)
                continue
            if image is None:
                break
            if attempt is smaller:
                notes.append(f"preview {number} of step {step} ran out of memory and was made at half size")
            write_image(path, image)
            host.preview(step, attempt, image)
            break
        else:
            notes.append(f"preview {number} of step {step} was left out: out of memory at half size too")
    return notes


def _half(side_px: int) -> int:
    return max(64, side_px // 2 // 64 * 64)
