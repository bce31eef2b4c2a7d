"""The moving average of the weights, which is smoother than the last step."""

# pyright: reportPrivateImportUsage=false
# torch documents its _foreach functions and marks them private

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Ema:
    """Exponential moving average of the weights, by name. It starts as the weights themselves.

    Update n (from 0) decays by min(decay, (1 + n) / (10 + n)), the usual warm-up, so that the start is soon forgotten.
    """

    def __init__(self, params: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._average = {name: p.detach().clone() for name, p in params.items()}

    @torch.no_grad()
    def update(self, params: Mapping[str, Tensor]) -> None:
        """Once after each optimizer step, with the weights that would be published."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        new = [params[name].detach() for name in self._average]
        torch._foreach_lerp_(list(self._average.values()), new, 1 - decay)
        self.num_updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """The average, by name. The live tensors, not copies."""
        return dict(self._average)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Go on where `tensors` and `num_updates` were taken.

        Errors: `ValueError` naming what is missing, unexpected, or of another shape; nothing is changed then.
        """
        for names, what in ((self._average.keys() - tensors.keys(), "lacks"), (tensors.keys() - self._average, "has")):
            if names:
                raise ValueError(f"the moving average {what} {min(names)}, unlike this run ({len(names)} in all)")
        for name, own in self._average.items():
            if tensors[name].shape != own.shape:
                raise ValueError(f"the moving average has {_shown(tensors[name])} for {name}, expected {_shown(own)}")
        for name, own in self._average.items():
            own.copy_(tensors[name])
        self.num_updates = num_updates


def _shown(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
