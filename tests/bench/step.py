"""Seconds per training step and peak memory against other trainers, interleaved step by step.

    python tests/bench/step.py [--kohya FOLDER --kohya-python PYTHON] [--dtype fp32,bf16] [--batch 1,4] [--threads 2]

Each contender is a process of its own on the same seeded weights, noise and t, at the full size of Stable Diffusion
1.5 (256 px, rank 8, kohya's 192 layers, AdamW, latents and text cached). One step of each is taken in turn, so that
whatever else the machine does hits all of them; the ratio is taken in each round and then its median. The losses of the
first step must agree, or the contenders do not compute the same thing and the run fails.

Needs diffusers and PEFT, Linux, 4 GB of disk, and memory for the contenders that run together (up to 6 GiB each in
fp32, 3 in bf16). Times in seconds: on the clock, and of the process on all its cores, which is steadier at one thread
where other work shares the machine. Memory in MiB: resident after loading, and its peak from there on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WORKERS = {name: HERE / "workers" / f"{name}_step.py" for name in ("atelier", "peft", "kohya")}
# Relative difference of the first losses that rounding explains.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


@dataclass
class Contender:
    """A worker process and what it has measured."""

    name: str
    process: subprocess.Popen
    log: Path
    start: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            end = self.log.read_text()[-2000:]
            raise RuntimeError(
                f"contender {self.name} ended with exit code {self.process.wait()}; its log ends:\n{end}"
            )
        return json.loads(line)

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.steps.append(self.read())


def summary(seconds: list[float], of_reference: list[float]) -> dict[str, float]:
    """Median and range of the seconds, and how many times faster than the reference: median of the ratio per round."""
    return {
        "seconds": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "speed": statistics.median(other / own for own, other in zip(seconds, of_reference, strict=True)),
    }


def disagreement(losses: dict[str, float]) -> float:
    """Largest relative difference between any two losses."""
    values = list(losses.values())
    return math.nan if math.isnan(sum(values)) else (max(values) - min(values)) / min(map(abs, values))


def agree(losses: dict[str, float], tolerance: float) -> bool:
    """Whether all losses are numbers within `tolerance` of each other."""
    return disagreement(losses) <= tolerance  # false for nan


def groups(names: list[str], together: int) -> list[list[str]]:
    """Who runs side by side: all where they fit, else the first against each of the others."""
    return [names] if len(names) <= together else [[names[0], other] for other in names[1:]]


def compare(names: list[str], dtype: str, batch: int, args: argparse.Namespace, files: tuple[Path, Path]) -> list[dict]:
    """Run contenders side by side; one row each, speeds relative to the last."""
    contenders: list[Contender] = []
    try:
        for name in names:  # one after another: loading needs more memory than resting
            contenders.append(_start(name, dtype, batch, args, files))
            contenders[-1].start = contenders[-1].read()
        for _ in range(args.warmup + args.steps):
            for contender in contenders:
                contender.step()
    finally:
        for contender in contenders:
            contender.process.kill()
            contender.process.wait()
    losses = {c.name: c.steps[0]["loss"] for c in contenders}
    if not agree(losses, TOLERANCE[dtype]):
        raise RuntimeError(f"the contenders do not compute the same step in {dtype}: first losses {losses}")
    seconds = {c.name: [s["seconds"] for s in c.steps[args.warmup :]] for c in contenders}
    peaks = {c.name: c.steps[-1]["peak_mb"] for c in contenders}
    return [
        {
            "dtype": dtype,
            "batch": batch,
            "contender": c.name,
            "reference": names[-1],
            **summary(seconds[c.name], seconds[names[-1]]),
            "cpu_seconds": statistics.median(s["cpu_seconds"] for s in c.steps[args.warmup :]),
            "rest_mb": c.start["rest_mb"],
            "peak_mb": peaks[c.name],
            "memory": peaks[c.name] / peaks[names[-1]],
            "load_seconds": c.start["load_seconds"],
            "first_loss": losses[c.name],
            "last_loss": c.steps[-1]["loss"],
            "all_seconds": seconds[c.name],
            "versions": c.start["versions"],
        }
        for c in contenders
    ]


def _start(name: str, dtype: str, batch: int, args: argparse.Namespace, files: tuple[Path, Path]) -> Contender:
    python, options = sys.executable, []
    if name == "kohya":
        python, options = args.kohya_python, ["--peer", args.kohya] + ["--live-text"] * args.kohya_live_text
    return launch(name, [python, str(WORKERS[name])], dtype, batch, args, files, options)


def launch(
    name: str,
    worker: list[str],
    dtype: str,
    batch: int,
    args: argparse.Namespace,
    files: tuple[Path, Path],
    options: list[str],
) -> Contender:
    """Start a contender's process; it answers once it has loaded."""
    command = [*worker, "--base", str(files[0]), "--adapter", str(files[1]), "--dtype", dtype]
    command += ["--batch", str(batch), "--size", str(args.size), "--threads", str(args.threads)]
    command += ["--tiny"] * args.tiny + options
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    log = args.work / f"{name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    return Contender(name, process, log)


