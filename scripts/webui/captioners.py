"""What can look at pictures here: models in our folder, and the host's own BLIP and DeepDanbooru.

Nothing is downloaded. The host would do that at first use; so it is asked only where its model is there, and otherwise
the page says which file is missing and where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ...lib.data.aesthetic import ENCODER, PREDICTOR, is_predictor
from ...lib.data.onnx_model import OnnxModel
from ...lib.data.tagger import MODEL, TABLE, Tagger, TaggingConfig
from .folders import own_folder
from .patched import Overlay, patched

HOST = {"blip": "BLIP (sentences)", "deepbooru": "DeepBooru (tags)"}
_FILES = {
    "blip": ("BLIP", "*.pth", "model_base_caption_capfilt_large.pth", "Interrogate CLIP"),
    "deepbooru": ("torch_deepdanbooru", "*.pt", "model-resnet_custom_v3.pt", "Interrogate DeepBooru"),
}

Captioner = Callable[[Image.Image], list[str]]  # an RGB picture -> its tags, or one sentence


def taggers_folder() -> Path:
    """Where a folder for each tagger is put."""
    return own_folder() / "taggers"


def segmenters_folder() -> Path:
    """Where segmentation models are put."""
    return own_folder() / "segmenters"


def offered() -> list[dict[str, str]]:
    """What the page offers: taggers that are there, then the host's own; `missing` says what is to be done first."""
    folder = taggers_folder()
    folders = folder.iterdir() if folder.is_dir() else ()
    names = sorted(path.name for path in folders if path.is_dir() and not path.name.startswith("."))
    found = [{"key": f"tagger/{name}", "title": name, "missing": _lacking(folder / name)} for name in names]
    if not found:
        sentence = f"put {MODEL} and {TABLE} of a WD14-type tagger into a folder of its own in {folder}"
        found.append({"key": "tagger/", "title": "WD14", "missing": f"there is no tagger yet: {sentence}"})
    return found + [{"key": key, "title": title, "missing": missing(key)} for key, title in HOST.items()]


def segmenters() -> dict[str, Any]:
    """Names of segmentation models, and where they are put."""
    folder = segmenters_folder()
    return {"names": sorted(path.name for path in folder.glob("*.onnx")), "folder": str(folder)}


def named_segmenter(name: str) -> Path:
    """Errors: `ValueError` where there is none of that name."""
    if name not in segmenters()["names"]:
        raise ValueError(
            f'there is no segmentation model "{name}": put the .onnx file of a U2-Net or IS-Net into '
            f"{segmenters_folder()}; nothing is downloaded"
        )
    return segmenters_folder() / name


def predictors() -> dict[str, Any]:
    """Names of aesthetic predictors, and where they are put."""
    folder = own_folder() / "aesthetic_predictors"
    places = folder.iterdir() if folder.is_dir() else ()
    return {"names": sorted(path.name for path in places if is_predictor(path)), "folder": str(folder)}


def named_predictor(name: str) -> Path:
    """Errors: `ValueError` where there is none of that name."""
    found = predictors()
    if name not in found["names"]:
        raise ValueError(
            f'there is no aesthetic predictor "{name}": put an .onnx file that gives a score for a picture, or a '
            f"folder with {ENCODER} and {PREDICTOR}, into {found['folder']}; nothing is downloaded"
        )
    return Path(found["folder"], name)


def takes_queue(model: OnnxModel) -> bool:
    """Whether a model shares the device with the host's."""
    return model.provider != "CPUExecutionProvider"


def open_tagger(key: str, device: str) -> Tagger:
    """The tagger `tagger/NAME`. Errors: `ValueError` in a sentence, also where onnxruntime is missing."""
    folder, name = taggers_folder(), key.partition("/")[2]
    entry = next((e for e in offered() if e["key"] == key), None)
    if entry is None or not name:
        said = entry["missing"] if entry else f'there is no tagger "{name}" in {folder}'
        raise ValueError(f"{said}; nothing is downloaded")
    return Tagger(folder / name, device)


