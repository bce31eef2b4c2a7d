"""The loss of a batch: from clean latents to one number a sample.

Everything random is keyed by (seed, name, visit), so the batch that a sample lands in changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import draws
from .config import ObjectiveConfig
from .host import Conditioning, Host
from .lengths import denoised
from .noise import NoiseSchedule, check_prediction, rescale_zero_terminal_snr
from .objective import loss_per_sample, multires_noise, multires_sizes, noised, scheduled_delta
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

        def stacked(one: Callable[[str, int], Tensor]) -> Tensor:
            each = [one(name, visit) for name, visit in zip(names, visits, strict=True)]
            return torch.stack(each).to(self._host.device)

        u = [draws.position(seed, n, v, config.strata, config.stratified) for n, v in zip(names, visits, strict=True)]
        num_tokens = (shape[1] // 2) * (shape[2] // 2)
        shift = extra = None
        if config.noise_offset:
            shift = stacked(lambda name, visit: draws.noise(seed, name, visit, (shape[0], 1, 1), "offset"))
        if config.input_perturbation:
            extra = stacked(lambda name, visit: draws.noise(seed, name, visit, shape, "perturbation"))
        return Drawn(
            noise=stacked(lambda name, visit: self._noise(name, visit, shape)),
            t=self.timesteps.inverse_cdf(torch.tensor(u, dtype=torch.float64), num_tokens).to(self._host.device),
            shift=shift,
            extra=extra,
        )

    def _noise(self, name: str, visit: int, shape: Sequence[int]) -> Tensor:
        """The noise of one sample on the CPU, (C, h, w), with its coarser resolutions where asked for."""
        config, seed = self._config, self._seed
        noise = draws.noise(seed, name, visit, shape)
        if not config.multires_iterations:
            return noise
        uniform = draws.uniform_stream(seed, name, visit, "multires")
        ratios = [2 + 2 * uniform() for _ in range(config.multires_iterations)]
        levels = [
            draws.noise(seed, name, visit, (1, shape[0], *size), f"multires {level}")
            for level, size in enumerate(multires_sizes(shape[1], shape[2], ratios))
        ]
        return multires_noise(noise.unsqueeze(0), levels, config.multires_discount).squeeze(0)

    def __call__(
        self,
        latents: Tensor,
        drawn: Drawn,
        conditioning: Conditioning,
        sizes: Sequence[Sequence[int]],
        mask: Tensor | None = None,
    ) -> Tensor:
        """The unweighted loss of each sample, (B,) float32. latents (B, C, h, w), mask (B, 1, h, w).

        `sizes` as in `Batch`: for each sample original width and height, crop left and top, target width and height.
        """
        device = self._host.device
        conditioning = {
            **conditioning,
            "sizes": torch.tensor(sizes, dtype=torch.float32, device=device),
            "guidance": torch.full((len(latents),), self._config.guidance, device=device),
        }
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
        prediction = denoised(self._host.denoiser, x_t, drawn.t, conditioning)
        delta = scheduled_delta(drawn.t, self.schedule, self._config.huber_delta, self._config.huber_schedule)
        return loss_per_sample(prediction, target, self._config.loss, delta, mask)

    def weight(self, t: Tensor) -> Tensor:
        """The weight over t, (B,) float32."""
        return weight(t, self.schedule, self._config, self.prediction)
