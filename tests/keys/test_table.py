"""Tables of two spellings: both ways, numbers kept, slices that tile the fused layer."""

from __future__ import annotations

import pytest
from sd_atelier.lib.keys.table import Original, Table, output_slices

TABLE = Table({"joint.{}.qkv": ("block.{}.q", "block.{}.k", "block.{}.v"), "joint.{}.2.proj": "block.{}.out.0"})


def test_a_number_is_the_same_in_both_spellings() -> None:
    assert TABLE.original("block.12.k") == Original("joint.12.qkv", 1, 3)
    assert TABLE.original("block.0.out.0") == Original("joint.0.2.proj", 0, 1)
    assert TABLE.split("joint.12.qkv") == ("block.12.q", "block.12.k", "block.12.v")
    assert TABLE.split("joint.2.2.proj") == ("block.2.out.0",)


@pytest.mark.parametrize("name", ["block.1", "block.x.q", "block.{}.q.0", "a.block.1.q", "block.1.out.1", ""])
def test_a_layer_that_no_row_has_has_no_original(name: str) -> None:
    assert TABLE.original(name) is None
    assert TABLE.split(name) is None


def test_a_layer_in_two_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r'"q" is in "a" and in "b"'):
        Table({"a": ("q", "k"), "b": "q"})


def test_the_slices_of_a_fused_layer_tile_it() -> None:
    assert output_slices([3, 3, 3, 12]) == (slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 21))
    assert output_slices([]) == ()
