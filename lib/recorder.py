"""The records of a run: every sample's loss, what each step came to, and the controlled losses.

    loss.csv     a row per sample per step, before the mean of the batch; `loss` is unweighted, `lr` is the rate of the
                 first parameter group
    run.csv      a row per step: three means, none of them weighted (`StepMeans` says of what), the gradient's norm
                 before clipping, and a column lr_<group> for each parameter group
    probe.csv    a row per picture and t: controlled loss with the network and without (`loss_base`)

`step` counts from 0: it is the number of updates before that step. Numbers are the shortest text that reads back as the
same float32 (t, loss, weight, grad_norm) or float64 (means and rates). A loss that is not finite is written as nan or
inf, and left out of the means. Text that a spreadsheet would take for a formula gets a ' in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .config import RecordConfig
from .means import Means
from .records import LOSS_COLUMNS, PROBE_COLUMNS, RATE, RUN_COLUMNS, Table, clean, losses_by_step

if TYPE_CHECKING:
    from .probe import ProbeRow


@dataclass(frozen=True)
class _Samples:
    """The samples of one forward pass."""

    step: int
    epoch: int
    names: tuple[str, ...]
    caption_shas: tuple[str, ...]
    t: Tensor
    losses: Tensor
    weight: Tensor
    lr: float


@dataclass(frozen=True)
class _Step:
    """A step that ended."""

    step: int
    samples: list[_Samples]
    grad_norm: Tensor
    lrs: dict[str, float]


class Recorder:
    """Writes the records of the run in `folder`. `group_names` are the optimizer's parameter groups, in order.

    `add` and `end_step` keep references only and never wait for the device; `flush` does, once. Where the folder has
    records already, `restore` comes first.
    """

    def __init__(self, folder: Path, config: RecordConfig, seed: int, group_names: Sequence[str]) -> None:
        self._seed = seed
        self._means = Means(config.window_steps)
        self._rates = {name: RATE + " ".join(name.split()) for name in group_names}
        self._loss = Table(folder / "loss.csv", LOSS_COLUMNS)
        self._run = Table(folder / "run.csv", (*RUN_COLUMNS, *self._rates.values()))
        self._probe = Table(folder / "probe.csv", PROBE_COLUMNS)
        self._tables = (self._loss, self._run, self._probe)
        self._open: list[_Samples] = []
        self._ended: list[_Step] = []

    @property
    def smoothed(self) -> float | None:
        """The mean over the window as of the last flush; None before the first, and where no loss in it is finite."""
        last = self._means.last
        return last.window if last is not None and last.n else None

    @property
    def num_nonfinite(self) -> int:
        """Samples flushed so far, in the whole run, whose loss was not finite."""
        return self._means.num_nonfinite

    def add(
        self,
        step: int,
        epoch: int,
        names: Sequence[str],
        caption_shas: Sequence[str],
        t: Tensor,
        losses: Tensor,
        weight: Tensor,
        lr: float,
    ) -> None:
        """The samples of one forward pass of a step. t, losses (unweighted) and weight: (B,), on any device."""
        self._open.append(
            _Samples(step, epoch, tuple(names), tuple(caption_shas), t.detach(), losses.detach(), weight.detach(), lr)
        )

    def end_step(self, step: int, lrs: Mapping[str, float], grad_norm: Tensor | float) -> None:
        """The samples added since the last step are all of this one. `lrs` by group name."""
        assert self._open and all(samples.step == step for samples in self._open)
        assert lrs.keys() == self._rates.keys()
        norm = grad_norm.detach() if isinstance(grad_norm, Tensor) else torch.tensor(grad_norm, dtype=torch.float32)
        self._ended.append(_Step(step, self._open, norm, dict(lrs)))
        self._open = []

    def abandon_step(self) -> None:
        """Forget the samples of a step that did not end."""
        self._open = []

    def flush(self) -> None:
        """Write the rows of the steps that ended and of controlled losses, durably.

        Errors: `files.DiskFullError`, `OSError`; the rows are kept, and the next call writes them.
        """
        values = iter(_fetched([x for step in self._ended for x in _tensors_of(step)]))
        for step in self._ended:
            self._format(step, values)
        self._ended = []
        for table in self._tables:
            table.write()

    def add_probe(self, step: int, rows: Sequence[ProbeRow]) -> None:
        """A controlled loss; the next flush writes it."""
        for row in rows:
            numbers = (
                row.t if isinstance(row.t, int) else np.float32(row.t),
                np.float32(row.loss),
                np.float32(row.loss_base),
            )
            self._probe.add(dict(zip(PROBE_COLUMNS, (step, row.image, *numbers), strict=True)))

    def offsets(self) -> dict[str, int]:
        """How far each file reaches after a flush: bytes behind its header line. Errors: as `flush`."""
        self.flush()
        return {table.path.name: table.num_bytes for table in self._tables}

    def restore(self, offsets: Mapping[str, int]) -> None:
        """Cut each file to its offset (none: to nothing), and take up the means from loss.csv.

        Errors: `ValueError` naming a file that is missing, too short, or not what was written.
        """
        for table in self._tables:
            table.cut(offsets.get(table.path.name, 0))
        self._open, self._ended = [], []
        self._means = Means(self._means.window_steps)
        for step, samples in losses_by_step(self._loss.path):
            self._means.add(step, samples)

    def _format(self, step: _Step, values: Iterator[NDArray[np.float32]]) -> None:
        grad_norm = next(values)[0]
        pairs = []
        for part in step.samples:
            ts, losses, weights = next(values), next(values), next(values)
            for i, name in enumerate(part.names):
                t = ts[i] if part.t.is_floating_point() else int(ts[i])
                row = (step.step, part.epoch, name, part.caption_shas[i], t, losses[i], weights[i], part.lr, self._seed)
                self._loss.add(dict(zip(LOSS_COLUMNS, row, strict=True)))
                pairs.append((clean(name), float(losses[i])))
        means = self._means.add(step.step, pairs)
        row = (step.step, step.samples[0].epoch, *astuple(means), grad_norm)
        rates = {column: step.lrs[name] for name, column in self._rates.items()}
        self._run.add({**dict(zip(RUN_COLUMNS, row, strict=True)), **rates})


def _fetched(tensors: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """Tensors as flat float32 arrays: one transfer for all that lie on one device."""
    found: dict[int, NDArray[np.float32]] = {}
    for device in {x.device for x in tensors}:
        indices = [i for i, x in enumerate(tensors) if x.device == device]
        joined = torch.cat([tensors[i].reshape(-1).float() for i in indices]).cpu().numpy()  # sync: once a flush
        ends = np.cumsum([tensors[i].numel() for i in indices])
        found |= dict(zip(indices, np.split(joined, ends[:-1]), strict=True))
    return [found[i] for i in range(len(tensors))]


def _tensors_of(step: _Step) -> list[Tensor]:
    return [step.grad_norm, *(x for part in step.samples for x in (part.t, part.losses, part.weight))]