SETTINGS = ("size", "threads", "steps", "warmup", "tiny", "kohya_live_text")  # what the JSON file repeats
HEADER = (
    "| dtype | batch | contender | s/step | min..max | speed | CPU s/step | peak MiB | memory | at rest MiB | loss |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def table_line(row: dict[str, Any]) -> str:
    """A row of figures as a line of the Markdown table."""
    return (
        f"| {row['dtype']} | {row['batch']} | {row['contender']} | {row['seconds']:.3f} "
        f"| {row['min']:.3f}..{row['max']:.3f} | {row['speed']:.2f} x {row['reference']} | {row['cpu_seconds']:.3f} "
        f"| {row['peak_mb']:.0f} | {row['memory']:.2f} | {row['rest_mb']:.0f} | {row['first_loss']:.5f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", default="", help="comma-separated, ours first; default: all that can run")
    parser.add_argument("--kohya", default="", help="folder of kohya-ss/sd-scripts")
    parser.add_argument("--kohya-python", default=sys.executable, help="Python that has what sd-scripts needs")
    parser.add_argument(
        "--kohya-live-text",
        action="store_true",
        help="let sd-scripts encode the text in each step and hold text encoder and autoencoder, as it always does",
    )
    parser.add_argument("--dtype", default="fp32,bf16")
    parser.add_argument("--batch", default="1,4")
    parser.add_argument("--size", type=int, default=256, help="picture side in px")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=10, help="measured rounds")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before that")
    parser.add_argument("--together", type=int, default=2, help="contenders in memory at a time")
    parser.add_argument(
        "--tiny", action="store_true", help="a small U-Net of the same layout, to try the benchmark itself"
    )
    parser.add_argument("--work", type=Path, help="folder that keeps the weights between runs; default: temporary")
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args()
    from weights import make

    names = [n for n in args.contenders.split(",") if n] or [n for n in WORKERS if n != "kohya" or args.kohya]
    if unknown := [n for n in names if n not in WORKERS]:
        parser.error(f"unknown contender {unknown[0]}; there are {', '.join(WORKERS)}")
    if "kohya" in names and not args.kohya:
        parser.error("contender kohya needs --kohya FOLDER")
    with tempfile.TemporaryDirectory() as temporary:
        args.work = args.work or Path(temporary)
        files = make(args.work, args.tiny)
        rows: list[dict[str, Any]] = []
        print(HEADER)
        for dtype in args.dtype.split(","):
            for batch in args.batch.split(","):
                for group in groups(names, args.together):
                    measured = compare(group, dtype, int(batch), args, files)
                    print(*map(table_line, measured), sep="\n", flush=True)
                    rows += measured
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key in SETTINGS}
        machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()}
        args.json.write_text(json.dumps({"settings": settings, "machine": machine, "rows": rows}, indent=1) + "\n")


def processor() -> str:
    """The processor's name as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
