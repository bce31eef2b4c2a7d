"""`atelier probe`: what it prints, and that it makes nothing."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from sd_atelier.lib.standalone.cli import main


@pytest.fixture
def probe(tiny_model, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, size in enumerate([(64, 64), (64, 64), (96, 64)]):
        Image.new("RGB", size, (80 * i, 100, 200)).save(pictures / f"{i}.png")

    def run(*more):
        small = ["--resolution", "64", "--set", "data.bucket_min_px=64", "--steps", "100"]
        common = ["--model", str(tiny_model), "--data", f"{pictures},trigger=toy", "--output", str(tmp_path / "runs")]
        code = main(["probe", *common, *small, *more])
        return code, capsys.readouterr()

    return run


def test_it_says_memory_time_and_money_and_makes_no_run(probe, tmp_path):
    code, printed = probe("--price", "2")
    lines = printed.out.splitlines()
    assert code == 0 and len(lines) == 3
    assert re.fullmatch(r"as set: \d+ MiB, \d+\.\d\d s a step", lines[0])
    assert re.fullmatch(r"there are \d+ MiB", lines[1])
    assert re.fullmatch(r"100 steps of the largest bucket take .* min, \d+\.\d\d at 2 an hour; .*", lines[2])
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [".atelier-cache"]


def test_with_too_little_memory_it_walks_down_the_whole_ladder(probe):
    code, printed = probe("--memory", "1")
    lines = printed.out.splitlines()
    assert code == 4
    down = [
        "",
        "loop.block_checkpointing=true",
        "loop.block_checkpointing=true, loop.base_storage=bf16",
        "loop.block_checkpointing=true, loop.base_storage=float8",
    ]
    assert [line.split(":")[0] for line in lines[:4]] == ["as set", *down[1:]]
    assert all("loop.cpu_blocks=" in line and "float8" in line for line in lines[4:6])
    assert lines[-1].startswith("it does not fit; what is left to change: data.resolution below 64 px")


def test_a_price_that_is_none_is_refused(probe):
    code, printed = probe("--price", "-1")
    assert code == 2 and "--price must be a number of at least 0, got -1.0" in printed.err
