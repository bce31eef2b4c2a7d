"""A checksum sees every change of a bit, of a place, of a name, of a dtype and of a shape, and nothing else."""

from __future__ import annotations

import pytest
import torch
from sd_atelier.lib.checksum import checksum

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8]


def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (torch.arange(1, 1 + torch.Size(shape).numel()) % 97).reshape(shape).to(torch.float32).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_changed_value_and_any_exchange_is_seen(dtype):
    x = tensor(dtype, 5, 7)
    whole = checksum([("a", x)])
    assert whole == checksum([("a", x.clone())]) and len(whole) == 64
    bytes_ = x.reshape(-1).view(torch.uint8)
    for place in range(len(bytes_)):
        for bit in (1, 128):
            changed = bytes_.clone()
            changed[place] ^= bit
            assert checksum([("a", changed.view(dtype).reshape(5, 7))]) != whole
    flat = x.reshape(-1).view(torch.uint8).reshape(35, -1)
    swapped = flat.clone()
    swapped[[3, 30]] = flat[[30, 3]]
    assert checksum([("a", swapped.reshape(-1).view(dtype).reshape(5, 7))]) != whole


def test_name_dtype_shape_and_order_count_and_memory_format_does_not():
    x, y = tensor(torch.float32, 2, 3, 4, 4), tensor(torch.float32, 6)
    whole = checksum([("a", x), ("b", y)])
    others = [
        [("b", y), ("a", x)], [("a", x)], [("c", x), ("b", y)], [("a", x.reshape(3, 2, 4, 4)), ("b", y)],
        [("a", x.view(torch.int32)), ("b", y)],
    ]  # fmt: skip
    assert len({whole, *(checksum(pairs) for pairs in others)}) == 6
    assert checksum([("a", x.to(memory_format=torch.channels_last)), ("b", y)]) == whole


def test_large_tensors_are_read_in_pieces(monkeypatch):
    from sd_atelier.lib import checksum as module

    x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    whole = checksum([("a", x)])
    monkeypatch.setattr(module, "_CHUNK_BYTES", 64)
    assert checksum([("a", x)]) == whole
    assert checksum([("a", x.roll(1))]) != whole
    assert checksum([("a", torch.empty(0))]) != checksum([("a", torch.zeros(1))])
