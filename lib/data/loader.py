"""The global plan of (sample, visit): which pictures make up each step, on every host the same.

An epoch holds each picture `repeats` times. Each bucket has its list of (picture, copy), shuffled by (seed, epoch,
bucket); the batches of all buckets are shuffled among each other; the last batch of a bucket may be short, and is
trained. A step is `accumulate` batches in a row; the last step of an epoch may be short, so that no step belongs to
two epochs. A copy's visit number is epoch * repeats + copy. All of it is a pure function of the samples, the settings
and the position.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .. import draws
from ..config import DataConfig
from . import captions
from .sample import Batch, Sample


class Latents(Protocol):
    """What the loader asks of a latent cache."""

    def __contains__(self, name: object) -> bool: ...
    def get(self, name: str, flipped: bool = False) -> tuple[Tensor, Tensor | None]: ...
    def sizes(self, name: str, flipped: bool = False) -> tuple[int, int, int, int, int, int]: ...


@dataclass(frozen=True)
class Position:
    """A place between two steps: what earlier plans trained of the epoch, and how many steps of this plan are done."""

    epoch: int = 0
    consumed: dict[str, int] = field(default_factory=dict)  # bucket "WxH" -> how many of its list; none left out is 0
    step: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"epoch": self.epoch, "consumed": dict(self.consumed), "step": self.step}

    @classmethod
    def from_dict(cls, values: Any) -> Position:
        """From JSON values. Errors: `ValueError` for anything that `to_dict` does not give."""

        def count(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0

        right = isinstance(values, dict) and values.keys() == {"epoch", "consumed", "step"}
        right = right and count(values["epoch"]) and count(values["step"]) and isinstance(values["consumed"], dict)
        if not right or not all(isinstance(k, str) and count(v) for k, v in values["consumed"].items()):
            raise ValueError(f"a position needs epoch, consumed and step as whole numbers, got {values}")
        return cls(**values)

    def afresh(self) -> Position:
        """The start of the next epoch, or of this one if nothing of it was trained: where changed data are taken up."""
        return Position(self.epoch + (self.step > 0 or any(self.consumed.values())))


@dataclass(frozen=True)
class _Bucket:
    label: str
    members: np.ndarray  # indices of samples
    starts: np.ndarray  # where each member's copies start in 0..num_copies-1
    num_copies: int


@dataclass(frozen=True)
class _Plan:
    """The rest of an epoch. Batch i takes the occurrences[i]-th batch of bucket sequence[i]."""

    epoch: int
    consumed: dict[str, int]
    orders: tuple[np.ndarray, ...]  # per bucket: what is left of its shuffled list of copies
    sequence: np.ndarray
    occurrences: np.ndarray
    num_steps: int


class Loader:
    """Batches in the order of the plan, with the next step loaded ahead in one thread. Close it, or use it in `with`.

    With several ranks, rank r takes batches r, r + world_size, ... of each step; the plan stays that of all ranks.
    Errors: `ValueError` for no samples, doubled names, samples without latents, or fewer batches a step than ranks.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        cache: Latents,
        data: DataConfig,
        *,
        batch_size: int,
        accumulate: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not samples:
            raise ValueError("there is no picture to train on; check data.concepts and what was left out")
        if accumulate < world_size:
            raise ValueError(f"loop.accumulate must be at least the number of ranks ({world_size}), got {accumulate}")
        # by name, so that the plan does not depend on the order in which a host lists its files
        self._samples = sorted(samples, key=lambda s: s.name)
        for sample, following in zip(self._samples, [*self._samples[1:], None], strict=True):
            if following is not None and sample.name == following.name:
                raise ValueError(f"two samples are called {sample.name}; names must be unique")
            if sample.name not in cache:
                raise ValueError(f"{sample.name} has no latents in the cache; build the cache from the same samples")
        self._cache = cache
        self._data = data
        self._batch_size, self._accumulate, self._seed = batch_size, accumulate, seed
        self._rank, self._world_size = rank, world_size
        self._buckets = _buckets(self._samples)
        self._plan = self._plan_of(0, {}, batch_size, accumulate)
        self._step = 0
        self._ahead: Future[list[Batch]] | None = None
        self._thread = ThreadPoolExecutor(1, "loader")

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def num_batches_per_epoch(self) -> int:
        """Batches in a whole epoch, short ones counted."""
        return sum(-(-b.num_copies // self._batch_size) for b in self._buckets)

    @property
    def num_steps_per_epoch(self) -> int:
        """Optimizer steps in a whole epoch."""
        return -(-self.num_batches_per_epoch // self._accumulate)

    def num_steps_until(self, epoch: int) -> int:
        """Steps from the present position to the start of an epoch; 0 when that is behind."""
        if epoch <= self._plan.epoch:
            return 0
        rest = self._plan.num_steps - self._step
        return rest + (epoch - self._plan.epoch - 1) * self.num_steps_per_epoch

    @property
    def position(self) -> Position:
        """Where the next step starts."""
        return Position(self._plan.epoch, dict(self._plan.consumed), self._step)

    def largest(self) -> Position:
        """Where the step of this epoch starts that needs the most memory: the one with the largest batch.

        Among equals the one with the most batches counts, and then the first.
        """
        plan = self._plan_of(self._plan.epoch, {}, self._batch_size, self._accumulate)
        sizes = []
        for index, occurrence in zip(plan.sequence.tolist(), plan.occurrences.tolist(), strict=True):
            width, height = self._samples[self._buckets[index].members[0]].bucket
            left = len(plan.orders[index]) - occurrence * self._batch_size
            sizes.append(width * height * min(left, self._batch_size))
        steps = [sizes[i : i + self._accumulate] for i in range(0, len(sizes), self._accumulate)]
        largest = max(range(len(steps)), key=lambda step: (max(steps[step]), len(steps[step]), -step))
        return Position(plan.epoch, {}, largest)

    def seek(self, position: Position) -> None:
        """Go to a position of a loader with the same samples and settings. Errors: `ValueError` when it is none."""
        plan = self._plan_at(position, self._batch_size, self._accumulate)
        self._ahead = None
        self._go_to(plan, position.step)

    def replan(self, position: Position, *, batch_size: int, accumulate: int, seed: int) -> Position:
        """Where this loader goes on after `position` of a loader over the same samples with the settings given here.

        With another batch size or accumulation the rest of the epoch is planned anew: each copy that was not trained
        yet is trained once. Another seed shuffles the lists anew, so that there the next epoch is started.
        For changed samples use `position.afresh()`. Errors: `ValueError` as `seek`.
        """
        if seed != self._seed:
            return position.afresh()
        if (batch_size, accumulate) == (self._batch_size, self._accumulate):
            return position
        plan = self._plan_at(position, batch_size, accumulate)
        trained = np.bincount(plan.sequence[: position.step * accumulate], minlength=len(self._buckets))
        consumed = {}
        for bucket, num_batches, left in zip(self._buckets, trained.tolist(), plan.orders, strict=True):
            num = position.consumed.get(bucket.label, 0) + min(num_batches * batch_size, len(left))
            if num:
                consumed[bucket.label] = num
        return Position(position.epoch, consumed)

    def next_step(self) -> list[Batch]:
        """The batches of the next step (of this rank). Errors: those of loading; the position then stays."""
        ahead, self._ahead = self._ahead or self._thread.submit(self._load, self._plan, self._step), None
        batches = ahead.result()
        self._go_to(self._plan, self._step + 1)
        self._ahead = self._thread.submit(self._load, self._plan, self._step)
        return batches

    def close(self) -> None:
        """End the thread."""
        self._ahead = None
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _go_to(self, plan: _Plan, step: int) -> None:
        if step >= plan.num_steps:
            plan, step = self._plan_of(plan.epoch + 1, {}, self._batch_size, self._accumulate), 0
        self._plan, self._step = plan, step

    def _plan_at(self, position: Position, batch_size: int, accumulate: int) -> _Plan:
        plan = self._plan_of(position.epoch, position.consumed, batch_size, accumulate)
        if position.step > max(plan.num_steps - 1, 0):
            raise ValueError(
                f"step {position.step} of epoch {position.epoch} does not exist: with these pictures and this batch "
                f"size that epoch has {plan.num_steps} steps left"
            )
        return plan

    def _plan_of(self, epoch: int, consumed: dict[str, int], batch_size: int, accumulate: int) -> _Plan:
        labels = {b.label: b.num_copies for b in self._buckets}
        for label, num in consumed.items():
            if num > labels.get(label, 0):
                raise ValueError(f"bucket {label} has {labels.get(label, 0)} pictures an epoch, {num} cannot be done")
        orders = tuple(
            draws.permutation(b.num_copies, self._seed, b.label, epoch, "bucket")[consumed.get(b.label, 0) :]
            for b in self._buckets
        )
        num_batches = [-(-len(order) // batch_size) for order in orders]
        in_order = np.repeat(np.arange(len(orders)), num_batches)
        shuffle = draws.permutation(len(in_order), self._seed, "", epoch, "sequence")
        sequence = in_order[shuffle]
        occurrences = np.empty_like(sequence)
        for index, num in enumerate(num_batches):
            occurrences[sequence == index] = np.arange(num)
        return _Plan(epoch, dict(consumed), orders, sequence, occurrences, -(-len(sequence) // accumulate))

    def _load(self, plan: _Plan, step: int) -> list[Batch]:
        first = step * self._accumulate
        indices = range(len(plan.sequence))[first : first + self._accumulate]
        return [self._batch(plan, i) for i in indices[self._rank :: self._world_size]]

    def _batch(self, plan: _Plan, index: int) -> Batch:
        bucket = self._buckets[plan.sequence[index]]
        first = plan.occurrences[index] * self._batch_size
        copies = plan.orders[plan.sequence[index]][first : first + self._batch_size]
        members = np.searchsorted(bucket.starts, copies, side="right") - 1
        samples = [self._samples[i] for i in bucket.members[members]]
        visits = [
            plan.epoch * s.repeats + int(copy) for s, copy in zip(samples, copies - bucket.starts[members], strict=True)
        ]
        flipped = [
            self._data.flip and draws.coin(self._seed, s.name, visit, "flip")
            for s, visit in zip(samples, visits, strict=True)
        ]
        latents, masks = zip(*(self._cache.get(s.name, f) for s, f in zip(samples, flipped, strict=True)), strict=True)
        mask = None
        if any(m is not None for m in masks):
            ones = torch.ones(1, *latents[0].shape[1:])
            mask = torch.stack([ones if m is None else m for m in masks])
        return Batch(
            latents=torch.stack(latents),
            names=tuple(s.name for s in samples),
            visits=tuple(visits),
            captions=tuple(self._caption(s, visit) for s, visit in zip(samples, visits, strict=True)),
            weight=torch.tensor([s.weight for s in samples], dtype=torch.float32),
            mask=mask,
            sizes=tuple(self._cache.sizes(s.name, f) for s, f in zip(samples, flipped, strict=True)),
            epoch=plan.epoch,
        )

    def _caption(self, sample: Sample, visit: int) -> str:
        return captions.compose(
            sample.caption,
            shuffle=self._data.shuffle_tags,
            keep_tags=self._data.keep_tags,
            tag_dropout=self._data.tag_dropout,
            caption_dropout=self._data.caption_dropout,
            uniform=draws.uniform_stream(self._seed, sample.name, visit, "caption"),
        )


def _buckets(samples: Sequence[Sample]) -> list[_Bucket]:
    members: dict[tuple[int, int], list[int]] = {}
    for index, sample in enumerate(samples):
        members.setdefault(sample.bucket, []).append(index)
    buckets = []
    for (width, height), indices in sorted(members.items()):
        ends = np.cumsum([samples[i].repeats for i in indices])
        starts = np.concatenate(([0], ends[:-1]))
        buckets.append(_Bucket(f"{width}x{height}", np.array(indices), starts, int(ends[-1])))
    return buckets
