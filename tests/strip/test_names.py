"""Checkpoints are found, told apart and put in the order of their steps."""

from __future__ import annotations

import itertools

import pytest
from sd_atelier.lib.strip import names as strip


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("x-000800", 800), ("x-1600", 1600), ("checkpoint-2400", 2400), ("epoch-10", 10), ("last", None), ("x", None),
        ("toy-000800.safetensors", 800), ("x_step00000800.safetensors", 800), ("step 800", 800), ("Epoch3", 3),
        ("000800", 800), ("sd15", None), ("model-v1.5.safetensors", None), ("", None), ("x-800.PT", 800),
        ("x-" + "9" * 40, None), ("toy-000800-2.safetensors", 800), ("toy-12-2", 2),
    ],
)  # fmt: skip
def test_step_is_read_from_the_end_of_a_name(name, step):
    assert strip.natural_step(name) == step


def test_order_is_that_of_steps_not_of_letters():
    names = ["x-1600.safetensors", "x.safetensors", "x-000800.safetensors", "x-200.safetensors", "last"]
    wanted = ["x-200.safetensors", "x-000800.safetensors", "x-1600.safetensors", "last", "x.safetensors"]
    assert all(strip.natural_order(p) == wanted for p in itertools.permutations(names))


def test_every_kth_is_counted_from_the_last_and_a_range_is_of_steps():
    labels = [f"x-{step:06d}" for step in range(100, 1100, 100)] + ["x"]
    assert strip.selected(labels, every=4) == ["x-000300", "x-000700", "x"]
    assert strip.selected(labels, first=300, last=500) == ["x-000300", "x-000400", "x-000500", "x"]
    assert strip.selected(labels[:-1], every=3, first=200, last=900) == ["x-000300", "x-000600", "x-000900"]
    with pytest.raises(ValueError, match="no checkpoint from step 2000 to the end; there are 10 in all"):
        strip.selected(labels[:-1], first=2000)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        strip.selected(labels, every=0)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_a_folder_gives_its_files_and_its_folders_of_one_checkpoint_by_step(tmp_path):
    touch(tmp_path / "x-1600.safetensors", tmp_path / "x-000800.safetensors", tmp_path / "last.safetensors")
    touch(tmp_path / "checkpoint-2400/transformer/diffusion_pytorch_model.safetensors")
    touch(tmp_path / "checkpoint-200/unet/diffusion_pytorch_model.safetensors", tmp_path / "notes.txt")
    touch(tmp_path / "empty" / "readme.md")
    found = strip.checkpoint_files(tmp_path)
    assert list(found) == ["checkpoint-200", "x-000800", "x-1600", "checkpoint-2400", "last"]
    assert found["checkpoint-2400"].parts[-2:] == ("transformer", "diffusion_pytorch_model.safetensors")


def test_a_glob_gives_what_it_matches_and_equal_names_are_told_apart_by_their_folder(tmp_path):
    touch(tmp_path / "a/x-100.safetensors", tmp_path / "b/x-100.safetensors", tmp_path / "b/x-20.safetensors")
    found = strip.checkpoint_files(str(tmp_path / "*" / "x-*.safetensors"))
    assert list(found) == ["x-20", "a/x-100", "b/x-100"]
    assert found["b/x-100"] == tmp_path / "b/x-100.safetensors"
    assert list(strip.checkpoint_files(tmp_path / "a/x-100.safetensors")) == ["x-100"]


@pytest.mark.parametrize("source", ["nothing-*.safetensors", "missing", ""])
def test_where_no_checkpoint_is_that_is_said(source, tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint found at .*name a folder, a file or a glob"):
        strip.checkpoint_files(str(tmp_path / source))
