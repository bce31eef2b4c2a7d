"""Autograd through frozen layers without keeping or copying their weights.

A host's weights may have been made under inference mode, may live in a buffer that is reused after each layer, or may
be stored in a narrower type. So the weight is asked of the host at each forward and again at each backward
(`weight_of(layer) -> (weight, bias)`), used at once, given back (`used(layer)`), and never saved by autograd. What
autograd does keep of a layer with a low-rank branch is its input and the rank-r product; of one without, nothing.

The branch computes y + scale * (x @ down.T) @ up.T (Hu et al. 2021, arXiv:2106.09685). This file knows no algorithm
beyond that product. The core has no autocast: the type of the input decides the type of the arithmetic, and what is
trained stays float32 and receives float32 gradients. A host that samples in an autocast of its own decides by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import convolution
from .forwards import replaced

WeightOf = Callable[[nn.Module], "tuple[Tensor, Tensor | None]"]
Used = Callable[[nn.Module], None]  # called when what `weight_of` gave is no longer needed


def stays(layer: nn.Module) -> None:
    """`used` for weights that stay where they are."""


@dataclass(frozen=True)
class Weights:
    """How the weights of frozen layers are had, and given back."""

    of: WeightOf
    used: Used = stays


@dataclass(frozen=True)
class Branch:
    """A low-rank branch beside a frozen layer.

    down: (rank, in) for a Linear, (rank, in, kh, kw) for a convolution with the layer's own stride and padding.
    up: (out, rank), or (out, rank, 1, 1). Both float32. `mask(product)` gives the dropout mask of the rank-r product,
    of its shape or one that expands to it, or None; it must give the same mask when a block is recomputed.
    """

    down: Tensor
    up: Tensor
    scale: float
    mask: Callable[[Tensor], Tensor | None] | None = None


BranchOf = Callable[[nn.Module], "Branch | None"]


def _as(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor if tensor.dtype == like.dtype else tensor.to(like.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor | None,
        up: Tensor | None,
        layer: nn.Module,
        weights: Weights,
        branch: Branch | None,
    ) -> Tensor:
        weight, bias = weights.of(layer)
        rows = x.reshape(-1, x.shape[-1])
        # written into, not viewed: a function that returns a view forbids the in-place additions that some models make
        y = x.new_empty(*x.shape[:-1], weight.shape[0])
        y_rows = y.view(-1, y.shape[-1])
        if bias is None:
            torch.mm(rows, _as(weight, x).t(), out=y_rows)
        else:
            torch.addmm(_as(bias, x), rows, _as(weight, x).t(), out=y_rows)
        weights.used(layer)
        ctx.layer, ctx.weights, ctx.branch, ctx.shape = layer, weights, branch, x.shape
        if branch is None or down is None or up is None:
            ctx.save_for_backward()
            return y
        h = rows.mm(_as(down, x).t())
        mask = None if branch.mask is None else branch.mask(h.view(*x.shape[:-1], -1))
        if mask is not None:
            mask = mask.expand(*x.shape[:-1], -1).reshape(h.shape)
            h = h * mask
        y_rows.addmm_(h, _as(up, x).t(), alpha=branch.scale)
        ctx.save_for_backward(rows, h, down, up, mask)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows_grad = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_down = grad_up = None
        if ctx.branch is None:
            weight, _ = ctx.weights.of(ctx.layer)
            grad_x = rows_grad.mm(_as(weight, grad)).view(ctx.shape)
            ctx.weights.used(ctx.layer)
            return grad_x, None, None, None, None, None
        rows, h, down, up, mask = ctx.saved_tensors
        product = rows_grad.mm(_as(up, grad)).mul_(ctx.branch.scale)
        if mask is not None:
            product.mul_(mask)
        if ctx.needs_input_grad[2]:
            grad_up = rows_grad.t().mm(h).to(up.dtype).mul_(ctx.branch.scale)
        if ctx.needs_input_grad[1]:
            grad_down = product.t().mm(rows).to(down.dtype)
        if ctx.needs_input_grad[0]:
            weight, _ = ctx.weights.of(ctx.layer)
            grad_x = rows_grad.mm(_as(weight, grad))
            ctx.weights.used(ctx.layer)
            grad_x = grad_x.addmm_(product, _as(down, grad)).view(ctx.shape)
        return grad_x, grad_down, grad_up, None, None, None


def _backward_of_convolution(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to input and weight, each where wanted; `geometry` is (stride, padding, dilation, groups)."""
    stride, padding, dilation, groups = geometry
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [wanted[0], wanted[1], False]
    )
    return grad_x, grad_weight


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor | None,
        up: Tensor | None,
        layer: nn.Module,
        weights: Weights,
        branch: Branch | None,
        geometry: tuple,
    ) -> Tensor:
        stride, padding, dilation, _ = geometry
        weight, bias = weights.of(layer)
        y = convolution.forward(x, _as(weight, x), None if bias is None else _as(bias, x), geometry)
        weights.used(layer)
        ctx.layer, ctx.weights, ctx.branch, ctx.geometry, ctx.shape = layer, weights, branch, geometry, x.shape
        if branch is None or down is None or up is None:
            ctx.save_for_backward()
            return y
        h = F.conv2d(x, _as(down, x), None, stride, padding, dilation)
        mask = None if branch.mask is None else branch.mask(h)
        if mask is not None:
            h = h * mask
        y.add_(F.conv2d(h, _as(up, x)), alpha=branch.scale)
        ctx.save_for_backward(x, h, down, up, mask)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_x = grad_down = grad_up = None
        if ctx.branch is None:
            weight, _ = ctx.weights.of(ctx.layer)
            grad_x = convolution.backward_to_input(grad, ctx.shape, _as(weight, grad), ctx.geometry)
            ctx.weights.used(ctx.layer)
            return grad_x, None, None, None, None, None, None
        x, h, down, up, mask = ctx.saved_tensors
        pointwise = ([1, 1], [0, 0], [1, 1], 1)
        product, grad_up = _backward_of_convolution(grad, h, _as(up, grad), pointwise, (True, ctx.needs_input_grad[2]))
        assert product is not None
        product = product.mul_(ctx.branch.scale)
        if mask is not None:
            product = product * mask
        if grad_up is not None:
            grad_up = grad_up.to(up.dtype).mul_(ctx.branch.scale)
        to_input, to_down = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        stride, padding, dilation, _ = ctx.geometry
        grad_x, grad_down = _backward_of_convolution(
            product, x, _as(down, grad), (stride, padding, dilation, 1), (to_input, to_down)
        )
        if to_input:
            weight, _ = ctx.weights.of(ctx.layer)
            assert grad_x is not None
            grad_x = convolution.backward_to_input(grad, ctx.shape, _as(weight, grad), ctx.geometry).add_(grad_x)
            ctx.weights.used(ctx.layer)
        grad_down = None if grad_down is None else grad_down.to(down.dtype)
        return grad_x, grad_down, grad_up, None, None, None, None


