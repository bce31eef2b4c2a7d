"""Gradient checkpointing by blocks: keep a block's input, compute its inside again in the backward pass.

Chen et al. 2016, arXiv:1604.06174. It works where neither the inputs nor the block's own weights ask for gradients,
which is the rule with frozen models, and where a block writes into its inputs: it is given copies, so that the second
pass starts from what the first one did. Whatever else is written into after it was needed is an error of autograd,
never a wrong gradient; torch's own checkpointing has no such check.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .forwards import replaced


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Checkpoint each of `blocks` inside; their `forward` is put back in every case.

    Arguments may be anything; gradients reach the tensors among them, also inside tuples, lists, dicts and dataclasses.
    """

    def recomputing(inner: Callable[..., Any]) -> Callable[..., Any]:
        findings = _Findings()

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return inner(*args, **kwargs)
            return _checkpointed(inner, findings, args, kwargs)

        return forward

    with replaced((block, recomputing(block.forward)) for block in blocks):
        yield


class _Findings:
    """What a backward pass found about a block."""

    holds_nothing_trained = False


def _checkpointed(inner: Callable[..., Any], findings: _Findings, args: Any, kwargs: Any) -> Any:
    given: list[Tensor] = []
    call = _mapped((args, kwargs), lambda tensor: _Slot(given, tensor))
    if findings.holds_nothing_trained and not any(tensor.requires_grad for tensor in given):
        return inner(*args, **kwargs)
    # a block whose inputs need no gradient may still hold what is trained: one input that asks for gradients stands
    # for it, or autograd would not call the backward pass
    asks = torch.empty(0, device=given[0].device if given else None, requires_grad=True)
    shape: list[Any] = []
    outputs = _Recomputed.apply(asks, inner, findings, call, shape, *given)
    return _mapped(shape[0], lambda slot: outputs[slot.index], _Slot)


class _Slot:
    """Where a tensor stands in nested arguments; the tensor itself is in a list beside them."""

    def __init__(self, tensors: list[Tensor], tensor: Tensor) -> None:
        self.index = len(tensors)
        tensors.append(tensor)


def _mapped(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """`value` with each `kind` in it changed. Containers are made anew where something in them changes, only there."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (tuple, list)):
        items = [_mapped(item, change, kind) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is dict:
        items = {key: _mapped(item, change, kind) for key, item in value.items()}
        return items if any(items[key] is not value[key] for key in value) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {f.name: _mapped(getattr(value, f.name), change, kind) for f in dataclasses.fields(value) if f.init}
        changed = any(items[name] is not getattr(value, name) for name in items)
        return dataclasses.replace(value, **items) if changed else value
    return value


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        asks: Tensor,
        inner: Callable[..., Any],
        findings: _Findings,
        call: Any,
        shape: list[Any],
        *given: Tensor,
    ) -> tuple[Tensor, ...]:
        args, kwargs = _mapped(call, lambda slot: given[slot.index].clone(), _Slot)
        outputs: list[Tensor] = []
        shape.append(_mapped(inner(*args, **kwargs), lambda tensor: _Slot(outputs, tensor)))
        ctx.inner, ctx.findings, ctx.call = inner, findings, call
        # tensors made under inference mode cannot be saved, and cannot be written into either
        ctx.plain = [tensor if tensor.is_inference() else None for tensor in given]
        ctx.save_for_backward(*(None if tensor.is_inference() else tensor for tensor in given))
        ctx.set_materialize_grads(False)
        for tensor in outputs:
            if not tensor.is_floating_point():
                ctx.mark_non_differentiable(tensor)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        given = [a if b is None else b for a, b in zip(ctx.saved_tensors, ctx.plain, strict=True)]
        leaves = [t.detach().requires_grad_(wanted) for t, wanted in zip(given, ctx.needs_input_grad[5:], strict=True)]
        with torch.enable_grad():
            args, kwargs = _mapped(ctx.call, lambda slot: leaves[slot.index].clone(), _Slot)
            outputs: list[Tensor] = []
            _mapped(ctx.inner(*args, **kwargs), lambda tensor: outputs.append(tensor) or tensor)
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
        ctx.findings.holds_nothing_trained = not any(y.requires_grad for y in outputs)
        if pairs:
            torch.autograd.backward([y for y, _ in pairs], [g for _, g in pairs])
        return (None, None, None, None, None, *(leaf.grad for leaf in leaves))
