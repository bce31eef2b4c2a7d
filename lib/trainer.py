"""The loop: draw, predict, compare, step; and what happens every so many steps.

Nothing here knows a host, an algorithm or an optimizer. Whatever the next step depends on is in `TrainState`, so a run
that is cut anywhere goes on bit for bit from its newest checkpoint.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .checkpoints import TrainState
from .config import RunConfig
from .data.cache import LatentCache
from .data.conditioner import Conditioner
from .data.loader import Loader
from .data.sample import Batch
from .diffusion_loss import DiffusionLoss
from .ema import Ema
from .files import DiskFullError
from .frozen import attached
from .host import Host, Progress
from .loss_scaler import LossScaler
from .lr_schedule import ResolvedSchedule
from .memory import OutOfMemoryError, give_back, is_out_of_memory, peak_mb
from .optimizers import Optimizer
from .previews import make_previews
from .probe import Probe
from .recorder import Recorder
from .run_folder import RunFolder
from .strip.growing import write_page, write_strip
from .trainables import Trainable

RETRY_SECONDS = 20.0  # between attempts to save while the disk is full
PAUSED_SECONDS = 0.25  # between looks at what is asked of a run that is paused


class NotFiniteError(RuntimeError):
    """The run stopped because the loss or its gradient was not finite several times in a row."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`, or `stopped` on request; the step it reached, where its last checkpoint is."""

    reason: str
    step: int


