"""The configuration of a Stable Diffusion 1.x, 2.x or XL checkpoint, read from the shapes in its single file.

diffusers converts the weights; it wants a folder of configurations for that, which it would download. The shapes say
all of it except the prediction type, which only some files of XL tell.
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
_XL_CLIP = "conditioner.embedders.0.transformer."
_XL_OPEN_CLIP = "conditioner.embedders.1.model."
_REFINER = "conditioner.embedders.0.model."

Shapes = dict[str, list[int]]


def shapes_of(path: Path) -> Shapes:
    """Tensor name -> shape, from the header alone. Errors: `ValueError` when the file cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error


def is_unet_checkpoint(shapes: Shapes) -> bool:
    """Whether a file holds a U-Net in the original spelling."""
    return _UNET + "input_blocks.0.0.weight" in shapes


def write_configuration(path: Path, folder: Path, prediction: str) -> str:
    """Write the diffusers configuration of a checkpoint into `folder`; returns the name of the pipeline's class.

    `prediction` is epsilon or v, or auto for what the file says, else epsilon.
    Errors: `ValueError` when the file is no whole checkpoint of these models, saying what is missing.
    """
    shapes = shapes_of(path)
    for prefix, what in (
        (_UNET + "input_blocks.0.0.weight", "U-Net"),
        (_VAE + "encoder.conv_in.weight", "autoencoder"),
    ):
        if prefix not in shapes:
            raise ValueError(f"{path} holds no {what} of Stable Diffusion 1.x, 2.x or XL: {prefix} is missing")
    if any(name.startswith(_REFINER) for name in shapes):
        raise ValueError(f"{path} is the refiner of Stable Diffusion XL; train the base model")
    is_xl = any(name.startswith(_XL_OPEN_CLIP) for name in shapes)
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    try:
        if is_xl:
            encoders = {
                "text_encoder": (CLIPTextModel, _xl_clip_config(shapes), _XL_CLIP),
                "text_encoder_2": (CLIPTextModelWithProjection, _xl_open_clip_config(shapes), _XL_OPEN_CLIP),
            }
        else:
            encoders = {"text_encoder": (CLIPTextModel, _text_config(shapes, path), "cond_stage_model.")}
        unet, vae = _unet_config(shapes), vae_config(shapes, _VAE, 0.13025 if is_xl else 0.18215)
    except KeyError as error:
        raise ValueError(f"{path} is incomplete: {error.args[0]} is missing") from error
    pipeline = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    scheduler = "EulerDiscreteScheduler" if is_xl else "PNDMScheduler"
    tokenizers = {name.replace("text_encoder", "tokenizer"): ["transformers", "CLIPTokenizer"] for name in encoders}
    other = {"safety_checker": [None, None], "requires_safety_checker": False}
    configs: dict[str, dict[str, Any]] = {
        "unet/config.json": unet,
        "vae/config.json": vae,
        **{f"{name}/config.json": config for name, (_, config, _) in encoders.items()},
        "scheduler/scheduler_config.json": _scheduler_config(shapes, scheduler, prediction),
        "model_index.json": {
            "_class_name": pipeline,
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            **{name: ["transformers", cls.__name__] for name, (cls, _, _) in encoders.items()},
            **tokenizers,
            "scheduler": ["diffusers", scheduler],
            "feature_extractor": [None, None],
            **({"force_zeros_for_empty_prompt": False} if is_xl else other),
        },
    }
    for name, config in configs.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(config, indent=2), encoding="utf-8")
    from diffusers import AutoencoderKL, UNet2DConditionModel

    parts: list[Part] = [
        ("U-Net", UNet2DConditionModel, unet, _UNET, "^$"),
        ("autoencoder", AutoencoderKL, vae, _VAE, r"^loss\."),
    ]
    for name, (cls, config, prefix) in encoders.items():
        unused = rf"position_ids|logit_scale|attn_mask|resblocks\.{config['num_hidden_layers']}\."
        if name == "text_encoder":
            unused += "|text_projection"
        parts.append((name.replace("_", " "), cls, config, prefix, unused))
    check_complete(path, shapes, parts)
    return pipeline


def _scheduler_config(shapes: Shapes, scheduler: str, prediction: str) -> dict[str, Any]:
    if prediction == "auto":
        prediction = "v" if "v_pred" in shapes else "epsilon"
    common = {
        "_class_name": scheduler,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if prediction == "v" else "epsilon",
        "steps_offset": 1,
    }
    if scheduler == "PNDMScheduler":
        return {**common, "set_alpha_to_one": False, "skip_prk_steps": True}
    zero_snr = "ztsnr" in shapes
    spacing = "trailing" if zero_snr else "leading"
    return {**common, "timestep_spacing": spacing, "rescale_betas_zero_snr": zero_snr}


