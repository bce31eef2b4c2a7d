"""Laws of narrow storage: the error that is stated is the error there is, and widening is exact."""

from __future__ import annotations

import pytest
import torch
from sd_atelier.lib.config import LoopConfig
from sd_atelier.lib.storage import ABSOLUTE_ERROR, DTYPES, RELATIVE_ERROR, narrowed, widened

NARROW = [name for name in DTYPES if name != "model"]
WIDE = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# every bit pattern but those two that stand for no number
FINITE = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)


def weights(dtype=torch.float32):
    """Rows of very different sizes, each over many powers of two, with a zero row."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(24, 16, 3, 3, generator=generator, dtype=torch.float64)
    values *= 2.0 ** torch.randint(-12, 1, values.shape, generator=generator)
    values *= (10.0 ** torch.linspace(-4, 1, 24))[:, None, None, None]
    values[7] = 0
    return values.to(dtype)


def back(weight, storage, dtype=torch.float64):
    stored, scale = narrowed(weight, storage)
    return widened(stored, scale, torch.empty_like(weight, dtype=dtype))


def test_every_choice_of_the_setting_has_a_type():
    field = LoopConfig.__dataclass_fields__["base_storage"]
    assert tuple(DTYPES) == field.metadata["choices"]
    assert set(NARROW) == set(RELATIVE_ERROR) == set(ABSOLUTE_ERROR)


@pytest.mark.parametrize("storage", NARROW)
def test_the_error_is_within_the_stated_bound_and_reaches_half_of_it(storage):
    weight = weights()
    _, scale = narrowed(weight, storage)
    error = (back(weight, storage) - weight.double()).abs()
    bound = RELATIVE_ERROR[storage] * weight.double().abs()
    bound += ABSOLUTE_ERROR[storage] * (1.0 if scale is None else scale.double())
    assert (error <= bound).all()
    assert (error > 0.5 * bound).any(), "a bound that is never near would hide a worse rounding"


def test_each_row_uses_the_whole_range_whatever_its_size():
    stored, scale = narrowed(weights(), "float8")
    largest = stored.double().abs().amax((1, 2, 3))
    assert ((largest >= 224) & (largest <= 448))[torch.arange(24) != 7].all()
    assert (torch.frexp(scale.flatten())[0] == 0.5).all(), "a scale is a power of two"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_stored_is_given_in_each_type_without_further_error(dtype):
    weight = weights()[10:]  # of a size that fp16 can hold
    exact = back(weight, "float8", torch.float64)
    assert torch.equal(back(weight, "float8", dtype).double(), exact)


@pytest.mark.parametrize("dtype", WIDE)
def test_widening_by_bits_equals_torchs_own_conversion_for_every_code(dtype):
    codes = FINITE.repeat(3, 1).view(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0], [2.0**-6], [4.0]])
    out = widened(codes, scale, torch.empty(codes.shape, dtype=dtype))
    assert torch.equal(out, (codes.double() * scale).to(dtype))
    assert torch.equal(widened(codes, None, torch.empty(codes.shape, dtype=dtype)), codes.to(dtype))


def test_rows_are_widened_alike_in_one_chunk_and_in_many(monkeypatch):
    from sd_atelier.lib import storage

    stored, scale = narrowed(weights(), "float8")
    whole = widened(stored, scale, torch.empty(stored.shape))
    monkeypatch.setattr(storage, "_CHUNK", 200)
    assert torch.equal(widened(stored, scale, torch.empty(stored.shape)), whole)


@pytest.mark.parametrize("storage", NARROW)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_stays(storage, memory_format):
    weight = weights().to(memory_format=memory_format)
    stored, _ = narrowed(weight, storage)
    assert stored.stride() == weight.stride()
    assert torch.equal(back(weight, storage), back(weights(), storage))


@pytest.mark.parametrize("storage", NARROW)
def test_storing_twice_changes_nothing_more(storage):
    once = back(weights(), storage, torch.float32)
    assert torch.equal(back(once, storage, torch.float32), once)


def test_a_weight_as_the_model_has_it_is_the_same_tensor():
    weight = weights()
    assert narrowed(weight, "model") == (weight, None)
    half = weights(torch.bfloat16)
    assert narrowed(half, "bf16")[0] is half


def test_fp16_rows_too_small_for_an_fp16_scale_are_kept():
    weight = torch.full((2, 4), 2.0**-20, dtype=torch.float16)
    assert torch.equal(back(weight, "float8"), weight.double())


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(ValueError, match='base_storage "bf16" is not narrower than the model\'s float16'):
        narrowed(weights(torch.float16), "bf16")
    weight = weights()
    weight[3, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        narrowed(weight, "float8")
