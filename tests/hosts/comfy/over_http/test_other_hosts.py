"""A run that began in the standalone host goes on in ComfyUI, and the other way round: one base, rows and state."""

import csv
import json

import pytest
import torch
from comfy_client import COMFYUI, MODELS, Failed
from safetensors.torch import load_file
from sd_atelier.lib.config import RunConfig, from_dict
from sd_atelier.lib.fingerprint import compare_fingerprints
from sd_atelier.lib.preparation import resume, start
from sd_atelier.lib.run_folder import RunFolder

pytest.importorskip("diffusers", reason="the standalone host needs diffusers")
CHECKPOINT, STEPS, HALF = "sd15-mini", 6, 3
pytestmark = pytest.mark.slow


def standalone(stop_at=None):
    """The checkpoint in the standalone host, which stops at a step."""
    from sd_atelier.lib.standalone.host import StandaloneHost
    from sd_atelier.lib.standalone.pipeline import load_pipeline

    pipeline, info = load_pipeline(
        MODELS / "checkpoints" / f"{CHECKPOINT}.safetensors",
        tokenizer=COMFYUI / "comfy" / "sd1_tokenizer",
        dtype=torch.float32,
    )
    host = StandaloneHost(
        pipeline,
        model_info=info,
        device=torch.device("cpu"),
        on_progress=lambda progress: host.control.stop() if progress.step == stop_at else None,
    )
    return host


def rows(folder):
    """What was trained at each step, and the losses."""
    with open(folder / "loss.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("loss", "weighted")} for row in table], [
        float(row["loss"]) for row in table
    ]


def state(folder):
    """The newest training state: tensors by name."""
    return load_file(sorted((folder / "state").glob("*.safetensors"))[-1])


def same(folder, expected):
    """Whether two runs of different hosts are one run, up to the rounding of their arithmetic."""
    (facts, losses), (other_facts, other_losses) = rows(folder), rows(expected)
    assert facts == other_facts
    assert len(facts) == STEPS
    assert losses == pytest.approx(other_losses, rel=1e-4)
    mine, theirs = state(folder), state(expected)
    assert mine.keys() == theirs.keys()
    moments = [name for name in mine if name.startswith("optimizer.") and mine[name].numel() > 1]
    assert moments and all(mine[name].abs().max() > 0 for name in moments)
    assert any("lora_te" in name for name in moments)
    for name in moments:
        assert (mine[name] - theirs[name]).abs().max() < 1e-2 * theirs[name].abs().max(), name
    bases = [RunFolder.open(f).description["base"] for f in (folder, expected)]
    assert compare_fingerprints(*bases) == []


def settings(name, pictures):
    """What `in_comfyui` sets by its widgets, for the standalone host."""
    data = {"concepts": [{"folder": str(pictures), "trigger": "sks"}], "resolution": 64, "bucket_step": 32}
    return from_dict(
        RunConfig,
        {
            "name": name,
            "data": {**data, "bucket_min_px": 32, "bucket_max_px": 128},
            "loop": {"steps": STEPS, "seed": 3},
            "trainable": {"rank": 4, "alpha": 4.0, "text_encoder": True},
            "rate": {"schedule": "1e-3"},
            "save": {"dtype": "fp32"},
        },
    )


def in_comfyui(graphs, pictures, name, **inputs):
    """The graph of such a run."""
    graph = graphs.training(
        CHECKPOINT, pictures, **{"name": name, "steps": STEPS, "save_every_steps": 0, "seed": 3, **inputs}
    )
    graph["5"] = graphs.node("AtelierSchedule", schedule="1e-3")
    graph["6"] = graphs.node("AtelierLora", rank=4, alpha=4.0, text_encoder=True)
    graph["3"]["inputs"] |= {"schedule": ["5", 0], "lora": ["6", 0]}
    return graph


@pytest.fixture(scope="module")
def whole(server, graphs, drawn, tmp_path_factory):
    """All steps in the standalone host."""
    graphs.model(CHECKPOINT)
    with start(standalone(), settings("whole", drawn), tmp_path_factory.mktemp("whole")) as prepared:
        prepared.trainer.train()
        return prepared.run.path


@pytest.fixture
def begun(whole, drawn, tmp_path):
    """Half of them."""
    with start(standalone(HALF), settings("begun", drawn), tmp_path) as prepared:
        assert prepared.trainer.train().reason == "stopped"
        return prepared.run.path


def test_a_run_of_the_standalone_host_goes_on_in_comfyui(server, graphs, drawn, whole, begun):
    graph = in_comfyui(graphs, drawn, "unused")
    graph["7"] = graphs.node("AtelierRun", folder=str(begun))
    graph["3"]["inputs"]["run"] = ["7", 0]
    (about,) = server.run(graph)["3"]["atelier"]
    assert (about["run"], about["state"], about["step"]) == ("begun", "finished", STEPS)
    same(begun, whole)


def test_a_run_of_comfyui_goes_on_in_the_standalone_host(server, graphs, drawn, whole):
    # the same settings as in the standalone host, which a preset would change
    graph = in_comfyui(graphs, drawn, "unused")
    graph["7"] = graphs.node("AtelierRun", folder=str(_empty_run(whole, server.output / "elsewhere")))
    graph["6"] = {"class_type": "AtelierTestFailing", "inputs": {"model": ["1", 0], "call": HALF + 1, "kind": "error"}}
    graph["3"]["inputs"] |= {"run": ["7", 0], "model": ["6", 0]}
    del graph["3"]["inputs"]["lora"]
    with pytest.raises(Failed, match="as it was told to"):
        server.run(graph)
    (folder,) = (path.parent for path in (server.output / "elsewhere").glob("*/run.json"))
    assert len(rows(folder)[0]) == HALF
    with resume(standalone(), folder) as prepared:
        assert prepared.trainer.step == HALF
        assert prepared.trainer.train().reason == "finished"
    same(folder, whole)


def test_comfyui_forks_a_run_of_the_standalone_host_with_another_batch_size(server, graphs, drawn, begun):
    graph = in_comfyui(graphs, drawn, "forked", batch_size=2, resume="fork")
    graph["7"] = graphs.node("AtelierRun", folder=str(begun))
    graph["3"]["inputs"]["run"] = ["7", 0]
    (about,) = server.run(graph)["3"]["atelier"]
    folder = server.output / "atelier" / "forked"
    assert (about["step"], about["state"]) == (STEPS, "finished")
    facts, _ = rows(folder)
    assert facts[:HALF] == rows(begun)[0]
    seen = [row["image"] for row in facts[:4]]
    assert len(set(seen)) == 4  # what the first epoch still lacked was trained, and nothing twice
    assert json.loads((folder / "run.json").read_text("utf-8"))["lineage"]["step"] == HALF


def _empty_run(whole, parent):
    """A run with the settings of another that has not begun."""
    run = RunFolder.open(whole)
    about = run.description
    made = RunFolder.create(
        parent, "empty", run.config, versions=about["versions"], base=about["base"], data_manifest=about["data"]
    )
    return made.path
