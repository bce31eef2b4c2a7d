"""Base weights: how the frozen weights of a model that this program loaded itself are kept, and given to each layer.

Two steps of the memory ladder live here: weights stored in fewer bits than the arithmetic has, and blocks kept in main
memory. Both concern the Linear and convolution weights inside the model's blocks, which are nearly all of it; what
comes before and after the blocks, norms, biases and small weights stay as they are, on the device. No weight is ever
there twice but in the buffer of the layer that is at work. A model that a host loaded for its user is never kept so: it
is not ours to change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .block_fetching import BlockFetcher
from .frozen import plain_weight
from .storage import DTYPES, narrowed, widened

SMALL = 1024  # values; what a smaller weight would save is less than what its handling costs

# From most to least memory.
_STORAGES = tuple(DTYPES)


class BaseWeights:
    """Weights of `root` on `device`. `of` and `used` are what `Host.weight_of` and `Host.used` ask for.

    `blocks` are modules inside `root`, none inside another, about in the order in which they run. The model may be
    anywhere before; it is moved piece by piece, so that a model larger than the device's memory never lies on it whole.
    """

    def __init__(
        self,
        root: nn.Module,
        blocks: Sequence[nn.Module],
        device: torch.device,
        compute_dtype: torch.dtype,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        self._root, self._device, self._memory_format = root, device, memory_format
        self.compute_dtype = compute_dtype
        self.storage, self.cpu_blocks = "model", 0
        self._blocks = [[layer for layer in block.modules() if _is_large(layer)] for block in blocks]
        self._blocks = [layers for layers in self._blocks if layers]
        self._managed = {id(layer) for layers in self._blocks for layer in layers}
        # values: one buffer serves every layer
        self._largest = max((_weight(layer).numel() for layers in self._blocks for layer in layers), default=0)
        self._kept = False
        self._scales: dict[int, Tensor] = {}  # id of a layer -> the scale of its rows
        self._fetcher: BlockFetcher | None = None
        self._spare: list[Tensor] = []
        self._lent: dict[int, Tensor] = {}  # id of a layer -> the buffer that its widened weight lies in

    @property
    def num_blocks(self) -> int:
        """Blocks that can be kept in main memory."""
        return len(self._blocks)

    @property
    def away_bytes(self) -> int:
        """What the blocks that are kept in main memory weigh."""
        return 0 if self._fetcher is None else self._fetcher.num_bytes

    def keep(self, storage: str = "model", cpu_blocks: int = 0) -> None:
        """Move the model to the device, its weights stored in `storage`, `cpu_blocks` blocks in main memory.

        Can be called again for a further step down the ladder. Errors: `ValueError` for more blocks than there are, and
        for a step back up, since what was rounded away is gone.
        """
        if cpu_blocks > self.num_blocks:
            raise ValueError(f"loop.cpu_blocks must be at most {self.num_blocks} for this model, got {cpu_blocks}")
        if _STORAGES.index(storage) < _STORAGES.index(self.storage):
            raise ValueError(f'the weights are stored as {self.storage} already; load the model again for "{storage}"')
        if self._kept and (storage, cpu_blocks) == (self.storage, self.cpu_blocks):
            return
        self.release()
        self._fetcher = None
        away = [self._blocks[index] for index in _spread(cpu_blocks, self.num_blocks)]
        kept_away = {id(layer.weight) for layers in away for layer in layers}
        for layers in self._blocks:
            for layer in layers:
                weight = _weight(layer)
                # rounded on the device, which is faster, and only this layer's lies there
                moved = self._on_device(weight)
                if storage != self.storage:
                    moved, scale = narrowed(moved, storage)
                    if scale is not None:
                        self._scales[id(layer)] = scale
                weight.data = moved.to("cpu") if id(weight) in kept_away else moved
        for tensor in (*self._root.parameters(), *self._root.buffers()):
            if id(tensor) not in kept_away:
                tensor.data = self._on_device(tensor)
        if away:
            self._fetcher = BlockFetcher(away, self._device)
        self.storage, self.cpu_blocks, self._kept = storage, cpu_blocks, True

    def of(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer, on the device, in the type of the arithmetic where they were stored narrower."""
        fetcher = self._fetcher if self._fetcher is not None and layer in self._fetcher else None
        stored, bias = plain_weight(layer) if fetcher is None else fetcher.of(layer)
        if id(layer) not in self._managed or stored.element_size() >= self.compute_dtype.itemsize:
            return stored, bias
        weight = self._widened(layer, stored)
        if fetcher is not None:
            fetcher.used(layer)
        return weight, bias

    def used(self, layer: nn.Module) -> None:
        """What `of` last gave of this layer is no longer needed."""
        buffer = self._lent.pop(id(layer), None)
        if buffer is not None:
            self._spare.append(buffer)
        elif self._fetcher is not None and layer in self._fetcher:
            self._fetcher.used(layer)

    def release(self) -> None:
        """Give back every buffer, also those that an error kept from being given back."""
        # what is lent is forgotten rather than taken back: somebody may still read it
        self._spare.clear()
        self._lent.clear()
        if self._fetcher is not None:
            self._fetcher.release()

    def _widened(self, layer: nn.Module, stored: Tensor) -> Tensor:
        # whoever has not given a buffer back may still read it: it is forgotten, never written over
        self._lent.pop(id(layer), None)
        buffer = self._spare.pop() if self._spare else None
        with torch.inference_mode(False), torch.no_grad():
            if buffer is None or buffer.dtype != self.compute_dtype:
                buffer = torch.empty(self._largest, dtype=self.compute_dtype, device=self._device)
            out = buffer[: stored.numel()].as_strided(stored.shape, stored.stride())
            widened(stored.detach(), self._scales.get(id(layer)), out)
        self._lent[id(layer)] = buffer
        return out

    def _on_device(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if tensor.dim() == 4:
            return tensor.to(self._device, memory_format=self._memory_format)
        return tensor.to(self._device)


def _weight(layer: nn.Module) -> Tensor:
    return layer.weight  # type: ignore[return-value]


def _is_large(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.numel() >= SMALL


def _spread(num: int, total: int) -> list[int]:
    """`num` of `total` blocks, evenly, so that while one is fetched others that are there are computed."""
    return sorted({(2 * i + 1) * total // (2 * num) for i in range(num)}) if num else []
