"""The demo, shortened: everything that it promises is there, on the base model that comes with the pack."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sd_atelier.lib.host import Progress
from sd_atelier.lib.records import read_losses, read_probe
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.lib.standalone import cli
from sd_atelier.lib.standalone.commands import demo
from sd_atelier.lib.standalone.commands.demo import demonstrate, subject_of
from sd_atelier.lib.standalone.demo import BASE, style
from sd_atelier.lib.standalone.demo.characters import CHARACTERS
from sd_atelier.lib.standalone.pipeline import load_pipeline


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert demonstrate(folder, num_steps=8) == 0
    return folder


def test_it_ends_with_a_network_losses_a_report_and_a_strip(output: Path) -> None:
    run = RunFolder.open(output / "runs/zuzu")
    assert run.steps() == [2, 4, 6, 8]
    assert len(read_losses(run.path / "loss.csv")["step"]) >= 8
    assert set(read_probe(run.path / "probe.csv")["step"]) == {0, 2, 4, 6, 8}
    assert (run.path / "report.html").stat().st_size > 10_000
    strip = json.loads((run.path / "strip.json").read_text())
    labels = [column["label"] for column in strip["columns"]]
    assert labels == ["no network", *(f"zuzu-{step:06d}" for step in (2, 4, 6, 8))]
    assert len(strip["cells"]) == 5 * 4
    assert np.asarray(Image.open(run.path / "strip.png").convert("L")).std() > 5


def test_the_network_loads_elsewhere_and_changes_the_model(output: Path) -> None:
    pipeline, _ = load_pipeline(BASE, dtype=torch.float32)
    width = pipeline.text_encoder.config.hidden_size
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 48, width)
    with torch.no_grad():
        before = pipeline.unet(*inputs).sample
        pipeline.load_lora_weights(output / "runs/zuzu/checkpoints", weight_name="zuzu-000008.safetensors")
        assert not torch.equal(pipeline.unet(*inputs).sample, before)


def test_a_second_demo_makes_another_run(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demonstrate(output, num_steps=2) == 0
    assert str(output / "runs/zuzu-2/strip.png") in capsys.readouterr().out
    assert (output / "runs/zuzu-2/strip.png").is_file()


@pytest.mark.parametrize(
    ("options", "trigger"),
    [(["--character", "bolt"], "bolt"), (["--character", "momo"], "momo"), (["--style"], style.TRIGGER)],
)
def test_options_choose_what_is_learned(
    options: list[str], trigger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--output", str(tmp_path), "--steps", "1", *options]) == 0
    run = RunFolder.open(tmp_path / "runs" / trigger)
    assert [c.trigger for c in run.config.data.concepts if not c.regularization] == [trigger]
    assert trigger in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--character", "nobody"], ["--style", "--character", "bolt"]])
def test_a_character_that_does_not_exist_and_two_subjects_at_once_are_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", "--output", str(tmp_path / "new"), *options])
    assert "--character" in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize("trigger", [*CHARACTERS, style.TRIGGER])
def test_the_last_row_of_the_strip_does_not_name_the_trigger_and_the_others_do(trigger: str) -> None:
    *rows, last = subject_of(trigger).prompts
    assert len(rows) == 3 and all(row.startswith(f"{trigger}, ") for row in rows)
    assert trigger not in last


def test_interrupting_the_demo_has_the_exit_code_of_a_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show = demo.Terminal.show

    def interrupted(terminal: demo.Terminal, progress: Progress) -> None:
        show(terminal, progress)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(demo.Terminal, "show", interrupted)
    before = torch.get_num_threads()
    assert cli.main(["demo", "--output", str(tmp_path)]) == 3
    assert "atelier resume" in capsys.readouterr().out
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("option", ["--steps", "--seed"])
def test_a_number_out_of_range_is_wrong_input(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--output", str(tmp_path / "new"), option, "-1"]) == 2
    assert option in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_base_model_is_small_half_precision_and_an_ordinary_pipeline() -> None:
    from diffusers import StableDiffusionPipeline

    assert sum(f.stat().st_size for f in BASE.rglob("*") if f.is_file()) <= 8 * 2**20
    for weights in BASE.rglob("*.safetensors"):
        with safe_open(weights, "pt") as file:
            kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        # positions of tokens are whole numbers in some versions of its library
        assert kinds <= {"F16", "I64"}, weights
    pipeline = StableDiffusionPipeline.from_pretrained(BASE)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_the_learning_curve_of_the_base_model_is_there_and_falls() -> None:
    with (BASE / "learning_curve.csv").open(encoding="utf-8", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) > 50
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
