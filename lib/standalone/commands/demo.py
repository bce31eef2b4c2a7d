"""`atelier demo`: everything once, on a tiny model and pictures that are made on the spot."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from ...config import RunConfig, from_dict
from ...manifest import DamagedError, read_manifest, write_manifest
from ...preparation import start
from ...previews import requests
from ...report import write_report
from ...strip.render import rows_of
from ..demo.pictures import TRIGGER, draw_dataset
from ..demo.pretraining import LOGIT_MEAN, LOGIT_STD, SIDE_PX, Recipe, Watch, build_model
from ..host import StandaloneHost
from ..pipeline import load_pipeline
from ..progress import StopRequest, Terminal
from .strip import make_strip

NUM_PICTURES = 9
NUM_STEPS = 320
NUM_CHECKPOINTS = 4
MAX_THREADS = 4  # more only get in each other's way on so small a model
FORMAT = 1  # of recipe.json
PROMPTS = (
    f"{TRIGGER}, smiling, green meadow, white flowers, blue sky, sun",
    f"{TRIGGER}, laughing, snow, fir trees, winter",
    "blue rabbit, beach, sea, red and white umbrella",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `atelier demo`."""
    parser.add_argument("--output", type=Path, default=Path("demo-run"), help="folder that everything is written to")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, metavar="N", help="length of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the model, the pictures and the run")


def run(args: argparse.Namespace) -> int:
    """Returns 0 when finished, 3 when stopped."""
    for name, value, least in (("steps", args.steps, 1), ("seed", args.seed, 0)):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    with _few_threads():
        return demonstrate(args.output, args.steps, Recipe(seed=args.seed))


def demonstrate(output: Path, num_steps: int = NUM_STEPS, recipe: Recipe = Recipe()) -> int:  # noqa: B008 - frozen
    """Draw pictures, build or reuse the model, train, draw the strip and the report, and say where they are.

    Errors: `ValueError`, also when `output/model` is something else than a model of the demo; `StoppedError`.
    """
    terminal = Terminal()
    stop = StopRequest(terminal)
    with stop.listening():
        pictures = output / "pictures"
        draw_dataset(pictures, NUM_PICTURES, seed=recipe.seed)
        terminal.say(f"drew {NUM_PICTURES} pictures of {TRIGGER} into {pictures}")
        model = _model(output / "model", recipe, Watch(terminal.say, terminal.show, lambda: stop.requested))
        pipeline, info = load_pipeline(model, dtype=torch.float32)
        host = StandaloneHost(
            pipeline,
            model_info=info,
            device=torch.device("cpu"),
            on_progress=terminal.show,
            stop_requested=lambda: stop.requested,
        )
        config = settings(pictures, num_steps, recipe.seed)
        with start(host, config, output / "runs", terminal.say) as prepared:
            for note in prepared.notes:
                terminal.say(f"note: {note}")
            terminal.say(prepared.summary)
            outcome = prepared.trainer.train()
            strip = None
            if outcome.reason == "finished":
                terminal.say("draws the strip")
                strip = make_strip(host, prepared.run, rows_of(requests(config.preview, SIDE_PX)))
    folder = prepared.run.path
    report = write_report(folder)
    print(f"{outcome.reason} at step {outcome.step}")
    shown = {
        "network": prepared.run.checkpoints.networks()[outcome.step],
        "losses": folder / "loss.csv",
        "report": report,
        "strip": strip,
    }
    for what, path in shown.items():
        if path is not None:
            print(f"{what + ':':9}{path}")
    if strip is None:
        command = "strip" if outcome.reason == "finished" else "resume"
        print(f"go on with: atelier {command} {folder} --model {model}")
        return 3
    print(
        f"Open the report: its first lines say whether the network learned. In the strip, {TRIGGER} (round, purple, a "
        "yellow hat) comes into rows 1 and 2 from left to right; row 3 does not name it: what it loses is the price."
    )
    return 0


def settings(pictures: Path, num_steps: int, seed: int) -> RunConfig:
    """The run: every layer of the model, since it is tiny, and a checkpoint and the controlled loss at each quarter."""
    every_steps = max(1, num_steps // NUM_CHECKPOINTS)
    return from_dict(
        RunConfig,
        {
            "name": "demo",
            "data": {
                "concepts": [{"folder": str(pictures), "trigger": TRIGGER}],
                "resolution": SIDE_PX,
                "bucket_step": 8,
                "bucket_min_px": 32,
                "bucket_max_px": 2 * SIDE_PX,
            },
            "objective": {"timesteps": "logit_normal", "logit_mean": LOGIT_MEAN, "logit_std": LOGIT_STD},
            "trainable": {"layers": "all", "rank": 16, "alpha": 16.0},
            "rate": {"schedule": f"0->5e-3:{max(1, num_steps // 20)}, 5e-3->5e-4 cosine"},
            "loop": {"steps": num_steps, "batch_size": 3, "seed": seed},
            "save": {"every_steps": every_steps},
            "record": {"probe_every_steps": every_steps, "probe_images": NUM_PICTURES},
            "preview": {"prompts": list(PROMPTS), "guidance": 1.5, "seed": 21},
        },
    )


def _model(folder: Path, recipe: Recipe, watch: Watch) -> Path:
    """The model in `folder`, built unless it is there already."""
    about = folder / "recipe.json"
    if folder.is_dir() and any(folder.iterdir()) and not about.is_file():
        raise ValueError(f"{folder} holds something else than a model of the demo; give another --output")
    wanted = {"format": FORMAT, "recipe": asdict(recipe)}
    try:
        complete = about.is_file() and read_manifest(about, FORMAT) == wanted
    except DamagedError:
        complete = False
    if complete:
        watch.say(f"uses the model that was built before: {folder}")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    # says whose folder this is; the recipe comes last, so that half a model is never taken for one
    write_manifest(about, {"format": FORMAT, "recipe": None})
    watch.say(f"builds a tiny model in {folder}; another demo with this --output will use it again")
    build_model(folder, recipe, watch)
    write_manifest(about, wanted)
    return folder


@contextmanager
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, MAX_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)
