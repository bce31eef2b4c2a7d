"""Controlled loss: the same pictures at fixed timesteps with fixed noise, with the network and without.

A training loss is noise: each row has another t and another noise. At fixed noise and t the difference that the
network makes can be read, pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from . import draws
from .data.cache import LatentCache
from .data.sample import Sample
from .diffusion_loss import DiffusionLoss, Drawn
from .host import Conditioning, Host


@dataclass(frozen=True)
class ProbeRow:
    """One picture at one t: its loss with the network and without."""

    image: str
    t: float
    loss: float
    loss_base: float


class Probe:
    """The fixed pictures, noises and timesteps of a run: a seeded choice, the same after a resume."""

    def __init__(
        self, host: Host, loss: DiffusionLoss, samples: Sequence[Sample], num_images: int, num_timesteps: int, seed: int
    ) -> None:
        self._host, self._loss, self._seed = host, loss, seed
        self._samples = sorted(samples, key=lambda s: draws.key(seed, s.name, 0, "probe"))[:num_images]
        u = (torch.arange(num_timesteps, dtype=torch.float64) + 0.5) / num_timesteps
        self._timesteps = loss.timesteps.inverse_cdf(u)
        self._base: dict[str, list[float]] = {}

    @torch.no_grad()
    def measure(
        self,
        cache: LatentCache,
        conditioner: Callable[[Sequence[str]], Conditioning],
        off: Callable[[], AbstractContextManager[None]],
    ) -> list[ProbeRow]:
        """One row a picture and t. `off()` takes the network off; the base, which stays the same, is measured once."""
        rows = []
        for sample in self._samples:
            latents, mask = cache.get(sample.name, False)
            sizes = cache.sizes(sample.name)
            losses = self._losses(sample, sizes, latents, mask, conditioner)
            if sample.name not in self._base:
                with off():
                    self._base[sample.name] = self._losses(sample, sizes, latents, mask, conditioner)
            triples: Iterable[tuple[float, float, float]] = zip(
                self._timesteps.tolist(), losses, self._base[sample.name], strict=True
            )
            rows += [ProbeRow(sample.name, t, loss, base) for t, loss, base in triples]
        return rows

    def _losses(
        self,
        sample: Sample,
        sizes: Sequence[int],
        latents: Tensor,
        mask: Tensor | None,
        conditioner: Callable[[Sequence[str]], Conditioning],
    ) -> list[float]:
        device = self._host.device
        noise = draws.noise(self._seed, sample.name, 0, latents.shape, "probe").unsqueeze(0).to(device)
        conditioning = conditioner([sample.caption])
        losses = []
        # one at a time: the memory of a step at batch size one is always there
        for t in self._timesteps:
            drawn = Drawn(
                noise, t.unsqueeze(0).to(device), torch.zeros_like(noise[..., :1, :1]), torch.zeros_like(noise)
            )
            batch_mask = None if mask is None else mask.unsqueeze(0).to(device)
            losses.append(self._loss(latents.unsqueeze(0).to(device), drawn, conditioning, [sizes], batch_mask))
        return torch.cat(losses).tolist()