def missing(key: str) -> str:
    """What the host's own captioner lacks, as a sentence; empty where it can be used."""
    from modules import paths

    folder, pattern, file, button = _FILES[key]
    place = Path(paths.models_path) / folder
    if not (place.is_dir() and any(place.rglob(pattern))):
        return (
            f"the WebUI has no model for this yet: put {file} into {place}, or press {button} in img2img once, which "
            "downloads it; Atelier downloads nothing"
        )
    if key == "blip":
        if "BLIP" not in getattr(paths, "paths", {}):
            return "the WebUI has no repository BLIP beside its others; start it once with its own installation"
        if not _has_words():
            return (
                "BLIP's dictionary (bert-base-uncased) is not in the Hugging Face cache of this machine: press "
                "Interrogate CLIP in img2img once, which downloads it; Atelier downloads nothing"
            )
    return ""


@contextmanager
def host_captioner(key: str, config: TaggingConfig) -> Iterator[Captioner]:
    """The host's own model on its device, while the caller has the queue. Errors: `ValueError` in a sentence."""
    from modules import devices, lowvram

    sentence = missing(key)
    if sentence:
        raise ValueError(sentence)
    lowvram.send_everything_to_cpu()
    devices.torch_gc()
    with (_blip if key == "blip" else _deepbooru)(config) as captioner:
        yield captioner


@contextmanager
def _blip(config: TaggingConfig) -> Iterator[Captioner]:
    """Without CLIP's flavours behind the sentence: they say how a picture looks on the web, not what it shows."""
    from modules import devices, shared, torch_utils

    models = shared.interrogator
    if models.blip_model is None:
        loaded = _read(models.load_blip_model, "blip")
        models.blip_model = loaded if shared.cmd_opts.no_half or models.running_on_cpu else loaded.half()
    models.blip_model = models.blip_model.to(devices.device_interrogate)
    # the host sets it at each use of its own
    models.dtype = torch_utils.get_param(models.blip_model).dtype
    try:
        yield lambda picture: [models.generate_caption(picture).strip()]
    finally:
        models.send_blip_to_ram()
        devices.torch_gc()


@contextmanager
def _deepbooru(config: TaggingConfig) -> Iterator[Captioner]:
    from modules import deepbooru, shared

    options = Overlay(
        shared.opts,
        interrogate_deepbooru_score_threshold=config.general_threshold,
        deepbooru_use_spaces=config.spaces,
        deepbooru_escape=config.escape,
        deepbooru_sort_alpha=config.order != "score",
        deepbooru_filter_tags=config.exclude,
    )
    model = deepbooru.model
    _read(model.load, "deepbooru")
    model.start()
    try:
        with patched(deepbooru, shared=Overlay(shared, opts=options)):
            yield lambda picture: _tags(model.tag_multi(picture, force_disable_ranks=True))
    finally:
        model.stop()


def _tags(text: str) -> list[str]:
    return [tag for tag in text.split(", ") if tag]


def _read(load: Callable[[], Any], key: str) -> Any:
    """What the host's own `load` returns; its refusal of a file is an error of any kind, without a sentence."""
    try:
        return load()
    except (AttributeError, AssertionError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"the WebUI cannot read its own model for {HOST[key]}; its console says more: {type(error).__name__}: "
            f"{error}"
        ) from error


def _lacking(folder: Path) -> str:
    lacks = [name for name in (MODEL, TABLE) if not (folder / name).is_file()]
    return f"{' and '.join(lacks)} must lie in {folder}; nothing is downloaded" if lacks else ""


def _has_words() -> bool:
    from transformers import BertTokenizer

    try:
        BertTokenizer.from_pretrained("bert-base-uncased", local_files_only=True)
    except (OSError, ValueError):
        return False
    return True
