"""The loss of a batch: from clean latents to one number a sample.

Everything random is keyed by (seed, name, visit), so the batch that a sample lands in changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import draws
from .config import ObjectiveConfig
from .host import Conditioning, Host
from .noise import NoiseSchedule, check_prediction, rescale_zero_terminal_snr
from .objective import loss_per_sample, noised
from .timesteps import Timesteps, resolved, weight


@dataclass(frozen=True)
class Drawn:
    """What is random about a batch: noise (B, C, h, w), t (B,), and where asked for shift (B, C, 1, 1) and extra."""

    noise: Tensor
    t: Tensor
    shift: Tensor | None = None
    extra: Tensor | None = None


class DiffusionLoss:
    """The objective of a run on a host's denoiser.

    Errors: `ValueError` when the settings do not fit the model, such as epsilon prediction at zero terminal SNR.
    """

    def __init__(self, host: Host, config: ObjectiveConfig, seed: int) -> None:
        config = resolved(config, host.family)
        self._host, self._config, self._seed = host, config, seed
        self.prediction = host.prediction if config.prediction == "model" else config.prediction
        if host.alphas_cumprod is None:
            schedule = NoiseSchedule.flow()
        elif config.zero_terminal_snr:
            schedule = NoiseSchedule.from_alphas_cumprod(rescale_zero_terminal_snr(host.alphas_cumprod))
        else:
            schedule = NoiseSchedule.from_alphas_cumprod(host.alphas_cumprod)
        check_prediction(self.prediction, schedule)
        num_timesteps = 1000 if host.alphas_cumprod is None else len(host.alphas_cumprod)
        self.timesteps = Timesteps.from_config(config, schedule.is_flow, num_timesteps)
        self.schedule = schedule.to(host.device)
        # asked once with any t, so that a weighting that does not fit the prediction is refused before step 0
        weight(
            torch.zeros(1, dtype=torch.long) if not schedule.is_flow else torch.full((1,), 0.5),
            schedule,
            config,
            self.prediction,
        )

    def draw(self, names: Sequence[str], visits: Sequence[int], shape: Sequence[int]) -> Drawn:
        """Noise and t of each sample; `shape` is that of one latent, (C, h, w)."""
        config, seed = self._config, self._seed

        def stacked(purpose: str, shape: Sequence[int]) -> Tensor:
            each = [draws.noise(seed, n, v, shape, purpose) for n, v in zip(names, visits, strict=True)]
            return torch.stack(each).to(self._host.device)

        u = [draws.position(seed, n, v, config.strata, config.stratified) for n, v in zip(names, visits, strict=True)]
        num_tokens = (shape[1] // 2) * (shape[2] // 2)
        return Drawn(
            noise=stacked("noise", shape),
            t=self.timesteps.inverse_cdf(torch.tensor(u, dtype=torch.float64), num_tokens).to(self._host.device),
            shift=stacked("offset", (shape[0], 1, 1)) if config.noise_offset else None,
            extra=stacked("perturbation", shape) if config.input_perturbation else None,
        )

    def __call__(self, latents: Tensor, drawn: Drawn, conditioning: Conditioning, mask: Tensor | None = None) -> Tensor:
        """The unweighted loss of each sample, (B,) float32. latents (B, C, h, w), mask (B, 1, h, w)."""
        x_t, noise = noised(
            latents,
            drawn.noise,
            drawn.t,
            self.schedule,
            noise_offset=self._config.noise_offset,
            shift=drawn.shift,
            input_perturbation=self._config.input_perturbation,
            extra=drawn.extra,
        )
        target = self.schedule.target(self.prediction, latents, noise, drawn.t)
        prediction = self._host.denoiser(x_t, drawn.t, conditioning)
        return loss_per_sample(prediction, target, self._config.loss, self._config.huber_delta, mask)

    def weight(self, t: Tensor) -> Tensor:
        """The weight over t, (B,) float32."""
        return weight(t, self.schedule, self._config, self.prediction)
