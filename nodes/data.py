"""Data set nodes: a folder, pictures of the graph, latents of the graph, several together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..lib import files
from ..lib.config import ConceptConfig, from_dict
from ..lib.data.cache import LatentEntry
from ..lib.data.captions import CAPTION_SUFFIXES
from ..lib.data.given import Given, content_of
from ..lib.data.headers import extensions
from ..lib.data.sample import Sample
from . import paths
from .schema import inputs, schema, socket
from .sockets import DATASET, Dataset, combined

_CONCEPT = ["repeats", "weight", "trigger", "append", "regularization"]
_PICTURES = ["flip", "alpha_mask", "caption_from_name"]  # one for all pictures of a run
_LATENT_PX = 8  # picture pixels per latent pixel, of every family that there is


def _concept_inputs(names: Sequence[str], **changes: Any) -> list[Any]:
    late = {"append": {"advanced": True}, "regularization": {"advanced": True}, "weight": {"advanced": True}}
    return inputs([f"data.concepts[].{name}" for name in names], **{**late, **changes})


def _picture_inputs(names: Sequence[str]) -> list[Any]:
    changes = {name: {"advanced": True} for name in names}
    return inputs([f"data.{name}" for name in names], **changes)


def _dataset(folder: str, given: dict[str, Any]) -> Dataset:
    concept = {name: given[name] for name in _CONCEPT if name in given}
    settings = {name: given[name] for name in _PICTURES if name in given}
    return Dataset(concepts=(from_dict(ConceptConfig, {"folder": folder, **concept}, "data set"),), settings=settings)


class DatasetFolder(io.ComfyNode):
    """The pictures of a folder with the captions beside them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierDatasetFolder",
            "Dataset from a folder",
            "Pictures of a folder and those below it; a caption lies beside its picture under the same name (.txt or "
            ".caption). The pictures stay as they are.",
            inputs=[
                io.String.Input(
                    "folder",
                    display_name="Folder",
                    default="",
                    placeholder="photos/my-toy",
                    tooltip="below ComfyUI's input or output folder, or a whole path, also as copied with quotes",
                ),
                *_concept_inputs(_CONCEPT),
                *_picture_inputs(_PICTURES),
            ],
            outputs=[socket(DATASET).Output("dataset", tooltip="for Train LoRA, Captions or Combine")],
            search_aliases=["dataset", "training images", "load folder", "concept"],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        try:
            if folder is not None:
                _folder_with_pictures(folder)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **given: Any) -> str:
        try:
            return listing(paths.named_folder(folder)) if folder is not None else ""
        except (ValueError, OSError) as error:
            return str(error)

    @classmethod
    def execute(cls, folder: str, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(_dataset(str(_folder_with_pictures(folder)), given))


class DatasetImages(io.ComfyNode):
    """Pictures that come from the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [name for name in _CONCEPT if name != "append"]
        return schema(
            "AtelierDatasetImages",
            "Dataset from images",
            "Pictures of the graph, written once into output/atelier/pictures, so that a run can go on later.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="pictures, of any sizes: a batch or a list"),
                io.String.Input(
                    "captions",
                    optional=True,
                    force_input=True,
                    tooltip="a caption for each picture, or one for all; without it only the trigger word is learned",
                ),
                io.String.Input("name", display_name="Name", default="pictures", tooltip="begins the folder's name"),
                *_concept_inputs(names),
                *_picture_inputs(["flip"]),
            ],
            outputs=[socket(DATASET).Output("dataset", tooltip="for Train LoRA, Captions or Combine")],
            search_aliases=["dataset", "training images", "image list"],
        )

    @classmethod
    def execute(
        cls, images: list[torch.Tensor], name: list[str], captions: list[str] | None = None, **given: list[Any]
    ) -> io.NodeOutput:
        pictures = [_pixels(one) for batch in images for one in batch]
        texts = _for_each(captions or [""], len(pictures), "captions", "pictures")
        folder = write_pictures(paths.pictures_folder(), name[0], pictures, texts)
        return io.NodeOutput(_dataset(str(folder), {key: value[0] for key, value in given.items()}))


class DatasetLatents(io.ComfyNode):
    """Latents and conditionings that come from the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierDatasetLatents",
            "Dataset from latents",
            "Latents and conditionings as Make Training Dataset gives them. They must be of the model that is trained.",
            is_input_list=True,
            inputs=[
                io.Latent.Input("latents", tooltip="latents, one or a batch each"),
                io.Conditioning.Input("conditioning", tooltip="a conditioning for each latent, or one for all"),
                io.String.Input("name", display_name="Name", default="latents", tooltip="begins the names in loss.csv"),
                *_concept_inputs(["repeats", "weight"]),
            ],
            outputs=[socket(DATASET).Output("dataset", tooltip="for Train LoRA or Combine")],
            search_aliases=["dataset", "training dataset"],
        )

    @classmethod
    def execute(
        cls, latents: list[dict[str, Any]], conditioning: list[Any], name: list[str], **given: list[Any]
    ) -> io.NodeOutput:
        own = {key: value[0] for key, value in given.items()}
        stem = files.safe_name(name[0], "latents")
        with torch.inference_mode(False):
            samples = [one.clone() for latent in latents for one in latent["samples"]]
            texts = _for_each(conditioning, len(samples), "conditionings", "latents")
            return io.NodeOutput(
                Dataset(
                    concepts=(from_dict(ConceptConfig, {"folder": stem, **own}, "data set"),),
                    given=given_from(stem, samples, texts, own.get("repeats", 1), own.get("weight", 1.0)),
                )
            )


