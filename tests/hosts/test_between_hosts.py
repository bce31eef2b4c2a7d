"""A run that began in the WebUI goes on in ComfyUI and the other way round, and its network loads there: one base, one
order, noise, t and rate, one state.

It needs COMFYUI_PATH and A1111_PATH, with sd15-mini.safetensors (`make_ckpt.py` makes it) in COMFYUI_MODELS, and is
skipped, saying so, without. It runs in ComfyUI's Python; A1111_PYTHON is the WebUI's. Each host encodes the pictures
and the captions anew, so the losses agree up to rounding and all else is equal.
"""

import csv
import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent


def _module(path):
    """A file of another folder's tests."""
    spec = importlib.util.spec_from_file_location(f"between_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


webui = _module(HERE / "a1111" / "conftest.py")
_module(HERE / "comfy" / "conftest.py")
comfyui = _module(HERE / "comfy" / "over_http" / "conftest.py")
server, graphs, drawn = comfyui.server, comfyui.graphs, comfyui.drawn

from comfy_client import COMFYUI, MODELS, Failed  # noqa: E402
from sd_atelier.lib.fingerprint import compare_fingerprints  # noqa: E402

CHECKPOINT, STEPS, HALF = "sd15-mini", 6, 3
NEEDED = {
    "COMFYUI_PATH names no ComfyUI": COMFYUI / "main.py",
    "A1111_PATH names no WebUI": Path(os.environ.get("A1111_PATH") or "/nowhere") / "launch.py",
    f"COMFYUI_MODELS has no checkpoints/{CHECKPOINT}.safetensors": MODELS / "checkpoints" / f"{CHECKPOINT}.safetensors",
}
LACKING = ", ".join(said for said, path in NEEDED.items() if not path.is_file())
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(LACKING), reason=LACKING or "there are both hosts")]

# what the checkpoint has, in the WebUI's words: two levels of one block each, 8 heads, all else as Stable Diffusion 1.5
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "attention_resolutions": [2, 1],
    "num_res_blocks": 1, "channel_mult": [1, 2], "num_heads": 8, "use_spatial_transformer": True,
    "transformer_depth": 1, "context_dim": 768, "use_checkpoint": True, "legacy": False,
}  # fmt: skip
AUTOENCODER = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
CLIP = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": 49408, "hidden_size": 768,
    "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 768, "bos_token_id": 0, "eos_token_id": 2,
    "pad_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The checkpoint as the WebUI loads it: with a description of the model beside it, and CLIP's tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    path = folder / f"{CHECKPOINT}.safetensors"
    path.symlink_to(MODELS / "checkpoints" / path.name)
    clip = Path(shutil.copytree(COMFYUI / "comfy" / "sd1_tokenizer", folder / "clip"))
    (clip / "config.json").write_text(json.dumps(CLIP), "utf-8")
    autoencoder = {"embed_dim": 4, "ddconfig": AUTOENCODER, "lossconfig": {"target": "torch.nn.Identity"}}
    parameters = {
        "linear_start": 0.00085, "linear_end": 0.012, "num_timesteps_cond": 1, "timesteps": 1000,
        "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 64, "channels": 4,
        "cond_stage_trainable": False, "conditioning_key": "crossattn", "scale_factor": 0.18215, "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": UNET},
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": autoencoder},
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": str(clip), "device": "cpu"},
        },
    }  # fmt: skip
    # JSON is YAML too
    model = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": parameters}
    path.with_suffix(".yaml").write_text(json.dumps({"model": model}), "utf-8")
    return path


def graph_of(graphs, pictures, name):
    """A run in ComfyUI that trains text layers too."""
    graph = graphs.training(CHECKPOINT, pictures, name=name, steps=STEPS, save_every_steps=0, seed=3)
    # a rate of its own at each step
    graph["5"] = graphs.node("AtelierSchedule", schedule="1e-3->5e-4")
    graph["6"] = graphs.node("AtelierLora", rank=4, alpha=4.0, text_encoder=True)
    graph["3"]["inputs"] |= {"schedule": ["5", 0], "lora": ["6", 0]}
    return graph


@pytest.fixture(scope="module")
def whole(server, graphs, drawn):
    """All steps in ComfyUI without a pause: the folder of the run."""
    (about,) = server.run(graph_of(graphs, drawn, "whole"))["3"]["atelier"]
    assert (about["state"], about["step"]) == ("finished", STEPS)
    return Path(about["folder"])


@pytest.fixture(scope="module")
def begun(whole, checkpoint, tmp_path_factory):
    """Half of them in the WebUI with the same settings: the folder of the run, and the network that it published."""
    folder = tmp_path_factory.mktemp("webui")
    said = webui.go_on(
        checkpoint,
        folder / "data",
        A1111_CONFIG=json.dumps({**about(whole)["config"], "name": "begun"}),
        A1111_PARENT=str(folder / "runs"),
        A1111_STOP=str(HALF),
        A1111_PUBLISH="of the WebUI",
    )
    status = said["status"]
    assert (status["phase"], status["step"]) == ("stopped", HALF), status
    return Path(status["folder"]), Path(said["published"])


def about(folder):
    """What a run says of itself."""
    return json.loads((folder / "run.json").read_text("utf-8"))


