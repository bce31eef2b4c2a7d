"""Which modules of a denoiser are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """The blocks that a denoiser is made of: what stands in its lists of modules.

    Of a U-Net's lists of sequences the members, and of its transformers the blocks inside.
    """
    return list(_blocks(denoiser))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from _members(child)
        elif any(True for _ in child.children()):
            yield from _blocks(child)


def _members(container: nn.Module) -> Iterator[nn.Module]:
    for member in container.children():
        if isinstance(member, (nn.ModuleList, nn.Sequential)):
            yield from _members(member)
        elif isinstance(inner := getattr(member, "transformer_blocks", None), nn.ModuleList):
            yield from inner
        elif any(True for _ in member.children()):
            yield member
