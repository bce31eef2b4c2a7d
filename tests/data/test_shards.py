"""Entries come back as they were put in, before and after they are on disk."""

import pytest
import torch
from sd_atelier.lib.data.shards import Shards

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def make_entry(seed):
    """Tensors of every dtype, with shapes that leave no two of them aligned by chance."""
    generator = torch.Generator().manual_seed(seed)
    return {str(d): (torch.randn(3, 1 + i, 5, generator=generator) * 9).to(d) for i, d in enumerate(DTYPES)}


def equal(a, b):
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def test_entries_of_every_dtype_are_the_same_bits_pending_written_and_found_again(tmp_path):
    entries = {f"{i:032x}": make_entry(i) for i in range(4)}
    with Shards(tmp_path, "kind") as store:
        for key, entry in entries.items():
            store.add(key, entry, {"number": int(key, 16)})
        assert not list(tmp_path.iterdir())
        assert all(equal(store.read(key), entry) for key, entry in entries.items())
    assert len(list(tmp_path.iterdir())) == 1
    found = Shards(tmp_path, "kind")
    assert found.find(entries) == []
    for s in (store, found):
        for key, entry in entries.items():
            assert key in s
            assert equal(s.read(key), entry)
            assert s.facts(key) == {"number": int(key, 16)}


def test_what_is_read_or_added_is_a_copy(tmp_path):
    tensor = torch.zeros(3)
    with Shards(tmp_path, "kind") as store:
        store.add("a", {"x": tensor})
        tensor.fill_(1)
        store.read("a")["x"].fill_(2)
        assert store.read("a")["x"].tolist() == [0, 0, 0]
    store.read("a")["x"].fill_(3)
    assert store.read("a")["x"].tolist() == [0, 0, 0]


def test_views_scalars_and_empty_tensors_are_kept(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    entry = {"row": base[1], "column": base[:, 1], "turned": base.T, "scalar": torch.tensor(2.0), "none": base[:0]}
    with Shards(tmp_path, "kind") as store:
        store.add("a", entry)
    assert equal(store.read("a"), entry)


def test_equal_entries_make_equal_files(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        with Shards(folder, "kind") as store:
            for i in range(20):
                store.add(f"{i}", make_entry(i), {"number": i})
    assert [p.name for p in (tmp_path / "a").iterdir()] == [p.name for p in (tmp_path / "b").iterdir()]


def test_kinds_and_unwanted_keys_are_kept_apart(tmp_path):
    for kind in ("one", "two"):
        with Shards(tmp_path, kind) as store:
            store.add(kind, {"x": torch.ones(1)})
            store.add("both", {"x": torch.ones(1)})
    store = Shards(tmp_path, "one")
    store.find(["one", "two"])
    assert "one" in store
    assert "two" not in store
    assert "both" not in store
    with pytest.raises(KeyError):
        store.read("both")


def test_damage_that_costs_nothing_is_not_reported(tmp_path):
    with Shards(tmp_path, "kind") as store:
        store.add("a", {"x": torch.ones(1)})
    (tmp_path / "kind-0.safetensors").write_bytes(b"broken")
    assert Shards(tmp_path, "kind").find(["a"]) == []
    assert Shards(tmp_path, "kind").find(["a", "b"]) == [tmp_path / "kind-0.safetensors"]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    store = Shards(tmp_path / "none", "kind")
    assert store.find(["a"]) == []
    assert "a" not in store
