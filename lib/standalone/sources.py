"""Where the parts of a model lie that a single file lacks: tokenizers, text encoders, the autoencoder.

Each is asked for in this order: where the user says, in the file itself, in a diffusers folder that lends its parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import part_file
from .part_file import NAMES
from .single_file import shapes_of

# scale and shift of the published autoencoders
_LATENTS = {"sd3": (1.5305, 0.0609), "flux": (0.3611, 0.1159)}
# role -> folder of a pipeline
_FOLDERS = {
    "sd3": {
        "tokenizer": "tokenizer",
        "t5_tokenizer": "tokenizer_3",
        "clip_l": "text_encoder",
        "clip_g": "text_encoder_2",
        "t5": "text_encoder_3",
        "vae": "vae",
    },
    "flux": {
        "tokenizer": "tokenizer",
        "t5_tokenizer": "tokenizer_2",
        "clip_l": "text_encoder",
        "t5": "text_encoder_2",
        "vae": "vae",
    },
}


def without_parts(pipeline: str) -> dict[str, None]:
    """What a pipeline is loaded with to leave T5 out. Errors: `ValueError` for one that has none or needs it."""
    if pipeline != "StableDiffusion3Pipeline":
        raise ValueError("only Stable Diffusion 3 has a T5 that it can do without")
    return {"text_encoder_3": None, "tokenizer_3": None}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Folders of transformers or diffusers, or `.safetensors` files where it is a model."""

    parts: Path | None = None  # a diffusers folder of the same family, for all that is not named otherwise
    tokenizer: Path | None = None
    t5_tokenizer: Path | None = None
    clip_l: Path | None = None
    clip_g: Path | None = None
    t5: Path | None = None
    vae: Path | None = None
    without_t5: bool = False

    def of_sd3(self, path: Path, dtype: torch.dtype) -> dict[str, Any]:
        """The parts of a StableDiffusion3Pipeline beside its transformer. Errors: `ValueError` naming what lacks."""
        parts = {
            "tokenizer": self._tokenizer("tokenizer", "sd3"),
            "tokenizer_2": self.clip_tokenizer("sd3", pads_with_zero=True),
            "text_encoder": self._encoder("clip_l", "sd3", path, dtype, projected=True),
            "text_encoder_2": self._encoder("clip_g", "sd3", path, dtype, projected=True),
            "text_encoder_3": None,
            "tokenizer_3": None,
            "vae": self.autoencoder(path, *_LATENTS["sd3"], family="sd3"),
        }
        if not self.without_t5:
            parts["text_encoder_3"] = self._encoder("t5", "sd3", path, dtype)
            parts["tokenizer_3"] = self._tokenizer("t5_tokenizer", "sd3")
        return parts

    def of_flux(self, path: Path, dtype: torch.dtype) -> dict[str, Any]:
        """The parts of a FluxPipeline beside its transformer. Errors: as `of_sd3`."""
        if self.without_t5:
            without_parts("FluxPipeline")
        return {
            "tokenizer": self._tokenizer("tokenizer", "flux"),
            "tokenizer_2": self._tokenizer("t5_tokenizer", "flux"),
            "text_encoder": self._encoder("clip_l", "flux", path, dtype),
            "text_encoder_2": self._encoder("t5", "flux", path, dtype),
            "vae": self.autoencoder(path, *_LATENTS["flux"], family="flux"),
        }

    def clip_tokenizer(self, family: str = "", *, pads_with_zero: bool = False) -> Any:
        """The tokenizer of all CLIPs; that of OpenCLIP fills its chunks with token 0. Errors: `ValueError`."""
        tokenizer = self._tokenizer("tokenizer", family)
        if pads_with_zero:
            tokenizer.pad_token = "!"  # token 0
        return tokenizer

    def autoencoder(self, path: Path, scale: float, shift: float | None, family: str = "") -> Any:
        """An AutoencoderKL, from the checkpoint at `path` if it is nowhere else. Errors: `ValueError`."""
        where, prefix = self._where("vae", family, path)
        if where.is_file():
            return part_file.autoencoder(where, prefix, scale, shift)
        return part_file.autoencoder_folder(where)

    def _encoder(self, role: str, family: str, path: Path, dtype: torch.dtype, *, projected: bool = False) -> Any:
        where, prefix = self._where(role, family, path)
        if where.is_file():
            return part_file.text_encoder(where, prefix, role, projected=projected, dtype=dtype)
        return part_file.text_encoder_folder(where, role, projected=projected, dtype=dtype)

    def _where(self, role: str, family: str, path: Path) -> tuple[Path, str]:
        """Where a model lies, and in a file what is in front of its names. Errors: `ValueError` where it is nowhere."""
        given: Path | None = getattr(self, role)
        where = given or path
        if where.is_file():
            prefix = part_file.prefix_in(shapes_of(where), role)
            if prefix is not None:
                return where, prefix
            if given is not None:
                raise ValueError(f"{given} holds no {NAMES[role]} in its first spelling; give its diffusers folder")
        elif given is not None:
            if not given.is_dir():
                raise ValueError(f"{given} does not exist; give the {NAMES[role]} as a folder or a .safetensors file")
            return given, ""
        lent = self._lent(role, family)
        if lent is not None:
            return lent, ""
        option = "--" + role.replace("_", "-")
        more = ", or go without it by --no-t5" if (role, family) == ("t5", "sd3") else ""
        raise ValueError(
            f"{path} holds no {NAMES[role]}; give it by {option} (a folder or a .safetensors file), or by --parts a "
            f"diffusers folder that has all that lacks{more}"
        )

    def _lent(self, role: str, family: str) -> Path | None:
        if self.parts is None or family not in _FOLDERS:
            return None
        if not self.parts.is_dir():
            raise ValueError(f"--parts {self.parts} is no folder; give a diffusers folder of the same family")
        folder = self.parts / _FOLDERS[family][role]
        return folder if folder.is_dir() else None

    def _tokenizer(self, role: str, family: str) -> Any:
        import transformers

        loads: Any = transformers  # declares not all of what it has

        folder = getattr(self, role) or self._lent(role, family)
        option, cls, name, files = {
            "tokenizer": (
                "--tokenizer",
                loads.CLIPTokenizer,
                "openai/clip-vit-large-patch14",
                "vocab.json, merges.txt",
            ),
            "t5_tokenizer": ("--t5-tokenizer", loads.T5TokenizerFast, "google/t5-v1_1-xxl", "tokenizer.json"),
        }[role]
        where = "the local Hugging Face cache" if folder is None else str(folder)
        problem = f"no {NAMES[role]} in {where}; a single file holds none: give {option} FOLDER ({files})"
        if folder is not None and not any(
            (folder / f).is_file() for f in ("vocab.json", "tokenizer.json", "spiece.model")
        ):
            # of a folder without these files transformers makes a tokenizer that knows no letter
            raise ValueError(problem)
        try:
            tokenizer = cls.from_pretrained(name if folder is None else str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(problem) from error
        if len(tokenizer.get_vocab()) < 64:
            raise ValueError(problem)
        return tokenizer