class _Convolution(torch.autograd.Function):
    """Over any number of dimensions, without a branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, weights: Weights, geometry: tuple) -> Tensor:
        stride, padding, dilation, groups = geometry
        weight, bias = weights.of(layer)
        weight, bias = _as(weight, x), None if bias is None else _as(bias, x)
        y = torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)
        weights.used(layer)
        ctx.layer, ctx.weights, ctx.geometry, ctx.shape = layer, weights, geometry, x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        stride, padding, dilation, groups = ctx.geometry
        weight, _ = ctx.weights.of(ctx.layer)
        # only the input's shape counts; an expanded scalar has that without memory
        x = grad.new_empty(1).expand(ctx.shape)
        grad_x, _, _ = torch.ops.aten.convolution_backward(
            grad,
            x,
            _as(weight, grad),
            None,
            stride,
            padding,
            dilation,
            False,
            [0] * len(stride),
            groups,
            [True, False, False],
        )
        ctx.weights.used(ctx.layer)
        return grad_x, None, None, None


def _autocast(x: Tensor) -> Tensor:
    """The input in the type that a host's own autocast would give it, in which it may sample: it knows no functions."""
    kind = x.device.type
    if hasattr(torch, "get_autocast_dtype"):
        return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
    # as older versions of torch spell it
    if kind == "cpu":
        return x.to(torch.get_autocast_cpu_dtype()) if torch.is_autocast_cpu_enabled() else x
    return x.to(torch.get_autocast_gpu_dtype()) if torch.is_autocast_enabled() else x


def linear(x: Tensor, layer: nn.Module, weights: Weights, branch: Branch | None = None) -> Tensor:
    """A frozen Linear, with its branch if there is one: (..., in) -> (..., out), a fresh tensor of x's type."""
    down, up = (None, None) if branch is None else (branch.down, branch.up)
    if branch is not None and down is not None and down.ndim == 4:
        raise ValueError(f"a Linear takes a (rank, in) branch, got {tuple(branch.down.shape)}")
    return _Linear.apply(_autocast(x), down, up, layer, weights, branch)


