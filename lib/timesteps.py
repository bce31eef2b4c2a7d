"""Timesteps: from which distribution t is drawn in training, and how the loss is weighted over t.

Time runs from 0, the clean picture, to 1, pure noise. Diffusion models take whole t in 0..T-1, t = floor(T * time);
flow models take the time itself, u. Shapes: u, t, snr (B,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .config import ObjectiveConfig
from .noise import NoiseSchedule
from .registry import nearest

Time = TypeVar("Time", float, Tensor)

# The largest float32 below 1: u = 1 has no signal, and flow models are asked within (0, 1).
MAX_U = 1 - 2**-24

# A picture of 1024 x 1024 px in tokens of SD3 and Flux: 2 x 2 latent pixels of 8 px.
REFERENCE_TOKENS = 4096

# What `timesteps: auto` stands for. A family without a line has no such settings.
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    # t uniform: Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023, arXiv:2307.01952
    "sd1": {"timesteps": "uniform"},
    # models that are known to nobody but their host: what is right for most of them is not published
    "original": {"timesteps": "uniform"},
    "sd2": {"timesteps": "uniform"},
    "sdxl": {"timesteps": "uniform"},
    # logit-normal(0, 1) is the best of table 1, shift 3 that of section 5.3.2, in Esser et al. 2024, arXiv:2403.03206;
    # the published scheduler has the same shift
    "sd3": {"timesteps": "logit_normal", "logit_mean": 0.0, "logit_std": 1.0, "timestep_shift": 3.0},
    # nothing is published on its training: the shift is that of Black Forest Labs' sampling code, the logit-normal
    # before it what kohya's sd-scripts call flux_shift
    "flux": {"timesteps": "logit_normal", "logit_mean": 0.0, "logit_std": 1.0, "shift_by_resolution": True},
}


def resolved(config: ObjectiveConfig, family: str) -> ObjectiveConfig:
    """`config` with `timesteps: auto` replaced by the distribution and the shift of `family`; else as it is.

    Distribution and shift are replaced whole: what `config` says of them beside auto does not count.
    Errors: `ValueError` on a family without defaults.
    """
    if config.timesteps != "auto":
        return config
    if family not in FAMILY_DEFAULTS:
        raise ValueError(
            f'objective.timesteps "auto" has no defaults for the model family "{family}"; '
            f"{nearest(family, FAMILY_DEFAULTS)}. Name a distribution instead"
        )
    return replace(config, **{"timestep_shift": 1.0, "shift_by_resolution": False, **FAMILY_DEFAULTS[family]})


def shifted(time: Time, shift: float) -> Time:
    """`time` in [0, 1] moved towards the noise by a shift s above 1, towards the picture below: s t / (1 + (s - 1) t).

    It rises, its inverse is the shift by 1 / s, and it adds log(s) to the logit of t. Esser et al. 2024,
    arXiv:2403.03206, section 5.3.2.
    """
    return shift * time / (1 + (shift - 1) * time)


def resolution_shift(num_tokens: int) -> float:
    """The shift of Flux for a picture of `num_tokens`: exp(mu), mu on the line through 256 -> 0.5 and 4096 -> 1.15.

    Black Forest Labs' sampling code; beyond its ends the line goes on.
    """
    return math.exp(0.5 + (1.15 - 0.5) * (num_tokens - 256) / (4096 - 256))


def mode_quantile(u: Time, scale: float) -> Time:
    """The t below which the share u of the mode distribution lies: u + scale (u - sin^2(pi u / 2)).

    Esser et al. 2024, arXiv:2403.03206, equation 20 at 1 - u, since that one falls. Rises for scale in
    [-1, 2 / (pi - 2)]; scale 0 is uniform.
    """
    sine = torch.sin(math.pi / 2 * u) if isinstance(u, Tensor) else math.sin(math.pi / 2 * u)
    return u + scale * (u - sine * sine)


def mode_share(time: float, scale: float) -> float:
    """The share of the mode distribution below `time`, in [0, 1]: the inverse of `mode_quantile`, by bisection."""
    if time in (0, 1):
        return float(time)
    low, high = 0.0, 1.0
    for _ in range(64):  # more halvings than float64 has digits
        middle = (low + high) / 2
        low, high = (middle, high) if mode_quantile(middle, scale) < time else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, kw_only=True)
class Timesteps:
    """The distribution of t, shifted, cut to [t_min, t_max] and renormalised there: nothing piles up at the ends."""

    distribution: str
    logit_mean: float
    logit_std: float
    mode_scale: float
    timestep_shift: float
    shift_by_resolution: bool
    t_min: float
    t_max: float
    num_timesteps: int | None  # None for flow

    @classmethod
    def from_config(cls, config: ObjectiveConfig, flow: bool, num_timesteps: int = 1000) -> Timesteps:
        """The distribution that `config`, in which no "auto" is left, describes.

        Errors: `ValueError` when the range is empty, or so far out that the distribution has nothing in it, and on a
        shift for diffusion, whose noise schedule already has one.
        """
        assert config.timesteps != "auto", "resolved() comes first"
        if not config.t_min < config.t_max:
            raise ValueError(f"objective.t_min must be below objective.t_max, got {config.t_min} and {config.t_max}")
        if not flow and (config.timestep_shift != 1 or config.shift_by_resolution):
            name = "shift_by_resolution" if config.shift_by_resolution else "timestep_shift"
            raise ValueError(
                f"objective.{name} is for flow models such as SD3 and Flux, and this is a diffusion model, got "
                f"{getattr(config, name)}; set objective.timestep_shift to 1 and objective.shift_by_resolution to false"
            )
        timesteps = cls(
            distribution=config.timesteps,
            logit_mean=config.logit_mean,
            logit_std=config.logit_std,
            mode_scale=config.mode_scale,
            timestep_shift=config.timestep_shift,
            shift_by_resolution=config.shift_by_resolution,
            t_min=config.t_min,
            t_max=config.t_max,
            num_timesteps=None if flow else num_timesteps,
        )
        if config.timesteps == "logit_normal":
            timesteps._tail(timesteps.shift(REFERENCE_TOKENS))
        return timesteps

    def shift(self, num_tokens: int) -> float:
        """The whole shift at this size: the product of that of the settings and, where asked for, that of Flux."""
        return self.timestep_shift * (resolution_shift(num_tokens) if self.shift_by_resolution else 1)

    def inverse_cdf(self, u: Tensor, num_tokens: int = REFERENCE_TOKENS) -> Tensor:
        """The t below which the share u of the distribution lies. u (B,) float64 in (0, 1).

        Evenly spread u give evenly spread quantiles, which is what stratified drawing rests on. Diffusion: int64, from
        floor(T * t_min) to ceil(T * t_max) - 1, each equally likely when uniform. Flow: float32 in (0, 1).
        Logit-normal: Esser et al. 2024, arXiv:2403.03206, section 3.1. num_tokens, the size of the picture in 2 x 2
        latent pixels, counts where the shift depends on it; without it t is that of a picture of 1024 x 1024 px.
        Errors: `ValueError` when that shift leaves nothing of a logit-normal distribution within the range.
        """
        assert u.dtype == torch.float64, "float32 has too few values near 0 and 1"
        time = self._time(u, self.shift(num_tokens)).clamp(self.t_min, self.t_max)
        if self.num_timesteps is None:
            return time.float().clamp(max=MAX_U)
        # 1000 * 0.29 may come out just below 290: the bounds are set in whole steps, with room for that
        first = math.floor(self.num_timesteps * self.t_min + 1e-9)
        last = math.ceil(self.num_timesteps * self.t_max - 1e-9) - 1
        return (
            (self.num_timesteps * time).floor().long().clamp(first, max(first, last)).clamp(max=self.num_timesteps - 1)
        )

    def _time(self, u: Tensor, shift: float) -> Tensor:
        if self.distribution == "logit_normal":
            low, high, mirrored = self._tail(shift)
            share = low + (1 - u if mirrored else u) * (high - low)
            z = torch.special.ndtri(share)
            return torch.sigmoid(self._mean(shift) + self.logit_std * (-z if mirrored else z))
        # the range is that of the shifted t, so it is cut where the shift will put its ends
        low, high = shifted(self.t_min, 1 / shift), shifted(self.t_max, 1 / shift)
        if self.distribution == "uniform":
            return shifted(low + u * (high - low), shift)
        low, high = mode_share(low, self.mode_scale), mode_share(high, self.mode_scale)
        return shifted(mode_quantile(low + u * (high - low), self.mode_scale), shift)

    def _tail(self, shift: float) -> tuple[float, float, bool]:
        """The normal distribution function at both ends of the range, and whether it was taken from the upper end.

        It has few digits where it is nearly 1, so a range in the upper half is mirrored into the lower one.
        """
        z_low, z_high = self._z(self.t_min, shift), self._z(self.t_max, shift)
        mirrored = z_low > 0
        if mirrored:
            z_low, z_high = -z_high, -z_low
        low, high = math.erfc(-z_low / math.sqrt(2)) / 2, math.erfc(-z_high / math.sqrt(2)) / 2
        if high - low < 1e-200:
            raise ValueError(
                f"the logit-normal distribution has nothing between objective.t_min {self.t_min} and objective.t_max "
                f"{self.t_max}; move objective.logit_mean (got {self.logit_mean}, and the shift of t adds "
                f"{math.log(shift):.3g}) towards the range, or widen the range"
            )
        return low, high, mirrored

    def _mean(self, shift: float) -> float:
        return self.logit_mean + math.log(shift)

    def _z(self, time: float, shift: float) -> float:
        if time in (0, 1):
            return -math.inf if time == 0 else math.inf
        return (math.log(time / (1 - time)) - self._mean(shift)) / self.logit_std


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


def cosmap_weight(u: Tensor) -> Tensor:
    """CosMap weight for flow, shape (B,), in [2 / pi, 4 / pi]: 2 / (pi (1 - 2 u + 2 u^2)), whose mean over u is 1.

    Esser et al. 2024, arXiv:2403.03206, section 3.1: the density of t at which the log SNR is spread as by the cosine
    schedule, used as a weight on a uniform t.
    """
    return 2 / (math.pi * (1 - 2 * u + 2 * u.square()))


def sigma_squared_weight(u: Tensor) -> Tensor:
    """u^2, shape (B,): the flow error weighted so that every x_0 error counts the same.

    An error e of the flow is an error -u e of x_0, and SD3's training scripts (diffusers, kohya's sd-scripts) compare
    x_0. So this is their plain loss; what they call sigma_sqrt, x_0 error / u^2, is the flow error without a weight.
    """
    return u.square()


def weight(t: Tensor, schedule: NoiseSchedule, config: ObjectiveConfig, prediction: str) -> Tensor:
    """The loss weight that `config.weighting` asks for at t, (B,) float32, finite, >= 0.

    Errors: `ValueError` where the weighting is for diffusion and the prediction is flow, and the reverse.
    """
    if config.weighting == "none":
        return torch.ones(t.shape, device=t.device)
    if config.weighting in ("cosmap", "sigma_squared"):
        if prediction != "flow":
            raise ValueError(
                f'objective.weighting "{config.weighting}" is for flow prediction, got "{prediction}"; use "none", '
                '"min_snr" or "debiased"'
            )
        return (cosmap_weight(t) if config.weighting == "cosmap" else sigma_squared_weight(t)).float()
    snr = schedule.snr(t)
    if config.weighting == "min_snr":
        return min_snr_weight(snr, config.min_snr_gamma, prediction).float()
    return debiased_weight(snr, prediction).float()


def _no_weight(weighting: str, prediction: str) -> ValueError:
    return ValueError(
        f'objective.weighting "{weighting}" is for epsilon, v and x0 prediction, got "{prediction}"; use "none", '
        '"cosmap" or "sigma_squared"'
    )
