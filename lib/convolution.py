"""Convolution, and its gradient to the input, where the weight is much larger than the picture.

On a CPU torch brings a convolution's weight into another order at every call, forward and backward. In the deep blocks
of a U-Net, with few positions and thousands of channels, that reordering takes longer than the arithmetic. There a
matrix product reads the weight once, in the order it has: the columns of the input (im2col) times the weight, and for
the gradient the products scattered back (col2im). Elsewhere, and on every other device, torch's own convolution.

Shapes: x (B, in, H, W), weight (out, in, kh, kw), y and its gradient (B, out, h, w). `geometry` is (stride, padding,
dilation, groups).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Geometry = tuple[list[int], list[int], list[int], int]


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """y, (B, out, h, w)."""
    stride, padding, dilation, groups = geometry
    height, width = (
        (x.shape[i] + 2 * padding[i - 2] - dilation[i - 2] * (weight.shape[i] - 1) - 1) // stride[i - 2] + 1
        for i in (2, 3)
    )
    if not _as_product(weight, geometry, x.shape[0] * height * width):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    matrix, channels_first = _matrix(weight)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    # (B, h, w, in, kh, kw): overlapping windows, copied by the reshape in the order of the weight
    windows = padded.unfold(1, weight.shape[2], stride[0]).unfold(2, weight.shape[3], stride[1])
    if not channels_first:
        windows = windows.permute(0, 1, 2, 4, 5, 3)
    rows = windows.reshape(-1, matrix.shape[1])
    # written into, not viewed: see `frozen`, whose functions must not return a view
    shape = (x.shape[0], weight.shape[0], height, width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    y_rows = y.permute(0, 2, 3, 1).view(-1, weight.shape[0])
    if bias is None:
        torch.mm(rows, matrix.t(), out=y_rows)
    else:
        torch.addmm(bias, rows, matrix.t(), out=y_rows)
    return y


def backward_to_input(grad: Tensor, shape: torch.Size, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient to the input, of `shape`, from the gradient to y."""
    stride, padding, dilation, groups = geometry
    num, _, height, width = grad.shape
    if not _as_product(weight, geometry, num * height * width):
        # only the input's shape counts; an expanded scalar has that without memory
        shaped = grad.new_empty(1).expand(shape)
        return torch.ops.aten.convolution_backward(
            grad, shaped, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
        )[0]
    matrix, channels_first = _matrix(weight)
    num_out, num_in, kernel_h, kernel_w = weight.shape
    products = grad.permute(0, 2, 3, 1).reshape(-1, num_out).mm(matrix)
    if channels_first:
        products = products.view(-1, num_in, kernel_h * kernel_w).transpose(1, 2).contiguous()
    products = products.view(num, height, width, kernel_h, kernel_w, num_in)
    padded = grad.new_zeros(num, shape[2] + 2 * padding[0], shape[3] + 2 * padding[1], num_in)
    for i in range(kernel_h):
        for j in range(kernel_w):
            rows = slice(i, i + stride[0] * height, stride[0])
            columns = slice(j, j + stride[1] * width, stride[1])
            padded[:, rows, columns] += products[:, :, :, i, j]
    inner = padded[:, padding[0] : padding[0] + shape[2], padding[1] : padding[1] + shape[3]]
    return inner.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _as_product(weight: Tensor, geometry: Geometry, num_positions: int) -> bool:
    """Whether the product is faster: measured with and without AMX, float32 and bfloat16, at 4x4 to 32x32 positions."""
    _, _, dilation, groups = geometry
    large = 2 * num_positions <= weight.shape[0] and weight.shape[2:] != (1, 1)
    # a weight in any other order would have to be copied
    ordered = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return large and ordered and weight.device.type == "cpu" and groups == 1 and list(dilation) == [1, 1]


def _matrix(weight: Tensor) -> tuple[Tensor, bool]:
    """The weight seen as (out, in * kh * kw), or as (out, kh * kw * in) where its channels lie last."""
    if weight.is_contiguous():
        return weight.view(weight.shape[0], -1), True
    return weight.permute(0, 2, 3, 1).view(weight.shape[0], -1), False
