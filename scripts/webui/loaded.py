"""What the loaded checkpoint is, read from the model object itself, and what of it cannot be trained.

Every refusal is a `ValueError` that says what to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import open_clip

_PARAMETERIZATIONS = {"eps": "epsilon", "v": "v", "x0": "x0"}
_SCALINGS = {"EpsScaling": "epsilon", "VScaling": "v"}


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that can be trained."""

    model: Any  # ldm's LatentDiffusion, sgm's DiffusionEngine or the WebUI's own SD3Inferencer
    family: str
    prediction: str
    alphas_cumprod: Tensor | None  # (1000,) float32 on the CPU
    parts: dict[str, nn.Module]
    fused: tuple[tuple[nn.Module, nn.Module], ...]  # OpenCLIP models and the containers that `parts` has for them

    @property
    def unet(self) -> Any:
        """The denoiser."""
        return self.model.model.diffusion_model


def loaded_checkpoint() -> Loaded:
    """The checkpoint that is loaded now; loads the chosen one where the host has not yet.

    Errors: `ValueError` saying what cannot be trained, and what to do.
    """
    from modules import shared

    model = shared.sd_model
    if model is None:
        raise ValueError("no checkpoint is loaded; choose one at the top of the page and wait until it is there")
    # Forge and its relatives keep weights in objects of their own, SD.Next in a pipeline of diffusers
    if hasattr(model, "forge_objects") or not hasattr(getattr(model, "model", None), "diffusion_model"):
        raise ValueError(
            "this WebUI keeps its model in another way, with which training does not work; use AUTOMATIC1111"
        )
    _refuse_options(shared)
    family = _family(model)
    parts: dict[str, nn.Module] = {"unet": model.model.diffusion_model}
    fused = []

    def opened(part: str, encoder: Any, num_unused: int, projects: bool) -> None:
        parts[part] = open_clip.split(encoder, num_unused, projects)
        fused.append((encoder, parts[part]))

    if family == "sd1":
        parts["te"] = model.cond_stage_model.wrapped.transformer
    elif family == "sd2":
        embedder = model.cond_stage_model.wrapped
        opened("te", embedder.model, num_unused=embedder.layer_idx, projects=False)
    elif family == "sdxl":
        first, second = model.conditioner.embedders[:2]
        parts["te1"] = first.wrapped.transformer
        opened("te2", second.wrapped.model, num_unused=0, projects=True)
    else:
        encoders = model.text_encoders
        parts["te1"], parts["te2"] = encoders.clip_l.transformer, encoders.clip_g.transformer
        if encoders.t5xxl is not None:
            parts["te3"] = encoders.t5xxl.transformer
    return Loaded(model, family, _prediction(model, family), _alphas_cumprod(model, family), parts, tuple(fused))


def is_still_loaded(loaded: Loaded) -> bool:
    """Whether the checkpoint is the one that it was, without loading anything."""
    from modules import sd_models

    return sd_models.model_data.sd_model is loaded.model


def information(loaded: Loaded) -> dict[str, str]:
    """What run.json and the file's metadata say of the model."""
    from modules import sd_vae, shared

    checkpoint = loaded.model.sd_checkpoint_info
    info = {
        "name": Path(checkpoint.filename).name,
        "clip_skip": str(shared.opts.CLIP_stop_at_last_layers if loaded.family == "sd1" else 1),
        "prediction": loaded.prediction,
    }
    if checkpoint.sha256:
        info["sha256"] = checkpoint.sha256
    vae = sd_vae.get_loaded_vae_name()
    return info | ({"vae": vae} if vae else {})


def _refuse_options(shared: Any) -> None:
    if getattr(shared.cmd_opts, "upcast_sampling", False):
        raise ValueError("training does not work with --upcast-sampling; start the WebUI without it")
    if getattr(shared.opts, "use_old_emphasis_implementation", False):
        raise ValueError(
            'captions cannot be encoded with "Use old emphasis implementation"; turn it off in Settings, Compatibility'
        )


def _family(model: Any) -> str:
    name = type(model).__name__
    if getattr(model, "is_sd3", False):
        return "sd3"
    channels = model.model.diffusion_model.input_blocks[0][0].weight.shape[1]
    if channels != 4:
        raise ValueError(
            f"the loaded checkpoint is no plain text-to-image model: its U-Net takes {channels} channels; inpainting, "
            "depth and editing models cannot be trained, load the model that they were made from"
        )
    if getattr(model, "is_sdxl", False):
        encoders = [type(e).__name__ for e in model.conditioner.embedders if hasattr(e, "wrapped")]
        if len(encoders) != 2:
            raise ValueError("the loaded checkpoint is an SDXL refiner; load the base model, which is the one to train")
        return "sdxl"
    if name != "LatentDiffusion" or model.model.conditioning_key != "crossattn":
        raise ValueError(
            f"the loaded checkpoint ({name}) is of a kind that cannot be trained; load SD 1.x, 2.x or SDXL"
        )
    encoder = getattr(model.cond_stage_model, "wrapped", None)
    kinds = {"FrozenCLIPEmbedder": "sd1", "FrozenOpenCLIPEmbedder": "sd2"}
    if type(encoder).__name__ not in kinds:
        raise ValueError(
            f"the loaded checkpoint has the text encoder {type(encoder).__name__}; models with CLIP or OpenCLIP can be "
            "trained"
        )
    return kinds[type(encoder).__name__]


def _prediction(model: Any, family: str) -> str:
    if family == "sd3":
        # the WebUI calls it "eps" there
        return "flow"
    if family == "sdxl":
        scaling = type(model.denoiser.scaling).__name__
        if scaling not in _SCALINGS:
            raise ValueError(f"the loaded checkpoint predicts in the way of {scaling}; epsilon and v can be trained")
        return _SCALINGS[scaling]
    return _PARAMETERIZATIONS[model.parameterization]


def _alphas_cumprod(model: Any, family: str) -> Tensor | None:
    if family == "sd3":
        return None
    # the settings change alphas_cumprod (half precision, zero terminal SNR) and keep what the checkpoint says here
    values = getattr(model, "alphas_cumprod_original", None)
    return (model.alphas_cumprod if values is None else values).detach().to("cpu", torch.float32)
