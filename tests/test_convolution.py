"""Laws of the convolution by matrix product: it is torch's, copies no weight, and knows where it applies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sd_atelier.lib import convolution


def make(
    stride: int, padding: int, kernel: tuple[int, int], last: bool, size: tuple[int, int], num_out: int = 96
) -> tuple:
    generator = torch.Generator().manual_seed(stride + 2 * padding + 4 * kernel[1] + size[0])
    draw = [
        torch.randn(*s, generator=generator, dtype=torch.float64)
        for s in ((num_out, 5, *kernel), (2, 5, *size), (num_out,))
    ]
    weight, x, bias = draw
    if last:
        weight = weight.to(memory_format=torch.channels_last)
    return x.requires_grad_(True), weight, bias, ([stride] * 2, [padding] * 2, [1, 1], 1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("kernel", [(3, 3), (3, 2)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_torchs_convolution_forward_and_backward(
    stride: int, padding: int, kernel: tuple[int, int], last: bool, size: tuple[int, int], with_bias: bool
) -> None:
    x, weight, bias, geometry = make(stride, padding, kernel, last, size)
    bias = bias if with_bias else None
    expected = F.conv2d(x, weight, bias, stride, padding)
    assert convolution._as_product(weight, geometry, expected[:, 0].numel())
    got = convolution.forward(x.detach(), weight, bias, geometry)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert not got._is_view(), "a custom function must not return a view"
    grad = torch.randn_like(expected)
    back = convolution.backward_to_input(grad, x.shape, weight, geometry)
    torch.testing.assert_close(back, torch.autograd.grad(expected, x, grad)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_out", [16, 96])
def test_both_ways_agree_with_autograd_at_either_side_of_the_bound(num_out: int) -> None:
    x, weight, bias, geometry = make(1, 1, (3, 3), True, (4, 4), num_out)
    assert convolution._as_product(weight, geometry, 2 * 16) == (num_out == 96)
    expected = F.conv2d(x, weight, bias, 1, 1)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        convolution.forward(x.detach(), weight, bias, geometry), expected, rtol=1e-12, atol=1e-12
    )
    back = convolution.backward_to_input(grad, x.shape, weight, geometry)
    torch.testing.assert_close(back, torch.autograd.grad(expected, x, grad)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("last", [False, True])
def test_the_weight_is_seen_and_not_copied(last: bool) -> None:
    _, weight, _, _ = make(1, 1, (3, 3), last, (4, 4))
    matrix, channels_first = convolution._matrix(weight)
    assert matrix.data_ptr() == weight.data_ptr() and channels_first != last


def test_what_the_product_does_not_serve_is_left_to_torch() -> None:
    _, weight, _, geometry = make(1, 1, (3, 3), False, (4, 4))
    stride, padding, _, _ = geometry
    assert convolution._as_product(weight, geometry, 8)
    assert not convolution._as_product(weight, geometry, 96)
    assert not convolution._as_product(weight, (stride, padding, [2, 2], 1), 8)
    assert not convolution._as_product(weight, (stride, padding, [1, 1], 2), 8)
    assert not convolution._as_product(weight[:, :, :1, :1], geometry, 8)
    assert not convolution._as_product(weight.transpose(2, 3), geometry, 8), "this order would be copied"
    assert not convolution._as_product(weight.to("meta"), geometry, 8)
