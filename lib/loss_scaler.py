"""Loss scaler: keeps the gradients of an fp16 backward pass above fp16's smallest numbers.

Micikevicius et al. 2018, arXiv:1710.03740, with a dynamic scale. The scale is a Python number, and whether gradients
were finite is told by the training loop, so nothing here waits for the device.
"""

# pyright: reportPrivateImportUsage=false
# torch documents its _foreach functions and marks them private

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

INITIAL_SCALE = 2.0**16
GROWTH_EVERY_STEPS = 2000


class LossScaler:
    """The scale is a power of two: doubled after 2000 finite steps in a row, halved after one that was not.

    Without effect when disabled.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._scale = INITIAL_SCALE
        self._num_finite = 0

    def scale(self, loss: Tensor) -> Tensor:
        """`loss` times the scale; call `backward` on it."""
        return loss * self._scale if self.enabled else loss

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide the float32 gradients by the scale, in place; exact, since the scale is a power of two."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.enabled and grads:
            torch._foreach_mul_(grads, 1 / self._scale)

    def update(self, found_nonfinite: bool) -> None:
        """Once per optimizer step, after its gradients were looked at, whether or not the step was taken."""
        if not self.enabled:
            return
        self._num_finite = 0 if found_nonfinite else self._num_finite + 1
        if found_nonfinite:
            self._scale /= 2
        elif self._num_finite == GROWTH_EVERY_STEPS:
            self._scale *= 2
            self._num_finite = 0

    def state(self) -> dict[str, float | int]:
        """What `restore` needs, as JSON values."""
        return {"scale": self._scale, "num_finite": self._num_finite}

    def restore(self, values: dict[str, float | int]) -> None:
        """Go on where `state` was taken. Errors: `ValueError` naming what is missing."""
        missing = {"scale", "num_finite"} - values.keys()
        if missing:
            raise ValueError(f"the state of the loss scaler lacks {', '.join(sorted(missing))}")
        self._scale = float(values["scale"])
        self._num_finite = int(values["num_finite"])
