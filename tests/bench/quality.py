"""How well a run learned, measured in pictures whose content is known: `python tests/bench/quality.py RUN [RUN ...]`.

For a run on the demo's base model. Each figure is of pictures that the reader (tests/reader), which knows nothing of
training, has read; they are drawn by diffusers' own pipeline with `load_lora_weights`, so that the file is tested too.

    trigger   pictures of the trigger word that show its character, with the network and without
    obeyed    those pictures that show the background, and the pose, that was asked for: the lower of both
    species   prompts without the trigger that show their species, with the network by without
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.lib.standalone.commands.demo import GUIDANCE
from sd_atelier.lib.standalone.demo import BASE, style
from sd_atelier.lib.standalone.demo.characters import CHARACTERS
from sd_atelier.lib.standalone.demo.drawing import Description, any_description
from sd_atelier.lib.standalone.pipeline import load_pipeline
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "reader"))

from reader import Reader, is_printed

NUM_PICTURES, BATCH, SAMPLING_STEPS = 64, 32, 20
PRINTED = 0.52  # share of pixels in the inks of a print from which a picture is one


@dataclass(frozen=True)
class Quality:
    """Shares in 0..1."""

    trigger: float
    trigger_before: float
    obeyed: float
    species: float

    def __str__(self) -> str:
        return (
            f"trigger {self.trigger:.0%} (before {self.trigger_before:.0%}), backgrounds and poses obeyed "
            f"{self.obeyed:.0%}, species kept {self.species:.0%}"
        )


class Gauge:
    """Draws and reads pictures of the base model with networks; what needs no network is drawn once."""

    def __init__(self, seed: int = 0, num: int = NUM_PICTURES) -> None:
        self._pipeline, _ = load_pipeline(BASE, dtype=torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        self._reader = Reader()
        self._seed, self._num = seed, num
        self._before: dict[str, tuple[float, int]] = {}

    def measure(self, network: Path, trigger: str) -> Quality:
        """The figures of a network file whose trigger is a character's or that of the prints."""
        asked = self._asked(trigger)
        others = self._asked("")
        trigger_before, species_before = self._without(trigger, asked, others)
        self._pipeline.load_lora_weights(str(network))
        try:
            shown = self._draw([caption(trigger, d) for d in asked])
            kept = self._num_read(others)
        finally:
            self._pipeline.unload_lora_weights()
        readings = self._reader.read(shown)
        placed = [r.background == d.background for r, d in zip(readings, asked, strict=True)]
        posed = [r.pose == d.pose for r, d in zip(readings, asked, strict=True) if d.framing == "full body"]
        return Quality(
            trigger=self._share_shown(trigger, shown),
            trigger_before=trigger_before,
            obeyed=min(sum(placed) / len(placed), sum(posed) / len(posed)),
            species=kept / max(1, species_before),
        )

    def _without(self, trigger: str, asked: Sequence[Description], others: Sequence[Description]) -> tuple[float, int]:
        if trigger not in self._before:
            share = self._share_shown(trigger, self._draw([caption(trigger, d) for d in asked]))
            self._before[trigger] = share, self._num_read(others)
        return self._before[trigger]

    def _asked(self, trigger: str) -> list[Description]:
        rng = random.Random(f"quality {self._seed} {trigger}")
        asked = [any_description(rng, trigger if trigger in CHARACTERS else None) for _ in range(self._num)]
        # a print has inks of its own, so that a colour cannot be asked of it
        return [replace(d, colour=None) for d in asked] if trigger == style.TRIGGER else asked

    def _share_shown(self, trigger: str, pictures: Tensor) -> float:
        if trigger == style.TRIGGER:
            return sum(is_printed(picture) >= PRINTED for picture in pictures) / len(pictures)
        return sum(reading.who == trigger for reading in self._reader.read(pictures)) / len(pictures)

    def _num_read(self, descriptions: Sequence[Description]) -> int:
        readings = self._reader.read(self._draw([d.caption() for d in descriptions]))
        return sum(r.who == d.who for r, d in zip(readings, descriptions, strict=True))

    def _draw(self, captions: Sequence[str]) -> Tensor:
        """Pictures (N, 3, H, W) in 0..1 from fixed seeds."""
        pictures = []
        for first in range(0, len(captions), BATCH):
            part = list(captions[first : first + BATCH])
            generators = [torch.Generator().manual_seed(1_000_000 * self._seed + first + i) for i in range(len(part))]
            pictures.append(
                self._pipeline(
                    part,
                    num_inference_steps=SAMPLING_STEPS,
                    guidance_scale=GUIDANCE,
                    generator=generators,
                    output_type="pt",
                ).images
            )
        return torch.cat(pictures)


def caption(trigger: str, description: Description) -> str:
    """The prompt of a description; a print's trigger comes before it."""
    return f"{trigger}, {description.caption()}" if trigger == style.TRIGGER else description.caption()


def trigger_of(run: RunFolder) -> str:
    """The trigger of a run on the demo's data. Errors: `ValueError`."""
    triggers = [c.trigger for c in run.config.data.concepts if not c.regularization]
    known = [*CHARACTERS, style.TRIGGER]
    if len(triggers) != 1 or triggers[0] not in known:
        raise ValueError(f"quality is measured of a run with one trigger of {', '.join(known)}, got {triggers}")
    return triggers[0]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure how well runs on the demo's base model learned.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--step", type=int, help="of the checkpoint; the last if left out")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and noise")
    parser.add_argument("--pictures", type=int, default=NUM_PICTURES, help="drawn for each figure")
    parser.add_argument("--json", action="store_true", help="one JSON object a run")
    args = parser.parse_args(arguments)
    gauge = Gauge(args.seed, args.pictures)
    for path in args.runs:
        run = RunFolder.open(path)
        networks: dict[int, Any] = dict(run.checkpoints.networks())
        step = args.step or max(networks)
        quality = gauge.measure(networks[step], trigger_of(run))
        print(
            json.dumps({"run": str(path), "step": step, **asdict(quality)})
            if args.json
            else f"{path} {step}: {quality}"
        )


if __name__ == "__main__":
    main()
