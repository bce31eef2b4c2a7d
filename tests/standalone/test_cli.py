"""The command line: a whole life of a run, its exit codes, and errors that are one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sd_atelier.lib import trainer
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.lib.standalone.cli import main
from sd_atelier.lib.standalone.host import StandaloneHost


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i, size in enumerate([(128, 64), (64, 128), (96, 96), (100, 96), (96, 96)]):
        Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture, number {i}", encoding="utf-8")
    return folder


def options(model: Path, pictures: Path, output: Path, *more: str) -> list[str]:
    small = ["--resolution", "96", "--set", "data.bucket_min_px=32", "--set", "data.bucket_step=32"]
    data = ["--data", f"{pictures},trigger=thing,repeats=2"]
    return ["train", "--model", str(model), *data, *small, "--output", str(output), "--rank", "4", *more]


def strip_options(model: Path) -> list[str]:
    return ["--model", str(model), "--steps", "2"]


def test_a_run_from_pictures_to_report_and_on(
    tiny_model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = options(tiny_model, pictures, tmp_path, "--name", "thing", "--batch-size", "4", "--epochs", "3")
    assert main([*train, "--save-every", "4", "--rate", "0->1e-3:2, 1e-3", "--set", "record.probe_every_steps=6"]) == 0
    printed = capsys.readouterr()
    run = tmp_path / "thing"
    assert "finished at step 12" in printed.out and str(run / "report.html") in printed.out
    assert "5 pictures, 4 steps an epoch, 12 steps for 3 epochs (9 if buckets could share batches)" in printed.err
    assert {p.name for p in (run / "checkpoints").iterdir()} == {f"thing-{s:06d}.safetensors" for s in (4, 8, 12)}
    rows = (run / "loss.csv").read_text().splitlines()
    assert rows[0] == "step,epoch,image,caption_sha,t,loss,weight,lr,seed" and len(rows) == 1 + 3 * 5 * 2

    assert main(["resume", str(run), "--model", str(tiny_model)]) == 0  # nothing is left to do, and nothing is done
    assert (run / "loss.csv").read_text().splitlines() == rows
    assert main(["resume", str(run), "--model", str(tiny_model), "--batch-size", "1"]) == 2
    assert "loop.batch_size: 4 -> 1" in capsys.readouterr().err

    fork = ["fork", str(run), "--model", str(tiny_model), "--step", "8", "--set", "rate.factor=0.1", "--epochs", "4"]
    assert main([*fork, "--name", "slower", "--batch-size", "1"]) == 0
    forked = RunFolder.open(tmp_path / "slower")
    assert forked.description["lineage"]["step"] == 8
    assert forked.config.rate.factor == 0.1 and forked.config.loop.batch_size == 1
    assert float((forked.path / "loss.csv").read_text().splitlines()[-1].split(",")[7]) == pytest.approx(1e-4)

    capsys.readouterr()
    assert main(["strip", str(run), *strip_options(tiny_model), "--prompt", "thing", "--prompt", "picture"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "strip.png")
    columns = json.loads((run / "strip.json").read_text())["columns"]
    assert [c["label"] for c in columns] == ["no network", "thing-000004", "thing-000008", "thing-000012"]
    assert main(["strip", str(run), *strip_options(tiny_model), "--prompt", "thing", "--prompt", "picture"]) == 0
    assert "row" not in capsys.readouterr().err, "finished cells were made again"

    assert main(["report", str(run)]) == 0
    assert "<script" not in (run / "report.html").read_text()
    assert main(["inspect", str(run / "checkpoints/thing-000012.safetensors"), "--model", str(tiny_model)]) == 0
    assert "matches 48 of its 48 layers" in capsys.readouterr().out


def test_a_strip_shows_the_network(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    assert main([*options(tiny_model, pictures, tmp_path, "--name", "x", "--steps", "4", "--rate", "0.05")]) == 0
    run = tmp_path / "x"
    assert main(["strip", str(run), *strip_options(tiny_model), "--prompt", "thing"]) == 0
    cells = [Image.open(run / cell["file"]) for cell in json.loads((run / "strip.json").read_text())["cells"]]
    base, trained = (np.asarray(c.convert("RGB"), dtype=float) for c in cells)
    assert np.abs(base - trained).mean() > 0.5


def test_settings_come_from_a_file_and_options_override_them(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(
        'name = "from-file"\n[loop]\nsteps = 3\nseed = 5\n[data]\nresolution = 64\nbucket_min_px = 32\n'
        f"[[data.concepts]]\nfolder = '{pictures}'\ntrigger = \"t\"\n",
        encoding="utf-8",
    )
    assert main(["train", str(settings), "--model", str(tiny_model), "--output", str(tmp_path), "--steps", "2"]) == 0
    config = RunFolder.open(tmp_path / "from-file").config
    assert (config.loop.steps, config.loop.seed, config.data.concepts[0].trigger) == (2, 5, "t")
    as_json = tmp_path / "settings.json"
    as_json.write_text(json.dumps({"loop": {"steps": 1}, "name": "j", "data": {"resolution": 64, "bucket_min_px": 32}}))
    data = ["--data", str(pictures)]
    assert main(["train", str(as_json), "--model", str(tiny_model), "--output", str(tmp_path), *data]) == 0
    assert RunFolder.open(tmp_path / "j").config.loop.steps == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "loop.steps must be at least 1, got 0"),
        (["--rank", "big"], "trainable.rank must be a whole number"),
        (["--set", "loop.stepz=3"], 'unknown setting "loop.stepz"; did you mean "steps"?'),
        (["--set", "loop"], "SETTING=VALUE"),
        (["--steps", "3", "--epochs", "2"], "got both"),
        ([], "give loop.steps or loop.epochs, got neither"),
        (["--steps", "3", "--rate", "1e-4:2"], "ends at step 2"),
        (["--steps", "3", "--optimizer", "adam"], "adamw"),
        (["--steps", "3", "--data", "/no/such/folder"], "/no/such/folder"),
        (["--steps", "3", "--device", "cuda:7"], "cuda"),
        (["--steps", "3", "--device", "abacus"], "abacus"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    message: str,
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "cuda:7" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert main(options(tiny_model, pictures, tmp_path, *arguments)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("atelier train: ") and message in last
    assert not list(tmp_path.glob("*/run.json"))


def test_settings_are_checked_before_the_model_is_loaded(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(tmp_path / "no-model", pictures, tmp_path, "--steps", "3", "--rate", "fast")) == 2
    assert "no-model" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.ckpt", "model", "model.safetensors"])
def test_a_model_that_is_none_is_refused(
    name: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if path.suffix:
        path.write_bytes(b"no model")
    else:
        path.mkdir()
    assert main(options(path, pictures, tmp_path, "--steps", "3")) == 2
    assert name in capsys.readouterr().err.strip().splitlines()[-1]


def test_losses_that_are_not_finite_end_with_exit_code_5(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = StandaloneHost.denoiser
    monkeypatch.setattr(StandaloneHost, "denoiser", lambda *args: plain(*args) * float("nan"))
    assert main(options(tiny_model, pictures, tmp_path, "--steps", "9", "--set", "loop.max_nonfinite=2")) == 5
    assert "not finite 2 steps in a row" in capsys.readouterr().err


def test_running_out_of_memory_ends_with_exit_code_4_and_a_checkpoint(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain, calls = StandaloneHost.denoiser, 0

    def denoiser(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(StandaloneHost, "denoiser", denoiser)
    assert main(options(tiny_model, pictures, tmp_path, "--steps", "9", "--name", "oom")) == 4
    assert "saved at step 3" in capsys.readouterr().err
    assert load_file(tmp_path / "oom/checkpoints/oom-000003.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_stop_acts_within_a_step_saves_and_says_how_to_go_on(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    arguments = options(tiny_model, pictures, tmp_path, "--steps", "100000", "--name", "long")
    code = "import sys; from sd_atelier.lib.standalone.cli import main; sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        losses = tmp_path / "long/loss.csv"
        deadline = time.monotonic() + 120
        while not (losses.is_file() and losses.stat().st_size > 200):
            assert process.poll() is None and time.monotonic() < deadline, process.stderr
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "stopped at step" in out and "atelier resume" in out
    step = int(out.split("stopped at step ")[1].split()[0])
    assert RunFolder.open(tmp_path / "long").steps()[-1] == step
    rows = losses.read_text().splitlines()
    assert int(rows[-1].split(",")[0]) == step - 1


def test_the_disk_is_tried_again_when_it_was_full(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full, plain = 2, RunFolder.save

    def save(self: RunFolder, *args: object, **options: object) -> Path:
        nonlocal full
        full -= 1
        if full >= 0:
            raise trainer.DiskFullError("the disk is full")
        return plain(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(RunFolder, "save", save)
    monkeypatch.setattr(trainer, "RETRY_SECONDS", 0.01)
    assert main(options(tiny_model, pictures, tmp_path, "--steps", "2", "--name", "full")) == 0
    assert "paused, will try again: " in capsys.readouterr().err
    assert RunFolder.open(tmp_path / "full").steps() == [2]


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [],
        *([c] for c in ("train", "resume", "fork", "strip", "report", "schedule", "inspect", "demo")),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--help"])
        assert ended.value.code == 0
        assert "usage: atelier" in capsys.readouterr().out
