"""Noise schedules: how much signal and how much noise at time t.

x_t = alpha_t * x_0 + sigma_t * noise, t = 0 is clean. Shapes: x (B, C, H, W); t, alpha, sigma (B,).
A diffusion schedule has alpha^2 + sigma^2 = 1 at whole t in 0..T-1; a flow schedule has alpha = 1 - u, sigma = u
at u in (0, 1). What a model may predict:

    epsilon   noise
    x0        x_0
    v         alpha * noise - sigma * x_0      Salimans & Ho 2022, arXiv:2202.00512
    flow      noise - x_0                      Liu et al. 2022, arXiv:2209.03003, in the direction of Esser et al. 2024
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .registry import nearest

PREDICTIONS = ("epsilon", "v", "x0", "flow")


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """alpha and sigma at each t. Made by `from_alphas_cumprod`, `scaled_linear` or `flow`.

    The tables are (T,) in the dtype of `alphas_cumprod`, float32 in training; both are None for flow.
    """

    alphas: Tensor | None
    sigmas: Tensor | None

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> NoiseSchedule:
        """The diffusion schedule with alpha^2 = alphas_cumprod, (T,), as the loaded model holds it.

        Errors: `ValueError` unless it is one list of numbers in [0, 1) that fall from one step to the next.
        """
        if alphas_cumprod.ndim != 1 or len(alphas_cumprod) < 2:
            raise ValueError(
                f"alphas_cumprod must have the shape (T,), T at least 2, got {tuple(alphas_cumprod.shape)}"
            )
        falls = (alphas_cumprod[1:] < alphas_cumprod[:-1]).all()
        if not (falls and alphas_cumprod[-1] >= 0 and alphas_cumprod[0] < 1):
            raise ValueError("alphas_cumprod must fall from one step to the next and lie in [0, 1)")
        return cls(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, num: int = 1000) -> NoiseSchedule:
        """The schedule of Stable Diffusion 1 and 2: sqrt(beta) linear in t (Rombach et al. 2022). float32 tables."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num, dtype=torch.float64) ** 2
        return cls.from_alphas_cumprod((1 - betas).cumprod(0).float())

    @classmethod
    def flow(cls) -> NoiseSchedule:
        """The straight path of flow matching: alpha = 1 - u, sigma = u."""
        return cls(None, None)

    @property
    def is_flow(self) -> bool:
        return self.alphas is None

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last step is pure noise."""
        return self.alphas is not None and self.alphas[-1].item() == 0

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule with its tables on `device`."""
        if self.alphas is None or self.sigmas is None:
            return self
        return NoiseSchedule(self.alphas.to(device), self.sigmas.to(device))

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of the signal, (B,), in [0, 1]. t (B,): whole numbers 0..T-1, or u in (0, 1) for flow."""
        return 1 - t if self.alphas is None else self.alphas[t]

    def sigma(self, t: Tensor) -> Tensor:
        """Factor of the noise, (B,), in (0, 1]."""
        return t if self.sigmas is None else self.sigmas[t]

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2, (B,), >= 0; 0 at the last step of a zero-terminal-SNR schedule."""
        return (self.alpha(t) / self.sigma(t)) ** 2

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t * x_0 + sigma_t * noise."""
        alpha, sigma = self._factors(t, x_0)
        return alpha * x_0 + sigma * noise

    def target(self, prediction_type: str, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect model of `prediction_type` predicts, shape of x_0. Errors: `ValueError` on an unknown type."""
        alpha, sigma = self._factors(t, x_0)
        return _predicted(prediction_type, x_0, noise, alpha, sigma)

    def to_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor, from_type: str) -> Tensor:
        """The x_0 that a prediction of `from_type` implies. Conversions: see `_implied` for where they are singular."""
        return self._converted(prediction, x_t, t, from_type, "x0")

    def to_epsilon(self, prediction: Tensor, x_t: Tensor, t: Tensor, from_type: str) -> Tensor:
        """The noise that a prediction of `from_type` implies."""
        return self._converted(prediction, x_t, t, from_type, "epsilon")

    def to_v(self, prediction: Tensor, x_t: Tensor, t: Tensor, from_type: str) -> Tensor:
        """The v = alpha * noise - sigma * x_0 that a prediction of `from_type` implies."""
        return self._converted(prediction, x_t, t, from_type, "v")

    def to_flow(self, prediction: Tensor, x_t: Tensor, t: Tensor, from_type: str) -> Tensor:
        """The noise - x_0 that a prediction of `from_type` implies."""
        return self._converted(prediction, x_t, t, from_type, "flow")

    def _converted(self, prediction: Tensor, x_t: Tensor, t: Tensor, from_type: str, to_type: str) -> Tensor:
        if from_type == to_type:
            return prediction
        alpha, sigma = self._factors(t, x_t)
        x_0, noise = _implied(from_type, prediction, x_t, alpha, sigma)
        return _predicted(to_type, x_0, noise, alpha, sigma)

    def _factors(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1,) + (1,) * (x.ndim - 1)
        return self.alpha(t).view(shape), self.sigma(t).view(shape)


