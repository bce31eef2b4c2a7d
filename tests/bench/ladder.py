"""What each step of the memory ladder costs in time and saves in memory, interleaved step by step.

    python tests/bench/ladder.py [--dtype bf16] [--batch 1] [--steps 5] [--threads 1] [--work FOLDER]

Each rung is a process of its own, as the contenders of step.py are: the same seeded weights, inputs and adapter, one
step of each in turn, medians, and the ratio to the plain step taken in each round. On a CPU "blocks in main memory" are
copied from main memory to main memory: the time is that of the copies, and what would be saved on a device is what the
kept blocks weigh, less the ring; both are given. Nothing here measures a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from step import WORKERS, Contender, agree, launch, processor, summary

RUNGS = {
    "plain": [],
    "checkpointing": ["--checkpointing"],
    "checkpointing, bf16": ["--checkpointing", "--storage", "bf16"],
    "checkpointing, float8": ["--checkpointing", "--storage", "float8"],
    "checkpointing, float8, all blocks on the CPU": ["--checkpointing", "--storage", "float8", "--cpu-blocks", "-1"],
    "checkpointing, all blocks on the CPU": ["--checkpointing", "--cpu-blocks", "-1"],
}
EXACT, ROUNDED = 1e-5, 5e-2  # relative difference of the first losses from the plain one


def rungs_of(dtype: str, num: int = len(RUNGS)) -> dict[str, list[str]]:
    """The first `num` rungs that mean anything: bf16 storage is none where the model is bf16."""
    rungs = {name: options for name, options in RUNGS.items() if dtype != "bf16" or "bf16" not in options}
    return dict(list(rungs.items())[:num])


def measure(dtype: str, args: argparse.Namespace, files: tuple[Path, Path]) -> list[dict[str, Any]]:
    """One row a rung. Errors: `RuntimeError` where a rung does not compute the plain step."""
    contenders: dict[str, Contender] = {}
    try:
        for number, (name, options) in enumerate(rungs_of(dtype, args.rungs).items()):
            worker = [sys.executable, str(WORKERS["atelier"])]
            contenders[name] = launch(f"rung-{number}", worker, dtype, args.batch, args, files, options)
            contenders[name].start = contenders[name].read()
        for _ in range(args.warmup + args.steps):
            for contender in contenders.values():
                contender.step()
    finally:
        for contender in contenders.values():
            contender.process.kill()
            contender.process.wait()
    plain = contenders["plain"]
    rows = []
    for name, contender in contenders.items():
        tolerance = EXACT if "--storage" not in RUNGS[name] else ROUNDED
        if not agree({"plain": plain.steps[0]["loss"], name: contender.steps[0]["loss"]}, tolerance):
            raise RuntimeError(f"{name} does not compute the plain step: {plain.steps[0]} {contender.steps[0]}")
        seconds, of_plain = ([s["seconds"] for s in c.steps[args.warmup :]] for c in (contender, plain))
        peak = contender.steps[-1]["peak_mb"]
        rows.append(
            {
                "dtype": dtype,
                "rung": name,
                **summary(seconds, of_plain),
                "cpu_seconds": statistics.median(s["cpu_seconds"] for s in contender.steps[args.warmup :]),
                "rest_mb": contender.start["rest_mb"],
                "peak_mb": peak,
                "kept_mb": contender.start["kept_mb"],
                "first_loss": contender.steps[0]["loss"],
                "all_seconds": seconds,
            }
        )
    return rows


HEADER = (
    "| dtype | rung | s/step | time | CPU s/step | peak MiB | of it kept in main memory | at rest MiB | loss |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def table_line(row: dict[str, Any]) -> str:
    """A row of figures as a line of the Markdown table; `time` is how many times as long as the plain step."""
    return (
        f"| {row['dtype']} | {row['rung']} | {row['seconds']:.3f} | {1 / row['speed']:.2f} | {row['cpu_seconds']:.3f} "
        f"| {row['peak_mb']:.0f} | {row['kept_mb']:.0f} | {row['rest_mb']:.0f} | {row['first_loss']:.5f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bf16", help="fp32, bf16 or both, comma-separated")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=256, help="picture side in px")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=5, help="measured rounds")
    parser.add_argument("--rungs", type=int, default=len(RUNGS), help="how many rungs, from the top")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before that")
    parser.add_argument("--tiny", action="store_true", help="a small U-Net, to try the benchmark itself")
    parser.add_argument("--work", type=Path, help="folder that keeps the weights between runs; default: temporary")
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args()
    from weights import make

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        args.work = args.work or Path(temporary)
        files = make(args.work, args.tiny)
        print(HEADER)
        for dtype in args.dtype.split(","):
            measured = measure(dtype, args, files)
            print(*map(table_line, measured), sep="\n", flush=True)
            rows += measured
    if args.json:
        machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()}
        settings = {name: getattr(args, name) for name in ("batch", "size", "threads", "steps", "warmup", "tiny")}
        args.json.write_text(json.dumps({"settings": settings, "machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
