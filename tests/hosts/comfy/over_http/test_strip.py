"""Checkpoint strips in a real server: bit by bit what core's nodes give; only what is missing is made."""

import json
import shutil

import numpy as np
import pytest
import torch
from comfy_client import MODELS, Failed
from PIL import Image
from random_network import network
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PROMPTS = ["a photo of a toy", "a (red:1.2) robot"]
SIZE = 64


@pytest.fixture(scope="module")
def checkpoint():
    path = MODELS / "checkpoints" / "sd15-mini-tae.safetensors"
    if not path.is_file():
        pytest.skip(f"there is no {path}; make_ckpt.py makes it")
    return path


@pytest.fixture(scope="module")
def networks(server, checkpoint):
    """toy-200, toy-400 (with text-encoder layers), toy-1600, in a folder that LoraLoader lists."""
    folder = server.output / "loras" / "strip"
    folder.mkdir(parents=True, exist_ok=True)
    for step in (200, 400, 1600):
        save_file(network(checkpoint, step, step == 400), folder / f"toy-{step}.safetensors")
    return folder


def strip(graphs, sources, **widgets):
    graph, model, clip, vae = graphs.model("sd15-mini-tae")
    graph["2"] = graphs.node("AtelierCheckpoints", sources=str(sources))
    settings = {
        "prompts": "\n".join(PROMPTS), "negative_prompt": "blurry", "seeds": "5", "strengths": "1", "steps": 2,
        "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "width": SIZE, "height": SIZE, **widgets,
    }  # fmt: skip
    inputs = {"model": model, "clip": clip, "vae": vae, "checkpoints": ["2", 0], **settings}
    graph["3"] = graphs.node("AtelierCheckpointStrip", **inputs)
    return graph


def core(graphs, lora, prompt, seed=5, strength=1.0):
    graph, model, clip, vae = graphs.model("sd15-mini-tae")
    if lora:
        graph["5"] = graphs.node(
            "LoraLoader", model=model, clip=clip, lora_name=lora, strength_model=strength, strength_clip=strength
        )
        model, clip = ["5", 0], ["5", 1]
    graph = graphs.picture(graph, "sd15-mini-tae", model, clip, vae, prompt, seed)
    graph["11"]["inputs"]["text"] = "blurry"
    graph["13"]["inputs"]["cfg"] = 4.0
    return graph


