"""What can be trained: one algorithm, one file, registered in `registry.ALGORITHMS`.

The loop asks for nothing but `Trainable`; tests/trainables/test_every_algorithm.py holds the laws.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..frozen import Branch
from ..host import Host
from ..keys.layers import Member


class Trainable(Protocol):
    """An algorithm on a host's model. Parameters are float32 and known by canonical names."""

    def prepare(self, host: Host) -> None:
        """Choose layers and make the parameters, so that nothing is changed yet."""
        ...

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained."""
        ...

    def groups(self) -> dict[str, tuple[str | None, list[str]]]:
        """Group name -> (its own learning-rate schedule or None, the names of its parameters)."""
        ...

    def branch_of(self, layer: nn.Module) -> Branch | None:
        """The branch beside a frozen layer, asked at each forward."""
        ...

    def training(self, step: int, micro: int) -> AbstractContextManager[None]:
        """A forward and backward pass of training, inside: the only place where dropout is on."""
        ...

    def off(self) -> AbstractContextManager[None]:
        """The model as it was, inside."""
        ...

    def scaled(self, strength: float) -> AbstractContextManager[None]:
        """The network so many times as strong, inside."""
        ...

    def export(self, values: Mapping[str, Tensor], dtype: torch.dtype, names: str = "family") -> dict[str, Tensor]:
        """The tensors of the published file, on the CPU, from parameter values. `names`: as `save.names`."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the parameters from a file's or a state's tensors."""
        ...

    def delta(self, name: str) -> Tensor:
        """The update of a canonical layer's weight, of that weight's shape."""
        ...

    def layer_names(self) -> dict[str, tuple[Member, ...]]:
        """The canonical layers that are changed, by name: the modules that hold their outputs."""
        ...

    def metadata(self) -> dict[str, str]:
        """What the published file says of the network."""
        ...