def rows(folder):
    """What was trained on at each step, with t and rate, and the losses."""
    with open(folder / "loss.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    measured = ("loss", "weighted")
    facts = [{name: value for name, value in row.items() if name not in measured} for row in table]
    return facts, [float(row["loss"]) for row in table]


def states(folder):
    """The training states, oldest first: tensors by name."""
    return [load_file(path) for path in sorted((folder / "state").glob("*.safetensors"))]


def moments(state):
    """The optimizer's tensors, without the counts of steps."""
    return {name: tensor for name, tensor in state.items() if name.startswith("optimizer.") and tensor.numel() > 1}


def assert_moments_of_both_parts(folder):
    """Whether the newest state of a run has moved moments of layers of the U-Net and of the text encoder."""
    held = moments(states(folder)[-1])
    assert all(tensor.abs().max() > 0 for tensor in held.values())
    assert any("lora_te" in name for name in held) and any("lora_unet" in name for name in held)


def assert_one_run(folder, expected):
    """Whether two runs are one, up to the rounding of the hosts' arithmetic."""
    (facts, losses), (other_facts, other_losses) = rows(folder), rows(expected)
    assert facts == other_facts
    assert [int(row["step"]) for row in facts] == list(range(int(facts[0]["step"]), int(facts[0]["step"]) + STEPS))
    assert len({row["lr"] for row in facts}) == STEPS
    assert losses == pytest.approx(other_losses, rel=1e-4)
    mine, theirs = states(folder)[-1], states(expected)[-1]
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        # Adam divides by the root of the second moment, so a weight whose gradient is rounding alone moves as others do
        highest = 0.0 if tensor.numel() == 1 else 1e-3 if name.startswith("optimizer.") else 2e-2
        assert (tensor - theirs[name]).abs().max() <= highest * theirs[name].abs().max(), name
    assert compare_fingerprints(about(folder)["base"], about(expected)["base"]) == []


def test_a_run_of_the_webui_goes_on_in_comfyui(server, graphs, drawn, whole, begun, tmp_path):
    folder = Path(shutil.copytree(begun[0], tmp_path / "begun"))
    assert len(rows(folder)[0]) == HALF
    assert_moments_of_both_parts(folder)
    graph = graph_of(graphs, drawn, "unused")
    graph["7"] = graphs.node("AtelierRun", folder=str(folder))
    graph["3"]["inputs"]["run"] = ["7", 0]
    (said,) = server.run(graph)["3"]["atelier"]
    assert (said["folder"], said["state"], said["step"]) == (str(folder), "finished", STEPS)
    assert rows(folder)[0][:HALF] == rows(begun[0])[0] and rows(folder)[1][:HALF] == rows(begun[0])[1]
    assert_one_run(folder, whole)


def test_a_run_of_comfyui_goes_on_in_the_webui(server, graphs, drawn, whole, checkpoint, tmp_path):
    graph = graph_of(graphs, drawn, "half")
    graph["8"] = {"class_type": "AtelierTestFailing", "inputs": {"model": ["1", 0], "call": HALF + 1, "kind": "error"}}
    graph["3"]["inputs"]["model"] = ["8", 0]
    with pytest.raises(Failed, match="as it was told to"):
        server.run(graph)
    folder = server.output / "atelier" / "half"
    before = rows(folder)
    assert len(before[0]) == HALF
    assert_moments_of_both_parts(folder)
    status = webui.go_on(checkpoint, tmp_path / "data", A1111_RUN=str(folder))["status"]
    assert (status["phase"], status["step"]) == ("finished", STEPS), status
    assert tuple(part[:HALF] for part in rows(folder)) == before
    assert_one_run(folder, whole)


def test_a_network_of_the_webui_loads_in_comfyui_with_every_key(server, graphs, begun):
    network, pictures, unknown = load_file(begun[1]), {}, "lora_unet_of_no_layer"
    assert {key.split("_")[1] for key in network} == {"unet", "te"}
    loras = server.output / "loras"
    loras.mkdir(exist_ok=True)
    shutil.copyfile(begun[1], loras / "whole.safetensors")
    strange = {f"{unknown}.lora_{part}.weight": torch.ones(4, 4) for part in ("down", "up")}
    save_file(network | strange, loras / "strange.safetensors")

    def loaded(name, of_model, of_clip):
        """A picture with a network, and what the server said meanwhile."""
        log = len((server.folder / "log").read_bytes())
        graph, model, clip, vae = graphs.model(CHECKPOINT)
        weights = {"strength_model": of_model, "strength_clip": of_clip}
        graph["7"] = graphs.node("LoraLoader", model=model, clip=clip, lora_name=f"{name}.safetensors", **weights)
        graph = graphs.picture(graph, CHECKPOINT, ["7", 0], ["7", 1], vae, prompt="sks, a toy", prefix="webui")
        picture = server.image(server.run(graph), "15").astype(int)
        return picture, (server.folder / "log").read_bytes()[log:].decode("utf-8", "replace")

    for strengths in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        pictures[strengths], said = loaded("whole", *strengths)
        assert "NOT LOADED" not in said
        assert "lora key not loaded" not in said
    for strengths in ((1.0, 0.0), (0.0, 1.0)):
        assert np.abs(pictures[strengths] - pictures[0.0, 0.0]).max() > 0, strengths
    # it would have been said
    _, said = loaded("strange", 1.0, 1.0)
    assert f"lora key not loaded: {unknown}" in said
