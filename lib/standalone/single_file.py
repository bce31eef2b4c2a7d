"""The configuration of a Stable Diffusion 1.x or 2.x checkpoint, read from the shapes in its single file.

diffusers converts the weights; it wants a folder of configurations for that, which it would download. The shapes say
all of it except the prediction type, which no tensor tells.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_CLIP = "cond_stage_model.transformer.text_model."
_OPEN_CLIP = "cond_stage_model.model."

Shapes = dict[str, list[int]]


def shapes_of(path: Path) -> Shapes:
    """Tensor name -> shape, from the header alone. Errors: `ValueError` when the file cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error


def write_configuration(path: Path, folder: Path, prediction: str) -> None:
    """Write the diffusers configuration of a checkpoint into `folder`; `prediction` is epsilon or v.

    Errors: `ValueError` when the file is not a Stable Diffusion 1.x or 2.x checkpoint, saying what is missing.
    """
    shapes = shapes_of(path)
    for prefix, what in (
        (_UNET + "input_blocks.0.0.weight", "U-Net"),
        (_VAE + "encoder.conv_in.weight", "autoencoder"),
    ):
        if prefix not in shapes:
            raise ValueError(f"{path} holds no {what} of Stable Diffusion 1.x or 2.x: {prefix} is missing")
    try:
        models = {
            "unet/config.json": _unet_config(shapes),
            "vae/config.json": _vae_config(shapes),
            "text_encoder/config.json": _text_config(shapes, path),
        }
    except KeyError as error:
        raise ValueError(f"{path} is incomplete: {error.args[0]} is missing") from error
    configs: dict[str, dict[str, Any]] = {
        **models,
        "scheduler/scheduler_config.json": {
            "_class_name": "PNDMScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": "v_prediction" if prediction == "v" else "epsilon",
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
        },
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        },
    }
    for name, config in configs.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(config, indent=2), encoding="utf-8")
    _check_complete(path, shapes, *models.values())


def _check_complete(
    path: Path, shapes: Shapes, unet: dict[str, Any], vae: dict[str, Any], text_encoder: dict[str, Any]
) -> None:
    """Whether each part has as many values as its layers take; diffusers may start from random ones where some lack."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unused = rf"position_ids|text_projection|logit_scale|attn_mask|resblocks\.{text_encoder['num_hidden_layers']}\."
    with torch.device("meta"):
        parts: list[tuple[str, Any, str, str]] = [
            ("U-Net", UNet2DConditionModel.from_config(unet), _UNET, "^$"),
            ("autoencoder", AutoencoderKL.from_config(vae), _VAE, r"^loss\."),
            ("text encoder", CLIPTextModel(CLIPTextConfig(**text_encoder)), "cond_stage_model.", unused),
        ]
    for what, model, prefix, others in parts:
        needed = sum(p.numel() for p in model.parameters())
        names = [name for name in shapes if name.startswith(prefix) and not re.search(others, name[len(prefix) :])]
        lacking = needed - sum(math.prod(shapes[name]) for name in names)
        if lacking > 0:
            raise ValueError(f"{path} is incomplete: its {what} lacks {lacking:,} of {needed:,} values")


def _indices(shapes: Shapes, pattern: str) -> list[int]:
    expression = re.compile(pattern)
    return sorted({int(m.group(1)) for m in map(expression.match, shapes) if m})


def _unet_config(shapes: Shapes) -> dict[str, Any]:
    blocks = re.escape(_UNET) + r"input_blocks\.(\d+)\."
    residual = _indices(shapes, blocks + r"0\.in_layers\.2\.weight")
    down = set(_indices(shapes, blocks + r"0\.op\.weight"))
    attention = set(_indices(shapes, blocks + r"1\.transformer_blocks\."))
    channels, counts, attends = [], [0], [False]
    for index in range(1, max(residual) + 1):
        if index in down:
            counts.append(0)
            attends.append(False)
        else:
            counts[-1] += 1
            attends[-1] |= index in attention
            width = shapes[f"{_UNET}input_blocks.{index}.0.in_layers.2.weight"][0]
            channels = [*channels[: len(counts) - 1], width]
    first = f"{_UNET}input_blocks.{min(attention, default=1)}.1."
    width = shapes[f"{first}transformer_blocks.0.attn2.to_k.weight"][1]
    # SD 1.x has eight heads everywhere; SD 2.x has heads of 64
    heads: int | list[int] = [c // 64 for c in channels] if width == 1024 else 8
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes[_UNET + "input_blocks.0.0.weight"][1],
        "out_channels": shapes[_UNET + "out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": counts[0],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "cross_attention_dim": width,
        "attention_head_dim": heads,
        "use_linear_projection": len(shapes[f"{first}proj_in.weight"]) == 2,
        "sample_size": 96 if width == 1024 else 64,
    }


def _vae_config(shapes: Shapes) -> dict[str, Any]:
    levels = _indices(shapes, re.escape(_VAE) + r"encoder\.down\.(\d+)\.block\.")
    channels = [shapes[f"{_VAE}encoder.down.{i}.block.0.conv2.weight"][0] for i in levels]
    count = len(_indices(shapes, re.escape(_VAE) + r"encoder\.down\.0\.block\.(\d+)\."))
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": channels,
        "layers_per_block": count,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "latent_channels": shapes[_VAE + "decoder.conv_in.weight"][1],
        "scaling_factor": 0.18215,
    }


def _text_config(shapes: Shapes, path: Path) -> dict[str, Any]:
    if _CLIP + "embeddings.token_embedding.weight" in shapes:
        vocabulary, width = shapes[_CLIP + "embeddings.token_embedding.weight"]
        layers = len(_indices(shapes, re.escape(_CLIP) + r"encoder\.layers\.(\d+)\."))
        inner = shapes[_CLIP + "encoder.layers.0.mlp.fc1.weight"][0]
        activation = "quick_gelu"
    elif _OPEN_CLIP + "token_embedding.weight" in shapes:
        vocabulary, width = shapes[_OPEN_CLIP + "token_embedding.weight"]
        # the last layer is not used: SD 2.x takes the penultimate one
        layers = len(_indices(shapes, re.escape(_OPEN_CLIP) + r"transformer\.resblocks\.(\d+)\.")) - 1
        inner = shapes[_OPEN_CLIP + "transformer.resblocks.0.mlp.c_fc.weight"][0]
        activation = "gelu"
    else:
        raise ValueError(f"{path} holds no text encoder of Stable Diffusion 1.x or 2.x; give a complete checkpoint")
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_act": activation,
        "vocab_size": vocabulary,
        "max_position_embeddings": 77,
        "projection_dim": width,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 0 if width == 1024 else 1,
    }
