"""Tiny models of ComfyUI's own classes, with seeded weights, made as a checkpoint's are: under inference mode."""

import json
import types

import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.taesd.taesd
import numpy as np
import torch
from PIL import Image

CPU = torch.device("cpu")
TEXT_WIDTH = {"sd1": 768, "sdxl": 2048, "sd3": 64, "flux": 64, "lumina2": 64, "wan": 64}
POOLED_WIDTH = {"sdxl": 1280, "sd3": 32, "flux": 32}
CHANNELS = {"sd1": 4, "sdxl": 4, "sd3": 16, "flux": 16, "lumina2": 16, "wan": 16}


def _unet(context, **more):
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "use_spatial_transformer": True,
        "legacy": False,
        "adm_in_channels": None,
        "model_channels": 64,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": False,
        "context_dim": context,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        **more,
    }


_CONFIGS = {
    "sd1": ("SD15", _unet(768)),
    "sdxl": (
        "SDXL",
        _unet(2048, adm_in_channels=2816, num_classes="sequential", use_linear_in_transformer=True),
    ),
    "sd3": (
        "SD3",
        {
            "in_channels": 16,
            "out_channels": 16,
            "input_size": None,
            "patch_size": 2,
            "depth": 2,
            "pos_embed_scaling_factor": None,
            "pos_embed_max_size": 16,
            "adm_in_channels": 32,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 64, "out_features": 128},
            },
            "qk_norm": "rms",
        },
    ),
    "flux": (
        "Flux",
        {
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "vec_in_dim": 32,
            "context_in_dim": 64,
            "hidden_size": 64,
            "mlp_ratio": 4.0,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 2,
            "axes_dim": [8, 12, 12],
            "theta": 10000,
            "qkv_bias": True,
            "guidance_embed": True,
            "txt_ids_dims": [],
        },
    ),
    # two whose layers have no names but their own; the latents of the second are those of films
    "lumina2": (
        "Lumina2",
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 64,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "multiple_of": 32,
            "qk_norm": True,
            "cap_feat_dim": 64,
            "axes_dims": [8, 12, 12],
            "axes_lens": [32, 64, 64],
        },
    ),
    "wan": (
        "WAN21_T2V",
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "in_dim": 16,
            "out_dim": 16,
            "dim": 64,
            "ffn_dim": 128,
            "freq_dim": 32,
            "text_dim": 64,
            "num_heads": 2,
            "num_layers": 2,
        },
    ),
}
FAMILIES = tuple(_CONFIGS)


def seeded(module, seed=0):
    """Weights that keep activations near 1; norms and biases a little off their neutral values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            value = torch.randn(tensor.shape, generator=generator)
            value = value / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else value * 0.1
            if tensor.ndim == 1 and name.endswith(("weight", "scale")):
                value += 1
            tensor.copy_(value)
    return module


def model(family, dtype=torch.float32, manual_cast=None, seed=0):
    """A MODEL, as a loader node gives it. Call it in inference mode."""
    name, config = _CONFIGS[family]
    model_config = getattr(comfy.supported_models, name)(config)
    model_config.set_inference_dtype(dtype, manual_cast)
    made = model_config.get_model({}, "", device=CPU)
    seeded(made.diffusion_model, seed)
    return comfy.model_patcher.ModelPatcher(made, load_device=CPU, offload_device=CPU)


def quantised(family, seed=0):
    """A MODEL whose Linear layers hold quantised tensors, as ComfyUI keeps files with scaled weights."""
    plain = model(family, seed=seed).model.diffusion_model
    name, config = _CONFIGS[family]
    model_config = getattr(comfy.supported_models, name)(config)
    model_config.set_inference_dtype(torch.float32, None)
    model_config.custom_operations = comfy.ops.mixed_precision_ops({}, torch.float32, full_precision_mm=True)
    made = model_config.get_model({}, "", device=CPU)
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    form = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    for key, layer in plain.named_modules():
        if isinstance(layer, torch.nn.Linear):
            weight = state[f"{key}.weight"]
            scale = weight.abs().max() / 448
            state[f"{key}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
            state |= {f"{key}.weight_scale": scale, f"{key}.comfy_quant": form}
    made.diffusion_model.load_state_dict(state)
    return comfy.model_patcher.ModelPatcher(made, load_device=CPU, offload_device=CPU)


def conditioning(family, batch=2, seed=1):
    """What text encoders and the core would give for a batch."""
    generator = torch.Generator().manual_seed(seed)
    given = {
        "text": torch.randn(batch, 7, TEXT_WIDTH[family], generator=generator),
        "sizes": torch.tensor([[640.0, 512, 0, 64 * i, 512, 512] for i in range(batch)]),
        "guidance": torch.full((batch,), 2.0),
    }
    if family in POOLED_WIDTH:
        given["pooled"] = torch.randn(batch, POOLED_WIDTH[family], generator=generator)
    return given


def clip(num_layers=3, seed=2):
    """A CLIP of SD 1.5's kind: its width and vocabulary, and few layers."""
    target = types.SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer)
    small = {"num_hidden_layers": num_layers, "intermediate_size": 64}
    made = comfy.sd.CLIP(target, model_options={"clip_l_model_config": small, "dtype": torch.float32})
    seeded(made.cond_stage_model, seed)
    return made


def vae(channels=4, seed=3):
    """A VAE with the smallest autoencoder that ComfyUI knows."""
    tiny = seeded(comfy.taesd.taesd.TAESD(latent_channels=channels), seed)
    return comfy.sd.VAE(sd=tiny.state_dict())


def pictures(folder, num=3, side=64):
    """A data set: pictures of noise with captions."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(num):
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i} (of: noise)")
    return folder