def conv2d(x: Tensor, layer: nn.Conv2d, weights: Weights, branch: Branch | None = None) -> Tensor:
    """A frozen convolution, with its branch if there is one: (B, in, H, W) -> (B, out, H', W'), of x's type."""
    if branch is not None and layer.groups != 1:
        raise ValueError(f"a branch on a grouped convolution is not supported, got groups={layer.groups}")
    x, geometry = _padded(_autocast(x), layer)
    down, up = (None, None) if branch is None else (branch.down, branch.up)
    return _Conv2d.apply(x, down, up, layer, weights, branch, geometry)


def _padded(x: Tensor, layer: Any) -> tuple[Tensor, tuple]:
    """The input of a convolution, and its geometry: (stride, padding, dilation, groups)."""
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        # outside the function autograd knows how to undo a padding, and the function needs no case for each mode
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        padding = [0] * len(layer.stride)
    return x, (list(layer.stride), list(padding), list(layer.dilation), layer.groups)


def _convolution_of(layer: nn.Module, weights: Weights) -> Callable[..., Tensor]:
    inner = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # a host's own arguments are for what is not trained, such as the frames of an autoencoder
        if args or kwargs:
            return inner(x, *args, **kwargs)
        x, geometry = _padded(x, layer)
        return _Convolution.apply(x, layer, weights, geometry)

    return forward


def _kept(x: Tensor) -> Tensor:
    """What a norm is given, and autograd saves of it: a copy, since many models add to the residual stream in place."""
    return x.clone() if torch.is_grad_enabled() and x.requires_grad else x


def _norm_weights(layer: nn.Module, x: Tensor, weights: Weights) -> tuple[Tensor | None, Tensor | None]:
    if getattr(layer, "weight", None) is None:
        return None, None
    weight, bias = weights.of(layer)
    # autograd saves a norm's weight, and cannot save an inference tensor or a reused buffer; copying a vector is cheap
    copies = weight.detach().to(x.dtype, copy=True), None if bias is None else bias.detach().to(x.dtype, copy=True)
    weights.used(layer)
    return copies


def _forward_of(layer: nn.Module, weights: Weights, branch_of: BranchOf) -> Callable[[Tensor], Tensor] | None:
    if is_linear(layer):
        return lambda x: linear(x, layer, weights, branch_of(layer))
    if isinstance(layer, nn.Conv2d):
        return lambda x: conv2d(x, layer, weights, branch_of(layer))
    if isinstance(layer, nn.LayerNorm):
        return lambda x: F.layer_norm(_kept(x), layer.normalized_shape, *_norm_weights(layer, x, weights), layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return lambda x: F.group_norm(_kept(x), layer.num_groups, *_norm_weights(layer, x, weights), layer.eps)
    if hasattr(nn, "RMSNorm") and isinstance(layer, nn.RMSNorm):
        return lambda x: F.rms_norm(_kept(x), layer.normalized_shape, _norm_weights(layer, x, weights)[0], layer.eps)
    if isinstance(layer, (nn.Conv1d, nn.Conv3d)):
        return _convolution_of(layer, weights)
    return None


def plain_weight(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """`weight_of` for weights that lie in the layer itself."""
    return layer.weight, getattr(layer, "bias", None)  # type: ignore[return-value]


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a Linear; a host's quantised ones are none to torch, and look like this."""
    return isinstance(layer, nn.Linear) or all(
        hasattr(layer, name) for name in ("in_features", "out_features", "weight_function")
    )


@contextmanager
def attached(
    roots: Iterable[nn.Module],
    weight_of: WeightOf = plain_weight,
    branch_of: BranchOf = lambda layer: None,
    used: Used = stays,
) -> Iterator[None]:
    """Run the frozen layers below `roots` through this file, with the branch that `branch_of(layer)` gives at a call.

    Only the instances' `forward` is replaced, and put back in every case; weights and modules are not touched.
    """
    layers = {id(m): m for root in roots for m in root.modules()}.values()
    weights = Weights(weight_of, used)
    forwards = ((layer, _forward_of(layer, weights, branch_of)) for layer in layers)
    with replaced((layer, forward) for layer, forward in forwards if forward is not None):
        yield
