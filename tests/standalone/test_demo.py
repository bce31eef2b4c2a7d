"""The demo, shortened: everything that it promises is there, and its model is built once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sd_atelier.lib.records import read_losses, read_probe
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.lib.standalone.commands.demo import demonstrate
from sd_atelier.lib.standalone.demo.pretraining import Recipe

SHORT = Recipe(num_pictures=24, autoencoder_steps=3, denoiser_steps=3)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert demonstrate(folder, 8, SHORT) == 0
    return folder


def test_it_ends_with_a_network_losses_a_report_and_a_strip(output: Path) -> None:
    run = RunFolder.open(output / "runs/demo")
    assert run.steps() == [2, 4, 6, 8]
    assert len(read_losses(run.path / "loss.csv")["step"]) >= 8
    assert set(read_probe(run.path / "probe.csv")["step"]) == {0, 2, 4, 6, 8}
    assert (run.path / "report.html").stat().st_size > 10_000
    strip = json.loads((run.path / "strip.json").read_text())
    labels = [column["label"] for column in strip["columns"]]
    assert labels == ["no network", *(f"demo-{step:06d}" for step in (2, 4, 6, 8))]
    assert len(strip["cells"]) == 5 * 3
    assert np.asarray(Image.open(run.path / "strip.png").convert("L")).std() > 5


def test_a_second_demo_uses_the_model_again_and_makes_another_run(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = output / "model/unet/diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    assert demonstrate(output, 2, SHORT) == 0
    printed = capsys.readouterr()
    assert "uses the model that was built before" in printed.err and weights.stat().st_mtime_ns == before
    assert str(output / "runs/demo-2/strip.png") in printed.out
    assert (output / "runs/demo-2/strip.png").is_file()


def test_another_recipe_builds_another_model(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = dataclasses.replace(SHORT, seed=3)
    assert demonstrate(output, 1, other) == 0
    assert "builds a tiny model" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds something else than a model of the demo"):
        demonstrate(tmp_path, 1, SHORT)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["mine.txt"]