def check_prediction(prediction_type: str, schedule: NoiseSchedule) -> None:
    """Whether a model of `prediction_type` can be trained on `schedule`; asked once, before the run.

    Errors: `ValueError` on an unknown type, on flow prediction off a flow schedule and the reverse, and on epsilon with
    zero terminal SNR: there x_t is the noise itself, so its prediction says nothing of the picture.
    """
    if prediction_type not in PREDICTIONS:
        raise ValueError(f'objective.prediction is "{prediction_type}"; {nearest(prediction_type, PREDICTIONS)}')
    if (prediction_type == "flow") != schedule.is_flow:
        kind = "a flow" if schedule.is_flow else "a diffusion"
        raise ValueError(f'objective.prediction "{prediction_type}" does not fit {kind} schedule; use "model"')
    if prediction_type == "epsilon" and schedule.zero_terminal_snr:
        raise ValueError(
            "objective.zero_terminal_snr needs v or x0 prediction, got epsilon: at the last step the input is pure "
            "noise (alpha = 0), and predicting it teaches nothing. Switch objective.zero_terminal_snr off, or train a "
            "v model"
        )


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """alphas_cumprod, (T,), shifted and scaled so that the last is exactly 0 and the first stays. Same dtype.

    Lin et al. 2023, arXiv:2305.08891, algorithm 1, on the square roots; computed in float64.
    """
    root = alphas_cumprod.double().sqrt()
    first, last = root[0], root[-1]
    return ((root - last) * (first / (first - last))).square().to(alphas_cumprod.dtype)


def _predicted(kind: str, x_0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    if kind == "epsilon":
        return noise
    if kind == "x0":
        return x_0
    if kind == "v":
        return alpha * noise - sigma * x_0
    if kind == "flow":
        return noise - x_0
    raise ValueError(f'unknown prediction type "{kind}"; {nearest(kind, PREDICTIONS)}')


def _implied(kind: str, prediction: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 and noise from x_t and one prediction.

    Singular where x_t does not contain what is missing: epsilon at alpha = 0 and x0 at sigma = 0 give inf or nan, since
    a check would stop the device. v and flow are never singular.
    """
    if kind == "epsilon":
        return (x_t - sigma * prediction) / alpha, prediction
    if kind == "x0":
        return prediction, (x_t - alpha * prediction) / sigma
    if kind == "v":
        # the square sum is 1 in diffusion, only nearly so in float32, and not in flow
        total = alpha.square() + sigma.square()
        return (alpha * x_t - sigma * prediction) / total, (sigma * x_t + alpha * prediction) / total
    if kind == "flow":
        total = alpha + sigma
        return (x_t - sigma * prediction) / total, (x_t + alpha * prediction) / total
    raise ValueError(f'unknown prediction type "{kind}"; {nearest(kind, PREDICTIONS)}')
