"""Before training: two real steps on the largest bucket, and what they say of the run.

Memory, seconds a step, hours and money; where it does not fit, the memory ladder is walked down, from what costs no
quality and little time to what costs more: block checkpointing, base weights in fewer bits, blocks in main memory.
Nothing of the run is made: the network and the optimizer that take the steps are thrown away, and so is their folder.
Only what a run would find encoded already is kept, the pictures' latents and the captions.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .config import RunConfig, merge
from .host import Host, KeepsWeights
from .memory import available_mb, give_back, is_out_of_memory, peak_mb, reset_peak
from .preparation import check_settings, rehearsal

NUM_STEPS = 2  # the first makes what later ones find; the second is measured


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Two steps with some settings. What could not be measured is None."""

    changes: dict[str, Any]  # to `loop`, against the settings that were asked about
    peak_mb: float | None
    seconds_per_step: float | None  # None: memory ran out
    fits: bool | None  # None: it ran, and how much memory there is or how much it took is not known

    @property
    def text(self) -> str:
        """In words: "loop.block_checkpointing=true: 3120 MiB, 1.52 s a step"."""
        name = ", ".join(f"loop.{key}={str(value).lower()}" for key, value in self.changes.items()) or "as set"
        if self.seconds_per_step is None:
            return f"{name}: out of memory"
        memory = "memory not measured" if self.peak_mb is None else f"{self.peak_mb:.0f} MiB"
        too_much = ", which is more than there is" if self.fits is False else ""
        return f"{name}: {memory}{too_much}, {self.seconds_per_step:.2f} s a step"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run would need. `config` holds the settings of the last trial."""

    config: RunConfig
    trials: list[Trial]
    num_steps: int
    budget_mb: float | None
    price_per_hour: float | None

    @property
    def fits(self) -> bool | None:
        """Whether the last trial did; None where that is not known."""
        return self.trials[-1].fits

    @property
    def hours(self) -> float | None:
        """Hours of the steps alone, without previews, measurements and saving; None where memory ran out."""
        seconds = self.trials[-1].seconds_per_step
        return None if seconds is None else seconds * self.num_steps / 3600

    @property
    def money(self) -> float | None:
        """What those hours cost; None where the price or the hours are not known."""
        return None if self.hours is None or self.price_per_hour is None else self.hours * self.price_per_hour

    def lines(self) -> list[str]:
        """The forecast in words, a line for each trial, then what they come to."""
        lines = [trial.text for trial in self.trials]
        if self.budget_mb is None:
            lines.append("how much memory there is: not measured")
        else:
            lines.append(f"there are {self.budget_mb:.0f} MiB")
        if self.hours is not None:
            money = "" if self.money is None else f", {self.money:.2f} at {self.price_per_hour:g} an hour"
            lines.append(
                f"{self.num_steps} steps of the largest bucket take {_duration(self.hours)}{money}; previews, "
                "measurements and saving come on top"
            )
        return [*lines, *self.advice()]

    def advice(self) -> list[str]:
        """What to set for the run to fit; empty where it fits as asked."""
        changes = self.trials[-1].changes
        if self.fits is not False:
            if not changes:
                return []
            wanted = ", ".join(f"loop.{name}={str(value).lower()}" for name, value in changes.items())
            return [f"it fits with {wanted}"]
        loop, data = self.config.loop, self.config.data
        further = []
        if loop.batch_size > 1:
            further.append(
                f"loop.batch_size=1 with loop.accumulate={loop.batch_size * loop.accumulate} takes the same updates"
            )
        further.append(f"data.resolution below {data.resolution} px needs less in proportion to its square")
        if self.config.optimizer.name not in ("adafactor", "adamw8bit"):
            further.append("optimizer.name=adafactor keeps less state")
        return ["it does not fit; what is left to change: " + "; ".join(further)]


def preflight(
    host: Host,
    config: RunConfig,
    parent: Path,
    *,
    budget_mb: float | None = None,
    price_per_hour: float | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Forecast:
    """Try the run that `start` would make below `parent`, walking down the ladder until it fits.

    `budget_mb` is how much memory may be used, by default what the device has. On CUDA the memory is what torch
    allocated, on the CPU the whole process's; where neither can be measured, a trial counts as fitting unless it ran
    out. A host that owns its model keeps the weights of the last trial: load it anew for a run with others.
    Errors: `ValueError` as `start`.
    """
    config = check_settings(config)
    budget_mb = available_mb(host.device) if budget_mb is None else budget_mb
    trials: list[Trial] = []
    tried, num_steps = config, 0
    for changes in rungs(host, config):
        tried = merge(config, {"loop": changes})
        num_steps, seconds, peak = _two_steps(host, tried, parent, report)
        known = None if peak is None or budget_mb is None else peak <= budget_mb
        fits = False if seconds is None else known
        trials.append(Trial(changes=changes, peak_mb=peak, seconds_per_step=seconds, fits=fits))
        report(trials[-1].text)
        if fits is not False:
            break
    return Forecast(
        config=tried, trials=trials, num_steps=num_steps, budget_mb=budget_mb, price_per_hour=price_per_hour
    )


def rungs(host: Host, config: RunConfig) -> Iterator[dict[str, Any]]:
    """Changes to `loop`, each further down the ladder than the one before; the first changes nothing."""
    changes: dict[str, Any] = {}
    yield {}
    if not config.loop.block_checkpointing:
        changes = {"block_checkpointing": True}
        yield changes
    if not isinstance(host, KeepsWeights):
        return
    storages = ["model", "bf16", "float8"] if host.compute_dtype.itemsize > 2 else ["model", "float8"]
    for storage in storages[storages.index(config.loop.base_storage) + 1 :]:
        changes = {**changes, "base_storage": storage}
        yield changes
    for cpu_blocks in (host.num_blocks // 2, host.num_blocks):
        if cpu_blocks > config.loop.cpu_blocks:
            changes = {**changes, "cpu_blocks": cpu_blocks}
            yield changes


def _two_steps(
    host: Host, config: RunConfig, parent: Path, report: Callable[[str], None]
) -> tuple[int, float | None, float | None]:
    """Steps of the run, seconds of the second one tried (None: memory ran out), peak memory in MiB (None: unknown)."""
    gc.collect()  # what an earlier trial held must not count here
    seconds: float | None = None
    with rehearsal(host, config, parent, report) as prepared:
        trainer = prepared.trainer
        # from here, so that encoding the pictures is no part of it
        measured = reset_peak(host.device)
        try:
            with trainer.ready():
                trainer.optimizer.allocate()
                for _ in range(NUM_STEPS):
                    trainer.loader.seek(trainer.loader.largest())
                    seconds = _timed(trainer.one_step, host.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            give_back(error, host.device)
            measured, seconds = False, None
        if host.device.type == "cuda":
            torch.cuda.empty_cache()
        return trainer.num_steps, seconds, peak_mb(host.device) if measured else None


def _timed(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _duration(hours: float) -> str:
    minutes = round(hours * 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{hours * 60:.1f} min"
