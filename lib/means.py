"""The means of training losses, exact and therefore the same however often a run was cut.

Every finite float32 is a whole multiple of 2^-149. Sums of such multiples are integers, which lose nothing and do not
depend on the order, so means can be carried on step by step and rebuilt from the written losses alike.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_BITS = 149


@dataclass(frozen=True)
class StepMeans:
    """Means as of one step; nan where there is nothing to average."""

    loss: float  # of the step's samples
    latest: float  # of each picture's latest loss
    window: float  # of the samples of the last `window_steps` steps
    window_se: float  # its standard error, sample deviation / sqrt(n); nan below two samples
    n: int  # samples in the window


class Means:
    """Means of float32 losses. Those that are not finite are counted and left out."""

    def __init__(self, window_steps: int) -> None:
        self.window_steps = window_steps
        self.num_nonfinite = 0
        self.last: StepMeans | None = None
        self._latest: dict[str, int] = {}
        self._latest_sum = 0
        self._window: deque[tuple[int, int, int, int]] = deque()  # step, samples, sum, sum of squares
        self._num, self._sum, self._squares = 0, 0, 0

    def add(self, step: int, samples: Sequence[tuple[str, float]]) -> StepMeans:
        """The (picture, loss) pairs of one step; steps ascend."""
        losses = []
        for name, loss in samples:
            if not math.isfinite(loss):
                self.num_nonfinite += 1
                continue
            exact = int(math.ldexp(loss, _BITS))
            losses.append(exact)
            self._latest_sum += exact - self._latest.get(name, 0)
            self._latest[name] = exact
        total, squares = sum(losses), sum(x * x for x in losses)
        self._window.append((step, len(losses), total, squares))
        self._change(len(losses), total, squares)
        while self._window[0][0] <= step - self.window_steps:
            _, num, total_before, squares_before = self._window.popleft()
            self._change(-num, -total_before, -squares_before)
        self.last = StepMeans(
            loss=_mean(total, len(losses)),
            latest=_mean(self._latest_sum, len(self._latest)),
            window=_mean(self._sum, self._num),
            window_se=self._standard_error(),
            n=self._num,
        )
        return self.last

    def _change(self, num: int, total: int, squares: int) -> None:
        self._num, self._sum, self._squares = self._num + num, self._sum + total, self._squares + squares

    def _standard_error(self) -> float:
        n = self._num
        if n < 2:
            return math.nan
        return math.sqrt((n * self._squares - self._sum**2) / (n * n * (n - 1) << 2 * _BITS))


def _mean(total: int, num: int) -> float:
    return total / (num << _BITS) if num else math.nan
