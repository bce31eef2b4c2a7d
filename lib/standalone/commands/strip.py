"""`atelier strip`: every checkpoint of a run at fixed seeds, side by side, the untrained model first."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ...config import RunConfig
from ...files import read_safetensors, sha256_of
from ...frozen import attached
from ...host import Host, SampleRequest
from ...preparation import base_of
from ...previews import requests
from ...registry import ALGORITHMS
from ...run_folder import RunFolder
from ...strip.cells import Cell, CellStore
from ...strip.growing import BASE, controlled_changes
from ...strip.names import selected
from ...strip.publish import compose
from ...strip.render import Column, Paint, Row, render, rows_of
from ...trainables import Trainable
from ..progress import StopRequest, Terminal
from .train import add_model_arguments, load_host


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
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[], help="a row for each of these seeds and each prompt"
    )
    parser.add_argument(
        "--strength", type=float, nargs="+", default=[], help="a row for each strength of the network (1 if left out)"
    )
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
        rows = rows_of(requests(preview, config.data.resolution), args.seeds, args.strength)
        path = make_strip(host, folder, rows, every=args.every, say=terminal.say)
    if path is None:
        return 3
    print(path)
    return 0


def make_strip(
    host: Host,
    run: RunFolder,
    rows: Sequence[Row],
    *,
    every: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> Path | None:
    """Write strip.png, strip.json and strip.html into the run folder; None when the host asked to stop.

    Each network is loaded once; cells that are finished already are not made again.
    """
    networks = run.checkpoints.networks()
    if not networks:
        raise ValueError(f"{run.path} has no checkpoint yet")
    steps = selected(list(networks), every=every, steps=list(networks))
    config = run.config
    trainable: Trainable = ALGORITHMS.get(config.trainable.algorithm)(config.trainable, config.loop.seed)  # type: ignore[operator]
    trainable.prepare(host)
    base = hashlib.sha256(json.dumps(base_of(host), sort_keys=True).encode()).hexdigest()
    columns = [Column(BASE, None, base)]
    columns += [Column(networks[s].stem, networks[s], base + sha256_of(networks[s])) for s in steps]

    def tell(cell: Cell, done: int, total: int) -> None:
        say(f"{columns[cell.column].label}, {done} of {total}" + (f": {cell.error}" if cell.error else ""))

    roots = [root for part, root in host.parts.items() if part == "unet" or config.trainable.text_encoder]
    with ExitStack() as stack:
        stack.enter_context(host.training(host.compute_dtype, False))
        stack.enter_context(attached(roots, host.weight_of, trainable.branch_of, host.used))
        painter = _Painter(host, trainable)
        store = CellStore(run.path / "cells")
        rendered = render(columns, rows, painter, store, on_cell=tell, stop_requested=host.stop_requested)
    request, changes = rows[0].request, controlled_changes(run.path)
    if not rendered.cells:
        return None
    compose(
        [column.label for column in columns],
        [row.label for row in rows],
        rendered.cells,
        run.path / "strip.png",
        title=run.path.name,
        note=f"{request.steps} steps, guidance {request.guidance:g}, {request.width} x {request.height} px",
        metadata={
            "model": host.model_info.get("name", ""),
            "requests": json.dumps([dataclasses.asdict(row) for row in rows]),
        },
        base=0,
        controlled={i: changes[step] for i, step in enumerate(steps, start=1) if step in changes},
    )
    return None if rendered.stopped else run.path / "strip.png"


class _Painter:
    """Swaps the networks of one run in and out of the loaded model."""

    def __init__(self, host: Host, trainable: Trainable) -> None:
        self._host, self._trainable = host, trainable
        # what a request does not say and a picture depends on
        self.settings: dict[str, Any] = {
            "host": host.name,
            "dtype": str(host.compute_dtype),
            "text": host.text.key,
            "autoencoder": host.autoencoder.key,
        }

    def named_in(self, request: SampleRequest) -> dict[str, Any]:
        return {}  # captions and prompts are literal here

    @contextmanager
    def ready(self, column: Column) -> Iterator[Paint]:
        if column.source is None:
            with self._trainable.off():
                yield lambda request, strength: self._picture(request)
            return
        tensors = read_safetensors(column.source)[0]

        def paint(request: SampleRequest, strength: float) -> Image.Image:
            with self._trainable.scaled(strength):
                return self._picture(request)

        self._trainable.restore(tensors)
        yield paint

    def _picture(self, request: SampleRequest) -> Image.Image:
        image = self._host.sampler(request)
        assert image is not None, "nothing cuts a picture short here"
        return image


def _triggers(run: RunFolder) -> tuple[str, ...]:
    """A prompt for each concept where none was given: its trigger word, else the run's name."""
    config: RunConfig = run.config
    triggers = tuple(concept.trigger for concept in config.data.concepts if concept.trigger)
    return triggers or (config.name,)
