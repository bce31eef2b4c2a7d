"""What a loaded model predicts, read from its own `model_sampling`, and how its raw prediction is had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# ComfyUI composes model_sampling of a parametrisation and a schedule; the most derived name that is known counts.
_PREDICTIONS = {"EPS": "epsilon", "V_PREDICTION": "v", "X0": "x0", "CONST": "flow"}
_REFUSED = {
    "EDM": "is an EDM model, whose noise levels are continuous and scaled by the data's deviation",
    "IMG_TO_IMG": "turns a picture into another and removes no noise",
    "IMG_TO_IMG_FLOW": "turns a picture into another and removes no noise",
    "COSMOS_RFLOW": "is a Cosmos model, whose flow runs over unbounded noise levels",
    "V_PREDICTION_DDPM": "is a CogVideoX model, which is given noise in another scale",
    "StableCascadeSampling": "is a Stable Cascade model, whose timesteps are continuous",
    "ModelSamplingContinuousEDM": "has continuous noise levels (EDM)",
    "ModelSamplingContinuousV": "has continuous noise levels",
    "ModelSamplingDiscreteEDM": "has continuous noise levels (EDM)",
}


def prediction_of(model_sampling: Any) -> tuple[str, Tensor | None]:
    """(epsilon, v, x0 or flow; alphas_cumprod (T,) float32 on the CPU, or None for flow).

    Errors: `ValueError` for a model that cannot be trained, saying why.
    """
    names = [c.__name__ for c in type(model_sampling).__mro__]
    for name in names:
        if name in _REFUSED:
            raise ValueError(
                f"this model {_REFUSED[name]}; models that predict noise, v or x0 at discrete timesteps, or a "
                "rectified flow, can be trained"
            )
        if name in _PREDICTIONS:
            break
    else:
        raise ValueError(f"what this model predicts is not known ({names[0]}, from {', '.join(names[1:])})")
    prediction = _PREDICTIONS[name]
    if prediction == "flow":
        if getattr(model_sampling, "noise_scale", 1.0) != 1.0:
            raise ValueError(
                f"this model scales its noise by {model_sampling.noise_scale}, which cannot be trained; a "
                "ModelSampling node may have set it"
            )
        return prediction, None
    sigmas = model_sampling.sigmas.detach().to("cpu", torch.float32, copy=True)
    last = len(sigmas) - 1
    asked = torch.tensor([0, last // 2, last])
    with torch.inference_mode():
        got = model_sampling.timestep(model_sampling.sigmas[asked.to(model_sampling.sigmas.device)])
    if got.tolist() != asked.tolist():
        raise ValueError(
            f"the timesteps of this model's {len(sigmas)} noise levels are not their numbers (a distilled or "
            "continuous schedule); train the model without that ModelSampling node"
        )
    return prediction, (1 / (sigmas.double().square() + 1)).float()


def sigma_of(model_sampling: Any, t: Tensor) -> Tensor:
    """ComfyUI's sigma of t, (B,) float32: of that very timestep in diffusion, u itself in flow."""
    if t.is_floating_point():
        return t.float()
    return model_sampling.sigmas.to(t.device)[t].clone()


@contextmanager
def raw_prediction(model_sampling: Any) -> Iterator[None]:
    """`apply_model` gives what the model predicts, inside, instead of the x_0 that it implies.

    Worked back from x_0 it would lose digits where sigma is small.
    """
    before = model_sampling.__dict__.get("calculate_denoised")
    model_sampling.calculate_denoised = lambda sigma, model_output, model_input: model_output
    try:
        yield
    finally:
        if before is None:
            del model_sampling.calculate_denoised
        else:
            model_sampling.calculate_denoised = before
