"""An autoencoder that starts as a thumbnail: its latents are the picture made smaller, before it learns anything.

From there a few seconds of training add the detail; from random weights the same time ends in grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

# A colour travels as a pair x and -x, because silu(x) - silu(-x) = x, beside a pair of constants that are larger than
# colours, so that a norm divides by nearly the same number whatever the picture.
CONSTANT = 2.0
MEAN_SQUARE = 0.3  # of a picture's values
CHANNELS = 4  # of one colour: x, -x and the two constants


@torch.no_grad()
def start_as_thumbnail(autoencoder: Any) -> None:
    """Set the weights of an AutoencoderKL so. It needs 4 groups of at least 4 channels and 4 latent channels.

    Latents are then (almost) the average colour of each square of pixels in their first three channels.
    """
    for module in autoencoder.modules():
        kind = type(module).__name__
        if kind == "ResnetBlock2D":
            _clear(module.conv2)
            if module.conv_shortcut is not None:
                _pass_colours(module.conv_shortcut)
        elif kind == "Attention":
            _clear(module.to_out[0])
        elif kind == "Downsample2D":
            _pass_colours(module.conv, slice(0, 2), 0.25)
        elif kind == "Upsample2D":
            _pass_colours(module.conv, slice(1, 2))
    for coder in (autoencoder.encoder, autoencoder.decoder):
        _take_colours(coder.conv_in)
        _give_colours(coder.conv_norm_out, coder.conv_out)
    for convolution in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        nn.init.eye_(convolution.weight.view(convolution.out_channels, -1))
        nn.init.zeros_(convolution.bias)


def _clear(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _first_channels(num_channels: int) -> Sequence[int]:
    """Where each colour's channels begin: one colour in each of the first three of four groups of a norm."""
    return range(0, num_channels * 3 // 4, num_channels // 4)


def _clear_colours(convolution: nn.Conv2d) -> None:
    for first in _first_channels(convolution.out_channels):
        convolution.weight[first : first + CHANNELS] = 0
        convolution.bias[first : first + CHANNELS] = 0  # type: ignore[index]


def _pass_colours(convolution: nn.Conv2d, taps: slice = slice(None), weight: float = 1.0) -> None:
    """Hand colours on, from those pixels of the kernel."""
    _clear_colours(convolution)
    sources, targets = _first_channels(convolution.in_channels), _first_channels(convolution.out_channels)
    for source, target in zip(sources, targets, strict=True):
        for channel in range(CHANNELS):
            convolution.weight[target + channel, source + channel, taps, taps] = weight


def _take_colours(convolution: nn.Conv2d) -> None:
    _clear_colours(convolution)
    assert convolution.bias is not None
    for colour, first in enumerate(_first_channels(convolution.out_channels)):
        convolution.weight[first, colour, 1, 1] = 1
        convolution.weight[first + 1, colour, 1, 1] = -1
        convolution.bias[first + 2] = CONSTANT
        convolution.bias[first + 3] = -CONSTANT


def _give_colours(norm: nn.GroupNorm, convolution: nn.Conv2d) -> None:
    convolution.weight[:3] = 0
    convolution.bias[:3] = 0  # type: ignore[index]
    group = norm.num_channels // 4
    for colour, first in enumerate(_first_channels(norm.num_channels)):
        norm.weight[first : first + 2] = (2 * (CONSTANT**2 + MEAN_SQUARE) / group) ** 0.5
        convolution.weight[colour, first, 1, 1] = 1
        convolution.weight[colour, first + 1, 1, 1] = -1
