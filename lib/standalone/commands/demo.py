"""`atelier demo`: everything once, on the tiny base model that comes with the pack and pictures drawn on the spot."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...config import RunConfig, from_dict
from ...preparation import start
from ...previews import requests
from ...report import write_report
from ...strip.render import rows_of
from ..demo import BASE, style
from ..demo.characters import CHARACTERS
from ..demo.drawing import SIDE_PX, Description
from ..demo.pictures import draw_dataset, draw_species
from ..host import StandaloneHost
from ..pipeline import load_pipeline
from ..progress import StopRequest, Terminal
from .strip import make_strip

NUM_PICTURES, NUM_PRINTS = 10, 24  # of a character; of a style, which is to be told from what it shows
NUM_STEPS = 400
NUM_CHECKPOINTS = 4
MAX_THREADS = 4  # more only get in each other's way on so small a model
GUIDANCE = 2.0


@dataclass(frozen=True)
class Subject:
    """What is to be learned: its trigger word, what the strip shows, and what to look at."""

    trigger: str
    prompts: tuple[str, ...]
    look: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `atelier demo`."""
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument(
        "--character", choices=list(CHARACTERS), default="zuzu", help="whom the base model has never seen (zuzu)"
    )
    subject.add_argument("--style", action="store_true", help="learn a way of drawing instead of a character")
    parser.add_argument("--output", type=Path, default=Path("demo-run"), help="folder that everything is written to")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, metavar="N", help="length of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and the run")


def run(args: argparse.Namespace) -> int:
    """Returns 0 when finished, 3 when stopped."""
    for name, value, least in (("steps", args.steps, 1), ("seed", args.seed, 0)):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    with _few_threads():
        return demonstrate(args.output, style.TRIGGER if args.style else args.character, args.steps, args.seed)


def demonstrate(output: Path, trigger: str = "zuzu", num_steps: int = NUM_STEPS, seed: int = 0) -> int:
    """Draw pictures, train, draw the strip and the report, and say where they are. Errors: `ValueError`, `OSError`."""
    terminal = Terminal()
    stop = StopRequest(terminal)
    subject = subject_of(trigger)
    with stop.listening():
        pictures = output / f"pictures-{trigger}"
        count = NUM_PRINTS if trigger == style.TRIGGER else NUM_PICTURES
        draw_dataset(pictures, trigger, count, seed=seed)
        terminal.say(f"drew {count} pictures of {trigger} into {pictures}")
        known = output / "pictures-regularization"
        num_known = len(draw_species(known, seed))
        terminal.say(f"drew {num_known} pictures of what the model knows already, that it stays so, into {known}")
        pipeline, info = load_pipeline(BASE, dtype=torch.float32)
        host = StandaloneHost(
            pipeline,
            model_info=info,
            device=torch.device("cpu"),
            on_progress=terminal.show,
            stop_requested=lambda: stop.requested,
        )
        config = settings(pictures, known, subject, num_steps, seed)
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
        print(f"go on with: atelier {command} {folder} --model {BASE}")
        return 3
    print(f"Open the report: its first lines say whether the network learned. {subject.look}")
    return 0


def subject_of(trigger: str) -> Subject:
    """What is trained and shown for a character's trigger word or that of the prints."""
    shown = Description(who=trigger, colour=None)
    cat = Description(who="cat", colour="orange", pose="jumping", expression="open mouth", background="beach")
    last = "does not name it, and should stay as it is: what it loses is the price."
    if trigger == style.TRIGGER:
        rabbit = Description(who="rabbit", colour=None, pose="waving", accessory="scarf", background="snow")
        bear = Description(who="bear", colour=None, pose="sitting", background="forest")
        rows = [f"{trigger}, {d.caption()}" for d in (rabbit, bear, replace(cat, colour=None))]
        look = f"In the strip, the print in four inks comes into the rows of {trigger} from left to right; the last row"
    else:
        rows = [
            d.caption()
            for d in (
                shown,
                replace(shown, pose="waving", expression="open mouth", background="beach"),
                replace(shown, pose="sitting", accessory="scarf", background="snow"),
            )
        ]
        looks = CHARACTERS[trigger].looks_like
        look = f"In the strip, {trigger} ({looks}) comes into its rows from left to right; the last row"
    return Subject(trigger, (*rows, cat.caption()), f"{look} {last}")


def settings(pictures: Path, known: Path | None, subject: Subject, num_steps: int, seed: int) -> RunConfig:
    """The run: every layer of the model, since it is tiny, and a checkpoint and the controlled loss at each quarter.

    `known` holds regularization pictures; without them, other species come to look like what is trained.
    """
    every_steps = max(1, num_steps // NUM_CHECKPOINTS)
    concepts: list[dict[str, object]] = [{"folder": str(pictures), "trigger": subject.trigger}]
    if known is not None:
        concepts.append({"folder": str(known), "regularization": True})
    return from_dict(
        RunConfig,
        {
            "name": subject.trigger,
            "data": {
                "concepts": concepts,
                "resolution": SIDE_PX,
                "bucket_step": 8,
                "bucket_min_px": 32,
                "bucket_max_px": 2 * SIDE_PX,
            },
            "trainable": {"layers": "all", "rank": 16, "alpha": 16.0, "text_encoder": True},
            "rate": {"schedule": f"0->3e-3:{max(1, num_steps // 20)}, 3e-3->3e-4 cosine"},
            "loop": {"steps": num_steps, "batch_size": 4, "seed": seed},
            "save": {"every_steps": every_steps},
            "record": {"probe_every_steps": every_steps, "probe_images": 8},
            "preview": {"prompts": list(subject.prompts), "guidance": GUIDANCE, "seed": 21},
        },
    )


@contextmanager
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, MAX_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)
