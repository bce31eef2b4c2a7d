"""Runs on tiny models of each family resume bit for bit, and what they save loads in diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_runs import host_of, settings
from sd_atelier.lib import preparation
from sd_atelier.lib.files import read_safetensors
from sd_atelier.lib.frozen import attached
from sd_atelier.lib.lengths import denoised
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.lib.standalone.demo.pictures import SHAPES, draw_dataset
from sd_atelier.lib.standalone.host import StandaloneHost
from sd_atelier.lib.standalone.pipeline import load_pipeline
from tiny_families import FAMILY

CAPTIONS = ["a toy on a table", "night, " * 30]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Pictures with captions of several lengths, in tokens of CLIP and of T5."""
    folder = tmp_path_factory.mktemp("pictures") / "toys"
    draw_dataset(folder, count=4, size_px=96, seed=0, shapes=SHAPES)
    for number, path in enumerate(sorted(folder.glob("*.txt"))):
        path.write_text(["a toy", "night, " * 40, "", "a table, " * 12][number % 4])
    return folder


# everything that another program keeps too: adapters in all text encoders but T5, whose output then stays the same
FULL = {"trainable": {"rank": 4, "alpha": 3.0, "layers": "all", "text_encoder": True}, "rate": {"schedule": "5e-3"}}


def everything(run: Path, step: int) -> dict[str, Any]:
    """What two runs that were trained alike share to the last bit."""
    folder = RunFolder.open(run)
    state, weights, notes = folder.load(step)
    assert notes == []
    tensors = {**weights, **{f"state {name}": t for name, t in state.tensors.items()}}
    found: dict[str, Any] = {name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in tensors.items()}
    found["values"] = json.dumps(state.values, sort_keys=True)
    return found | {name: (run / name).read_bytes() for name in ("loss.csv", "probe.csv", "run.csv")}


@pytest.mark.parametrize("name", ["sdxl", "sd3.5-medium", "flux-dev"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name, family_model, pictures, tmp_path):
    model = family_model(name)
    config = settings([pictures], 4, **FULL, loop={"steps": 4, "batch_size": 2, "block_checkpointing": True})
    with preparation.start(host_of(model), config, tmp_path / "whole") as prepared:
        assert prepared.trainer.train().step == 4
        whole = prepared.run.path
    seen = []
    host = host_of(model, on_progress=lambda progress: seen.append(progress.step), stop_requested=lambda: 2 in seen)
    with preparation.start(host, config, tmp_path / "cut") as prepared:
        assert prepared.trainer.train().step == 2
        cut = prepared.run.path
    with preparation.resume(host_of(model), cut) as prepared:
        assert prepared.trainer.train().step == 4
    assert everything(whole, 4) == everything(cut, 4)


@pytest.mark.parametrize("text_encoder", [False, True], ids=["denoiser", "text encoders too"])
@pytest.mark.parametrize("name", ["sdxl", "sd3", "sd3.5-medium", "flux-dev", "flux-schnell"])
def test_the_file_loads_in_diffusers_and_matches_the_live_network(name, text_encoder, family_model, pictures, tmp_path):
    model = family_model(name)
    trainable = {**FULL["trainable"], "text_encoder": text_encoder}
    if FAMILY[name] == "flux":
        # diffusers takes this layer apart at the widths of the full-size model alone
        trainable["rules"] = [{"layers": "*_linear1", "rank": 0}]
    config = settings([pictures], 3, trainable=trainable, rate={"schedule": "2e-2"})
    host = host_of(model)
    x_t = torch.randn(2, host.autoencoder.num_channels, 8, 12, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([37, 811]) if host.prediction != "flow" else torch.tensor([0.2, 0.8])

    def prediction(of: StandaloneHost) -> torch.Tensor:
        conditioning = {
            **of.text.encode(CAPTIONS),
            "sizes": torch.tensor([[640.0, 480, 8, 0, 96, 64], [96, 64, 0, 0, 96, 64]]),
            "guidance": torch.tensor([3.5, 1.0]),
        }
        return denoised(of.denoiser, x_t, t, conditioning)

    with preparation.start(host, config, tmp_path) as prepared, torch.no_grad():
        with torch.enable_grad():
            prepared.trainer.train()
        path = prepared.run.checkpoints.networks()[3]
        base = prediction(host)
        with attached(host.parts.values(), branch_of=prepared.trainer.trainable.branch_of):
            live = prediction(host)
            texts = host.text.encode(CAPTIONS)
    of_text = ("lora_te", "text_encoder")
    assert any(key.startswith(of_text) for key in read_safetensors(path)[0]) == text_encoder

    pipeline, _ = load_pipeline(model, dtype=torch.float32)
    pipeline.load_lora_weights(path)
    other = StandaloneHost(pipeline, model_info={}, device=torch.device("cpu"))
    with torch.no_grad():
        loaded = prediction(other)
        for what, values in other.text.encode(CAPTIONS).items():
            assert torch.allclose(values, texts[what], rtol=1e-4, atol=1e-4)
    size = live.abs().max()
    assert (live - base).abs().max() > 1e-2 * size, "the network must matter for its output to be compared"
    assert (loaded - live).abs().max() < 1e-4 * size
