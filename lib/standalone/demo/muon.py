"""Muon: momentum whose update is made orthogonal, which trains a small network in about half the steps of Adam.

Jordan et al. 2024. Only for building the demo's model in seconds; runs have the optimizers of `optimizers`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOMENTUM = 0.9


class Muon:
    """Muon for matrices and convolutions, shape (out, ...). No weight decay."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        # those of one shape go together: most of the time is the number of operations
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in parameters:
            by_shape.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
        self._groups = [(group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()]

    def momenta(self) -> list[Tensor]:
        """The momentum of each group of equal shapes, to be kept and put back in place."""
        return [momentum for _, momentum in self._groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step; entries change by `rate` / 5 at root mean square, about as with Adam."""
        for group, momentum in self._groups:
            gradients = torch.stack([_gradient(p).flatten(1) for p in group])
            momentum.lerp_(gradients, 1 - MOMENTUM)
            updates = orthogonal(gradients.lerp(momentum, MOMENTUM))
            for parameter, update in zip(group, updates, strict=True):
                parameter.sub_(update.view_as(parameter), alpha=0.2 * rate * max(update.shape) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (B, M, N) with their singular values brought near 1 (0.7 to 1.2), by five Newton-Schulz steps."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    if x.dtype == torch.float32:
        x = x.bfloat16()  # the iteration mends rounding, so that it is enough, and several times faster
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
