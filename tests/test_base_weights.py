"""Laws of base weights: the same gradients with less memory, and everything given back."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from sd_atelier.lib.base_weights import SMALL, BaseWeights
from sd_atelier.lib.block_fetching import NUM_SLOTS
from sd_atelier.lib.frozen import Branch, attached
from sd_atelier.lib.recompute import recomputed
from sd_atelier.lib.storage import narrowed, widened
from torch import Tensor, nn

CPU = torch.device("cpu")
WIDTH = 32


class Block(nn.Module):
    def __init__(self, wide):
        super().__init__()
        self.norm = nn.GroupNorm(4, WIDTH)
        self.conv = nn.Conv2d(WIDTH, wide, 3, padding=1)
        self.back = nn.Linear(wide, WIDTH)
        self.small = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.back(F.silu(self.conv(self.norm(x))).movedim(1, -1))
        return x + (y + self.small(y).mean(-1, keepdim=True)).movedim(-1, 1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(4, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 4, 3, padding=1)
        self.blocks = nn.ModuleList(Block(WIDTH + 16 * (i % 3)) for i in range(6))
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x) * self.scale


def make(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return Model().to(dtype).requires_grad_(False)


def branches_of(model):
    generator = torch.Generator().manual_seed(5)

    def some(*shape):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1).requires_grad_()

    return {id(b.back): Branch(some(3, b.back.in_features), some(WIDTH, 3), 0.7) for b in model.blocks}


def gradients(model, weights=None, checkpointing=False, dtype=torch.float64, rounds=1):
    """Every gradient of the branches, from the last of `rounds` steps on one input."""
    branches = branches_of(model)
    generator = torch.Generator().manual_seed(6)
    x, target = (torch.randn(2, 4, 6, 6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    arguments = {} if weights is None else {"weight_of": weights.of, "used": weights.used}
    with (
        recomputed(model.blocks if checkpointing else []),
        attached([model], branch_of=lambda layer: branches.get(id(layer)), **arguments),
    ):
        for _ in range(rounds):
            for branch in branches.values():
                branch.down.grad = branch.up.grad = None
            F.mse_loss(model(x), target).backward()
    grads = [g for b in branches.values() for g in (b.down.grad, b.up.grad)]
    assert all(g is not None and g.abs().max() > 0 for g in grads)
    return torch.cat([g.flatten() for g in grads])


def kept(model, storage="model", cpu_blocks=0, dtype=torch.float64):
    weights = BaseWeights(model, list(model.blocks), CPU, dtype)
    weights.keep(storage, cpu_blocks)
    return weights


def stored_bytes(model):
    """Of the model's own tensors, each memory counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()}
    return sum(storages.values())


checkpointing = pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])


@checkpointing
@pytest.mark.parametrize("cpu_blocks", [1, 2, 5, 6])
def test_blocks_in_main_memory_give_the_same_gradients_bit_for_bit(cpu_blocks, checkpointing):
    # the memory format decides the order of sums: it is that of the kept weights in both
    plain = make()
    expected = gradients(plain, kept(plain), checkpointing)
    model = make()
    weights = kept(model, "model", cpu_blocks)
    assert torch.equal(gradients(model, weights, checkpointing, rounds=3), expected)


@checkpointing
@pytest.mark.parametrize("cpu_blocks", [0, 3, 6])
@pytest.mark.parametrize("storage", ["bf16", "float8"])
def test_narrow_storage_gives_the_gradients_of_a_model_whose_weights_are_rounded(storage, cpu_blocks, checkpointing):
    rounded = make()
    for block in rounded.blocks:
        for layer in (block.conv, block.back):
            weight = layer.weight
            weight.data = widened(*narrowed(weight, storage), torch.empty_like(weight))
    assert not torch.equal(rounded.blocks[0].conv.weight, make().blocks[0].conv.weight)
    expected = gradients(rounded, kept(rounded), checkpointing)
    model = make()
    assert torch.equal(gradients(model, kept(model, storage, cpu_blocks), checkpointing, rounds=2), expected)


