"""Narrow storage: keeping frozen weights in fewer bits than the arithmetic has.

float8 is e4m3 (Micikevicius et al. 2022, arXiv:2209.05433): 3 bits of mantissa, largest 448, smallest step 2^-9. Each
row of a weight (each output) is divided by a power of two, so that its largest value fits: multiplying by a power of
two is exact in every type, so the only error is one rounding. Shapes: weight (out, ...), scale (out, 1, ...) float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

# `loop.base_storage` -> type; None leaves a weight as the model has it.
DTYPES = {"model": None, "bf16": torch.bfloat16, "float8": torch.float8_e4m3fn}

# Largest relative error of a weight, and for its smallest values the largest error as a part of the row's scale: half a
# step. tests/test_storage.py measures both.
RELATIVE_ERROR = {"bf16": 2.0**-8, "float8": 2.0**-4}
ABSOLUTE_ERROR = {"bf16": 0.0, "float8": 2.0**-10}

_LARGEST = 448.0
_MANTISSA, _EXPONENT = 0.875, 9  # 448 = 0.875 * 2^9


def narrowed(weight: Tensor, storage: str) -> tuple[Tensor, Tensor | None]:
    """`weight` in `storage`, and the scale of its rows where it has one. Its memory format is kept.

    Errors: `ValueError` where it cannot be stored so: it is narrower already, or not finite.
    """
    dtype = DTYPES[storage]
    if dtype is None or weight.dtype == dtype:
        return weight, None
    if weight.element_size() <= dtype.itemsize:
        has = str(weight.dtype).removeprefix("torch.")
        raise ValueError(
            f'loop.base_storage "{storage}" is not narrower than the model\'s {has}; set it to "model" or "float8"'
        )
    weight = weight.detach()
    if storage != "float8":
        return weight.to(dtype), None
    columns = tuple(range(1, weight.dim()))
    # the row's ends, not its absolute values: those would be a copy of the weight
    largest = torch.maximum(weight.amax(columns, keepdim=True), -weight.amin(columns, keepdim=True)).float()
    if not torch.isfinite(largest).all():
        raise ValueError('a weight of the model is not finite; loop.base_storage "float8" cannot hold it')
    mantissa, exponent = torch.frexp(largest)
    power = exponent - _EXPONENT + (mantissa > _MANTISSA)
    scale = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), power), torch.ones_like(largest))
    # divided in float32 at least: a scale may be too small for fp16
    return (weight.to(torch.promote_types(weight.dtype, torch.float32)) / scale).to(dtype), scale


def widened(stored: Tensor, scale: Tensor | None, out: Tensor) -> Tensor:
    """Write a stored weight into `out`, of its shape and memory format and of the type of the arithmetic."""
    if stored.dtype == torch.float8_e4m3fn and out.device.type == "cpu" and out.dtype in _PLACES:
        return _widened_on_cpu(stored, scale, out)
    out.copy_(stored)
    return out if scale is None else out.mul_(scale)


# Type -> integers of its size, how far left of float8's its exponent ends, and 2 to the difference of the biases.
_PLACES = {
    torch.float16: (torch.int16, 7, 2.0**8),
    torch.bfloat16: (torch.int16, 4, 2.0**120),
    torch.float32: (torch.int32, 20, 2.0**120),
    torch.float64: (torch.int64, 49, 2.0**1016),
}
_CHUNK = 2**17  # values that stay in the processor's cache from one pass to the next


def _widened_on_cpu(stored: Tensor, scale: Tensor | None, out: Tensor) -> Tensor:
    # torch converts float8 one value at a time on a CPU; moving the bits into place is nine times as fast, and exact
    integers, shift, bias = _PLACES[out.dtype]
    sign_and_rest = -(1 << (8 * out.element_size() - 1)) | (0x7F << shift)
    one = torch.ones((1,) * out.dim(), device=out.device) if scale is None else scale
    factor = (one.double() * bias).to(out.dtype).expand(out.shape[0], *one.shape[1:])
    num_rows = max(1, _CHUNK * out.shape[0] // max(1, out.numel()))
    codes, bits = stored.view(torch.int8), out.view(integers)
    for first in range(0, out.shape[0], num_rows):
        rows = slice(first, first + num_rows)
        bits[rows].copy_(codes[rows]).bitwise_left_shift_(shift).bitwise_and_(sign_and_rest)
        out[rows].mul_(factor[rows])
    return out
