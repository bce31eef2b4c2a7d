"""From the core's conditioning to what a model's forward takes, through the model's own `extra_conds`."""

from __future__ import annotations

from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ..lib.host import Conditioning

_SIZES = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
_OWN_NAMES = ("text", "sizes", "guidance")  # the core's; every other is passed on as it is called

WANTS_A_PICTURE = (
    "this model is given a picture beside the noise (inpainting, editing, image to video); it cannot be trained"
)


def comfy_conditionings(conditioning: Conditioning, with_sizes: bool) -> list[list[Any]]:
    """One of ComfyUI's pairs [cross attention, dict] a sample."""
    num_samples = len(conditioning["text"])
    # sync: at the start of a step, when the device has nothing to do
    sizes = conditioning["sizes"].tolist() if with_sizes and "sizes" in conditioning else None
    guidance = conditioning["guidance"].tolist() if "guidance" in conditioning else None
    pairs = []
    for i in range(num_samples):
        facts: dict[str, Any] = {
            "pooled_output" if name == "pooled" else name: tensor[i : i + 1]
            for name, tensor in conditioning.items()
            if name not in _OWN_NAMES
        }
        facts.setdefault("pooled_output", None)
        if sizes is not None:
            facts |= dict(zip(_SIZES, sizes[i], strict=True))
        if guidance is not None:
            facts["guidance"] = guidance[i]
        pairs.append([conditioning["text"][i : i + 1], facts])
    return pairs


def model_conds(model: Any, conditioning: Conditioning, x_t: Tensor) -> list[dict[str, Any]]:
    """The keyword arguments of `apply_model` for x_t (B, C, h, w) or (B, C, 1, h, w). Differentiable.

    One set for the whole batch; or one a sample, where the model says that they cannot be computed together.
    Errors: `ValueError` for a model that wants a picture beside the noise.
    """
    each: list[dict[str, Any]] = []
    for i, pair in enumerate(comfy_conditionings(conditioning, bool(getattr(model, "adm_channels", 0)))):
        x = torch.zeros_like(x_t[i : i + 1])
        conds = {"positive": comfy.sampler_helpers.convert_cond([pair])}
        conds = comfy.samplers.process_conds(model, x, conds, x_t.device, x, None, 0)
        found = conds["positive"][0]["model_conds"]
        each.append({name: cond.process_cond(batch_size=1, area=None) for name, cond in found.items()})
    if "c_concat" in each[0]:
        raise ValueError(WANTS_A_PICTURE)
    first, *others = each
    together = all(o.keys() == first.keys() and all(c.can_concat(o[name]) for name, c in first.items()) for o in others)
    if not together:
        return [{name: cond.cond for name, cond in one.items()} for one in each]
    return [{name: cond.concat([other[name] for other in others]) for name, cond in first.items()}]
