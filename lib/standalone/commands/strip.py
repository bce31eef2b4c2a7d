"""`atelier strip`: every checkpoint of a run at fixed seeds, side by side, the untrained model first."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from ...config import RunConfig
from ...files import read_safetensors, sha256_of
from ...frozen import attached
from ...host import Host, SampleRequest
from ...preparation import base_of
from ...previews import requests
from ...registry import ALGORITHMS
from ...run_folder import RunFolder
from ...strip import Cell, CellStore, cell_key, compose
from ...trainables import Trainable
from ..progress import StopRequest, Terminal
from .train import add_model_arguments, load_host

BASE = "no network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `atelier strip`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    add_model_arguments(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="a row; repeatable. if left out, the run's preview prompts, else its triggers",
    )
    parser.add_argument("--negative", help="negative prompt")
    parser.add_argument("--seed", type=int, help="seed of the first row; the next has the next")
    parser.add_argument("--steps", type=int, help="sampling steps")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance scale")
    parser.add_argument("--width", type=int, help="width in pixels; the training resolution if left out")
    parser.add_argument("--height", type=int, help="height in pixels; the training resolution if left out")
    parser.add_argument(
        "--every", type=int, default=1, metavar="K", help="every K-th checkpoint, counted from the last"
    )
    parser.add_argument(
        "--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="the model's arithmetic"
    )


def run(args: argparse.Namespace) -> int:
    """Render what is missing and compose the strip. Returns 0, or 3 when stopped; finished cells are kept."""
    folder = RunFolder.open(args.run)
    if args.every < 1:
        raise ValueError(f"--every must be at least 1, got {args.every}")
    config = folder.config
    asked = {
        "negative_prompt": args.negative,
        "seed": args.seed,
        "steps": args.steps,
        "guidance": args.guidance,
        "width": args.width,
        "height": args.height,
    }
    preview = dataclasses.replace(
        config.preview,
        prompts=tuple(args.prompt) or config.preview.prompts or _triggers(folder),
        **{name: value for name, value in asked.items() if value is not None},
    )
    terminal = Terminal()
    stop = StopRequest(terminal)
    with stop.listening():
        host = load_host(args, config, args.dtype, terminal, stop)
        path = make_strip(host, folder, requests(preview, config.data.resolution), every=args.every, say=terminal.say)
    if path is None:
        return 3
    print(path)
    return 0


def make_strip(
    host: Host,
    run: RunFolder,
    rows: Sequence[SampleRequest],
    *,
    every: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> Path | None:
    """Write strip.png and strip.json into the run folder; None when the host asked to stop.

    Each network is loaded once; cells that are finished already are not made again.
    """
    networks = list(run.checkpoints.networks().items())[::-1][::every][::-1]
    if not networks:
        raise ValueError(f"{run.path} has no checkpoint yet")
    config = run.config
    trainable: Trainable = ALGORITHMS.get(config.trainable.algorithm)(config.trainable, config.loop.seed)  # type: ignore[operator]
    trainable.prepare(host)
    store = CellStore(run.path / "cells")
    base_key = hashlib.sha256(json.dumps(base_of(host), sort_keys=True).encode()).hexdigest()
    columns: list[tuple[str, Path | None]] = [(BASE, None), *((path.stem, path) for _, path in networks)]
    stopped = False

    def cells() -> Iterator[Cell]:
        nonlocal stopped
        for column, (label, path) in enumerate(columns):
            network_key = "" if path is None else sha256_of(path)
            keys = [cell_key(base_key + network_key, row, host=host.name, **_sampling(host)) for row in rows]
            missing = [row for row, key in enumerate(keys) if store.get(key) is None]
            if missing and path is not None:
                trainable.restore(read_safetensors(path)[0])
            for row, key in enumerate(keys):
                image = store.get(key)
                if image is None:
                    if host.stop_requested():
                        stopped = True
                        return
                    say(f"{label}, row {row + 1} of {len(rows)}")
                    image = _picture(host, trainable, rows[row], on=path is not None)
                    store.put(key, image, {"column": label, "prompt": rows[row].prompt, "seed": rows[row].seed})
                yield Cell(column, row, image, key, f"cells/{key}.png")

    roots = [root for part, root in host.parts.items() if part == "unet" or config.trainable.text_encoder]
    with ExitStack() as stack:
        stack.enter_context(host.training(host.compute_dtype, False))
        stack.enter_context(attached(roots, host.weight_of, trainable.branch_of))
        compose(
            [label for label, _ in columns],
            [f"{row.prompt}\nseed {row.seed}" for row in rows],
            cells(),
            run.path / "strip.png",
            title=run.path.name,
            note=f"{rows[0].steps} steps, guidance {rows[0].guidance:g}, {rows[0].width} x {rows[0].height} px",
            metadata={"model": host.model_info.get("name", ""), "requests": json.dumps([vars(r) for r in rows])},
        )
    return None if stopped else run.path / "strip.png"


def _picture(host: Host, trainable: Trainable, request: SampleRequest, *, on: bool) -> Image.Image:
    if on:
        return host.sampler(request)
    with trainable.off():
        return host.sampler(request)


def _sampling(host: Host) -> dict[str, str]:
    """What a request does not say and a picture depends on."""
    return {"dtype": str(host.compute_dtype), "text": host.text.key, "autoencoder": host.autoencoder.key}


def _triggers(run: RunFolder) -> tuple[str, ...]:
    """A prompt for each concept where none was given: its trigger word, else the run's name."""
    config: RunConfig = run.config
    triggers = tuple(concept.trigger for concept in config.data.concepts if concept.trigger)
    return triggers or (config.name,)
