"""Whole runs on the toy host: drawn pictures, settings with everything random on, and what two runs must share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from sd_atelier.lib import preparation
from sd_atelier.lib.config import RunConfig, from_dict
from sd_atelier.lib.files import read_safetensors
from sd_atelier.lib.preparation import Prepared
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.lib.trainer import Outcome
from toy_host import ToyHost, bits

RECORDS = ("loss.csv", "run.csv", "probe.csv")
SQUARE, WIDE = (64, 64), (80, 48)
# Facts of one run rather than of what was trained.
OWN_METADATA = {"ss_output_name", "modelspec.date", "modelspec.title"}


def draw_pictures(folder: Path) -> Path:
    """Two concepts: 3 square and 2 wide pictures shown once, and one of each, shown twice, one of them with a mask."""
    for concept, sizes in {"cups": (SQUARE, WIDE, SQUARE, WIDE, SQUARE), "hats": (WIDE, SQUARE)}.items():
        (folder / concept).mkdir(parents=True)
        for number, size in enumerate(sizes):
            colour = (40 * number, 200 - 30 * number, 90 if concept == "cups" else 220, 255)
            picture = Image.new("RGBA", size, colour)
            draw = ImageDraw.Draw(picture)
            draw.ellipse((8, 8, 30 + 4 * number, 40), fill=(255, 255 - 20 * number, 0, 255))
            if concept == "hats" and size == SQUARE:
                draw.rectangle((40, 0, 63, 63), fill=(0, 0, 0, 0))
            else:
                picture = picture.convert("RGB")
            path = folder / concept / f"{number}.png"
            picture.save(path)
            path.with_suffix(".txt").write_text(
                f"a {concept[:-1]}, number {number}, on a table, drawn", encoding="utf-8"
            )
    return folder


def settings(pictures: Path, **changes: Any) -> RunConfig:
    """A short run with everything that draws a random number, and everything that keeps state, turned on.

    9 pictures an epoch in two buckets, in batches of two: 3 + 2 batches, one of them short; 3 steps an epoch, the last
    of them short. `changes` are dotted settings with __ for the dot.
    """
    values: dict[str, Any] = {
        "name": "run",
        "data": {
            "concepts": [
                {"folder": str(pictures / "cups"), "trigger": "sks"},
                {"folder": str(pictures / "hats"), "repeats": 2, "weight": 0.7},
            ],
            "resolution": 64,
            "bucket_step": 16,
            "bucket_min_px": 32,
            "bucket_max_px": 128,
            "flip": True,
            "alpha_mask": True,
            "shuffle_tags": True,
            "keep_tags": 1,
            "tag_dropout": 0.2,
            "caption_dropout": 0.1,
        },
        "objective": {"noise_offset": 0.05, "input_perturbation": 0.1, "weighting": "min_snr"},
        "trainable": {
            "rank": 2,
            "alpha": 2.0,
            "dropout": 0.2,
            "conv_rank": 2,
            "text_encoder": True,
            "rules": [{"layers": "*_ff_net_*", "rate": "5e-4"}],
        },
        "rate": {"schedule": "0->4e-3:+3, 4e-3->1e-4 cosine", "text_encoder": "1e-3->1e-4"},
        "loop": {"steps": 12, "batch_size": 2, "accumulate": 2, "ema_decay": 0.9, "seed": 7},
        "save": {"dtype": "fp32"},
        "record": {
            "flush_every_steps": 4,
            "window_steps": 5,
            "probe_every_steps": 5,
            "probe_images": 2,
            "probe_timesteps": 2,
        },
        "preview": {"prompts": ["a cup"], "every_steps": 6, "steps": 2},
    }
    return from_dict(RunConfig, put(values, changes))


def put(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` (save__keep_last=3 and the like) put into nested values."""
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return values


Before = Callable[[Prepared], object]


def start(host: ToyHost, config: RunConfig, parent: Path, before: Before = id) -> tuple[Path, Outcome]:
    """A new run, trained until it ends or stops; `before` gets it before step 0. Its folder, and how it ended."""
    with preparation.start(host, config, parent) as prepared:
        before(prepared)
        return prepared.run.path, prepared.trainer.train()


def resume(host: ToyHost, run: Path, before: Before = id, **changes: Any) -> Outcome:
    """The same for a run that goes on."""
    with preparation.resume(host, run, put({}, changes)) as prepared:
        before(prepared)
        return prepared.trainer.train()


def fork(host: ToyHost, source: Path, step: int | None, before: Before = id, **changes: Any) -> tuple[Path, Outcome]:
    """The same for a fork, made beside its source."""
    with preparation.fork(host, source, step, put({}, changes), source.parent) as prepared:
        before(prepared)
        return prepared.run.path, prepared.trainer.train()


def checkpoint(run: Path, step: int | None = None) -> dict[str, Any]:
    """Everything in a checkpoint that another run must have too, were it cut or not."""
    folder = RunFolder.open(run)
    state, weights, notes = folder.load(step)
    assert notes == []
    _, metadata = read_safetensors(folder.checkpoints.networks()[state.step])
    found: dict[str, Any] = {"step": state.step, "images_seen": state.images_seen, "records": state.records}
    found |= {f"published {name}": bits(tensor) for name, tensor in weights.items()}
    found |= {f"state {name}": bits(tensor) for name, tensor in state.tensors.items()}
    # as text, in which nan and -0.0 are equal to themselves only
    found |= {f"value {name}": json.dumps(value, sort_keys=True) for name, value in state.values.items()}
    return found | {f"metadata {k}": v for k, v in metadata.items() if k not in OWN_METADATA}


def records(run: Path) -> dict[str, bytes]:
    """The bytes of the records."""
    return {name: (run / name).read_bytes() for name in RECORDS if (run / name).exists()}


def outcome(run: Path) -> dict[str, Any]:
    """The newest checkpoint and the records: what an uninterrupted run and one that was cut have in common."""
    return {**checkpoint(run), **records(run)}


def unlike(got: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names in which two of these differ: readable where the bytes are not."""
    return sorted(k for k in got.keys() | expected.keys() if k not in got or k not in expected or got[k] != expected[k])


def all_bytes(run: Path) -> dict[str, bytes]:
    """Every file of a run."""
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
