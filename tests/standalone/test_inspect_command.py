"""`atelier inspect`: it says what the file is, in words and as JSON, and which of a real model's layers it matches."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from sd_atelier.lib.standalone.cli import main
from transformers import CLIPTextConfig, CLIPTextModel


def run(*arguments):
    return main(["inspect", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model of the Stable Diffusion 1.x layout, as diffusers and transformers write it."""
    folder = tmp_path_factory.mktemp("model")
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)
    )
    unet.save_pretrained(folder / "unet")
    text.save_pretrained(folder / "text_encoder")
    return folder, unet, text


def network(path, model, metadata=None):
    """A LoRA on every Linear layer of the model; returns its layer names."""
    _, unet, text = model
    tensors = {}
    for prefix, module in (("lora_unet_", unet), ("lora_te_text_model_", text)):
        for name, layer in module.named_modules():
            if isinstance(layer, torch.nn.Linear):
                name = prefix + name.removeprefix("text_model.").replace(".", "_")
                tensors[f"{name}.lora_down.weight"] = torch.ones(2, layer.in_features)
                tensors[f"{name}.lora_up.weight"] = torch.ones(layer.out_features, 2)
                tensors[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path, metadata)
    return sorted({key.split(".")[0] for key in tensors})


def test_every_layer_of_a_real_model_matches(model, tmp_path, capsys):
    names = network(tmp_path / "x.safetensors", model)
    assert run(tmp_path / "x.safetensors", "--model", model[0], "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(told["model"]["matched"]) == names and len(names) > 30
    assert told["model"]["unmatched"] == told["model"]["wrong_size"] == []


def test_words_say_rank_blocks_metadata_and_tags(model, tmp_path, capsys):
    metadata = {"ss_tag_frequency": '{"a": {"hat": 3}}', "ss_base_model_version": "sd_v1", "x": "\x1b[31m\nred"}
    names = network(tmp_path / "x.safetensors", model, metadata)
    assert run(tmp_path / "x.safetensors", "--model", model[0]) == 0
    out = capsys.readouterr().out
    assert f"x.safetensors: lora, {len(names)} layers" in out
    assert "made for    sd1 (by its metadata)" in out
    assert f"matches {len(names)} of its {len(names)} layers" in out
    assert "down_blocks_0" in out and "encoder_layers_1" in out and "hat 3" in out
    # a terminal must not obey what a stranger wrote into a file
    assert "\x1b" not in out and "[31m" in out


def test_each_layer_is_listed_when_asked(model, tmp_path, capsys):
    names = network(tmp_path / "x.safetensors", model)
    assert run(tmp_path / "x.safetensors", "--layers") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names)


def test_faults_are_said_in_words(tmp_path, capsys):
    tensors = {"a.lora_down.weight": torch.ones(2, 3), "a.lora_up.weight": torch.zeros(3, 2), "b": torch.ones(1)}
    tensors["a.alpha"] = torch.tensor(float("nan"))
    save_file(tensors, tmp_path / "x.safetensors")
    assert run(tmp_path / "x.safetensors") == 0
    out = capsys.readouterr().out
    assert "BROKEN      nan or inf in 1 tensor: a.alpha" in out
    assert "no effect   1 of 1 layer (a factor is zero)" in out and "keys that belong to no layer: b" in out
    assert run(tmp_path / "x.safetensors", "--json") == 0
    json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_bad_input_is_one_line_and_exit_code_2(model, tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    network(tmp_path / "y.safetensors", model)
    for arguments in (
        [tmp_path / "x.safetensors"],
        [tmp_path / "no"],
        [tmp_path / "y.safetensors", "--model", tmp_path],
    ):
        assert run(*arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("atelier inspect: ") and err.count("\n") == 1
