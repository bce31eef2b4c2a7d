"""Sampling a picture's latents with the pipeline's own scheduler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> prediction; t as a `Denoiser` takes it


def sample(
    scheduler: Any,
    predict: Predict,
    shape: tuple[int, int, int],
    *,
    seed: int,
    steps: int,
    guidance: float | None = None,
    even_steps: bool = False,
) -> Tensor:
    """Latents (1, C, h, w) float32, on the CPU. `scheduler` is one of diffusers, and stays as it is.

    With `guidance`, x_t comes twice, for the negative prompt and then the prompt, and the prediction is moved away from
    the first by that factor (Ho & Salimans 2022, arXiv:2207.12598). `even_steps`: before its shift, sigma goes from 1
    to 1 / steps, as it does for Flux.
    """
    scheduler = copy.deepcopy(scheduler)
    flow = "FlowMatch" in type(scheduler).__name__
    if flow:
        _set_flow_steps(scheduler, shape, steps, even_steps)
    else:
        scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((1, *shape), generator=generator) * (1.0 if flow else scheduler.init_noise_sigma)
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    num = 1 if guidance is None else 2
    for i, timestep in enumerate(scheduler.timesteps):
        x_t = latents if flow else scheduler.scale_model_input(latents, timestep)
        t = scheduler.sigmas[i] if flow else timestep
        prediction = predict(x_t.repeat(num, 1, 1, 1), t.expand(num)).cpu()
        if guidance is not None:
            negative, prompted = prediction.chunk(2)
            prediction = negative + guidance * (prompted - negative)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
    return latents


def _set_flow_steps(scheduler: Any, shape: tuple[int, int, int], steps: int, even_steps: bool) -> None:
    """The steps as the pipelines of diffusers set them, with the scheduler's shift for a picture of this size."""
    config = scheduler.config
    mu = None
    if config.use_dynamic_shifting:
        num_tokens = (shape[1] // 2) * (shape[2] // 2)
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = config.base_shift + slope * (num_tokens - config.base_image_seq_len)
    if even_steps:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    else:
        scheduler.set_timesteps(steps, mu=mu)
