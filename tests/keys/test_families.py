"""Names of layers by family: examples of every spelling, and what unknown parts and layers give."""

from __future__ import annotations

import pytest
from sd_atelier.lib.keys.table import Original
from sd_atelier.lib.registry import SPELLINGS

FAMILIES = SPELLINGS.names()
Q, K, V = 0, 1, 2


def names_of(family: str):
    return SPELLINGS.get(family)()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("family", "part", "module", "original", "kohya", "kind"),
    [
        (
            "sd1",
            "unet",
            "up_blocks.0.upsamplers.0.conv",
            Original("output_blocks.2.1.conv"),
            "lora_unet_up_blocks_0_upsamplers_0_conv",
            "block",
        ),
        (
            "sd1",
            "te",
            "encoder.layers.3.mlp.fc1",
            Original("text_model.encoder.layers.3.mlp.fc1"),
            "lora_te_text_model_encoder_layers_3_mlp_fc1",
            "mlp",
        ),
        (
            "sd2",
            "te",
            "encoder.layers.3.self_attn.k_proj",
            Original("transformer.resblocks.3.attn.in_proj", K, 3),
            "lora_te_text_model_encoder_layers_3_self_attn_k_proj",
            "attention",
        ),
        (
            "sdxl",
            "unet",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            Original("input_blocks.4.1.transformer_blocks.0.attn1.to_q"),
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "attention",
        ),
        (
            "sdxl",
            "unet",
            "up_blocks.1.upsamplers.0.conv",
            Original("output_blocks.5.2.conv"),
            "lora_unet_output_blocks_5_2_conv",
            "block",
        ),
        (
            "sdxl",
            "te2",
            "text_model.encoder.layers.31.self_attn.v_proj",
            Original("transformer.resblocks.31.attn.in_proj", V, 3),
            "lora_te2_text_model_encoder_layers_31_self_attn_v_proj",
            "attention",
        ),
        ("sdxl", "te2", "text_projection", Original("text_projection"), "lora_te2_text_projection", None),
        (
            "flux",
            "unet",
            "transformer_blocks.18.attn.add_v_proj",
            Original("double_blocks.18.txt_attn.qkv", V, 3),
            "lora_unet_double_blocks_18_txt_attn_qkv",
            "attention",
        ),
        (
            "flux",
            "unet",
            "single_transformer_blocks.37.proj_mlp",
            Original("single_blocks.37.linear1", 3, 4),
            "lora_unet_single_blocks_37_linear1",
            "attention",
        ),
        (
            "flux",
            "unet",
            "single_transformer_blocks.0.norm.linear",
            Original("single_blocks.0.modulation.lin"),
            "lora_unet_single_blocks_0_modulation_lin",
            "projection",
        ),
        ("flux", "unet", "proj_out", Original("final_layer.linear"), "lora_unet_final_layer_linear", None),
        (
            "flux",
            "te3",
            "encoder.block.0.layer.1.DenseReluDense.wi_0",
            Original("encoder.block.0.layer.1.DenseReluDense.wi_0"),
            "lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0",
            "mlp",
        ),
        (
            "sd3",
            "unet",
            "transformer_blocks.0.attn.to_q",
            Original("joint_blocks.0.x_block.attn.qkv", Q, 3),
            "lora_unet_joint_blocks_0_x_block_attn_qkv",
            "attention",
        ),
        (
            "sd3",
            "unet",
            "transformer_blocks.12.attn2.to_out.0",
            Original("joint_blocks.12.x_block.attn2.proj"),
            "lora_unet_joint_blocks_12_x_block_attn2_proj",
            "attention",
        ),
        (
            "sd3",
            "unet",
            "transformer_blocks.23.ff_context.net.2",
            Original("joint_blocks.23.context_block.mlp.fc2"),
            "lora_unet_joint_blocks_23_context_block_mlp_fc2",
            "mlp",
        ),
    ],
)
def test_a_layer_has_these_names(family, part, module, original, kohya, kind) -> None:
    names = names_of(family)
    assert names.original_name(part, module) == original
    assert names.kohya_name(part, module) == kohya
    assert names.kind(part, module) == kind
    assert names.split_names(part, original.name)[original.index] == names.spelled_out(part, module)


@pytest.mark.parametrize(
    ("part", "module", "name"),
    [
        ("unet", "transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_q"),
        ("te1", "encoder.layers.0.mlp.fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        ("te2", "text_model.encoder.layers.0.mlp.fc1", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"),
        ("te3", "encoder.block.0.layer.0.SelfAttention.q", "lora_te3_encoder_block_0_layer_0_SelfAttention_q"),
    ],
)
def test_files_of_stable_diffusion_3_have_the_names_of_diffusers(part: str, module: str, name: str) -> None:
    assert names_of("sd3").file_name(part, module) == name


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "sd3"])
def test_files_of_the_other_families_have_kohyas_names(family: str) -> None:
    names = names_of(family)
    modules = {
        "unet": "transformer_blocks.1.attn.to_k" if family == "flux" else "mid_block.resnets.0.conv1",
        **{part: "encoder.layers.0.mlp.fc1" for part in names.prefixes if part.startswith("te")},
    }
    if "te3" in modules:
        modules["te3"] = "encoder.block.0.layer.1.DenseReluDense.wo"
    for part, module in modules.items():
        assert names.file_name(part, module) == names.kohya_name(part, module)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"original"}))  # which takes every name
def test_unknown_parts_and_layers_are_refused(family: str) -> None:
    names = names_of(family)
    for name in (names.file_name, names.kohya_name, names.original_name, names.split_names):
        with pytest.raises(ValueError, match=r'unknown part "vae".*unet, te'):
            name("vae", "conv_in")
    for name in (names.original_name, names.split_names):
        with pytest.raises(ValueError, match=r'"no\.such\.layer" is no known .*layer of the unet'):
            name("unet", "no.such.layer")


def test_only_last_modulations_have_their_halves_swapped() -> None:
    sd3, flux = names_of("sd3"), names_of("flux")
    assert sd3.halves_swapped("unet", "transformer_blocks.23.norm1_context.linear", 3072, 1536)
    assert not sd3.halves_swapped("unet", "transformer_blocks.0.norm1_context.linear", 9216, 1536)
    assert not sd3.halves_swapped("te1", "norm_out.linear", 2, 1)
    for names in (sd3, flux):
        assert names.halves_swapped("unet", "norm_out.linear", 6144, 3072)
        assert not names.halves_swapped("unet", "transformer_blocks.0.norm1.linear", 18432, 3072)
    assert not names_of("sdxl").halves_swapped("unet", "conv_in", 320, 4)