# what it is called, its class, its configuration, the prefix of its names, and which of these names are none of its own
Part = tuple[str, Any, dict[str, Any], str, str]


def check_complete(path: Path, shapes: Shapes, parts: list[Part]) -> None:
    """Whether each part has as many values as its layers take; diffusers may start from random ones where some lack.

    Errors: `ValueError` naming the part.
    """
    for what, cls, config, prefix, others in parts:
        with torch.device("meta"):
            model = cls.from_config(config) if hasattr(cls, "from_config") else cls(cls.config_class(**config))
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
    channels, counts, attends, depths = [], [0], [False], [1]
    for index in range(1, max(residual) + 1):
        if index in down:
            counts.append(0)
            attends.append(False)
            depths.append(1)
        else:
            counts[-1] += 1
            if index in attention:
                attends[-1] = True
                depths[-1] = len(
                    _indices(shapes, rf"{re.escape(_UNET)}input_blocks\.{index}\.1\.transformer_blocks\.(\d+)\.")
                )
            width = shapes[f"{_UNET}input_blocks.{index}.0.in_layers.2.weight"][0]
            channels = [*channels[: len(counts) - 1], width]
    first = f"{_UNET}input_blocks.{min(attention, default=1)}.1."
    width = shapes[f"{first}transformer_blocks.0.attn2.to_k.weight"][1]
    label = shapes.get(_UNET + "label_emb.0.0.weight")
    # SD 1.x has eight heads everywhere; SD 2.x and XL have heads of 64
    heads: int | list[int] = [max(1, c // 64) for c in channels] if width == 1024 or label else 8
    added = (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": label[1],
        }
        if label
        else {}
    )
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
        "sample_size": 128 if label else 96 if width == 1024 else 64,
        "transformer_layers_per_block": depths,
        **added,
    }


def vae_config(shapes: Shapes, prefix: str, scale: float, shift: float | None = None) -> dict[str, Any]:
    """The configuration of an autoencoder whose names begin with `prefix`. Errors: `KeyError` for a missing tensor."""
    levels = _indices(shapes, re.escape(prefix) + r"encoder\.down\.(\d+)\.block\.")
    channels = [shapes[f"{prefix}encoder.down.{i}.block.0.conv2.weight"][0] for i in levels]
    count = len(_indices(shapes, re.escape(prefix) + r"encoder\.down\.0\.block\.(\d+)\."))
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": channels,
        "layers_per_block": count,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "latent_channels": shapes[prefix + "decoder.conv_in.weight"][1],
        "scaling_factor": scale,
        "shift_factor": shift,
        "use_quant_conv": prefix + "quant_conv.weight" in shapes,
        "use_post_quant_conv": prefix + "post_quant_conv.weight" in shapes,
    }


def _xl_clip_config(shapes: Shapes) -> dict[str, Any]:
    name = f"{_XL_CLIP}text_model."
    vocabulary, width = shapes[f"{name}embeddings.token_embedding.weight"]
    layers = len(_indices(shapes, re.escape(name) + r"encoder\.layers\.(\d+)\."))
    inner = shapes[f"{name}encoder.layers.0.mlp.fc1.weight"][0]
    return _clip_config("CLIPTextModel", vocabulary, width, layers, inner, "quick_gelu")


def _xl_open_clip_config(shapes: Shapes) -> dict[str, Any]:
    vocabulary, width = shapes[_XL_OPEN_CLIP + "token_embedding.weight"]
    layers = len(_indices(shapes, re.escape(_XL_OPEN_CLIP) + r"transformer\.resblocks\.(\d+)\."))
    inner = shapes[_XL_OPEN_CLIP + "transformer.resblocks.0.mlp.c_fc.weight"][0]
    config = _clip_config("CLIPTextModelWithProjection", vocabulary, width, layers, inner, "gelu")
    return {**config, "projection_dim": shapes[_XL_OPEN_CLIP + "text_projection"][1]}


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
        raise ValueError(f"{path} holds no text encoder of Stable Diffusion 1.x, 2.x or XL; give a complete checkpoint")
    config = _clip_config("CLIPTextModel", vocabulary, width, layers, inner, activation)
    return {**config, "pad_token_id": 0 if width == 1024 else 1}


def _clip_config(cls: str, vocabulary: int, width: int, layers: int, inner: int, activation: str) -> dict[str, Any]:
    return {
        "architectures": [cls],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_act": activation,
        "vocab_size": vocabulary,
        "max_position_embeddings": 77,
        "projection_dim": width,
        # the last two of the vocabulary, whatever its size
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 1,
    }
