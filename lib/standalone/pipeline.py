"""Loading a pipeline: a diffusers folder or a single `.safetensors` checkpoint, offline."""

from __future__ import annotations

import math
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from ..files import sha256_of
from .single_file import shapes_of, write_configuration

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
    path: Path, *, dtype: torch.dtype, tokenizer: Path | None = None, prediction: str = "epsilon"
) -> tuple[Any, dict[str, str]]:
    """A StableDiffusionPipeline on the CPU, and what is known of it (name, hash of a single file).

    `tokenizer` is a folder with a CLIP tokenizer, and `prediction` (epsilon or v) what the model predicts: both only
    for single files, which hold neither. The autoencoder is kept float32: it is small, and overflows in fp16.
    Errors: `ValueError` saying what the folder or file lacks.
    """
    quiet_libraries()
    if not path.exists():
        raise ValueError(f"model {path} does not exist; give a diffusers folder or a .safetensors file")
    options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False, "local_files_only": True}
    info = {"name": path.stem if path.is_file() else path.name}
    with warnings.catch_warnings():
        # diffusers renames torch_dtype to dtype; both ends of the range of versions know the old name
        warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
        if path.is_dir():
            pipeline = _folder(path, dtype, options)
        elif path.suffix == ".safetensors":
            info["sha256"] = sha256_of(path)
            pipeline = _single_file(path, dtype, tokenizer, prediction, options)
        else:
            raise ValueError(
                f"{path} is neither a folder nor a .safetensors file; other formats can run code and are not read"
            )
    pipeline.vae.to(torch.float32)
    takes, gives = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if takes != gives:
        raise ValueError(
            f"{path} is no plain text-to-image model: its U-Net takes {takes} channels, its autoencoder gives {gives}; "
            "inpainting models and their like cannot be trained"
        )
    return pipeline, info


def _folder(path: Path, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    from diffusers import StableDiffusionPipeline

    if not (path / "model_index.json").is_file():
        raise ValueError(f"{path} is not a diffusers folder: model_index.json is missing")
    options = {**options, "feature_extractor": None, "use_safetensors": True}
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(path, torch_dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be loaded as a Stable Diffusion 1.x or 2.x pipeline: {error}") from error
    for part in ("unet", "vae", "text_encoder"):
        # the libraries start from random values where some lack, and only log it
        needed = sum(p.numel() for p in getattr(pipeline, part).parameters())
        lacking = needed - sum(_num_values(file) for file in (path / part).glob("*.safetensors"))
        if lacking > 0:
            raise ValueError(f"{path / part} is incomplete: it lacks {lacking:,} of {needed:,} values")
    return pipeline


def _num_values(file: Path) -> int:
    """Values in a file that holds a model or a shard of one; 0 for others, such as the model in another precision."""
    if not re.fullmatch(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors", file.name):
        return 0
    return sum(math.prod(shape) for name, shape in shapes_of(file).items() if not name.endswith("position_ids"))


def _single_file(
    path: Path, dtype: torch.dtype, tokenizer: Path | None, prediction: str, options: dict[str, Any]
) -> Any:
    from diffusers import StableDiffusionPipeline

    with tempfile.TemporaryDirectory() as folder:
        write_configuration(path, Path(folder), prediction)
        pipeline = StableDiffusionPipeline.from_single_file(
            str(path), config=folder, tokenizer=_tokenizer(tokenizer), torch_dtype=dtype, **options
        )
    if pipeline.unet.config.cross_attention_dim == 1024:
        # SD 2.x was trained with token 0 as padding; the tokenizer of SD 1.x pads with the end token
        pipeline.tokenizer.pad_token = "!"
    return pipeline


def _tokenizer(folder: Path | None) -> Any:
    from transformers import CLIPTokenizer

    source = "openai/clip-vit-large-patch14" if folder is None else str(folder)
    where = "the local Hugging Face cache" if folder is None else str(folder)
    problem = (
        f"no CLIP tokenizer in {where}; a single file holds none: give --tokenizer FOLDER (vocab.json, merges.txt)"
    )
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(problem) from error
    if len(tokenizer.get_vocab()) < 256:
        # of a folder without these files transformers makes a tokenizer that knows no letter
        raise ValueError(problem)
    return tokenizer
