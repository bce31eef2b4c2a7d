"""Inspection: what a file is, told from keys and shapes alone, and never more than the file says."""

import json
import random

import pytest
import torch
from safetensors.torch import save_file
from sd_atelier.lib import inspection, network_keys


def lora(name, rank=4, num_in=320, num_out=640, alpha=2.0, kernel=(), up=1.0):
    """One kohya layer, its up-projection filled with `up`."""
    return {
        f"{name}.lora_down.weight": torch.ones(rank, num_in, *kernel),
        f"{name}.lora_up.weight": torch.full((num_out, rank, *(1 for _ in kernel)), up),
        f"{name}.alpha": torch.tensor(alpha),
    }


UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_7_self_attn_q_proj"


def saved(tmp_path, tensors, metadata=None):
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    return tmp_path / "x.safetensors"


def test_file_is_told_whole(tmp_path):
    tensors = lora(UNET, 4, 768, 320) | lora(TEXT, 2, 768, 768, alpha=1.0)
    tensors = {k: v if k.endswith("alpha") else v.half() for k, v in tensors.items()}
    path = saved(tmp_path, tensors, {"ss_network_dim": "4"})
    found = inspection.inspect_file(path)
    assert (found.kind, found.algorithm, found.family) == ("network", "lora", "sd1")
    assert found.num_bytes == path.stat().st_size
    assert found.num_params == sum(t.numel() for t in tensors.values())
    assert found.dtypes == {"float16": 4, "float32": 2}
    assert found.metadata == {"ss_network_dim": "4"}
    assert (found.nonfinite, found.other_keys) == ((), ())
    text, unet = found.layers
    assert (unet.name, unet.rank, unet.alpha, unet.num_out, unet.num_in) == (UNET, 4, 2.0, 320, 768)
    assert (unet.part, unet.block) == ("unet", "down_blocks_1")
    assert (text.part, text.block) == ("te", "encoder_layers_7")
    assert unet.num_params == 4 * 768 + 320 * 4 and not unet.no_effect


OUT, IN, R = 24, 18, 3
# The weight that each of these changes is (24, 18), or (24, 18, 3, 3) where a kernel is named.
ALGORITHMS = {
    "lora": {"lora_down.weight": (R, IN), "lora_up.weight": (OUT, R)},
    "lora peft": {"lora_A.weight": (R, IN), "lora_B.weight": (OUT, R)},
    "lora named adapter": {"lora_A.default.weight": (R, IN), "lora_B.default.weight": (OUT, R)},
    "lora diffusers": {"lora.down.weight": (R, IN), "lora.up.weight": (OUT, R)},
    "locon": {"lora_down.weight": (R, IN, 3, 3), "lora_up.weight": (OUT, R, 1, 1)},
    "locon tucker": {
        "lora_down.weight": (R, IN, 1, 1), "lora_mid.weight": (R, R, 3, 3), "lora_up.weight": (OUT, R, 1, 1),
    },
    "dora": {"lora_down.weight": (R, IN), "lora_up.weight": (OUT, R), "dora_scale": (OUT, 1)},
    "dora peft": {"lora_A.weight": (R, IN), "lora_B.weight": (OUT, R), "lora_magnitude_vector": (OUT,)},
    "loha": {"hada_w1_a": (OUT, R), "hada_w1_b": (R, IN), "hada_w2_a": (OUT, R), "hada_w2_b": (R, IN)},
    "loha kernel": {"hada_w1_a": (OUT, R), "hada_w1_b": (R, IN * 9), "hada_w2_a": (OUT, R), "hada_w2_b": (R, IN * 9)},
    "loha tucker": {
        "hada_t1": (R, R, 3, 3), "hada_w1_a": (R, OUT), "hada_w1_b": (R, IN),
        "hada_t2": (R, R, 3, 3), "hada_w2_a": (R, OUT), "hada_w2_b": (R, IN),
    },
    "lokr": {"lokr_w1": (4, 3), "lokr_w2_a": (6, R), "lokr_w2_b": (R, 6)},
    "lokr both": {"lokr_w1_a": (4, R), "lokr_w1_b": (R, 3), "lokr_w2_a": (6, R), "lokr_w2_b": (R, 6)},
    "lokr kernel": {"lokr_w1": (4, 3), "lokr_w2": (6, 6, 3, 3)},
    "full difference": {"diff": (OUT, IN)},
    "glora": {"a1.weight": (R, IN), "a2.weight": (IN, R), "b1.weight": (R, IN), "b2.weight": (OUT, R)},
    "oft": {"oft_blocks": (4, 6, 6)},
}  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithm_is_known_by_its_keys_and_the_weight_by_its_shapes(name, tmp_path):
    tensors = {f"{UNET}.{suffix}": torch.ones(shape) for suffix, shape in ALGORITHMS[name].items()}
    found = inspection.inspect_file(saved(tmp_path, tensors))
    (layer,) = found.layers
    assert layer.name == UNET and found.other_keys == ()
    family = name.split()[0]
    wanted = {"locon": "lora", "dora": "lora", "full": "full_difference"}.get(family, family)
    assert layer.algorithm == wanted
    assert layer.dora == (family == "dora") and ("dora" in found.algorithm) == layer.dora
    assert ("locon" in found.algorithm) == ("locon" in name or name in ("loha tucker", "lokr kernel"))
    kernel = 9 if any(word in name for word in ("locon", "kernel", "tucker")) else 1
    if family not in ("glora", "oft"):
        assert (layer.num_out, layer.num_in) == (OUT, IN * kernel)
    has_rank = family not in ("full", "glora", "oft") and name != "lokr kernel"
    assert layer.rank == (R if has_rank else None)
    assert layer.num_params == sum(t.numel() for t in tensors.values())


