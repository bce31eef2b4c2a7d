"""A schedule laid over a run: syntax tree and length of the run -> a pure function step -> rate.

Nothing here has state that a step changes: a resumed run finds its rate by the absolute step alone.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .curve import Curve
from .parser import MAX_STEPS, Item, PieceItem, RepeatItem, ScheduleError, excerpt, syntax_tree

MAX_PIECES = 10_000


class Piece(NamedTuple):
    """Steps `first` (inclusive) to `end` (exclusive) from rate `start` to rate `stop`; `end` may lie past the run's."""

    first: int
    end: int
    start: float
    stop: float
    curve: Curve

    def rate(self, step: int) -> float:
        """The rate at a step in [first, end]."""
        if step >= self.end or self.start == self.stop:
            return self.stop
        return self.curve.rate(self.start, self.stop, (step - self.first) / (self.end - self.first))


@dataclass(frozen=True)
class ResolvedSchedule:
    """A schedule on a run of known length."""

    num_steps: int  # where it ends: the run's steps, or fewer with stop_at_end
    pieces: tuple[Piece, ...]  # from step 0, without gaps, to num_steps or past it
    cycle_ends: tuple[int, ...]  # rising numbers of steps after which a cycle of a repeat is complete
    notes: tuple[str, ...]  # what the user should be told, such as that the run cuts the schedule

    def rate(self, step: int) -> float:
        """The rate of update `step`, counted from 0.

        One step past the end, at num_steps, it is what the last piece arrives at: its last rate if it ends there, its
        curve's value if the run cuts it. Errors: `ValueError` for a step outside 0..num_steps.
        """
        if not 0 <= step <= self.num_steps:
            raise ValueError(f"step must be between 0 and {self.num_steps}, got {step}")
        return self.pieces[bisect_right(self.pieces, step, key=lambda piece: piece.first) - 1].rate(step)


@dataclass(frozen=True)
class Schedule:
    """A schedule as written, for a run of any length."""

    text: str
    items: tuple[Item, ...]

    def resolve(
        self, num_steps: int, steps_per_epoch: int | None = None, stop_at_end: bool = False
    ) -> ResolvedSchedule:
        """Lay the schedule over a run of `num_steps` updates.

        `10%` is that part of num_steps and `3ep` three times steps_per_epoch. Percentages, and lengths multiplied by
        lengthen, are rounded to the nearest step, halves up; repeats inside repeats multiply their factors first and
        round once. In cycle n of a repeat the highest rate is its first times decay^n, but not below the group's
        lowest: rates above that are lowered to it, the others stay.

        Errors: `ScheduleError` when it ends before the run (unless `stop_at_end`, which ends the run there), when ends
        do not rise, when an item has no steps or follows an open one, when epochs are used without steps_per_epoch, or
        when it has more than MAX_PIECES pieces within the run. `ValueError` for a run length below 1.
        """
        for name, value in (("num_steps", num_steps), ("steps_per_epoch", steps_per_epoch)):
            if value is not None and not 1 <= value <= MAX_STEPS:
                raise ValueError(f"{name} must be between 1 and {MAX_STEPS}, got {value}")
        layout = _Layout(self.text, num_steps, steps_per_epoch)
        layout.check(self.items)
        notes = layout.lay(self.items)
        if layout.position < num_steps and not stop_at_end:
            last = self.items[-1]
            fix = "repeat it more often or add an open item after it, such as 1e-6"
            if isinstance(last, PieceItem):
                fix = "let this item go to the end of the run by :-1 or by leaving its end out"
            problem = f"the schedule ends at step {layout.position} and the run at step {num_steps}; {fix}"
            raise layout.error(f"{problem}, or set stop_at_end to stop where the schedule ends", last)
        end = min(layout.position, num_steps)
        cycle_ends = sorted({step for step in layout.cycle_ends if step <= end})
        return ResolvedSchedule(end, tuple(layout.pieces), tuple(cycle_ends), notes)


def parse(text: str) -> Schedule:
    """Read a schedule. Errors: `ScheduleError` with the place in the text, what was got, and the fix."""
    return Schedule(text, syntax_tree(text))


