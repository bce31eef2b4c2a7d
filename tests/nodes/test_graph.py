"""What the loaders of a graph that is being queued would load."""

import pytest
import torch
from safetensors.torch import save_file
from sd_atelier.nodes import graph
from sd_atelier.nodes.routes import same_origin


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def test_the_loader_is_found_through_nodes_that_change_the_model():
    graph.note(
        {
            "prompt": {
                "1": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
                "2": node("LoraLoader", model=["1", 0]),
                "3": node("ModelSamplingFlux", model=["2", 0]),
                "4": node("AtelierLoadLora", model=["3", 0]),
                "5": node("AtelierLoadLora", model=["6", 0]),
                "6": node("Loop", model=["5", 0]),
                "7": node("AtelierLoadLora"),
                "8": "nonsense",
            }
        }
    )
    assert graph.loaded_by("4", "model") == ("checkpoints", "a.safetensors")
    for unknown in ("5", "7", "8", "9"):
        assert graph.loaded_by(unknown, "model") is None


@pytest.mark.parametrize(
    ("family", "tensors"),
    [
        ("sd1", {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768)}),
        ("sdxl", {"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048)}),
        ("sd3", {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (6, 2)}),
        ("flux", {"double_blocks.0.img_attn.qkv.weight": (6, 2), "vector_in.in_layer.weight": (2, 2)}),
        ("", {"something.else": (2, 2)}),
    ],
)
def test_a_family_is_told_by_names_and_shapes(tmp_path, family, tensors):
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "m.safetensors")
    assert graph.family_of_file(tmp_path / "m.safetensors") == family


def test_a_file_that_cannot_be_read_has_no_family(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"no")
    assert graph.family_of_file(tmp_path / "m.safetensors") == ""
    assert graph.family_of_file(tmp_path / "missing.safetensors") == ""


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({}, True),
        ({"Origin": "http://127.0.0.1:8188"}, True),
        ({"Origin": "http://127.0.0.1:8188", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "http://127.0.0.1:9999"}, False),
        ({"Origin": "http://elsewhere.example"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
    ],
)
def test_only_the_own_page_is_of_the_same_origin(headers, same):
    assert same_origin(headers, "127.0.0.1:8188") == same
