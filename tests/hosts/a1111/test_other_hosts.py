"""A run that began in the WebUI goes on in the standalone host, and the other way round: one base, rows and state."""

import csv
import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sd_atelier.lib.config import RunConfig, from_dict
from sd_atelier.lib.fingerprint import compare_fingerprints
from sd_atelier.lib.preparation import resume, start

spec = importlib.util.spec_from_file_location("webui_tests", Path(__file__).with_name("conftest.py"))
around = importlib.util.module_from_spec(spec)
spec.loader.exec_module(around)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(around.missing()), reason=around.missing() or "there is a WebUI"),
]
STEPS, HALF = 4, 2
CHECKPOINTS = [name for name in around.checkpoints() if not name.endswith("-v")]


def settings(name, text_encoder):
    """A short run on small pictures, as JSON values."""
    data = {"concepts": [{"folder": os.environ["A1111_PHOTOS"], "trigger": "m0nster toy"}], "resolution": 64}
    return {
        "name": name,
        "data": {**data, "bucket_min_px": 64, "bucket_max_px": 64},
        "loop": {"steps": STEPS, "seed": 3},
        "trainable": {"rank": 4, "alpha": 4.0, "text_encoder": text_encoder},
        "rate": {"schedule": "1e-3"},
        "save": {"dtype": "fp32"},
    }


def in_webui(checkpoint, data, **environment):
    """The status of a run in a new WebUI process."""
    return around.go_on(around.checkpoints()[checkpoint][0], data, **environment)["status"]


def standalone(checkpoint, stop_at):
    """The checkpoint in the standalone host, which stops at a step."""
    from sd_atelier.lib.standalone.host import StandaloneHost
    from sd_atelier.lib.standalone.pipeline import load_pipeline

    path, family = around.checkpoints()[checkpoint]
    pipeline, info = load_pipeline(path, dtype=torch.float32)
    if family == "sd2":
        # a small model's text is too narrow for the loader to know the kind by it
        pipeline.tokenizer.pad_token = "!"
    host = StandaloneHost(
        pipeline,
        model_info=info,
        device=torch.device("cpu"),
        on_progress=lambda progress: host.control.stop() if progress.step == stop_at else None,
    )
    return host


def rows(folder):
    """What was trained on at each step, and the losses."""
    with open(folder / "loss.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("loss", "weighted", "time")} for row in table], [
        float(row["loss"]) for row in table
    ]


def same(folder, expected):
    """Whether two runs of different hosts are one run, up to the rounding of their arithmetic."""
    (facts, losses), (other_facts, other_losses) = rows(folder), rows(expected)
    assert facts == other_facts and len(facts) == STEPS
    assert losses == pytest.approx(other_losses, rel=1e-5)
    states = [sorted((f / "state").glob("*.safetensors"))[-1] for f in (folder, expected)]
    mine, theirs = (load_file(path) for path in states)
    assert mine.keys() == theirs.keys()
    bases = [json.loads((f / "run.json").read_text(encoding="utf-8"))["base"] for f in (folder, expected)]
    assert compare_fingerprints(*bases) == []


@pytest.mark.parametrize("text_encoder", [False, True], ids=["unet", "text too"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS or ["none"])
def test_a_run_goes_on_in_the_other_host(checkpoint, text_encoder, tmp_path):
    config = from_dict(RunConfig, settings("whole", text_encoder))
    with start(standalone(checkpoint, 0), config, tmp_path / "alone") as prepared:
        prepared.trainer.train()
    whole = prepared.run.path

    # begun in the WebUI
    begun = json.dumps(settings("begun", text_encoder))
    status = in_webui(
        checkpoint, tmp_path / "w1", A1111_CONFIG=begun, A1111_PARENT=str(tmp_path / "one"), A1111_STOP=str(HALF)
    )
    assert (status["phase"], status["step"]) == ("stopped", HALF), status
    with resume(standalone(checkpoint, 0), Path(status["folder"])) as prepared:
        assert prepared.trainer.train().reason == "finished"
    same(prepared.run.path, whole)

    # begun here
    config = from_dict(RunConfig, settings("begun-here", text_encoder))
    with start(standalone(checkpoint, HALF), config, tmp_path / "two") as prepared:
        assert prepared.trainer.train().reason == "stopped"
    status = in_webui(checkpoint, tmp_path / "w2", A1111_RUN=str(prepared.run.path))
    assert (status["phase"], status["step"]) == ("finished", STEPS), status
    same(prepared.run.path, whole)
