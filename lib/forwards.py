"""Replacing the `forward` of module instances, and putting it back in every case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced(replacements: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Give each module the `forward` beside it, inside. Classes, other instances, weights and hooks are not touched.

    A host may have set an instance's `forward` itself: then that one is put back, not the class's.
    """
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module, forward in replacements:
            before.append((module, module.__dict__.get("forward")))
            module.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        for module, forward in reversed(before):
            if forward is None:
                del module.forward
            else:
                module.forward = forward
