"""Single parts of a model from a file in the spelling of the first code: text encoders and autoencoders.

The shapes say all of their configuration but the activation, which the part's role does. What lacks is an error and is
never made up.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .single_file import Shapes, check_complete, shapes_of, vae_config

NAMES = {
    "clip_l": "first CLIP text encoder (CLIP-L)",
    "clip_g": "second CLIP text encoder (OpenCLIP bigG)",
    "t5": "T5 text encoder",
    "vae": "autoencoder",
    "tokenizer": "CLIP tokenizer",
    "t5_tokenizer": "T5 tokenizer",
}
# what a file may have in front of the names, the longest first
PREFIXES = {
    "clip_l": ("text_encoders.clip_l.transformer.", ""),
    "clip_g": ("text_encoders.clip_g.transformer.", ""),
    "t5": ("text_encoders.t5xxl.transformer.", ""),
    "vae": ("first_stage_model.", "vae.", ""),
}
_FIRST = {
    "clip_l": "text_model.embeddings.token_embedding.weight",
    "clip_g": "text_model.embeddings.token_embedding.weight",
    "t5": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "vae": "encoder.conv_in.weight",
}


def prefix_in(shapes: Shapes, role: str) -> str | None:
    """What stands in front of a part's names in a file; None where the file does not hold the part."""
    return next((prefix for prefix in PREFIXES[role] if prefix + _FIRST[role] in shapes), None)


def read_tensors(path: Path, names: Iterable[str], dtype: torch.dtype) -> Callable[[str], Tensor]:
    """Gives a tensor of the file in `dtype`, read when it is asked for.

    Errors: `ValueError` for weights that are numbers only together with scales.
    """
    scaled = next(
        (n for n in names if re.search(r"(\.(scale_weight|weight_scale\w*|scale_input)|scaled_fp8)$", n)), None
    )
    if scaled is not None:
        raise ValueError(
            f"{path} holds quantised weights with scales ({scaled}), which cannot be read here; "
            "give the model in bf16, fp16 or plain float8"
        )
    file = safe_open(str(path), framework="pt")

    def read(name: str) -> Tensor:
        return file.get_tensor(name).to(dtype)

    return read


def text_encoder(path: Path, prefix: str, role: str, *, projected: bool, dtype: torch.dtype) -> Any:
    """A CLIP text encoder of transformers ("clip_l", "clip_g") or the encoder of T5 ("t5").

    `projected`: a CLIP with a projection of its pooled output; the first CLIP of Stable Diffusion 3 has the identity.
    Errors: `ValueError` naming what is missing.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

    shapes = {name.removeprefix(prefix): s for name, s in shapes_of(path).items() if name.startswith(prefix)}
    read = read_tensors(path, shapes, dtype)
    try:
        config = _t5_config(shapes) if role == "t5" else clip_config(shapes, role)
    except KeyError as error:
        raise ValueError(f"{path} is incomplete: {prefix}{error.args[0]} is missing") from error
    wanted = r"(encoder|shared)\." if role == "t5" else r"text_model\.(?!.*position_ids)"
    tensors = {name: read(prefix + name) for name in shapes if re.match(wanted, name)}
    cls: Any = T5EncoderModel if role == "t5" else CLIPTextModel
    if projected:
        cls = CLIPTextModelWithProjection
        given = role == "clip_g" and "text_projection.weight" in shapes
        identity = role == "clip_l"
        if given or identity:
            name = "text_projection.weight"
            tensors[name] = read(prefix + name) if given else torch.eye(config.hidden_size, dtype=dtype)
    if role == "t5" and "shared.weight" not in tensors and "encoder.embed_tokens.weight" in tensors:
        tensors["shared.weight"] = tensors["encoder.embed_tokens.weight"]
    model, found = cls.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True)
    _refuse_missing(path, role, found)
    return model


def _refuse_missing(path: Path, role: str, found: Mapping[str, Any]) -> None:
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{path} is incomplete: its {NAMES[role]} lacks {missing[0]}{more}")


def text_encoder_folder(folder: Path, role: str, *, projected: bool, dtype: torch.dtype) -> Any:
    """The same from a folder of transformers. Errors: `ValueError` naming what is missing."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

    cls: Any = T5EncoderModel if role == "t5" else CLIPTextModelWithProjection if projected else CLIPTextModel
    try:
        model, found = cls.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be loaded as the {NAMES[role]}: {error}") from error
    if projected and role == "clip_l" and set(found["missing_keys"]) == {"text_projection.weight"}:
        with torch.no_grad():
            model.text_projection.weight.copy_(torch.eye(model.config.hidden_size))
        return model
    _refuse_missing(folder, role, found)
    return model


def autoencoder(path: Path, prefix: str, scale: float, shift: float | None) -> Any:
    """An AutoencoderKL of diffusers in float32: it is small, and overflows in fp16. Errors: as above."""
    from diffusers import AutoencoderKL

    shapes = shapes_of(path)
    try:
        config = vae_config(shapes, prefix, scale, shift)
    except KeyError as error:
        raise ValueError(f"{path} is incomplete: {error.args[0]} is missing") from error
    check_complete(
        path,
        shapes,
        [("autoencoder", AutoencoderKL, config, prefix, r"^loss\.|^(?!(en|de)coder\.|(post_)?quant_conv)")],
    )
    read = read_tensors(path, shapes, torch.float32)
    tensors = {name.removeprefix(prefix): read(name) for name in shapes if name.startswith(prefix)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        cls: Any = AutoencoderKL  # what is declared is narrower than what it takes
        return cls.from_single_file(tensors, config=folder, torch_dtype=torch.float32)


def autoencoder_folder(folder: Path) -> Any:
    """The same from a folder of diffusers. Errors: `ValueError` naming what is missing."""
    from diffusers import AutoencoderKL

    try:
        cls: Any = AutoencoderKL
        model, found = cls.from_pretrained(
            folder, torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be loaded as the {NAMES['vae']}: {error}") from error
    _refuse_missing(folder, "vae", found)
    return model


def _count(shapes: Shapes, pattern: str) -> int:
    return len({m.group(1) for m in map(re.compile(pattern).match, shapes) if m})


def clip_config(shapes: Shapes, role: str) -> Any:
    """A CLIPTextConfig from the shapes of a CLIP as transformers spells it. Errors: `KeyError`."""
    from transformers import CLIPTextConfig

    vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=_count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        num_attention_heads=width // 64,
        max_position_embeddings=shapes["text_model.embeddings.position_embedding.weight"][0],
        hidden_act="quick_gelu" if role == "clip_l" else "gelu",
        projection_dim=width,
        # the last two of the vocabulary, whatever its size
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=1,
    )


def _t5_config(shapes: Shapes) -> Any:
    from transformers import T5Config

    first = "encoder.block.0.layer."
    heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"][1]
    inner, width = shapes[f"{first}0.SelfAttention.q.weight"]
    table = "shared.weight" if "shared.weight" in shapes else "encoder.embed_tokens.weight"
    return T5Config(
        vocab_size=shapes[table][0],
        d_model=width,
        d_kv=inner // heads,
        d_ff=shapes[f"{first}1.DenseReluDense.wi_0.weight"][0],
        num_layers=_count(shapes, r"encoder\.block\.(\d+)\."),
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
