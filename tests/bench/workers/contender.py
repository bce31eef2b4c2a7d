"""What the contenders of the step benchmark share: arguments, seeded inputs, timing, memory and the line protocol.

A contender is a process of its own, in its own Python: it builds one trainer, then answers "step" on standard input
with one timed optimizer step as a line of JSON on standard output. Only torch and safetensors are imported here,
because a peer's environment holds nothing of ours.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor, nn

RANK = 8
ALPHA = 4.0  # not the rank, so that a contender with another scale computes another loss
RATE = 1e-4
CLIP_NORM = 1.0
TEXT_TOKENS, TEXT_WIDTH = 77, 768
NUM_CAPTIONS = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Stable Diffusion 1.5's latents are multiplied by this before the U-Net sees them.
LATENT_SCALE = 0.18215
# UNet2DConditionModel's settings for Stable Diffusion 1.5, and a small one of the same layout for trials.
SD15 = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": TEXT_WIDTH}
TINY = {"sample_size": 64, "block_out_channels": (32, 64, 128, 128), "cross_attention_dim": TEXT_WIDTH}


@dataclass(frozen=True)
class Setup:
    """What the driver asks of a contender."""

    base: str  # safetensors file of the U-Net, float32, diffusers' names
    adapter: str  # safetensors file of the LoRA, float32: <module>.down (r, in), <module>.up (out, r)
    dtype: torch.dtype
    batch_size: int
    size_px: int
    tiny: bool
    peer: str  # folder of the peer's code, where it has one
    live_text: bool  # encode the text in each step and hold the autoencoder, where the peer's own script does
    checkpointing: bool = False  # these three are steps of our memory ladder
    storage: str = "model"
    cpu_blocks: int = 0  # -1: all

    @property
    def architecture(self) -> dict[str, object]:
        return TINY if self.tiny else SD15


@dataclass(frozen=True)
class Batch:
    """One step's inputs, the same in every contender, all float32."""

    latents: Tensor  # (B, 4, h, w), scaled
    noise: Tensor  # (B, 4, h, w)
    t: Tensor  # (B,) int64 in 0..999
    text: Tensor  # (B, 77, 768)
    captions: list[int]  # which of the few captions each row of `text` is


# One training step: forward, loss, backward, clip, optimizer. Returns the loss.
Step = Callable[[Batch], float]


def batch_of(setup: Setup, step: int) -> Batch:
    """The inputs of a step, from its number alone."""
    num, side = setup.batch_size, setup.size_px // 8
    generator = torch.Generator().manual_seed(step)
    latents = torch.randn(num, 4, side, side, generator=generator)
    noise = torch.randn(num, 4, side, side, generator=generator)
    t = torch.randint(0, 1000, (num,), generator=generator)
    captions = [(step * num + i) % NUM_CAPTIONS for i in range(num)]
    return Batch(latents, noise, t, torch.stack([text_of(c) for c in captions]), captions)


def text_of(caption: int) -> Tensor:
    """The encoded text of a caption, (77, 768) float32."""
    return torch.randn(TEXT_TOKENS, TEXT_WIDTH, generator=torch.Generator().manual_seed(10_000 + caption))


def load_base(model: nn.Module, setup: Setup) -> None:
    """Put the seeded weights into a model built on the meta device, one tensor at a time, in the dtype under test."""
    with safe_open(setup.base, framework="pt") as file:
        state = {name: file.get_tensor(name).to(setup.dtype, copy=True) for name in file.keys()}  # noqa: SIM118
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)


def adapter_weights(setup: Setup) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Module name, down (r, in) and up (out, r) of each adapted layer."""
    with safe_open(setup.adapter, framework="pt") as file:
        for name in sorted(file.keys()):
            if name.endswith(".down"):
                module = name.removesuffix(".down")
                yield module, file.get_tensor(name), file.get_tensor(f"{module}.up")


def memory_mb() -> dict[str, float]:
    """Resident memory now and its peak since the last reset, in MiB."""
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return {"rss_mb": int(status["VmRSS"].split()[0]) / 1024, "peak_mb": int(status["VmHWM"].split()[0]) / 1024}


def reset_peak() -> None:
    """Give back what loading freed, then let the peak start from here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def serve(build: Callable[[Setup], Step]) -> None:
    """Read the command line, build the contender, and answer the driver until it closes standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--dtype", choices=DTYPES, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--peer", default="")
    parser.add_argument("--live-text", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--storage", default="model")
    parser.add_argument("--cpu-blocks", type=int, default=0)
    args = parser.parse_args()
    # What libraries print must not mix with the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(values: dict[str, object]) -> None:
        replies.write(json.dumps(values) + "\n")
        replies.flush()

    torch.set_num_threads(args.threads)
    setup = Setup(
        base=args.base,
        adapter=args.adapter,
        dtype=DTYPES[args.dtype],
        batch_size=args.batch,
        size_px=args.size,
        tiny=args.tiny,
        peer=args.peer,
        live_text=args.live_text,
        checkpointing=args.checkpointing,
        storage=args.storage,
        cpu_blocks=args.cpu_blocks,
    )
    started = time.perf_counter()
    step = build(setup)
    load_seconds = time.perf_counter() - started
    reset_peak()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    facts = {"kept_mb": getattr(step, "kept_mb", 0.0), "versions": versions}
    reply({"load_seconds": load_seconds, "rest_mb": memory_mb()["rss_mb"], **facts})
    for number, line in enumerate(sys.stdin):
        if line.strip() != "step":
            raise ValueError(f'the driver may only say "step", got {line!r}')
        batch = batch_of(setup, number)
        started, cpu_started = time.perf_counter(), time.process_time()
        loss = step(batch)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        reply({"seconds": seconds, "cpu_seconds": cpu_seconds, "loss": loss, **memory_mb()})