class Concepts(io.ComfyNode):
    """Several data sets as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        sockets = [
            socket(DATASET).Input(f"dataset_{i}", optional=i > 2, tooltip="a data set with its own repeats and trigger")
            for i in range(1, 5)
        ]
        return schema(
            "AtelierConcepts",
            "Combine datasets",
            "Trains several data sets in one run, each with its own repeats, weight and trigger word. For more than "
            "four, chain it.",
            inputs=sockets,
            outputs=[socket(DATASET).Output("dataset", tooltip="for Train LoRA or Captions")],
            search_aliases=["concepts", "merge datasets", "regularization"],
        )

    @classmethod
    def execute(cls, **given: Dataset) -> io.NodeOutput:
        return io.NodeOutput(combined([given[name] for name in sorted(given) if given[name] is not None]))


def _folder_with_pictures(text: str) -> Path:
    folder = paths.named_folder(text)
    if next(_files(folder, extensions()), None) is None:
        raise ValueError(f'folder: there is no picture in "{text}" ({" ".join(extensions())})')
    return folder


def _files(folder: Path, endings: Sequence[str]) -> Iterator[os.DirEntry]:
    """Files with such endings in and below a folder; hidden ones are left out, no folder is searched twice."""
    to_search, searched = [os.fspath(folder)], set()
    while to_search:
        path = to_search.pop()
        real = os.path.realpath(path)
        if real in searched:
            continue
        searched.add(real)
        with os.scandir(path) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                to_search.append(entry.path)
            elif entry.name.lower().endswith(tuple(endings)) and entry.is_file():
                yield entry


def listing(folder: Path) -> str:
    """A hash of the names, sizes and times of the pictures and captions: it changes when one of them does."""
    digest = hashlib.sha256()
    for entry in _files(folder, [*extensions(), *CAPTION_SUFFIXES]):
        status = entry.stat()
        digest.update(f"{entry.path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _for_each(values: list[Any], num: int, what: str, of: str) -> list[Any]:
    if len(values) not in (1, num):
        raise ValueError(f"there must be one of the {what} for all {of} or one for each, got {len(values)} for {num}")
    return values * num if len(values) == 1 else values


def _pixels(image: torch.Tensor) -> np.ndarray:
    """(H, W, C) in [0, 1] as uint8 with 3 or 4 channels."""
    pixels = image.detach().float().cpu().numpy()
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :4]
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def write_pictures(parent: Path, name: str, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> Path:
    """Write pictures and captions into a folder that is named after what they are; what is there already stays."""
    if not pictures:
        raise ValueError("images: there is no picture to train on")
    digest = hashlib.sha256()
    for pixels, caption in zip(pictures, captions, strict=True):
        digest.update(f"{pixels.shape} {caption}\0".encode("utf-8", "surrogatepass"))
        digest.update(np.ascontiguousarray(pixels).tobytes())
    folder = parent / f"{files.safe_name(name, 'pictures')[:60]}-{digest.hexdigest()[:16]}"
    files.make_folder(folder)
    for number, (pixels, caption) in enumerate(zip(pictures, captions, strict=True), start=1):
        path = folder / f"{number:05d}.png"
        if not path.is_file():
            files.write_image(path, Image.fromarray(pixels))
        if caption and not path.with_suffix(".txt").is_file():
            files.write_bytes(path.with_suffix(".txt"), caption.encode("utf-8", "replace"))
    return folder


def given_from(name: str, latents: Sequence[torch.Tensor], texts: Sequence[Any], repeats: int, weight: float) -> Given:
    """Latents (C, h, w) as the autoencoder gives them and ComfyUI's conditionings. Errors: `ValueError`."""
    entries, conditionings = [], {}
    for number, (latent, text) in enumerate(zip(latents, texts, strict=True), start=1):
        if latent.ndim != 3:
            raise ValueError(f"latents must be those of pictures, (B, C, h, w); got {(1, *latent.shape)}")
        conditioning = conditioning_of(text)
        caption = f"conditioning {content_of(conditioning)[:16]}"
        conditionings[caption] = conditioning
        size = (latent.shape[2] * _LATENT_PX, latent.shape[1] * _LATENT_PX)
        label = f"{name}/{number:05d}"
        sample = Sample(
            name=label, path=Path(label), caption=caption, size=size, bucket=size, repeats=repeats, weight=weight
        )
        entries.append(LatentEntry(sample=sample, latents=latent))
    if not entries:
        raise ValueError("latents: there is nothing to train on")
    return Given(tuple(entries), conditionings)


def conditioning_of(text: Any) -> dict[str, torch.Tensor]:
    """One of ComfyUI's conditionings, [[tokens, {...}]]. Errors: `ValueError` where it is combined or scheduled."""
    if len(text) != 1:
        raise ValueError(f"conditioning: only one prompt can be trained at a time, got {len(text)} combined")
    tokens, more = text[0]
    found = {"text": tokens.detach().cpu().clone()}
    if more.get("pooled_output") is not None:
        found["pooled"] = more["pooled_output"].detach().cpu().clone()
    return found
