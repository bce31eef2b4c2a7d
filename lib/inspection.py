"""Inspection: what a network file is, told by its keys, shapes and metadata, and what of a model it matches.

Nothing is loaded into a model, and only safetensors files are read: pickles can execute code when they are opened.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .keys.family import Family
from .network_keys import Layer, algorithm_of, family_of, layers_of
from .registry import SPELLINGS

_FOLDERS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Inspection:
    """What a file is. `kind` is network, embedding, model or unknown."""

    path: Path
    num_bytes: int
    kind: str
    algorithm: str  # of a network, in words
    family: str  # a guess: sd1, sd2, sdxl, sd3, flux, or several of them; empty where nothing tells
    family_reason: str
    layers: tuple[Layer, ...]
    num_params: int
    dtypes: dict[str, int]  # name -> number of tensors
    nonfinite: tuple[str, ...]  # keys that hold nan or inf
    other_keys: tuple[str, ...]  # keys of a network that belong to none of its layers
    metadata: dict[str, str]


@dataclass(frozen=True)
class ModelMatch:
    """What of a model a network matches, by layer names in the file."""

    matched: tuple[str, ...]
    wrong_size: tuple[str, ...]  # the layer is there with another size
    unmatched: tuple[str, ...]
    num_model_layers: dict[str, int] = field(default_factory=dict)  # part -> layers that could carry an adapter


def inspect_file(path: Path | str) -> Inspection:
    """Read a file once, tensor by tensor. Errors: `ValueError` when it is no safetensors file or not whole."""
    path = Path(path)
    shapes: dict[str, tuple[int, ...]] = {}
    alphas: dict[str, float] = {}
    zeros: set[str] = set()
    nonfinite = []
    dtypes: Counter[str] = Counter()
    num_params = 0
    with _Opened(path) as file:
        metadata = dict(file.metadata() or {})
        for key in sorted(file.keys()):
            tensor = file.get_tensor(key)
            shapes[key] = tuple(tensor.shape)
            dtypes[str(tensor.dtype).removeprefix("torch.")] += 1
            num_params += tensor.numel()
            if tensor.is_floating_point():
                values = tensor.to(torch.float32) if tensor.element_size() == 1 else tensor
                if not torch.isfinite(values).all():
                    nonfinite.append(key)
                if not values.any():
                    zeros.add(key)
            if key.endswith(".alpha") and tensor.numel() == 1:
                alphas[key] = float(tensor)
    layers, rest = layers_of(shapes, alphas, zeros)
    family, reason = family_of(layers, metadata)
    return Inspection(
        path=path,
        num_bytes=path.stat().st_size,
        kind=_kind(layers, shapes),
        algorithm=algorithm_of(layers),
        family=family,
        family_reason=reason,
        layers=layers,
        num_params=num_params,
        dtypes=dict(dtypes),
        nonfinite=tuple(nonfinite),
        other_keys=rest if layers else (),
        metadata=metadata,
    )


def match_model(layers: Iterable[Layer], model_folder: Path | str) -> ModelMatch:
    """Which layers of a diffusers folder a network's layers are, from the headers of its safetensors files alone.

    Errors: `ValueError` when the folder holds neither a U-Net or transformer nor a text encoder in safetensors.
    """
    folder = Path(model_folder)
    found = {name: _model_layers(folder / name) for name in _FOLDERS}
    if not any(found.values()):
        raise ValueError(
            f"{folder} is not the folder of a model: it has no unet/*.safetensors, transformer/*.safetensors or "
            "text_encoder/*.safetensors"
        )
    names: Family = SPELLINGS.get(_family_of_model(found))()  # type: ignore[operator]
    counts: dict[str, int] = {}
    sizes: dict[tuple[str, str], tuple[int, int]] = {}  # (part, flat split name) -> (outputs, inputs)
    for part, subfolder in names.diffusers.items():
        own = found[subfolder]
        if own:
            counts[part] = len(own)
        names = names.fitted(part, own.keys())
        sizes |= {(part, _flat(names.spelled_out(part, name))): size for name, size in own.items()}
    matched, wrong, unmatched = [], [], []
    for layer in layers:
        size = _size(names, sizes, layer.name)
        if size is None:
            unmatched.append(layer.name)
        elif None not in (layer.num_out, layer.num_in) and size != (layer.num_out, layer.num_in):
            wrong.append(layer.name)
        else:
            matched.append(layer.name)
    return ModelMatch(tuple(matched), tuple(wrong), tuple(unmatched), counts)


def tag_frequencies(metadata: Mapping[str, str], most: int = 20) -> list[tuple[str, int]]:
    """The commonest tags of `ss_tag_frequency`, summed over folders; empty where there are none or they are damaged."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except ValueError:
        return []
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, num in tags.items() if isinstance(tags, dict) else ():
            if isinstance(num, int):
                counts[tag.strip()] += num
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]


class _Opened:
    """A safetensors file whose every fault, when opened or when read, is a `ValueError` that names it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        if not self._path.is_file():
            raise ValueError(f"{self._path} is not there, or is not a file")
        try:
            return safe_open(str(self._path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self._path} {self._guess()}: {error}") from error

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (SafetensorError, OSError)):
            raise ValueError(f"{self._path} cannot be read: {error}") from error

    def _guess(self) -> str:
        with self._path.open("rb") as file:
            start = file.read(9)
        if start[:2] == b"PK" or start[:1] == b"\x80":
            return (
                "is a pickle (.pt, .ckpt), which is not opened because it can execute code; convert it to safetensors"
            )
        if len(start) == 9 and start[8:] == b"{":
            return "is a damaged or truncated safetensors file"
        return "is not a safetensors file"


def _kind(layers: tuple[Layer, ...], shapes: Mapping[str, tuple[int, ...]]) -> str:
    if layers:
        return "network"
    if shapes and set(shapes) <= {"emb_params", "clip_l", "clip_g", "t5xxl", "*"}:
        return "embedding"
    return "model" if sum(key.endswith(".weight") for key in shapes) > 20 else "unknown"


def _family_of_model(found: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    """The family of a diffusers folder, by the names of its layers."""
    if found["transformer"]:
        flux = any(name.startswith("single_transformer_blocks.") for name in found["transformer"])
        return "flux" if flux else "sd3"
    return "sdxl" if found["text_encoder_2"] or "add_embedding.linear_1" in found["unet"] else "sd1"


def _size(names: Family, sizes: Mapping[tuple[str, str], tuple[int, int]], name_in_file: str) -> tuple[int, int] | None:
    """(outputs, inputs) of the layer of the model that a network's layer is for; None where the model lacks it."""
    place = names.place_in_file(name_in_file)
    if place is None:
        return None
    part, module_name = place
    own = [sizes.get((part, _flat(split))) for split in names.held(part, module_name)]
    known = [size for size in own if size is not None]
    return (sum(size[0] for size in known), known[0][1]) if len(known) == len(own) else None


def _flat(name: str) -> str:
    # files flatten names, and a U-Net of an unusual shape has no table that would restore the dots
    return name.replace(".", "_")


def _model_layers(folder: Path) -> dict[str, tuple[int, int]]:
    """Layer name -> (outputs, inputs with the kernel) of the matrices in a folder's safetensors files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with _Opened(path) as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                shape = file.get_slice(key).get_shape()
                if key.endswith(".weight") and len(shape) >= 2:
                    found[key.removesuffix(".weight")] = (shape[0], math.prod(shape[1:]))
    return found