@pytest.mark.parametrize(
    ("names", "num_in", "metadata", "family"),
    [
        ([UNET], 768, {}, "sd1"),
        ([UNET], 1024, {}, "sd2"),
        ([UNET], 2048, {}, "sdxl"),
        ([UNET], 64, {}, "sd1 or sd2"),
        ([UNET], 64, {"ss_base_model_version": "sd_v2"}, "sd2"),
        ([UNET], 64, {"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd1"),
        ([UNET], 64, {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        # what is there counts for more than what is said
        ([UNET], 768, {"ss_base_model_version": "sdxl_base_v1-0"}, "sd1"),
        ([TEXT], 1024, {}, "sd2"),
        (["lora_te2_text_model_encoder_layers_0_mlp_fc1"], 1280, {}, "sdxl"),
        (["lora_unet_input_blocks_4_1_proj_in"], 640, {}, "sdxl"),
        (["lora_unet_double_blocks_0_img_attn_qkv"], 3072, {}, "flux"),
        (["lora_unet_joint_blocks_0_x_block_attn_qkv"], 1536, {}, "sd3"),
        (["lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"], 768, {}, "sd1"),
        (["transformer.transformer_blocks.0.attn.to_q"], 1536, {}, "sd3"),
        (["transformer.transformer_blocks.0.attn.to_q"], 3072, {}, "flux"),
        (["transformer.transformer_blocks.0.attn.add_q_proj", "text_encoder_2.x"], 1536, {}, "sd3"),
        (["transformer.transformer_blocks.0.ff_context.net.2"], 1536, {}, "sd3"),
        (["something_else"], 10, {}, ""),
    ],
)
def test_family_is_told_by_widths_then_names_then_metadata(names, num_in, metadata, family, tmp_path):
    tensors = {k: v for name in names for k, v in lora(name, num_in=num_in).items()}
    found = inspection.inspect_file(saved(tmp_path, tensors, metadata))
    assert found.family == family and bool(found.family_reason) == bool(family)


def test_values_that_are_not_finite_are_named(tmp_path):
    tensors = lora("a") | lora("b") | lora("c")
    tensors["b.lora_up.weight"][3, 1] = float("nan")
    tensors["c.lora_down.weight"] = torch.full((4, 320), torch.inf, dtype=torch.bfloat16)
    found = inspection.inspect_file(saved(tmp_path, tensors))
    assert found.nonfinite == ("b.lora_up.weight", "c.lora_down.weight")


def test_float8_files_are_read(tmp_path):
    tensors = {k: v for k, v in lora("a", up=0.0).items() if not k.endswith("alpha")}
    tensors["a.lora_down.weight"][0, 0] = float("nan")
    tensors = {k: v.to(torch.float8_e4m3fn) for k, v in tensors.items()}
    found = inspection.inspect_file(saved(tmp_path, tensors))
    assert found.dtypes == {"float8_e4m3fn": 2}
    assert found.nonfinite == ("a.lora_down.weight",) and found.layers[0].no_effect


def test_untrained_layers_and_foreign_keys_are_named(tmp_path):
    tensors = lora("a", up=0.0) | lora("b") | {"b.weight": torch.ones(1), "c.alpha": torch.ones(())}
    found = inspection.inspect_file(saved(tmp_path, tensors))
    assert [layer.no_effect for layer in found.layers] == [True, False]
    assert set(found.other_keys) == {"b.weight", "c.alpha"}


def test_what_is_no_network_is_called_what_it_is(tmp_path):
    assert inspection.inspect_file(saved(tmp_path, {"emb_params": torch.ones(2, 768)})).kind == "embedding"
    model = {f"model.diffusion_model.{i}.weight": torch.ones(2, 2) for i in range(30)}
    assert inspection.inspect_file(saved(tmp_path, model)).kind == "model"
    assert inspection.inspect_file(saved(tmp_path, {"x": torch.ones(1)})).kind == "unknown"
    assert inspection.inspect_file(saved(tmp_path, {})).kind == "unknown"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[: len(data) // 2], "damaged or truncated"),
        (lambda data: data[:-1], "damaged or truncated"),
        (lambda data: data[:4], "is not a safetensors file"),
        (lambda data: b"", "is not a safetensors file"),
        (lambda data: data[:8] + b"\xff" * (len(data) - 8), "is not a safetensors file"),
        (lambda data: b"PK\x03\x04" + data, "is a pickle"),
        (lambda data: b"\x80\x02ctorch", "is a pickle"),
    ],
)
def test_file_that_cannot_be_read_is_refused_by_name(damage, said, tmp_path):
    path = saved(tmp_path, lora("a"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=said) as raised:
        inspection.inspect_file(path)
    assert "x.safetensors" in str(raised.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "no.safetensors"):
        with pytest.raises(ValueError, match="is not there, or is not a file"):
            inspection.inspect_file(path)


def model_folder(tmp_path, text_level="text_model."):
    unet = {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.ones(320, 768),
        "down_blocks.0.resnets.0.conv1.weight": torch.ones(8, 4, 3, 3),
        "down_blocks.0.resnets.0.norm1.weight": torch.ones(8),
    }
    text = {f"{text_level}encoder.layers.7.self_attn.q_proj.weight": torch.ones(768, 768)}
    for part, name, tensors in (
        ("unet", "diffusion_pytorch_model", unet),
        ("text_encoder", "model", text),
    ):
        (tmp_path / "model" / part).mkdir(parents=True)
        save_file(tensors, tmp_path / "model" / part / f"{name}.safetensors")
    return tmp_path / "model"


@pytest.mark.parametrize("text_level", ["text_model.", ""])
def test_layers_match_a_model_by_name_and_size(text_level, tmp_path):
    folder = model_folder(tmp_path, text_level)
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = (
        lora(UNET, 4, 768, 320) | lora(TEXT, 2, 768, 768) | lora(conv, 2, 4, 8, kernel=(3, 3)) | lora("lora_unet_x")
    )
    match = inspection.match_model(inspection.inspect_file(saved(tmp_path, tensors)).layers, folder)
    assert set(match.matched) == {UNET, TEXT, conv}
    assert (match.wrong_size, match.unmatched) == ((), ("lora_unet_x",))
    assert match.num_model_layers == {"unet": 2, "te": 1}

    layers = inspection.inspect_file(saved(tmp_path, lora(UNET, 4, 1024, 320) | lora(TEXT, 2, 768, 512))).layers
    assert inspection.match_model(layers, folder).wrong_size == tuple(sorted([TEXT, UNET]))


def test_names_of_diffusers_match_too(tmp_path):
    names = {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (320, 768), "text_encoder.x": (1, 1)}
    tensors = {f"{n}.lora_A.weight": torch.ones(4, i) for n, (o, i) in names.items()}
    tensors |= {f"{n}.lora_B.weight": torch.ones(o, 4) for n, (o, i) in names.items()}
    found = inspection.inspect_file(saved(tmp_path, tensors))
    match = inspection.match_model(found.layers, model_folder(tmp_path))
    assert match.matched == (next(iter(names)),) and match.unmatched == ("text_encoder.x",)
    assert {layer.part for layer in found.layers} == {"unet", "te"}


MODELS = {  # folder -> layers of a model in miniature, and what is published for them
    "sd3": {
        "transformer": {
            **{f"transformer_blocks.0.attn.{x}": (8, 8) for x in ("to_q", "to_k", "to_v", "add_q_proj", "to_out.0")},
            "transformer_blocks.0.norm1_context.linear": (16, 8),
        },
        "text_encoder": {"text_model.encoder.layers.0.mlp.fc1": (12, 6)},
        "text_encoder_2": {"text_model.encoder.layers.0.self_attn.q_proj": (10, 10)},
        "text_encoder_3": {"encoder.block.0.layer.0.SelfAttention.q": (14, 14)},
    },
    "flux": {
        "transformer": {
            **{f"single_transformer_blocks.0.attn.to_{x}": (8, 8) for x in "qkv"},
            "single_transformer_blocks.0.proj_mlp": (32, 8),
            "single_transformer_blocks.0.proj_out": (8, 40),
        },
        "text_encoder": {"encoder.layers.0.mlp.fc1": (12, 6)},
        "text_encoder_2": {"encoder.block.0.layer.0.SelfAttention.q": (14, 14)},
    },
    "sdxl": {
        "unet": {
            "add_embedding.linear_1": (8, 8),
            "down_blocks.1.attentions.0.proj_in": (8, 8),
            **{f"down_blocks.{i}.resnets.{j}.conv1": (8, 8, 3, 3) for i in range(3) for j in range(2)},
        },
        "text_encoder": {"text_model.encoder.layers.0.mlp.fc1": (12, 6)},
        "text_encoder_2": {"text_model.encoder.layers.0.self_attn.q_proj": (10, 10)},
    },
}
NETWORKS = {  # family -> name -> (outputs, inputs)
    "sd3": {
        "lora_unet_joint_blocks_0_x_block_attn_qkv": (24, 8),
        "transformer.transformer_blocks.0.attn.to_q": (8, 8),
        "transformer.transformer_blocks.0.attn.add_q_proj": (8, 8),
        "lora_unet_joint_blocks_0_context_block_adaLN_modulation_1": (16, 8),
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj": (10, 10),
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (10, 10),
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (14, 14),
    },
    "flux": {
        "lora_unet_single_blocks_0_linear1": (56, 8),
        "transformer.single_transformer_blocks.0.proj_mlp": (32, 8),
        "lora_transformer_single_transformer_blocks_0_proj_out": (8, 40),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (12, 6),
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (14, 14),
    },
    "sdxl": {
        "lora_unet_input_blocks_4_1_proj_in": (8, 8),
        "lora_unet_down_blocks_1_attentions_0_proj_in": (8, 8),
        "unet.down_blocks.1.attentions.0.proj_in": (8, 8),
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (10, 10),
    },
}


@pytest.mark.parametrize("family", MODELS)
def test_every_spelling_of_every_family_matches_by_name_and_size(family, tmp_path):
    for folder, layers in MODELS[family].items():
        (tmp_path / folder).mkdir()
        save_file(
            {f"{n}.weight": torch.ones(shape) for n, shape in layers.items()}, tmp_path / folder / "x.safetensors"
        )
    right = {
        k: v for name, (num_out, num_in) in NETWORKS[family].items() for k, v in lora(name, 2, num_in, num_out).items()
    }
    layers = inspection.inspect_file(saved(tmp_path, right | lora("lora_unet_no_such_layer"))).layers
    match = inspection.match_model(layers, tmp_path)
    assert set(match.matched) == NETWORKS[family].keys()
    assert (match.wrong_size, match.unmatched) == ((), ("lora_unet_no_such_layer",))
    assert sum(match.num_model_layers.values()) == sum(map(len, MODELS[family].values()))
    wrong = {
        k: v
        for name, (num_out, num_in) in NETWORKS[family].items()
        for k, v in lora(name, 2, num_in, num_out + 8).items()
    }
    layers = inspection.inspect_file(saved(tmp_path, wrong)).layers
    assert set(inspection.match_model(layers, tmp_path).wrong_size) == NETWORKS[family].keys()


def test_a_fused_layer_of_which_the_model_lacks_a_part_is_unmatched(tmp_path):
    (tmp_path / "transformer").mkdir()
    layers = {"single_transformer_blocks.0.attn.to_q.weight": torch.ones(8, 8)}
    save_file(layers, tmp_path / "transformer" / "x.safetensors")
    names = ("lora_unet_single_blocks_0_linear1", "transformer.single_transformer_blocks.0.attn.to_q")
    network = lora(names[0], 2, 8, 56) | lora(names[1], 2, 8, 8)
    match = inspection.match_model(inspection.inspect_file(saved(tmp_path, network)).layers, tmp_path)
    assert (match.matched, match.unmatched) == ((names[1],), (names[0],))


def test_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not the folder of a model"):
        inspection.match_model((), tmp_path)


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        (json.dumps({"a": {"hat": 3, "sky ": 1}, "b": {"hat": 2}}), [("hat", 5), ("sky", 1)]),
        (json.dumps({"a": {"hat": "3", "x": None}, "b": [1]}), []),
        ("[1]", []),
        ("{", []),
    ],
)
def test_tags_are_summed_and_damage_is_left_out(text, tags):
    assert inspection.tag_frequencies({"ss_tag_frequency": text}) == tags
    assert inspection.tag_frequencies({}) == []


def test_any_keys_and_shapes_are_taken_as_they_come():
    rng = random.Random(0)
    suffixes = [s for shapes in ALGORITHMS.values() for s in shapes] + ["alpha", "weight", "lora_mid.weight", "hada_t2"]
    names = ["", "a", "a.b", UNET, TEXT, ".", "lora_down.weight", "unet.x", "é\n"]
    for _ in range(3000):
        keys = {f"{rng.choice(names)}.{rng.choice(suffixes)}" for _ in range(rng.randrange(1, 6))}
        shapes = {key: tuple(rng.randrange(4) for _ in range(rng.randrange(5))) for key in keys}
        layers, rest = network_keys.layers_of(shapes, {}, set())
        assert set(rest) <= keys
        network_keys.family_of(layers, {})
        assert all(isinstance(layer.block, str) for layer in layers)
        network_keys.algorithm_of(layers)
