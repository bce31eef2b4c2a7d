"""Loading a pipeline of any family: a diffusers folder or a single `.safetensors` checkpoint, offline."""

from __future__ import annotations

import json
import math
import re
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..files import sha256_of
from .single_file import shapes_of, write_configuration
from .sources import Sources, without_parts
from .transformer_file import family_in, transformer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Errors: `ValueError` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'unknown device "{name}"; give auto, cpu or cuda') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device "{name}" is not available: torch sees no CUDA device; give --device cpu')
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that `loop.compute_dtype` asks for; auto is bf16 or else fp16 on a GPU, fp32 on the CPU."""
    if name != "auto":
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def quiet_libraries() -> None:
    """Keep diffusers and transformers from talking. Errors: `ValueError` when they are missing."""
    try:
        import transformers.utils.logging
        from diffusers.utils import logging
    except ImportError as error:
        raise ValueError('the standalone host needs diffusers: pip install "sd-atelier[standalone]"') from error
    for library in (logging, transformers.utils.logging):
        # a user of the command line reads our lines, not the loader's bars and advice
        library.set_verbosity_error()
        library.disable_progress_bar()


def load_pipeline(
    path: Path,
    *,
    dtype: torch.dtype,
    tokenizer: Path | None = None,
    prediction: str = "auto",
    sources: Sources | None = None,
) -> tuple[Any, dict[str, str]]:
    """A pipeline of diffusers on the CPU, and what is known of it (name, hash of a single file).

    `sources` says where the parts lie that a single file lacks, and `tokenizer` is short for its CLIP tokenizer.
    `prediction` (auto, epsilon or v) is what a single file with a U-Net predicts, which few of them say.
    The autoencoder is kept float32: it is small, and overflows in fp16.
    Errors: `ValueError` saying what the folder or file lacks.
    """
    quiet_libraries()
    if not path.exists():
        raise ValueError(f"model {path} does not exist; give a diffusers folder or a .safetensors file")
    sources = sources or Sources()
    if tokenizer is not None:
        sources = replace(sources, tokenizer=tokenizer)
    info = {"name": path.stem if path.is_file() else path.name}
    with warnings.catch_warnings():
        # diffusers renames torch_dtype to dtype; both ends of the range of versions know the old name
        warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
        if path.is_dir():
            pipeline = _folder(path, dtype, sources)
        elif path.suffix == ".safetensors":
            info["sha256"] = sha256_of(path)
            pipeline = _single_file(path, dtype, prediction, sources)
        else:
            raise ValueError(
                f"{path} is neither a folder nor a .safetensors file; other formats can run code and are not read"
            )
    pipeline.vae.to(torch.float32)
    model = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    takes, gives = model.config.in_channels, pipeline.vae.config.latent_channels
    if type(model).__name__ == "FluxTransformer2DModel":
        gives *= 4  # a token is 2 x 2 pixels
    if takes != gives:
        raise ValueError(
            f"{path} is no plain text-to-image model: its denoiser takes {takes} channels, and "
            f"its autoencoder gives {gives}; inpainting models and their like cannot be trained"
        )
    return pipeline, info


_OPTIONS: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
_SAFETY = {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None}


def _folder(path: Path, dtype: torch.dtype, sources: Sources) -> Any:
    import diffusers

    if not (path / "model_index.json").is_file():
        raise ValueError(f"{path} is not a diffusers folder: model_index.json is missing")
    name, options = _class_of(path)
    if sources.without_t5:
        options |= without_parts(name)
    try:
        pipeline = getattr(diffusers, name).from_pretrained(path, torch_dtype=dtype, **_OPTIONS, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be loaded as a {name}: {error}") from error
    if pipeline.text_encoder is None:
        raise ValueError(
            f"{path} has no first text encoder, as the refiner of Stable Diffusion XL; train the base model"
        )
    for part, model in pipeline.components.items():
        if isinstance(model, torch.nn.Module):
            # the libraries start from random values where some lack, and only log it
            needed = sum(p.numel() for p in model.parameters())
            lacking = needed - sum(_num_values(file) for file in (path / part).glob("*.safetensors"))
            if lacking > 0:
                raise ValueError(f"{path / part} is incomplete: it lacks {lacking:,} of {needed:,} values")
    return pipeline


def _class_of(path: Path) -> tuple[str, dict[str, Any]]:
    """The pipeline's class, told from the folder's denoiser, and what it is loaded with. Errors: `ValueError`."""
    for part in ("unet", "transformer"):
        config = path / part / "config.json"
        if config.is_file():
            break
    else:
        raise ValueError(f"{path} has neither a unet nor a transformer with a config.json")
    values = json.loads(config.read_text(encoding="utf-8"))
    if part == "unet":
        return (
            ("StableDiffusionXLPipeline", {})
            if values.get("addition_embed_type")
            else ("StableDiffusionPipeline", _SAFETY)
        )
    known = {"SD3Transformer2DModel": "StableDiffusion3Pipeline", "FluxTransformer2DModel": "FluxPipeline"}
    name = values.get("_class_name")
    if name not in known:
        raise ValueError(f"{config} is of a model that is not known here ({name}); known: {', '.join(known)}")
    # what encodes pictures as prompts is of no use here
    return known[name], {"feature_extractor": None, "image_encoder": None}


def _num_values(file: Path) -> int:
    """Values in a file that holds a model or a shard of one; 0 for others, such as the model in another precision."""
    if not re.fullmatch(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors", file.name):
        return 0
    names = ("position_ids", "pos_embed.pos_embed")  # constants
    return sum(math.prod(shape) for name, shape in shapes_of(file).items() if not name.endswith(names))


def _single_file(path: Path, dtype: torch.dtype, prediction: str, sources: Sources) -> Any:
    shapes = shapes_of(path)
    found = family_in(shapes)
    if found is None:
        return _unet_checkpoint(path, dtype, prediction, sources)
    return _transformer_checkpoint(path, *found, dtype, sources)


def _unet_checkpoint(path: Path, dtype: torch.dtype, prediction: str, sources: Sources) -> Any:
    import diffusers

    with tempfile.TemporaryDirectory() as folder:
        name = write_configuration(path, Path(folder), prediction)
        tokenizers = {"tokenizer": sources.clip_tokenizer()}
        options = {"safety_checker": None, "requires_safety_checker": False}
        if name == "StableDiffusionXLPipeline":
            tokenizers["tokenizer_2"], options = sources.clip_tokenizer(pads_with_zero=True), {}
        pipeline = getattr(diffusers, name).from_single_file(
            str(path), config=folder, torch_dtype=dtype, local_files_only=True, **tokenizers, **options
        )
    if name == "StableDiffusionPipeline" and pipeline.unet.config.cross_attention_dim == 1024:
        # SD 2.x was trained with token 0 as padding; the tokenizer of SD 1.x pads with the end token
        pipeline.tokenizer.pad_token = "!"
    if sources.vae is not None:
        scale = pipeline.vae.config.scaling_factor
        pipeline.vae = sources.autoencoder(path, scale, None)
    return pipeline


def _transformer_checkpoint(path: Path, family: str, prefix: str, dtype: torch.dtype, sources: Sources) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusion3Pipeline

    # asked for before the largest part is read, so that what lacks is said at once
    parts = sources.of_sd3(path, dtype) if family == "sd3" else sources.of_flux(path, dtype)
    model = transformer(path, family, prefix, dtype)
    if family == "sd3":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        return StableDiffusion3Pipeline(transformer=model, scheduler=scheduler, **parts)
    # the distilled model with guidance was published with a shift by size, the one for few steps with none
    dynamic = model.config.guidance_embeds
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if dynamic else 1.0, use_dynamic_shifting=dynamic)
    return FluxPipeline(transformer=model, scheduler=scheduler, **parts)
