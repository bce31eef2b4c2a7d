"""Objective: the noised input, and the distance of prediction and target for each sample.

Shapes: x, noise, prediction, target (B, C, H, W); t, loss (B,); mask (B, 1, H, W). Random numbers are always passed in,
so that they can be drawn by (seed, sample, visit).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .noise import NoiseSchedule
from .registry import nearest

LOSSES = ("mse", "l1", "huber", "smooth_l1")
HUBER_SCHEDULES = ("constant", "snr", "exponential")


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


def multires_sizes(height: int, width: int, ratios: Sequence[float]) -> list[tuple[int, int]]:
    """The sizes of multi-resolution noise: level i is the whole size divided by ratios[i]^i, rounded down, at least 1.

    Level 0 has the whole size, and a level of height or width 1 is the last. ratios, one a level, lie in [2, 4): the
    usual code draws them at random, so that no frequency is always left out.
    """
    sizes = []
    for level, ratio in enumerate(ratios):
        size = max(1, int(height / ratio**level)), max(1, int(width / ratio**level))
        sizes.append(size)
        if 1 in size:
            break
    return sizes


def multires_noise(noise: Tensor, levels: Sequence[Tensor], discount: float) -> Tensor:
    """noise plus discount^i times level i, enlarged to its size (bilinear), scaled to a deviation of 1 for each sample.

    levels: standard normal, (B, C, h_i, w_i), of the sizes that `multires_sizes` gives. Low frequencies of a picture
    survive plain noise, so that a model cannot learn to change them. Whitaker 2023, "Multi-Resolution Noise for
    Diffusion Model Training". There the deviation is that of the batch; here a sample does not depend on the others.
    """
    # float64, so that the order of a sum, which differs between processors, is lost in the rounding to float32
    total = noise.double()
    for i, level in enumerate(levels):
        enlarged = functional.interpolate(level.double(), size=noise.shape[-2:], mode="bilinear", align_corners=False)
        total = total + discount**i * enlarged
    return (total / total.flatten(1).std(1).view(-1, 1, 1, 1)).to(noise.dtype)


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


def scheduled_delta(t: Tensor, schedule: NoiseSchedule, delta: float, kind: str) -> float | Tensor:
    """The huber_delta of each sample, (B,), from 1 at the clean picture to `delta` in pure noise; constant: `delta`.

        snr           (1 - delta) (alpha / (alpha + sigma))^2 + delta
        exponential   delta^time, time = t / T in diffusion and u in flow

    Outliers are flattened where noise rules, and details are learned by the square. Khrapov et al. 2024,
    arXiv:2403.16728; the two curves are those of kohya's sd-scripts, which know snr for diffusion alone.
    Errors: `ValueError` on an unknown kind.
    """
    if kind == "constant":
        return delta
    if kind == "snr":
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return (1 - delta) * (alpha / (alpha + sigma)).square() + delta
    if kind == "exponential":
        return delta ** (t if schedule.alphas is None else t / len(schedule.alphas))
    raise ValueError(f'unknown huber schedule "{kind}"; {nearest(kind, HUBER_SCHEDULES)}')


def loss_per_sample(
    prediction: Tensor, target: Tensor, kind: str, huber_delta: float | Tensor = 0.1, mask: Tensor | None = None
) -> Tensor:
    """Mean distance of each sample over C, H and W, (B,), float32 at least.

    With e = prediction - target and d = huber_delta, one for all or (B,):

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
    if isinstance(huber_delta, Tensor):
        huber_delta = huber_delta.to(dtype).view(-1, 1, 1, 1)
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