def test_what_is_outside_the_blocks_and_what_is_small_stays_as_it_is():
    model, before = make(), make().state_dict()
    kept(model, "float8", 6)
    for name, tensor in model.state_dict().items():
        large = name.endswith(("conv.weight", "back.weight")) and "blocks" in name
        assert (tensor.dtype == torch.float8_e4m3fn) == large, name
        assert large == (before[name].numel() >= SMALL and "blocks" in name)
        if not large:
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("storage", "factor"), [("bf16", 2), ("float8", 4)])
def test_the_model_becomes_smaller_by_what_the_type_saves_and_no_weight_stays_behind(storage, factor):
    model = make(torch.float32)
    large = sum(layer.weight.numel() for b in model.blocks for layer in (b.conv, b.back))
    gc.collect()
    before, total = all_bytes(), stored_bytes(model)
    weights = kept(model, storage, 0, torch.float32)
    gc.collect()
    saved = 4 * large * (factor - 1) // factor
    assert total - stored_bytes(model) == saved
    scales = sum(s.numel() * 4 for s in weights._scales.values())
    assert before - all_bytes() == saved - scales


def test_while_blocks_are_in_main_memory_no_weight_lies_anywhere_twice():
    model = make(torch.float32)
    gc.collect()
    before = all_bytes()
    weights = kept(model, "model", 6, torch.float32)
    gc.collect()
    # each weight's bytes are rounded up to the alignment, and that is all
    assert before <= all_bytes() <= before + 12 * 256
    gradients(model, weights, dtype=torch.float32)
    gc.collect()
    ring = NUM_SLOTS * max(len(home) for home in weights._fetcher._home)
    assert all_bytes() <= before + 12 * 256 + ring
    weights.release()
    gc.collect()
    assert all_bytes() <= before + 12 * 256


def all_bytes():
    """Of every tensor that is alive in this program, when the garbage of earlier tests has gone too."""
    last = None
    while True:
        gc.collect()
        storages = {}
        for thing in gc.get_objects():
            # by its class: asking some of torch's own objects what they are makes them warn
            if issubclass(type(thing), Tensor) and thing.device.type == "cpu" and thing.layout == torch.strided:
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        if sum(storages.values()) == last:
            return last
        last = sum(storages.values())


def test_the_ladder_is_walked_down_step_by_step_on_one_model():
    model, rounded = make(), make()
    weights = BaseWeights(model, list(model.blocks), CPU, torch.float64)
    for storage, cpu_blocks in [("model", 0), ("model", 2), ("bf16", 2), ("float8", 0), ("float8", 6)]:
        before = weights.storage
        weights.keep(storage, cpu_blocks)
        if storage != before:
            # what was rounded once is rounded again, as it is then
            for block in rounded.blocks:
                for weight in (block.conv.weight, block.back.weight):
                    as_stored = weight if before == "model" else weight.to(torch.bfloat16)
                    weight.data = widened(*narrowed(as_stored, storage), torch.empty_like(weight))
        assert torch.equal(gradients(model, weights), gradients(rounded, kept(rounded)))
    with pytest.raises(ValueError, match="stored as float8 already; load the model again"):
        weights.keep("bf16", 0)
    with pytest.raises(ValueError, match=r"loop\.cpu_blocks must be at most 6 for this model, got 7"):
        weights.keep("float8", 7)


@pytest.mark.parametrize(("storage", "cpu_blocks"), [("float8", 0), ("model", 6), ("float8", 3)])
def test_after_an_error_in_the_middle_everything_can_be_given_back_and_the_next_step_is_right(storage, cpu_blocks):
    model = make()
    weights = kept(model, storage, cpu_blocks)
    expected = gradients(model, weights)
    weights.release()
    gc.collect()
    before = all_bytes()

    def failing(layer):
        given = weights.of(layer)
        if layer is model.blocks[3].conv:
            raise MemoryError("as if the device were full")
        return given

    with pytest.raises(MemoryError), attached([model], weight_of=failing, used=weights.used):
        model(torch.zeros(1, 4, 6, 6, dtype=torch.float64))
    weights.release()
    gc.collect()
    assert all_bytes() <= before
    assert torch.equal(gradients(model, weights), expected)


def test_weights_that_are_not_given_back_are_right_all_the_same():
    model, plain = make(), make()
    weights = kept(model, "float8", 4)
    held = [weights.of(block.conv)[0] for block in model.blocks]
    for block, other, weight in zip(model.blocks, plain.blocks, held, strict=True):
        expected = other.conv.weight
        assert torch.equal(weight, widened(*narrowed(expected, "float8"), torch.empty_like(expected)))
        weights.used(block.conv)


def test_the_arithmetic_decides_the_type_that_is_given():
    model = make(torch.float32)
    weights = kept(model, "float8", 0, torch.bfloat16)
    layer = model.blocks[1].back
    assert weights.of(layer)[0].dtype == torch.bfloat16
    weights.used(layer)
    weights.compute_dtype = torch.float32
    assert weights.of(layer)[0].dtype == torch.float32
