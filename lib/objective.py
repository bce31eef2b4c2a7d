"""Objective: the noised input, and the distance of prediction and target for each sample.

Shapes: x, noise, prediction, target (B, C, H, W); t, loss (B,); mask (B, 1, H, W). Random numbers are always passed in,
so that they can be drawn by (seed, sample, visit).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .noise import NoiseSchedule
from .registry import nearest

LOSSES = ("mse", "l1", "huber", "smooth_l1")


def offset_noise(noise: Tensor, shift: Tensor, offset: float) -> Tensor:
    """noise + offset * shift: noise whose channels have a mean, so that dark and bright pictures can be learned.

    shift (B, C, 1, 1), standard normal. Guttenberg 2023, "Diffusion with Offset Noise".
    """
    return noise + offset * shift


def perturbed_noise(noise: Tensor, extra: Tensor, gamma: float) -> Tensor:
    """noise + gamma * extra: the noise of the input alone, as if the input came from an imperfect earlier step.

    extra is standard normal, of noise's shape. Ning et al. 2023, arXiv:2301.11706, algorithm 3 (gamma = 0.1).
    """
    return noise + gamma * extra


def noised(
    x_0: Tensor,
    noise: Tensor,
    t: Tensor,
    schedule: NoiseSchedule,
    *,
    noise_offset: float = 0.0,
    shift: Tensor | None = None,
    input_perturbation: float = 0.0,
    extra: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The model's input x_t, and the noise that the target is made of.

    The offset belongs to both, the perturbation to x_t alone. `shift` and `extra` are as in `offset_noise` and
    `perturbed_noise`, and needed where their strength is not 0.
    """
    if noise_offset:
        assert shift is not None, "noise_offset needs shift"
        noise = offset_noise(noise, shift, noise_offset)
    seen = noise
    if input_perturbation:
        assert extra is not None, "input_perturbation needs extra"
        seen = perturbed_noise(noise, extra, input_perturbation)
    return schedule.add_noise(x_0, seen, t), noise


def loss_per_sample(
    prediction: Tensor, target: Tensor, kind: str, huber_delta: float = 0.1, mask: Tensor | None = None
) -> Tensor:
    """Mean distance of each sample over C, H and W, (B,), float32 at least.

    With e = prediction - target and d = huber_delta:

        mse         e^2
        l1          |e|
        huber       2 d (sqrt(e^2 + d^2) - d)      e^2 for small e, 2 d |e| for large
        smooth_l1   2 (sqrt(e^2 + d^2) - d)        e^2 / d for small e, 2 |e| for large

    The last two are Charbonnier's smooth form of Huber's loss, scaled as in kohya's sd-scripts; `huber_loss` and
    `smooth_l1_loss` of torch tend to half of them at both ends.

    mask (B, 1, H, W) in [0, 1], 1 = counted: the mean is over the masked area, and 0 where the mask is empty.
    Errors: `ValueError` on an unknown kind.
    """
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    error = prediction.to(dtype) - target.to(dtype)
    if kind == "mse":
        loss = error.square()
    elif kind == "l1":
        loss = error.abs()
    elif kind in ("huber", "smooth_l1"):
        # the same as sqrt(e^2 + d^2) - d, without the cancellation where e is small
        bend = error.square() / ((error.square() + huber_delta**2).sqrt() + huber_delta)
        loss = 2 * huber_delta * bend if kind == "huber" else 2 * bend
    else:
        raise ValueError(f'unknown loss "{kind}"; {nearest(kind, LOSSES)}')
    if mask is None:
        return loss.flatten(1).mean(1)
    area = mask.expand_as(loss).flatten(1).sum(1)
    return (loss * mask).flatten(1).sum(1) / torch.where(area > 0, area, torch.ones_like(area))
