"""Gradient checkpointing by blocks: keep a block's input, compute its inside again in the backward pass.

Chen et al. 2016, arXiv:1604.06174. Non-reentrant, so that it works where neither the inputs nor the block's own weights
ask for gradients, which is the rule with frozen models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .forwards import replaced


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Checkpoint each of `blocks` inside; their `forward` is put back in every case."""

    def recomputing(inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return inner(*args, **kwargs)
            # nothing in a block draws random numbers here: dropout masks are keyed, not drawn
            return checkpoint(inner, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        return forward

    with replaced((block, recomputing(block.forward)) for block in blocks):
        yield
