"""Rotary embeddings with a gradient, for versions of ComfyUI whose own have none.

Newer ones switch to a differentiable form by `model_management.in_training`; before that flag, Flux and its relatives
call a kernel that autograd does not know.
"""

from __future__ import annotations

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
    """Flux's rotary embeddings have a gradient, inside; nothing is done where ComfyUI sees to it."""
    if hasattr(comfy.model_management, "in_training"):
        yield
        return
    module = comfy.ldm.flux.math
    before = module.apply_rope, module.apply_rope1
    module.apply_rope, module.apply_rope1 = apply_rope, apply_rope1
    try:
        yield
    finally:
        module.apply_rope, module.apply_rope1 = before
