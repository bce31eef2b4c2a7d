"""Block fetching: weights that are kept in main memory and fetched to the device one block ahead.

A ring of slots on the device holds the blocks that are in use or will be next; each is as large as the largest block.
Which block comes next is learned from the order in which blocks were last asked for, so that it needs no word from the
model: forward, backward in the reverse order, and recomputation alike. Until it is learned, the given order counts, in
the direction of the last move.

On CUDA a block is one copy from pinned memory on a side stream, while the block before it is computed. On other devices
it is a plain copy: slower than nothing, and the same code otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

NUM_SLOTS = 2  # the block in use and the next one
_ALIGNMENT = 256  # bytes; what CUDA's own allocator aligns to


@dataclass(frozen=True)
class _Place:
    """Where a layer's weight lies in its block's bytes, and what it is."""

    first: int
    num_bytes: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]

    def of(self, flat: Tensor) -> Tensor:
        return flat[self.first : self.first + self.num_bytes].view(self.dtype).as_strided(self.shape, self.stride)


@dataclass(eq=False)
class _Slot:
    """A block's bytes on the device."""

    flat: Tensor
    block: int = -1
    lent: Counter[int] = field(default_factory=Counter)  # id of a layer -> how often its weight is out
    ready: torch.cuda.Event | None = None


class BlockFetcher:
    """The weights of some blocks, kept in main memory. Each block is the list of its layers.

    The weights are moved on construction: what `layer.weight` is from then on lies in main memory.
    """

    def __init__(self, blocks: Sequence[Sequence[nn.Module]], device: torch.device) -> None:
        self._device = device
        self._on_cuda = device.type == "cuda"
        self._home: list[Tensor] = []
        self._places: dict[int, tuple[int, _Place]] = {}  # id of a layer -> its block, and its place there
        self._layers: list[nn.Module] = []  # kept, so that an id stays that of its layer
        for block, layers in enumerate(blocks):
            self._home.append(self._packed(block, layers))
        self._slots: list[_Slot] = []
        self._next: dict[tuple[int, int], int] = {}  # the last two blocks -> the block that came after them
        self._moves = (-1, -1)
        self._side = torch.cuda.Stream(device) if self._on_cuda else None

    def __contains__(self, layer: nn.Module) -> bool:
        return id(layer) in self._places

    @property
    def num_bytes(self) -> int:
        """What all the blocks weigh."""
        return sum(len(home) for home in self._home)

    @property
    def num_slots(self) -> int:
        """Blocks that the ring holds on the device now."""
        return len(self._slots)

    def of(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer on the device, the weight until `used`."""
        block, place = self._places[id(layer)]
        slot = self._slot_of(block)
        slot.lent[id(layer)] += 1
        return place.of(slot.flat), getattr(layer, "bias", None)  # type: ignore[return-value]

    def used(self, layer: nn.Module) -> None:
        """The layer's weight is no longer needed, as often as it was given."""
        block, _ = self._places[id(layer)]
        for slot in self._slots:
            if slot.block == block and slot.lent[id(layer)]:
                slot.lent[id(layer)] -= 1

    def release(self) -> None:
        """Give the ring's memory back; the next weight that is asked for makes it anew."""
        if self._side is not None:
            # memory must not go to another while a copy into it is under way
            torch.cuda.current_stream(self._device).wait_stream(self._side)
        self._slots.clear()
        self._moves = (-1, -1)

    def _packed(self, block: int, layers: Sequence[nn.Module]) -> Tensor:
        places, size = [], 0
        for layer in layers:
            weight: Tensor = layer.weight  # type: ignore[assignment]
            dense = weight.is_contiguous() or (
                weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
            )
            stride = weight.stride() if dense else torch.empty(weight.shape, device="meta").stride()
            num_bytes = weight.numel() * weight.element_size()
            places.append(_Place(size, num_bytes, weight.dtype, weight.shape, stride))
            size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        home = torch.empty(size, dtype=torch.uint8, pin_memory=self._on_cuda)
        for layer, place in zip(layers, places, strict=True):
            weight = layer.weight  # type: ignore[assignment]
            # one layer after the other, so that only one weight is ever there twice
            weight.data = place.of(home).copy_(weight.detach())
            self._places[id(layer)] = block, place
            self._layers.append(layer)
        return home

    def _slot_of(self, block: int) -> _Slot:
        slot = self._held(block) or self._fetched(block, keep=-1)
        if block != self._moves[1]:
            if self._moves[1] >= 0:
                self._next[self._moves] = block
            self._moves = self._moves[1], block
            following = self._following()
            if following is not None and self._held(following) is None:
                self._fetched(following, keep=block)
        if slot.ready is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.ready)
        return slot

    def _following(self) -> int | None:
        before, block = self._moves
        if self._moves in self._next:
            return self._next[self._moves]
        guess = block - 1 if before > block else block + 1
        return guess if 0 <= guess < len(self._home) else None

    def _held(self, block: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.block == block), None)

    def _fetched(self, block: int, keep: int) -> _Slot:
        """A slot with the block in it, or on its way; the slots are in the order of their last filling."""
        free = [slot for slot in self._slots if slot.block != keep and not +slot.lent]
        if len(self._slots) < NUM_SLOTS:
            slot = _Slot(self._new_slot())
        elif free:
            slot = free[0]
            self._slots.remove(slot)
        else:
            # what was lent and never given back, as after an error, is left to whoever holds it, and never written over
            self._slots.remove(next(slot for slot in self._slots if slot.block != keep))
            slot = _Slot(self._new_slot())
        slot.block = block
        self._slots.append(slot)
        self._copy(self._home[block], slot)
        return slot

    def _new_slot(self) -> Tensor:
        with torch.inference_mode(False):
            return torch.empty(max(len(h) for h in self._home), dtype=torch.uint8, device=self._device)

    def _copy(self, home: Tensor, slot: _Slot) -> None:
        if self._side is None:
            slot.flat[: len(home)].copy_(home)
            return
        # whatever still reads the slot was launched before now
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            slot.flat[: len(home)].copy_(home, non_blocking=True)
            slot.ready = torch.cuda.Event()
            slot.ready.record(self._side)
