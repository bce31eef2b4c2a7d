"""Models that users place for preparing data sets, in folders of ComfyUI's models: taggers, segmentation models and
aesthetic predictors.

Nothing is downloaded. What is missing is said with the folder that it belongs into; `extra_model_paths.yaml` may name
other folders under the same words.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..lib.data.aesthetic import ENCODER, PREDICTOR, is_predictor
from ..lib.data.headers import printable
from ..lib.data.tagger import MODEL, TABLE

TAGGERS, SEGMENTERS, PREDICTORS = "taggers", "segmenters", "aesthetic_predictors"
NONE = "(none)"  # a list of choices must not be empty


def folders(kind: str) -> list[Path]:
    """Where ComfyUI looks for models of a kind, our default last."""
    import folder_paths

    folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
    return [Path(path) for path in folder_paths.get_folder_paths(kind)]


def taggers() -> dict[str, Path]:
    """Name -> folder of each tagger that is there."""
    found: dict[str, Path] = {}
    for folder in folders(TAGGERS):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (path / MODEL).is_file():
                found.setdefault(printable(path.name), path)
    return found


def segmenters() -> dict[str, Path]:
    """Name -> file of each segmentation model that is there."""
    found: dict[str, Path] = {}
    for folder in folders(SEGMENTERS):
        for path in sorted(folder.glob("*.onnx")):
            found.setdefault(printable(path.name), path)
    return found


def predictors() -> dict[str, Path]:
    """Name -> file or folder of each aesthetic predictor that is there."""
    found: dict[str, Path] = {}
    for folder in folders(PREDICTORS):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if is_predictor(path):
                found.setdefault(printable(path.name), path)
    return found


def tagger_folder(name: str) -> Path:
    """The folder of a tagger. Errors: `ValueError` saying what to put where."""
    place = f"make a folder for it in {folders(TAGGERS)[-1]} and put {MODEL} and {TABLE} of a WD14-type tagger into it"
    return _named(name, taggers(), "tagger", place)


def segmenter_file(name: str) -> Path:
    """The file of a segmentation model. Errors: `ValueError` saying what to put where."""
    files = "the .onnx file of a U2-Net or IS-Net (u2net.onnx, isnet-general-use.onnx)"
    return _named(name, segmenters(), "segmentation model", f"put {files} into {folders(SEGMENTERS)[-1]}")


def predictor_place(name: str) -> Path:
    """The file or folder of an aesthetic predictor. Errors: `ValueError` saying what to put where."""
    files = f"an .onnx file that gives a score for a picture, or a folder with {ENCODER} and {PREDICTOR},"
    return _named(name, predictors(), "aesthetic predictor", f"put {files} into {folders(PREDICTORS)[-1]}")


def _named(name: str, found: dict[str, Path], kind: str, what_to_do: str) -> Path:
    if name in found:
        return found[name]
    there = f"; there are: {', '.join(found)}" if found else ""
    raise ValueError(f'there is no {kind} "{name}": {what_to_do}; nothing is downloaded{there}')


def choices(found: dict[str, Path]) -> list[str]:
    """What a list of models offers."""
    return [*found] or [NONE]


def device() -> str:
    """ComfyUI's device, as torch calls it."""
    import comfy.model_management

    return str(comfy.model_management.get_torch_device())
