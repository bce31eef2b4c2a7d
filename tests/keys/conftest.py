"""The full-size models of every family, spelled as diffusers and transformers spell them, without memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

Layers = dict[tuple[str, str], nn.Module]  # (part, module name) -> Linear or convolution

MODELS = {
    "sd1": "sd1",
    "sd2": "sd2",
    "sdxl": "sdxl",
    "sd3": "sd3",
    "sd35_medium": "sd3",
    "sd35_large": "sd3",
    "flux": "flux",
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """The name of a full-size model."""
    return request.param


@pytest.fixture
def family(model: str) -> str:
    """The family of that model."""
    return MODELS[model]


@pytest.fixture
def parts(model: str) -> dict[str, nn.Module]:
    """The parts of that model."""
    pytest.importorskip("diffusers", reason="the full-size models are made by diffusers")
    pytest.importorskip("transformers", reason="the full-size text encoders are made by transformers")
    return _parts(model)


@pytest.fixture
def layers(parts: dict[str, nn.Module]) -> Layers:
    """Every Linear and convolution of that model."""
    return {
        (part, name): layer
        for part, root in parts.items()
        for name, layer in root.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }


@cache
def _parts(model: str) -> dict[str, nn.Module]:
    make: dict[str, dict[str, Callable[[], nn.Module]]] = {
        "sd1": {"unet": lambda: _unet(cross_attention_dim=768, attention_head_dim=8), "te": _clip},
        "sd2": {
            "unet": lambda: _unet(
                cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
            ),
            "te": lambda: _open_clip(1024, 23),
        },
        "sdxl": {"unet": _sdxl_unet, "te1": _clip, "te2": lambda: _open_clip(1280, 32)},
        "sd3": {"unet": lambda: _sd3(24, None, ())},
        "sd35_medium": {"unet": lambda: _sd3(24, "rms_norm", tuple(range(13)))},
        "sd35_large": {"unet": lambda: _sd3(38, "rms_norm", ())},
        "flux": {"unet": _flux, "te1": _clip, "te3": _t5},
    }
    if MODELS[model] == "sd3":
        make[model] |= {"te1": _clip, "te2": lambda: _open_clip(1280, 32), "te3": _t5}
    with torch.device("meta"):
        return {part: build() for part, build in make[model].items()}


def _unet(**settings) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**settings)


def _sdxl_unet() -> nn.Module:
    return _unet(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def _sd3(depth: int, qk_norm: str | None, dual: tuple[int, ...]) -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=128,
        num_layers=depth,
        num_attention_heads=depth,
        caption_projection_dim=64 * depth,
        out_channels=16,
        pos_embed_max_size=192,
        qk_norm=qk_norm,
        dual_attention_layers=dual,
    )


def _flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True)


def _clip() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )


def _open_clip(width: int, depth: int) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=depth,
            num_attention_heads=width // 64,
            projection_dim=width,
        )
    )


def _t5() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    )
