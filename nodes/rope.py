"""Rotary embeddings with a gradient, for versions of ComfyUI whose own have none.

Newer ones switch to a differentiable form by `model_management.in_training`; before that flag, Flux and its relatives
call a kernel that autograd does not know.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.ldm.flux.math
import comfy.model_management
from torch import Tensor


def apply_rope1(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """x (..., tokens, width) with each pair of its values turned by freqs_cis (..., tokens, width / 2, 2, 2)."""
    pairs = x.to(freqs_cis.dtype).reshape(*x.shape[:-1], -1, 1, 2)
    turned = freqs_cis[..., 0] * pairs[..., 0] + freqs_cis[..., 1] * pairs[..., 1]
    return turned.reshape(x.shape).type_as(x)


def apply_rope(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys turned."""
    return apply_rope1(xq, freqs_cis), apply_rope1(xk, freqs_cis)


@contextmanager
def differentiable_rope() -> Iterator[None]:
    """Rotary embeddings have a gradient, inside; nothing is done where ComfyUI sees to it."""
    if hasattr(comfy.model_management, "in_training"):
        yield
        return
    own = {"apply_rope": apply_rope, "apply_rope1": apply_rope1}
    kernels = {name: getattr(comfy.ldm.flux.math, name) for name in own}
    # other models have imported them by name
    places = [
        (module, name)
        for path, module in list(sys.modules.items())
        if path.startswith("comfy.ldm.")
        for name in own
        if getattr(module, name, None) is kernels[name]
    ]
    try:
        for module, name in places:
            setattr(module, name, own[name])
        yield
    finally:
        for module, name in places:
            setattr(module, name, kernels[name])
