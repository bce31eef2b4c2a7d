"""Names of Stable Diffusion 1.x and 2.x layers: kohya's, the same for both spellings of the text encoder."""

from __future__ import annotations

import pytest
from sd_atelier.lib.keys.sd import StableDiffusion
from sd_atelier.lib.registry import SPELLINGS

NAMES = StableDiffusion()


@pytest.mark.parametrize(
    ("part", "module", "name", "kind"),
    [
        (
            "unet",
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
            "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0",
            "attention",
        ),
        (
            "unet",
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
            "attention",
        ),
        (
            "unet",
            "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
            "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj",
            "mlp",
        ),
        (
            "unet",
            "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
            "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_ff_net_2",
            "mlp",
        ),
        ("unet", "up_blocks.1.attentions.0.proj_in", "lora_unet_up_blocks_1_attentions_0_proj_in", "projection"),
        ("unet", "up_blocks.1.resnets.0.conv1", "lora_unet_up_blocks_1_resnets_0_conv1", "block"),
        ("unet", "down_blocks.0.downsamplers.0.conv", "lora_unet_down_blocks_0_downsamplers_0_conv", "block"),
        ("unet", "conv_in", "lora_unet_conv_in", None),
        ("unet", "time_embedding.linear_1", "lora_unet_time_embedding_linear_1", None),
        (
            "te",
            "text_model.encoder.layers.0.self_attn.q_proj",
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
            "attention",
        ),
        (
            "te",
            "encoder.layers.0.self_attn.q_proj",
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
            "attention",
        ),
        ("te", "encoder.layers.3.mlp.fc1", "lora_te_text_model_encoder_layers_3_mlp_fc1", "mlp"),
    ],
)
def test_layers_have_kohyas_names_and_their_kind(part: str, module: str, name: str, kind: str | None) -> None:
    assert NAMES.file_name(part, module) == name
    assert NAMES.kind(part, module) == kind


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r'unknown part "vae".*unet, te'):
        NAMES.file_name("vae", "x")


def test_both_families_are_registered() -> None:
    assert {"sd1", "sd2"} <= set(SPELLINGS.names())
