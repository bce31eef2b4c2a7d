"""One execution of the train node: which run is meant, training it, and what comes out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..lib import preparation, presets
from ..lib.config import RunConfig, difference, to_dict
from ..lib.data.given import Given
from ..lib.host import Progress, SampleRequest
from ..lib.preparation import Prepared
from ..lib.run_folder import ResumeRefused, RunFolder
from ..lib.strip.growing import preview_files
from ..lib.trainer import Outcome
from . import curve, keeping, paths
from .live import LiveRun
from .settings import AUTO, CONTINUE, FORK, NEW, config_from, continued, preset_for
from .sockets import Dataset, Run

PICTURE_SECONDS = 1.5  # between two pictures in the progress bar
_SHOWN_PX = 512


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the graph asks for, and on which model."""

    family: str
    prediction: str
    memory_mb: float  # of the device
    make_host: Callable[[RunConfig], Any]
    scaled: Callable[
        [torch.Tensor], torch.Tensor
    ]  # latents of the autoencoder, (1, C, h, w) -> as the denoiser sees them
    dataset: Dataset
    widgets: Mapping[str, Any]
    options: Sequence[Mapping[str, Any] | None]
    run: Run | None


@dataclass(frozen=True, kw_only=True)
class Done:
    """A run that is over for now. `state` is finished, stopped or restored."""

    run: RunFolder
    state: str
    step: int
    network: Path
    file: Path  # the network where ComfyUI lists it


class Shower:
    """Shows a run: progress bar with the newest preview, a line of text, and the events of `live`."""

    def __init__(self, live: LiveRun, say: Callable[[str], None], bar: Callable[..., None]) -> None:
        self.live, self._say, self._bar = live, say, bar
        self._prepared: Prepared | None = None
        self._picture: Image.Image | None = None
        self._shown = self._said = 0.0

    def begins(self, prepared: Prepared) -> None:
        """The run is ready for its first step."""
        self._prepared = prepared
        trainer, run = prepared.trainer, prepared.run
        self.live.update(
            name=run.path.name,
            folder=str(run.path),
            state="running",
            message="",
            num_steps=trainer.num_steps,
            first_step=trainer.step,
            summary=prepared.summary,
            notes=prepared.notes,
            schedule=curve.points(trainer.rates[0], trainer.config.rate.factor),
        )
        self._say(prepared.summary)

    def report(self, text: str) -> None:
        """A phase of the preparation."""
        self.live.update(message=text)
        self._say(text)

    def progress(self, progress: Progress) -> None:
        """Once a step, and while the run waits."""
        assert self._prepared is not None
        networks = self._prepared.run.checkpoints.networks
        now = time.monotonic()
        ends = progress.step == progress.num_steps
        picture = None
        if self._picture is not None and (now - self._shown >= PICTURE_SECONDS or ends):
            picture, self._picture, self._shown = ("JPEG", self._picture, _SHOWN_PX), None, now
        if now - self._said >= 0.5 or ends or progress.note:
            self._said = now
            self._say(status_line(progress))
        self.live.progress(progress, max(networks(), default=None))
        self._bar(progress.step, progress.num_steps, picture)  # raises where the user cancelled

    def preview(self, step: int, request: SampleRequest, image: Image.Image) -> None:
        """A preview that was written just now."""
        assert self._prepared is not None
        self._picture = image.convert("RGB")
        number = request.seed - self._prepared.trainer.config.preview.seed + 1
        path = preview_files(self._prepared.run).get((step, number))
        if path is not None:
            self.live.preview(step, request.prompt, request.seed, as_view(path))


