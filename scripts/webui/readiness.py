"""The loaded model made ready for training, and put back as it was in every case.

The host's attention optimisations need no undoing: while gradients are wanted, each attention goes through a forward
of its own, whose product torch can differentiate in little memory, and which no hypernetwork that was left loaded
takes part in. In previews the host's own forward is called, as it is then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...lib.forwards import replaced
from ...lib.recompute import recomputed
from . import open_clip
from .loaded import Loaded
from .patched import patched

_RECOMPUTED = ("ResBlock", "BasicTransformerBlock", "JointBlock")
_ATTENTION = ("CrossAttention", "MemoryEfficientCrossAttention")
# the model's code checkpoints with these in a way that fails where neither inputs nor weights ask for gradients
_REENTRANT = ("checkpoint", "use_checkpoint")


@contextmanager
def ready(
    loaded: Loaded, compute_dtype: torch.dtype, block_checkpointing: bool, is_sampling: Callable[[], bool]
) -> Iterator[None]:
    """Frozen, differentiable and in evaluation mode, inside."""
    model, unet = loaded.model, loaded.unet
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for module in model.modules():
                module.training = False
                flags = {name: False for name in _REENTRANT if vars(module).get(name) is True}
                if flags:
                    stack.enter_context(patched(module, **flags))
            for parameter, _ in wanted:
                parameter.requires_grad_(False)
                parameter.grad = None
            if "dtype" in vars(unet):
                # what the U-Net casts its input to
                stack.enter_context(patched(unet, dtype=compute_dtype))
            attention = [m for m in unet.modules() if type(m).__name__ in _ATTENTION]
            stack.enter_context(replaced((m, _differentiable(m, is_sampling)) for m in attention))
            for encoder, container in loaded.fused:
                stack.enter_context(replaced(open_clip.attentions(encoder, container)))
            if block_checkpointing:
                stack.enter_context(recomputed([m for m in unet.modules() if type(m).__name__ in _RECOMPUTED]))
            yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
            parameter.grad = None
        for module, mode in modes:
            module.training = mode


def _differentiable(attention: Any, is_sampling: Callable[[], bool]) -> Callable[..., Tensor]:
    def forward(x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, **others: Any) -> Tensor:
        if is_sampling():
            # asked of the class at each call, since a setting may change it in the meantime
            return type(attention).forward(attention, x, context, mask, **others)
        unknown = [name for name, value in others.items() if value]
        assert mask is None and not unknown, f"an attention is called with {unknown or 'a mask'}, which is not known"
        context = x if context is None else context
        q, k, v = attention.to_q(x), attention.to_k(context), attention.to_v(context)
        q, k, v = (y.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for y in (q, k, v))
        return attention.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    return forward


def arrive(module: nn.Module) -> None:
    """Bring a module to the device, with --medvram and --lowvram: what the host does before the module's forward.

    For modules whose parts are called directly.
    """
    for hook in module._forward_pre_hooks.values():
        if getattr(hook, "__module__", "") == "modules.lowvram":
            hook(module, ())
