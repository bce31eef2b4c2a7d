"""Laws of block fetching: the right weights, never more than the ring, fetched ahead in both directions."""

from __future__ import annotations

import weakref
from contextlib import contextmanager

import pytest
import torch
from sd_atelier.lib.block_fetching import NUM_SLOTS, BlockFetcher
from torch import nn

CPU = torch.device("cpu")


def make_blocks(num=5, width=16):
    torch.manual_seed(0)
    return [[nn.Linear(width, width + 2 * i), nn.Linear(3, 5, bias=False)] for i in range(num)]


class Watched(BlockFetcher):
    """A fetcher that notes each copy, and the slots that are alive."""

    def __init__(self, *args):
        self.copies, self.alive = [], []
        super().__init__(*args)

    def _new_slot(self):
        flat = super()._new_slot()
        self.alive.append(weakref.ref(flat))
        return flat

    def _copy(self, home, slot):
        self.copies.append(slot.block)
        super()._copy(home, slot)

    @property
    def num_alive(self):
        return sum(slot() is not None for slot in self.alive)


def visit(fetcher, blocks, order, expected):
    """Ask for every weight in the order of blocks; the numbers of copies made at each block."""
    num_copies = []
    for index in order:
        before = len(fetcher.copies)
        for layer, values in zip(blocks[index], expected[index], strict=True):
            weight, bias = fetcher.of(layer)
            assert torch.equal(weight, values) and weight.stride() == values.stride()
            assert bias is layer.bias
            fetcher.used(layer)
            assert fetcher.num_slots <= NUM_SLOTS
        num_copies.append(fetcher.copies[before:])
    return num_copies


@pytest.fixture
def blocks():
    return make_blocks()


@pytest.fixture
def expected(blocks):
    return [[layer.weight.detach().clone() for layer in layers] for layers in blocks]


def test_every_weight_is_given_as_it_was_in_any_order(blocks, expected):
    fetcher = Watched(blocks, CPU)
    generator = torch.Generator().manual_seed(1)
    visit(fetcher, blocks, torch.randint(0, 5, (200,), generator=generator).tolist(), expected)


def test_what_the_layer_holds_afterwards_is_the_copy_at_home(blocks, expected):
    fetcher = BlockFetcher(blocks, CPU)
    homes = {layer.weight.untyped_storage().data_ptr() for layers in blocks for layer in layers}
    assert len(homes) == len(blocks)
    for layers, values in zip(blocks, expected, strict=True):
        for layer, value in zip(layers, values, strict=True):
            assert layer in fetcher and torch.equal(layer.weight, value)


def test_blocks_are_fetched_ahead_forward_and_backward_before_anything_is_learned(blocks, expected):
    fetcher = Watched(blocks, CPU)
    forward = visit(fetcher, blocks, [0, 1, 2, 3, 4], expected)
    assert forward == [[0, 1], [2], [3], [4], []]
    # at the turn the block before is still there; from then on each block finds itself fetched
    assert visit(fetcher, blocks, [4, 3, 2, 1, 0], expected) == [[], [2], [1], [0], []]


def test_an_order_that_is_not_the_given_one_is_learned(blocks, expected):
    fetcher = Watched(blocks, CPU)
    step = [0, 1, 4, 2, 3, 3, 2, 4, 1, 0]
    visit(fetcher, blocks, step, expected)
    copies = visit(fetcher, blocks, step, expected)
    # three in each direction, and each while the block before it is at work
    assert copies == [[], [4], [2], [3], [], [], [4], [1], [0], []]


def test_recomputation_inside_a_block_fetches_nothing_more(blocks, expected):
    fetcher = Watched(blocks, CPU)
    visit(fetcher, blocks, [0, 1, 2, 3, 4], expected)
    assert sum(map(len, visit(fetcher, blocks, [4, 4, 3, 3, 2, 2, 1, 1, 0, 0], expected))) == 3


def test_never_more_than_the_ring_is_on_the_device(blocks, expected):
    fetcher = Watched(blocks, CPU)
    for _ in range(3):
        visit(fetcher, blocks, [0, 1, 2, 3, 4, 3, 2, 1, 0], expected)
    assert len(fetcher.alive) == fetcher.num_alive == NUM_SLOTS
    fetcher.release()
    assert fetcher.num_alive == 0
    visit(fetcher, blocks, [3, 1], expected)
    assert fetcher.num_alive == NUM_SLOTS


def test_a_weight_that_is_held_is_never_written_over(blocks, expected):
    fetcher = Watched(blocks, CPU)
    held, _ = fetcher.of(blocks[0][0])
    visit(fetcher, blocks, [1, 2, 3, 4, 3, 2, 1], expected)
    assert torch.equal(held, expected[0][0])


def test_after_weights_that_were_never_given_back_the_ring_is_as_large_as_before(blocks, expected):
    fetcher = Watched(blocks, CPU)
    for index in (0, 2, 4):
        fetcher.of(blocks[index][0])  # as an error in the middle leaves it
    visit(fetcher, blocks, [0, 1, 2, 3, 4, 3, 2, 1, 0], expected)
    assert fetcher.num_alive == fetcher.num_slots == NUM_SLOTS


def test_the_memory_format_of_convolutions_comes_along():
    layer = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    weight = layer.weight.detach().clone(memory_format=torch.preserve_format)
    fetcher = BlockFetcher([[layer]], CPU)
    given, _ = fetcher.of(layer)
    assert torch.equal(given, weight) and given.stride() == weight.stride()


def test_float8_weights_are_fetched_bit_by_bit():
    layer = nn.Linear(32, 48).requires_grad_(False)
    codes = layer.weight.to(torch.float8_e4m3fn)
    layer.weight.data = codes
    given, _ = BlockFetcher([[layer]], CPU).of(layer)
    assert given.dtype == codes.dtype and torch.equal(given.view(torch.uint8), codes.view(torch.uint8))


def test_a_ring_that_is_made_in_inference_mode_serves_training(blocks, expected):
    fetcher = BlockFetcher(blocks, CPU)
    with torch.inference_mode():
        fetcher.of(blocks[0][0])
        fetcher.used(blocks[0][0])
    x = torch.randn(2, 16, requires_grad=True)
    for index in (0, 2, 4, 0):
        weight, _ = fetcher.of(blocks[index][0])
        (x @ weight.detach().t()).sum().backward()
        fetcher.used(blocks[index][0])
    assert x.grad is not None


class Stream:
    """A stream that only writes down who waits for whom."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event.what}")


class Event:
    what = "nothing"

    def record(self, stream):
        self.what = f"{stream.log[-1]} on {stream.name}"


def test_on_cuda_a_copy_waits_for_the_work_before_it_and_the_work_for_its_copy(blocks, monkeypatch):
    log = []
    compute, side = Stream("compute", log), Stream("side", log)

    @contextmanager
    def on(stream):
        log.append(f"on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    copy_ = torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda to, home, non_blocking=False: (log.append("copy"), copy_(to, home))[1]
    )
    fetcher = BlockFetcher(blocks, CPU)
    fetcher._side = side
    log.clear()
    copied = ["side waits for compute", "on side", "copy"]
    for index, num_copies in enumerate([2, 1, 1, 1, 0]):
        fetcher.of(blocks[index][0])
        assert log == copied * num_copies + ["compute waits for copy on side"]
        fetcher.used(blocks[index][0])
        log.clear()
    fetcher.release()
    assert log == ["compute waits for side"]