@dataclass
class Trainer:
    """One run, from the step of its state to its end."""

    host: Host
    config: RunConfig
    run: RunFolder
    trainable: Trainable
    loader: Loader
    cache: LatentCache
    conditioner: Conditioner
    loss: DiffusionLoss
    optimizer: Optimizer
    group_names: Sequence[str]
    rates: Sequence[ResolvedSchedule]  # one per group
    recorder: Recorder
    probe: Probe | None
    metadata: Callable[[str, int, int], dict[str, str]]  # (file stem, step, epoch) -> what the file says of itself
    compute_dtype: torch.dtype
    ema: Ema | None = None
    step: int = 0
    images_seen: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parameters = self.trainable.parameters()
        self._scaler = LossScaler(self.compute_dtype == torch.float16)
        self._num_nonfinite = 0
        self._updating = False
        self._position = self.loader.position
        self._probed_step: int | None = None
        self._saved_step: int | None = None
        self._seconds = 0.0
        self._step_loss: float | None = None
        self._controlled: float | None = None

    @property
    def num_steps(self) -> int:
        """Where the run ends: the shortest schedule decides."""
        return min(rate.num_steps for rate in self.rates)

    def _rates(self, step: int) -> list[float]:
        return [self.config.rate.factor * rate.rate(step) for rate in self.rates]

    def state(self) -> TrainState:
        """Exactly what the next step depends on, keyed by file names."""
        optimizer_tensors, optimizer_values = self.optimizer.state()
        tensors = {f"trainable.{name}": p.detach() for name, p in self._parameters.items()}
        tensors |= {f"optimizer.{name}": t for name, t in optimizer_tensors.items()}
        tensors |= {f"ema.{name}": t for name, t in (self.ema.tensors() if self.ema else {}).items()}
        values = {
            "optimizer": optimizer_values,
            "position": self._position.to_dict(),
            "loss_scaler": self._scaler.state(),
            "num_nonfinite": self._num_nonfinite,
            "probed_step": self._probed_step,
            "ema_updates": self.ema.num_updates if self.ema else 0,
        }
        return TrainState(
            step=self.step,
            images_seen=self.images_seen,
            tensors=tensors,
            values=values,
            records=self.recorder.offsets(),
        )

    def restore(self, state: TrainState) -> None:
        """Go on where `state` was taken, its records included; the loader is there already.

        Errors: `ValueError` naming what is missing.
        """

        def of(part: str) -> dict[str, Tensor]:
            prefix = part + "."
            return {name[len(prefix) :]: t for name, t in state.tensors.items() if name.startswith(prefix)}

        wanted = {"optimizer", "position", "loss_scaler", "num_nonfinite", "probed_step", "ema_updates"}
        missing = wanted - state.values.keys()
        if missing:
            raise ValueError(f"the state of step {state.step} lacks {', '.join(sorted(missing))}; it cannot be resumed")
        self.recorder.restore(state.records)
        self.trainable.restore(of("trainable"))
        self.optimizer.restore(of("optimizer"), state.values["optimizer"])
        average = of("ema")
        if self.ema and (average or state.values["ema_updates"]):
            self.ema.restore(average, state.values["ema_updates"])
        elif self.ema:
            # a branch that turns the average on starts it where it branches off
            self.ema = Ema(self._parameters, self.ema.decay)
        self._scaler.restore(state.values["loss_scaler"])
        self._num_nonfinite, self._probed_step = state.values["num_nonfinite"], state.values["probed_step"]
        self.step, self.images_seen = state.step, state.images_seen
        self._saved_step = state.step

    def train(self) -> Outcome:
        """Train to the end, or to a stop request; either way everything is saved when this returns.

        Errors: `OutOfMemoryError` and `NotFiniteError`, after saving; whatever else happens is raised after saving too.
        """
        with self.ready():
            try:
                outcome = self._loop()
            except BaseException as error:
                self._show_previews(write_page)
                self._rescue(error)
                raise
        self._show_previews(write_strip)
        return outcome

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The model ready for steps, the network attached; inside. Everything is put back, whatever happens."""
        loop = self.config.loop
        with ExitStack() as stack:
            stack.enter_context(self.host.training(self.compute_dtype, loop.block_checkpointing))
            stack.enter_context(_deterministic(loop.deterministic))
            roots = [r for part, r in self.host.parts.items() if part == "unet" or self.config.trainable.text_encoder]
            stack.enter_context(attached(roots, self.host.weight_of, self.trainable.branch_of, self.host.used))
            yield

    def _loop(self) -> Outcome:
        self.optimizer.allocate()
        # here also after a cut: what was due at this step may have been what it cut
        self._measure()
        self._preview()
        clock = _Clock()
        while self.step < self.num_steps:
            self._do_what_is_asked()
            if self.host.stop_requested():
                self.save()
                return Outcome("stopped", self.step)
            epoch = self._position.epoch
            self.one_step()
            self._check_finite()
            if self._due(self.config.record.flush_every_steps):
                self._with_patience(self.recorder.flush)
            self._measure()
            if self._checkpoint_due(epoch):
                self.save()
            self._preview()
            self._seconds = clock.tick()
            self._show()
        return Outcome("finished", self.step)

    def _do_what_is_asked(self) -> None:
        """Save and sample where the user asked for it, and wait here while the run is paused."""
        control = self.host.control
        while True:
            wanted = control.taken()
            if wanted:
                self.save()
            if "sample" in wanted:
                self._with_patience(self._make_previews)
            if not control.paused or self.host.stop_requested():
                return
            self._show("paused")
            time.sleep(PAUSED_SECONDS)

    def one_step(self) -> None:
        """One update, from the loader's next step; inside `ready`, with the optimizer's state allocated."""
        rates = self._rates(self.step)
        batches = self.loader.next_step()
        means = []
        for micro, batch in enumerate(batches):
            with self.trainable.training(self.step, micro):
                mean = self._mean_loss(batch, rates[0])
                self._scaler.scale(mean / len(batches)).backward()
            means.append(mean.detach())
        parameters = list(self._parameters.values())
        self._scaler.unscale(parameters)
        norm = torch.stack(torch._foreach_norm([p.grad for p in parameters if p.grad is not None])).norm()
        # the one device sync of a step: a step that is not finite is never taken
        norm_value, loss_value = torch.stack([norm, torch.stack(means).mean()]).tolist()
        self._step_loss = loss_value
        finite = norm_value - norm_value == 0.0
        # from here until the step is counted, what is in memory is neither the state before it nor the one after it
        self._updating = True
        self._scaler.update(not finite)
        if finite:
            if self.config.optimizer.clip_norm:
                scale = min(1.0, self.config.optimizer.clip_norm / (norm_value + 1e-6))
                if scale < 1.0:
                    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], scale)
            self.optimizer.set_rates(rates)
            self.optimizer.step()
            if self.ema:
                self.ema.update(self.optimizer.published(self._parameters))
            self._num_nonfinite = 0
        elif not self._scaler.enabled or loss_value - loss_value != 0.0:
            # with fp16 a gradient that overflows is how the scale is found; only the loss itself counts there
            self._num_nonfinite += 1
        self.optimizer.zero_grad()
        self.recorder.end_step(self.step, dict(zip(self.group_names, rates, strict=True)), norm_value)
        self.images_seen += sum(len(batch.names) for batch in batches)
        self._position = self.loader.position
        self.step += 1
        self._updating = False

    def _check_finite(self) -> None:
        if self._num_nonfinite >= self.config.loop.max_nonfinite:
            raise NotFiniteError(
                f"step {self.step - 1}: the loss or its gradient was not finite {self._num_nonfinite} steps in a row, "
                "none of which was taken; lower the learning rate, or use bf16 or fp32 instead of fp16"
            )

    def _mean_loss(self, batch: Batch, rate: float) -> Tensor:
        device = self.host.device
        latents = batch.latents.to(device)
        drawn = self.loss.draw(batch.names, batch.visits, latents.shape[1:])
        mask = None if batch.mask is None else batch.mask.to(device)
        losses = self.loss(latents, drawn, self.conditioner(batch.captions), batch.sizes, mask)
        weight = self.loss.weight(drawn.t) * batch.weight.to(device)
        self.recorder.add(
            self.step,
            batch.epoch,
            batch.names,
            [_sha(c) for c in batch.captions],
            drawn.t,
            losses.detach(),
            weight,
            rate,
        )
        return (losses * weight).mean()

    def save(self) -> None:
        """Write a checkpoint of this step, unless it is the newest one already."""
        if self._saved_step != self.step:
            self._with_patience(self._write_checkpoint)

    def _with_patience(self, write: Callable[[], None]) -> None:
        """Do what writes to the disk, as often as it takes while the disk is full."""
        while True:
            try:
                return write()
            except DiskFullError as error:
                # what is trained lives in memory: waiting for room loses nothing, going on or ending would
                if self.host.stop_requested():
                    raise
                self._show(f"paused, will try again: {error}")
                time.sleep(RETRY_SECONDS)

    def _write_checkpoint(self) -> None:
        self.recorder.flush()
        weights = self.ema.tensors() if self.ema else self.optimizer.published(self._parameters)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.save.dtype]
        self.run.save(
            self.state(),
            self.trainable.export(weights, dtype, self.config.save.names),
            lambda stem: self.metadata(stem, self.step, self._position.epoch),
            keep_last=self.config.save.keep_last,
            pins=self.config.save.pins,
        )
        self._saved_step = self.step

    def _rescue(self, error: BaseException) -> None:
        """Save what is trained so far after an error; a step that was not finished is as if it had not begun."""
        self.recorder.abandon_step()
        self.optimizer.zero_grad()
        try:
            give_back(error, self.host.device)  # the step's activations, before more memory is asked for
        finally:
            # also where the device no longer answers
            if not self._updating and self.step:
                self.save()
        what = f"saved at step {self._saved_step}"
        if self._saved_step is None:
            what = "no checkpoint was saved yet"
        elif self._updating:
            # parameters are half updated: only the checkpoint on disk is whole
            what = f"it struck inside the optimizer; the run goes on from its last checkpoint (step {self._saved_step})"
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"out of memory in step {self.step} after a peak of {peak_mb(self.host.device):.0f} MiB; {what}. "
                "To need less: turn on loop.block_checkpointing, lower loop.batch_size (and raise loop.accumulate), or "
                "lower data.resolution"
            ) from error

    def _show(self, note: str = "") -> None:
        self.host.progress(
            Progress(
                step=self.step,
                num_steps=self.num_steps,
                loss=self.recorder.smoothed,
                step_loss=self._step_loss,
                controlled=self._controlled,
                rate=self._rates(max(0, self.step - 1))[0],
                seconds_per_step=self._seconds,
                seconds_left=self._seconds * (self.num_steps - self.step),
                memory_mb=peak_mb(self.host.device),
                note=note,
            )
        )

    def _measure(self) -> None:
        """The controlled loss, where it is due and not in the records yet."""
        due = self.step in (0, self.num_steps) or self._due(self.config.record.probe_every_steps)
        if self.probe is None or not due or self._probed_step == self.step:
            return
        rows = self.probe.measure(self.cache, self.conditioner, self.trainable.off)
        self.recorder.add_probe(self.step, rows)
        base = sum(row.loss_base for row in rows)
        self._controlled = sum(row.loss for row in rows) / base - 1 if base else None
        self._probed_step = self.step
        self._with_patience(self.recorder.flush)

    def _preview(self) -> None:
        if self._preview_due():
            self._with_patience(self._make_previews)

    def _make_previews(self) -> None:
        preview, resolution = self.config.preview, self.config.data.resolution
        self.notes += make_previews(self.host, preview, resolution, self.run.previews, self.step)
        self._show_previews(partial(write_page, grows=True))

    def _show_previews(self, write: Callable[[RunFolder], object]) -> None:
        """Write the strip of the previews; nothing that is wrong with it costs the run."""
        try:
            write(self.run)
        except (OSError, ValueError) as error:
            self.notes.append(f"the strip of the previews was not written: {error}")

    def _due(self, every_steps: int) -> bool:
        return bool(every_steps) and self.step % every_steps == 0

    def _at_cycle_end(self) -> bool:
        return any(self.step in rate.cycle_ends for rate in self.rates)

    def _checkpoint_due(self, epoch: int) -> bool:
        save = self.config.save
        ended_epoch = self._position.epoch > epoch
        return (
            self.step == self.num_steps
            or self._due(save.every_steps)
            or (save.at_cycle_ends and self._at_cycle_end())
            or bool(save.every_epochs and ended_epoch and self._position.epoch % save.every_epochs == 0)
            # a checkpoint comes before a preview, always: a preview is where memory runs out
            or self._preview_due()
        )

    def _preview_due(self) -> bool:
        preview = self.config.preview
        asked = self._due(preview.every_steps) or (preview.at_cycle_ends and (self.step == 0 or self._at_cycle_end()))
        return bool(preview.prompts) and asked


def _sha(caption: str) -> str:
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic kernels only, inside, where wanted; the setting is the host's and is put back."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        if wanted:
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


class _Clock:
    """Seconds per step: the median of the last ones, so that a checkpoint or a preview does not count."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=25)

    def tick(self) -> float:
        """Call after each step; returns the seconds that a step takes."""
        now = time.monotonic()
        self._seconds.append(now - self._last)
        self._last = now
        return statistics.median(self._seconds)