def cells_of(folder):
    about = json.loads((folder / "strip.json").read_text("utf-8"))
    return about, {(cell["column"], cell["row"]): cell for cell in about["cells"]}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_cell_is_what_cores_nodes_give_bit_by_bit(server, graphs, networks):
    server.run(strip(graphs, networks, name="exact", strengths="1, 0.5"))
    folder = server.output / "atelier" / "strips" / "exact"
    about, cells = cells_of(folder)
    labels = [column["label"] for column in about["columns"]]
    assert labels == ["no network", "toy-200", "toy-400", "toy-1600"] and len(cells) == 16
    for (column, row), cell in cells.items():
        lora = None if column == 0 else f"strip/{labels[column]}.safetensors"
        graph = core(graphs, lora, PROMPTS[row // 2], strength=(1.0, 0.5)[row % 2])
        # ComfyUI before 0.29 names no outputs of a graph that it has run before, as the base's at another strength is
        graph["15"]["inputs"]["filename_prefix"] = f"core-{column}-{row}"
        outputs = server.run(graph)
        assert np.array_equal(pixels(folder / cell["file"]), server.image(outputs, "15")), (column, row)
    assert not np.array_equal(pixels(folder / cells[1, 0]["file"]), pixels(folder / cells[2, 0]["file"]))


def test_a_second_press_makes_nothing_and_a_longer_strip_only_what_is_missing(server, graphs, networks, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for step in (200, 400):
        shutil.copy(networks / f"toy-{step}.safetensors", few)
    server.run(strip(graphs, few, name="grows"))
    cells = server.output / "atelier" / "strips" / "grows" / "cells"
    times = {path: path.stat().st_mtime_ns for path in cells.glob("*.png")}
    assert len(times) == 6
    server.call("/free", {"unload_models": True, "free_memory": True})
    server.run(strip(graphs, few, name="grows"))
    assert {path: path.stat().st_mtime_ns for path in cells.glob("*.png")} == times
    shutil.copy(networks / "toy-1600.safetensors", few)
    server.run(strip(graphs, few, name="grows"))
    now = {path: path.stat().st_mtime_ns for path in cells.glob("*.png")}
    assert len(now) == 8 and {path: now[path] for path in times} == times


def test_a_patch_on_the_model_makes_other_cells(server, graphs, networks):
    server.run(strip(graphs, networks / "toy-200.safetensors", name="patched"))
    graph = strip(graphs, networks / "toy-200.safetensors", name="patched")
    graph["6"] = graphs.node("ModelSamplingDiscrete", model=["1", 0], sampling="v_prediction", zsnr=False)
    graph["3"]["inputs"]["model"] = ["6", 0]
    server.run(graph)
    assert len(list((server.output / "atelier/strips/patched/cells").glob("*.png"))) == 8


def test_a_bad_checkpoint_costs_its_own_cells_which_say_why(server, graphs, networks, tmp_path):
    shutil.copy(networks / "toy-200.safetensors", tmp_path)
    (tmp_path / "toy-300.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0broken")
    other = {f"lora_unet_double_blocks_0_img_attn_qkv.lora_{half}.weight": torch.ones(4, 4) for half in ("up", "down")}
    save_file(other, tmp_path / "toy-400.safetensors")
    fallen = {name: tensor * float("nan") for name, tensor in load_file(networks / "toy-200.safetensors").items()}
    save_file(fallen, tmp_path / "toy-500.safetensors")
    shutil.copy(networks / "toy-200.safetensors", tmp_path / "toy-600.safetensors")
    server.run(strip(graphs, tmp_path, name="faults"))
    folder = server.output / "atelier" / "strips" / "faults"
    _, cells = cells_of(folder)
    failed = [bool(cells[column, 0].get("error")) for column in range(6)]
    assert failed == [False, False, True, True, True, False]
    assert "is not finite" in cells[4, 0]["error"]
    assert np.array_equal(pixels(folder / cells[1, 0]["file"]), pixels(folder / cells[5, 0]["file"]))
    assert "is not a safetensors file" in cells[2, 1]["error"] and "matches no layer" in cells[3, 0]["error"]


def test_a_diffusion_model_of_its_own_is_a_column(server, graphs, checkpoint, tmp_path):
    with safe_open(checkpoint, "pt") as file:
        names = [name for name in file.keys() if name.startswith("model.diffusion_model.")]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    tensors["model.diffusion_model.out.2.bias"] = tensors["model.diffusion_model.out.2.bias"] + 0.5
    inner = tmp_path / "checkpoint-800" / "unet"
    inner.mkdir(parents=True)
    save_file(tensors, inner / "diffusion_pytorch_model.safetensors")
    server.run(strip(graphs, tmp_path, name="full", prompts="a toy"))
    folder = server.output / "atelier" / "strips" / "full"
    about, cells = cells_of(folder)
    assert [column["label"] for column in about["columns"]] == ["no network", "checkpoint-800"]
    assert not np.array_equal(pixels(folder / cells[0, 0]["file"]), pixels(folder / cells[1, 0]["file"]))


@pytest.mark.parametrize(
    ("widgets", "said"), [({"prompts": " \n"}, "write at least one prompt"), ({"width": 16000}, "do not fit")]
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(server, graphs, networks, widgets, said):
    with pytest.raises(Failed, match=said):
        server.run(strip(graphs, networks, **{"height": 16000, **widgets} if "width" in widgets else widgets))


def test_another_content_of_an_embedding_makes_other_cells_of_the_prompts_that_name_it(server, graphs, networks):
    folder = server.folder / "embeddings"
    folder.mkdir(exist_ok=True)
    keys = []
    for seed in (1, 1, 2):
        vectors = torch.randn(2, 768, generator=torch.Generator().manual_seed(seed))
        save_file({"emb_params": vectors}, folder / "mine.safetensors")
        server.call("/free", {"unload_models": True, "free_memory": True})  # as ComfyUI keeps the node's outputs else
        prompts = "a toy, embedding:mine, on a table\na boat"
        server.run(strip(graphs, networks / "toy-200.safetensors", name="embedded", prompts=prompts))
        _, cells = cells_of(server.output / "atelier" / "strips" / "embedded")
        keys.append([cells[column, row]["key"] for column in (0, 1) for row in (0, 1)])
    assert keys[0] == keys[1]
    assert [a == b for a, b in zip(keys[1], keys[2], strict=True)] == [False, True, False, True]