class _Layout:
    """The pieces laid so far, one after another, until the run is full."""

    def __init__(self, text: str, num_steps: int, steps_per_epoch: int | None) -> None:
        self.text = text
        self.num_steps = num_steps
        self.steps_per_epoch = steps_per_epoch
        self.position = 0
        self.pieces: list[Piece] = []
        self.cycle_ends: list[int] = []

    def error(self, problem: str, item: Item) -> ScheduleError:
        return ScheduleError(problem, self.text, item.begin, item.finish)

    def check(self, items: Sequence[Item]) -> None:
        """Faults that do not depend on where an item begins, also in items that the run never reaches."""
        for item, following in pairwise(items):
            if isinstance(item, PieceItem) and item.end is None:
                shown = excerpt(self.text, item.begin, item.finish)
                problem = f"the item before it, {shown}, goes to the end of the run; give that one an end such as :100"
                raise self.error(f"{problem}, or remove this", following)
        for piece in _piece_items(items):
            self.steps(piece)

    def steps(self, item: PieceItem) -> int | None:
        """An item's end as it is written, in steps; None for an open item."""
        if item.end is None:
            return None
        amount, unit, _ = item.end
        if unit == "ep":
            if self.steps_per_epoch is None:
                problem = "epochs need the number of steps per epoch, which is not known here"
                raise self.error(f"{problem}; give it, or write steps or a percentage", item)
            steps = int(amount) * self.steps_per_epoch
        elif unit == "%":
            steps = _rounded(amount * self.num_steps / 100)
        else:
            steps = int(amount)
        if steps == 0:
            of_run = f" ({amount:g} % of {self.num_steps} steps, rounded)" if unit == "%" else ""
            raise self.error(f"the item has a length of 0 steps{of_run}; give it at least 1 step, or remove it", item)
        return steps

    def lay(self, items: Sequence[Item]) -> tuple[str, ...]:
        """Lay the whole schedule, also what the run cuts; that is what the answer says."""
        notes = []
        for item in items:
            first = self.position
            self.place([item], 1.0)
            place = f"column {item.begin + 1}, {excerpt(self.text, item.begin, item.finish)},"
            if first < self.num_steps < self.position:
                notes.append(f"the schedule is longer than the run: {place} is cut at step {self.num_steps}")
            elif first >= self.num_steps:
                notes.append(
                    f"the schedule is longer than the run: {place} comes after its end at step {self.num_steps}"
                )
        return tuple(notes[:2])  # further items after the end say nothing new

    def place(self, items: Iterable[Item], lengthen: float) -> None:
        """Append the pieces of `items`, lengths multiplied by `lengthen`."""
        for item in items:
            if isinstance(item, PieceItem):
                self.piece(item, lengthen)
            else:
                self.repeat(item, lengthen)

    def piece(self, item: PieceItem, lengthen: float) -> None:
        steps = self.steps(item)
        if item.end is None or steps is None:
            end = max(self.position, self.num_steps)
        elif item.end.is_length:
            end = self.position + max(1, _rounded(steps * lengthen))
        else:
            end = steps
            if end <= self.position:
                problem = f"the item ends at step {end}, and the one before it ends at step {self.position}"
                raise self.error(f"{problem}; write a later end, or this item's length as :+100", item)
        if self.position < self.num_steps:
            if len(self.pieces) == MAX_PIECES:
                problem = f"more than {MAX_PIECES:,} pieces before the end of the run; make the repeated items longer"
                raise self.error(problem, item)
            self.pieces.append(Piece(self.position, end, item.start, item.stop, item.curve))
        self.position = end

    def repeat(self, item: RepeatItem, lengthen: float) -> None:
        rates = [rate for piece in _piece_items(item.items) for rate in (piece.start, piece.stop)]
        highest, lowest = max(rates), min(rates)
        for cycle in range(item.num_cycles):
            if self.position >= self.num_steps:
                self.position += 1  # what is left out has at least one step
                return
            peak = max(highest * item.decay**cycle, lowest)
            items = item.items if peak == highest else _lowered(item.items, peak)
            self.place(items, lengthen * _power(item.lengthen, cycle))
            self.cycle_ends.append(self.position)


def _rounded(steps: float) -> int:
    return math.floor(min(steps, MAX_STEPS) + 0.5)


def _power(base: float, exponent: int) -> float:
    try:
        return min(base**exponent, float(MAX_STEPS))
    except OverflowError:
        return float(MAX_STEPS)


def _piece_items(items: Iterable[Item]) -> Iterator[PieceItem]:
    for item in items:
        if isinstance(item, PieceItem):
            yield item
        else:
            yield from _piece_items(item.items)


def _lowered(items: Iterable[Item], peak: float) -> tuple[Item, ...]:
    """The items with each rate above `peak` lowered to it."""
    return tuple(
        item._replace(start=min(item.start, peak), stop=min(item.stop, peak))
        if isinstance(item, PieceItem)
        else item._replace(items=_lowered(item.items, peak))
        for item in items
    )
