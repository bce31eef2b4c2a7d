"""The built-in LoRA extension, which merges networks into the weights in place and leaves them there.

It does so lazily, in the forward pass of each layer (extensions-builtin/Lora/networks.py). While layers run through our
own forward that would never happen, so here it is done for all layers at once: out before training, in for a preview
whose prompt asks for a network, and out again after it. A weight comes back from the copy that the extension took, bit
for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def _extension() -> Any | None:
    """The extension's module; None where it is disabled or this host has another."""
    module = sys.modules.get("networks")
    wanted = ("load_networks", "network_apply_weights", "loaded_networks")
    return module if module is not None and all(hasattr(module, name) for name in wanted) else None


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers that the extension changes: its class-wide forward is on these types."""
    fused = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    kinds = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)
    for module in model.modules():
        # a fused attention changes its out_proj itself; as a layer of its own that one would be changed twice
        if isinstance(module, kinds) and hasattr(module, "network_layer_name") and id(module) not in fused:
            yield module


@torch.no_grad()
def merge_wanted(model: nn.Module) -> None:
    """Make the weights what the networks that are loaded now make of them; none loaded: the checkpoint's own."""
    extension = _extension()
    if extension is None:
        return
    wanted = bool(extension.loaded_networks)
    for layer in _layers(model):
        if wanted or getattr(layer, "network_current_names", ()) != ():
            extension.network_apply_weights(layer)


def clear(model: nn.Module) -> None:
    """Take every network out of the weights."""
    extension = _extension()
    if extension is not None:
        extension.load_networks([])
        merge_wanted(model)


_COPIES = ("network_weights_backup", "network_bias_backup")


@contextmanager
def cleared_after(model: nn.Module) -> Iterator[None]:
    """Whatever is merged inside comes out again, and the copies of weights that the extension takes are freed."""
    absent = [(m, n) for m in model.modules() for n in _COPIES if getattr(m, n, None) is None]
    try:
        yield
    finally:
        clear(model)
        for module, name in absent:
            if getattr(module, name, None) is not None:
                setattr(module, name, None)
