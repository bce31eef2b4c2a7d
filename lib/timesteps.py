"""Timesteps: from which distribution t is drawn in training, and how the loss is weighted over t.

Time runs from 0, the clean picture, to 1, pure noise. Diffusion models take whole t in 0..T-1, t = floor(T * time);
flow models take the time itself, u. Shapes: u, t, snr (B,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import ObjectiveConfig
from .noise import NoiseSchedule

# The largest float32 below 1: u = 1 has no signal, and flow models are asked within (0, 1).
MAX_U = 1 - 2**-24


@dataclass(frozen=True, kw_only=True)
class Timesteps:
    """The distribution of t, cut to [t_min, t_max] and renormalised there, so that nothing piles up at the ends."""

    distribution: str
    logit_mean: float
    logit_std: float
    t_min: float
    t_max: float
    num_timesteps: int | None  # None for flow

    @classmethod
    def from_config(cls, config: ObjectiveConfig, flow: bool, num_timesteps: int = 1000) -> Timesteps:
        """The distribution that `config` describes.

        Errors: `ValueError` when the range is empty, or so far out that the distribution has nothing in it.
        """
        if not config.t_min < config.t_max:
            raise ValueError(f"objective.t_min must be below objective.t_max, got {config.t_min} and {config.t_max}")
        timesteps = cls(
            distribution=config.timesteps,
            logit_mean=config.logit_mean,
            logit_std=config.logit_std,
            t_min=config.t_min,
            t_max=config.t_max,
            num_timesteps=None if flow else num_timesteps,
        )
        if config.timesteps == "logit_normal":
            low, high, _ = timesteps._tail()
            if high - low < 1e-200:
                raise ValueError(
                    f"the logit-normal distribution has nothing between objective.t_min {config.t_min} and "
                    f"objective.t_max {config.t_max}; move objective.logit_mean (got {config.logit_mean}) towards "
                    "the range, or widen the range"
                )
        return timesteps

    def inverse_cdf(self, u: Tensor) -> Tensor:
        """The t below which the share u of the distribution lies. u (B,) float64 in (0, 1).

        Evenly spread u give evenly spread quantiles, which is what stratified drawing rests on. Diffusion: int64, from
        floor(T * t_min) to ceil(T * t_max) - 1, each equally likely when uniform. Flow: float32 in (0, 1).
        Logit-normal: Esser et al. 2024, arXiv:2403.03206, section 3.1.
        """
        assert u.dtype == torch.float64, "float32 has too few values near 0 and 1"
        time = self._time(u).clamp(self.t_min, self.t_max)
        if self.num_timesteps is None:
            return time.float().clamp(max=MAX_U)
        # 1000 * 0.29 may come out just below 290: the bounds are set in whole steps, with room for that
        first = math.floor(self.num_timesteps * self.t_min + 1e-9)
        last = math.ceil(self.num_timesteps * self.t_max - 1e-9) - 1
        return (
            (self.num_timesteps * time).floor().long().clamp(first, max(first, last)).clamp(max=self.num_timesteps - 1)
        )

    def _time(self, u: Tensor) -> Tensor:
        if self.distribution == "uniform":
            return self.t_min + u * (self.t_max - self.t_min)
        low, high, mirrored = self._tail()
        share = low + (1 - u if mirrored else u) * (high - low)
        z = torch.special.ndtri(share)
        return torch.sigmoid(self.logit_mean + self.logit_std * (-z if mirrored else z))

    def _tail(self) -> tuple[float, float, bool]:
        """The normal distribution function at both ends of the range, and whether it was taken from the upper end.

        It has few digits where it is nearly 1, so a range in the upper half is mirrored into the lower one.
        """
        low, high = self._z(self.t_min), self._z(self.t_max)
        mirrored = low > 0
        if mirrored:
            low, high = -high, -low
        return math.erfc(-low / math.sqrt(2)) / 2, math.erfc(-high / math.sqrt(2)) / 2, mirrored

    def _z(self, time: float) -> float:
        if time in (0, 1):
            return -math.inf if time == 0 else math.inf
        return (math.log(time / (1 - time)) - self.logit_mean) / self.logit_std


def min_snr_weight(snr: Tensor, gamma: float = 5.0, prediction: str = "epsilon") -> Tensor:
    """Min-SNR-gamma weight, shape (B,): min(snr, gamma) / snr for epsilon, / (snr + 1) for v, and itself for x0.

    Hang et al. 2023, arXiv:2303.09556, section 3.4. snr = alpha^2 / sigma^2, shape (B,), >= 0; at 0 the limit, which is
    1 for epsilon and 0 for v and x0. Errors: `ValueError` for flow.
    """
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1)  # gamma / 0 is inf, so that 0 / 0 never arises
    if prediction == "v":
        return snr.clamp(max=gamma) / (snr + 1)
    if prediction == "x0":
        return snr.clamp(max=gamma)
    raise _no_weight("min_snr", prediction)


def debiased_weight(snr: Tensor, prediction: str = "epsilon") -> Tensor:
    """Debiased-estimation weight, shape (B,): 1 / sqrt(snr) for epsilon, 1 / (snr + 1) for v, sqrt(snr) for x0.

    Yu et al. 2023, arXiv:2310.08442, for epsilon; x0 is the same loss in terms of x_0. For v the paper gives none, and
    1 / (snr + 1) is what kohya's sd-scripts use: every x_0 error counts the same. snr (B,), >= 0; for epsilon it counts
    as at least 1e-6, so that the weight stays finite. sd-scripts also count it as at most 1000, which on Stable
    Diffusion's schedule changes t = 0 alone. Errors: `ValueError` for flow.
    """
    if prediction == "epsilon":
        return snr.clamp(min=1e-6).rsqrt()
    if prediction == "v":
        return 1 / (snr + 1)
    if prediction == "x0":
        return snr.sqrt()
    raise _no_weight("debiased", prediction)


def weight(t: Tensor, schedule: NoiseSchedule, config: ObjectiveConfig, prediction: str) -> Tensor:
    """The loss weight that `config.weighting` asks for at t, (B,) float32, finite, >= 0.

    Errors: `ValueError` for flow with any weighting but none.
    """
    if config.weighting == "none":
        return torch.ones(t.shape, device=t.device)
    snr = schedule.snr(t)
    if config.weighting == "min_snr":
        return min_snr_weight(snr, config.min_snr_gamma, prediction).float()
    return debiased_weight(snr, prediction).float()


def _no_weight(weighting: str, prediction: str) -> ValueError:
    return ValueError(
        f'objective.weighting "{weighting}" is for epsilon, v and x0 prediction, got "{prediction}"; use "none"'
    )