def status_line(progress: Progress) -> str:
    """Step, loss, rate, speed, time left and memory in one line."""
    parts = [f"step {progress.step}/{progress.num_steps}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.controlled is not None:
        parts.append(f"controlled {progress.controlled:+.1%}")
    parts.append(f"rate {progress.rate:.3g}")
    if progress.seconds_per_step:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        parts += [f"{progress.seconds_per_step:.2f} s/step", f"{left} left"]
    parts.append(f"{progress.memory_mb:.0f} MiB")
    return ", ".join(parts) + (f"\n{progress.note}" if progress.note else "")


def as_view(path: Path) -> dict[str, str]:
    """A file below the output folder as ComfyUI's /view takes it."""
    import folder_paths

    inside = path.resolve().relative_to(Path(folder_paths.get_output_directory()).resolve())
    return {"filename": inside.name, "subfolder": inside.parent.as_posix(), "type": "output"}


def configure(task: Task) -> tuple[RunConfig, str]:
    """The configuration that the graph asks for, and the name of the preset in it. Errors: `ValueError`."""
    known = task.family if task.family in presets.families() else {"flow": "sd3"}.get(task.prediction, "sd1")
    preset = preset_for(known, task.widgets.get("memory", AUTO), task.memory_mb, task.widgets["purpose"])
    config = config_from(preset, task.dataset, task.widgets, task.options)
    return preparation.check_settings(config), preset.name


def run_task(task: Task, shower: Shower) -> Done:
    """Train what the graph asks for, or find it done.

    Errors: `ValueError` for what a user can set right; the interrupt and whatever training raises, after saving.
    """
    config, preset = configure(task)
    shower.report(f"preset {preset}")
    given = None if task.dataset.given is None else _placed(task.scaled, task.dataset.given)
    with ExitStack() as stack:
        prepared = _meant(stack, task, config, given, shower.report)
        trainer, run = prepared.trainer, prepared.run
        shower.begins(prepared)
        done = trainer.step >= trainer.num_steps
        outcome = Outcome("restored", trainer.step) if done else trainer.train()
        step, network = keeping.network_file(run)
        name = run.path.name if outcome.reason != "stopped" else f"{run.path.name}-{step:06d}"
        return Done(
            run=run,
            state=outcome.reason,
            step=step,
            network=network,
            file=keeping.publish(network, paths.loras_folder(), name),
        )


def _meant(
    stack: ExitStack, task: Task, config: RunConfig, given: Given | None, report: Callable[[str], None]
) -> Prepared:
    """The run that the graph means, ready and entered into `stack`."""
    parent, resume = paths.runs_folder(), task.widgets.get("resume", CONTINUE)
    if task.run is not None and resume == CONTINUE:
        old = RunFolder.open(task.run.folder)
        own = difference(old.config, _with_places_of(old.config, config))
        if own:
            report(f"{old.path.name} goes on with its own settings; not used: {'; '.join(own)}")
        host = task.make_host(old.config)
        return stack.enter_context(preparation.resume(host, old.path, continued(old.config, config), report, given))
    host = task.make_host(config)
    source, step = None, 0
    if resume == FORK:
        if task.run is None:
            raise ValueError("fork needs to know which run: connect a Run node to Train LoRA")
        source = RunFolder.open(task.run.folder)
        step = keeping.network_file(source, task.run.step)[0]
    if resume != NEW:
        branch = None if source is None else (source.id, step)
        for run in keeping.earlier_runs(parent, config.name, config, branch):
            try:
                return stack.enter_context(preparation.resume(host, run.path, to_dict(config), report, given))
            except ResumeRefused as refusal:  # its data or its base model is another
                report(f"{run.path.name} is left as it is: {'; '.join(refusal.differences[:3])}")
    if source is not None:
        return stack.enter_context(preparation.fork(host, source.path, step, to_dict(config), parent, report, given))
    return stack.enter_context(preparation.start(host, config, parent, report, given))


def _with_places_of(own: RunConfig, config: RunConfig) -> RunConfig:
    """`config` with the run's own name, intervals, previews and folders, which are no difference."""
    concepts = config.data.concepts
    if len(concepts) == len(own.data.concepts):
        concepts = tuple(
            replace(now, folder=then.folder) for now, then in zip(concepts, own.data.concepts, strict=True)
        )
    return replace(
        config, name=own.name, save=own.save, preview=own.preview, data=replace(config.data, concepts=concepts)
    )


def _placed(scaled: Callable[[torch.Tensor], torch.Tensor], given: Given) -> Given:
    """Latents as the denoiser sees them."""
    with torch.inference_mode(False), torch.no_grad():
        entries = [replace(entry, latents=scaled(entry.latents[None].float())[0]) for entry in given.entries]
    return Given(tuple(entries), given.conditionings)
