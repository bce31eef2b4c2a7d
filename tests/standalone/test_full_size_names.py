"""The full-size models' layers, made without memory: kohya's default is 192 of SD 1.5's U-Net."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sd_atelier.lib.config import TrainableConfig
from sd_atelier.lib.trainables.lora import _chosen

diffusers = pytest.importorskip("diffusers", reason="the standalone host needs diffusers")
transformers = pytest.importorskip("transformers", reason="the standalone host needs transformers")


def unet(width: int) -> torch.nn.Module:
    heads = {768: 8, 1024: [5, 10, 20, 20]}[width]
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(
            cross_attention_dim=width, attention_head_dim=heads, use_linear_projection=width == 1024
        )


def text_encoder() -> torch.nn.Module:
    with torch.device("meta"):
        return transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )


@pytest.mark.parametrize("width", [768, 1024])
@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"layers": "attention"}, 128),
        ({"layers": "attention_mlp"}, 160),
        ({"layers": "kohya"}, 192),
        ({"layers": "kohya", "conv_rank": 4}, 278),
        ({"layers": "all"}, 278),
    ],
)
def test_presets_choose_these_layers_of_the_unet(width: int, settings: dict, count: int) -> None:
    host = SimpleNamespace(family="sd1" if width == 768 else "sd2", parts={"unet": unet(width)})
    targets = list(_chosen(host, TrainableConfig(**settings)))  # type: ignore[arg-type]
    assert len(targets) == count
    assert len({t.layer.name for t in targets}) == count


def test_the_text_encoder_gives_kohyas_72() -> None:
    host = SimpleNamespace(family="sd1", parts={"unet": torch.nn.Module(), "te": text_encoder()})
    names = {t.layer.name for t in _chosen(host, TrainableConfig(text_encoder=True))}  # type: ignore[arg-type]
    assert len(names) == 72
    assert all(name.startswith("lora_te_text_model_encoder_layers_") for name in names)
