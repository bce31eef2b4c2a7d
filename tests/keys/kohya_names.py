"""Prints, as JSON, the names that kohya's own code gives to the layers of its own model. Run as a program of its own.

`python kohya_names.py PATH MODEL`: PATH is a folder with kohya's scripts, MODEL is sd1, sd2, sdxl, sd3,
sd35_medium, sd35_large or flux. All layers live on the meta device.
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel


def main(path: str, model: str) -> None:
    sys.path.insert(0, path)
    with torch.device("meta"):
        network = _NETWORKS.get(model, sd3)(model)
    print(json.dumps([lora.lora_name for lora in (*network.unet_loras, *network.text_encoder_loras)]))


def sd(model: str) -> torch.nn.Module:
    from library.original_unet import UNet2DConditionModel
    from networks.lora import LoRANetwork

    if model == "sd1":
        unet = UNet2DConditionModel(sample_size=64, attention_head_dim=8, cross_attention_dim=768)
        return LoRANetwork(clip(), unet, conv_lora_dim=4, conv_alpha=1)
    unet = UNet2DConditionModel(
        sample_size=64, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True
    )
    return LoRANetwork(open_clip(1024, 23), unet, conv_lora_dim=4, conv_alpha=1)


def sdxl(model: str) -> torch.nn.Module:
    from library.sdxl_original_unet import SdxlUNet2DConditionModel
    from networks.lora import LoRANetwork

    return LoRANetwork(
        [clip(), open_clip(1280, 32)], SdxlUNet2DConditionModel(), conv_lora_dim=4, conv_alpha=1, is_sdxl=True
    )


def flux(model: str) -> torch.nn.Module:
    from library.flux_models import Flux, configs
    from networks.lora_flux import LoRANetwork

    return LoRANetwork([clip(), t5()], Flux(configs["dev"].params), train_t5xxl=True)


def sd3(model: str) -> torch.nn.Module:
    from library.sd3_models import MMDiT
    from networks.lora_sd3 import LoRANetwork

    transformer = MMDiT(
        in_channels=16,
        depth=38 if model == "sd35_large" else 24,
        adm_in_channels=2048,
        context_embedder_in_features=4096,
        context_embedder_out_features=64 * (38 if model == "sd35_large" else 24),
        num_patches=36864,
        pos_embed_max_size=192,
        qk_norm=None if model == "sd3" else "rms",
        x_block_self_attn_layers=list(range(13)) if model == "sd35_medium" else [],
    )
    return LoRANetwork([clip(), open_clip(1280, 32), t5()], transformer, train_t5xxl=True)


def clip() -> torch.nn.Module:
    return CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )


def open_clip(width: int, depth: int) -> torch.nn.Module:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=depth,
            num_attention_heads=width // 64,
            projection_dim=width,
        )
    )


def t5() -> torch.nn.Module:
    return T5EncoderModel(
        T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    )


_NETWORKS = {"sd1": sd, "sd2": sd, "sdxl": sdxl, "flux": flux}

if __name__ == "__main__":
    main(*sys.argv[1:])
