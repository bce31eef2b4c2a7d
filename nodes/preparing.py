"""Nodes that prepare pictures: a data set through a list of steps into a new folder, and the background of images."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..lib import files
from ..lib.config import DataConfig
from ..lib.data import preparing
from ..lib.data.headers import PictureError, named_faults, printable
from ..lib.data.image_steps import Bucket, Split, steps_from, steps_to_values, take, with_alpha
from ..lib.data.pictures import decode
from ..lib.data.pieces import Piece, Step, Tools
from ..lib.data.scan import scan
from ..lib.data.segmentation import Segmenter
from ..lib.fingerprint import fingerprint
from . import graph, model_files, paths
from .dataset_work import Progress, files_config, on_checks, sheets, shown
from .schema import inputs_of, schema, socket, supported
from .sockets import DATASET, Dataset
from .train import as_tensor

_PREVIEW_PX = 512
_KEEP, _BUCKETS, _CROP = "as they are", "buckets", "crop"
_BACKGROUND = ("keep", "white", "alpha")
_BUCKET_SIDES = ("step_px", "min_px", "max_px")


class PrepareDataset(io.ComfyNode):
    """A data set prepared into a new folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierPrepareDataset",
            "Prepare dataset",
            "Prepares the pictures of a data set into a new folder in output/atelier/prepared, captions copied along. "
            "The originals stay as they are; queued again after a cancel it goes on, and makes only what is missing.",
            is_output_node=True,
            inputs=[
                socket(DATASET).Input("dataset", tooltip="the data set whose pictures are prepared"),
                io.String.Input(
                    "name", display_name="Name", default="prepared", tooltip="begins the name of the new folder"
                ),
                _switch("dedupe", "Leave out duplicates", "of pictures that show the same keep the largest"),
                io.Combo.Input(
                    "background",
                    display_name="Background",
                    options=list(_BACKGROUND),
                    tooltip="keep it, put the subject on white, or make the background transparent; needs a "
                    "segmentation model, or pictures with transparency",
                ),
                _segmenter_input(),
                _switch("split", "Split long pictures", "cut long pictures into overlapping parts"),
                *inputs_of(
                    Split,
                    ["threshold", "overlap"],
                    threshold={"display_name": "Split threshold", "advanced": True},
                    overlap={"display_name": "Split overlap", "advanced": True},
                ),
                socket("UPSCALE_MODEL").Input(
                    "upscale_model", optional=True, tooltip="enlarges small pictures, from Load Upscale Model"
                ),
                _number(
                    "upscale_to", "Upscale to", 768, 8, 16384, "shorter side that smaller pictures get by it", True
                ),
                io.Combo.Input(
                    "fit",
                    display_name="Cut",
                    options=[_KEEP, _BUCKETS, _CROP],
                    tooltip="leave the shapes as they are, resize and crop into buckets, or to one size",
                ),
                _number("resolution", "Resolution", 512, 8, 8192, "of the buckets: side of the square with their area"),
                *inputs_of(
                    Bucket,
                    _BUCKET_SIDES,
                    step_px={"display_name": "Bucket step", "advanced": True},
                    min_px={"display_name": "Bucket min"},
                    max_px={"display_name": "Bucket max"},
                ),
                _number("width", "Crop width", 512, 8, 16384, "of what is cut out"),
                _number("height", "Crop height", 512, 8, 16384, "of what is cut out"),
                _switch("focal", "Around the focal point", "cut around corners and detail instead of the middle"),
                _number("unsharp", "Sharpen", 0, 0, 500, "by so many percent; 0 leaves the pictures as they are"),
                _switch("flip", "Mirror", "add each picture mirrored, and name captions that are then wrong"),
                _number(
                    "copies", "Copies", 1, 1, 1000, "write each picture so often, for trainers without repeats", True
                ),
                _number("preview_pictures", "Previews", 4, 0, 64, "so many pictures are shown before and after"),
                io.Boolean.Input(
                    "write",
                    display_name="Write",
                    default=False,
                    tooltip="off: only try the pictures that are shown; on: make the new folder",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                socket(DATASET).Output(
                    "dataset_out", display_name="dataset", tooltip="the new data set; the old one while Write is off"
                ),
                io.Image.Output("preview", tooltip="pictures before and after, side by side"),
                io.String.Output("report", tooltip="what was made of each picture, and what is to be known of it"),
                io.String.Output("folder", tooltip="the new folder; empty while Write is off"),
            ],
            search_aliases=["resize images", "crop dataset", "remove background", "flip augmentation", "face crop"],
        )

    @classmethod
    def validate_inputs(cls, segmenter: str | None) -> bool | str:
        is_needed = graph.own_inputs(str(cls.hidden.unique_id)).get("background") != "keep"
        try:
            if is_needed and segmenter not in (None, model_files.NONE):
                model_files.segmenter_file(segmenter or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        name: str,
        write: bool,
        preview_pictures: int,
        segmenter: str,
        upscale_model: Any = None,
        **given: Any,
    ) -> io.NodeOutput:
        steps = steps_from(steps_of({**given, "upscale": upscale_model is not None}))
        config, progress = files_config(dataset), Progress()
        tools = _tools(segmenter if given["background"] != "keep" else model_files.NONE, upscale_model)
        tried, lines = _tried(config, steps, tools, preview_pictures, progress)
        preview = sheets(tried, _PREVIEW_PX)
        if not write:
            num = len(scan(config).samples)
            lines.insert(0, f"tried {len(tried)} of {num} pictures; switch Write on to prepare all of them")
            text = "\n".join(lines)
            about = shown(cls, text, preview if tried else None)
            progress.end()
            return io.NodeOutput(dataset, preview, text, "", ui=about)
        new, concepts, lines = new_folder(config, steps, tools, name), [], []
        for number, concept in enumerate(config.concepts, start=1):
            stem = files.safe_name(Path(concept.folder).name, "pictures")
            out = new if len(config.concepts) == 1 else new / f"{number}-{stem}"
            result = preparing.prepare(
                Path(concept.folder), out, steps, tools, on_progress=progress, stopped=progress.stopped
            )
            lines += report_lines(result)
            concepts.append(replace(dataset.concepts[number - 1], folder=str(out)))
            if progress.stopped():
                break
        text = "\n".join([f"in {new}", *lines])
        about = shown(cls, text, preview if tried else None)
        progress.end()
        return io.NodeOutput(replace(dataset, concepts=tuple(concepts)), preview, text, str(new), ui=about)


class RemoveBackground(io.ComfyNode):
    """The subject of images, by a segmentation model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierRemoveBackground",
            "Remove background",
            "Finds the subject of images by a U2-Net or IS-Net that lies in models/segmenters, and puts it on white. "
            "Needs onnxruntime. Nothing is downloaded.",
            inputs=[
                io.Image.Input("images", tooltip="pictures, one or a batch"),
                _segmenter_input(),
            ],
            outputs=[
                io.Image.Output("on_white", tooltip="the subjects on white"),
                socket("MASK").Output("mask", tooltip="1 where the subject is"),
            ],
            search_aliases=["rembg", "segment", "u2net", "isnet", "cut out"],
        )

    @classmethod
    def validate_inputs(cls, segmenter: str | None) -> bool | str:
        try:
            if segmenter is not None:
                model_files.segmenter_file(segmenter)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, images: torch.Tensor, segmenter: str) -> io.NodeOutput:
        model = Segmenter(model_files.segmenter_file(segmenter), model_files.device())
        progress, made, masks = Progress(), [], []
        for number, image in enumerate(images, start=1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            picture = _picture(image)
            mask = model(picture)
            made.append(as_tensor(Image.composite(picture, Image.new("RGB", picture.size, "white"), mask)))
            masks.append(torch.from_numpy(np.asarray(mask, np.float32) / 255)[None])
            progress(number, len(images))
        progress.end()
        return io.NodeOutput(torch.cat(made), torch.cat(masks))


def steps_of(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps as `steps_from` takes them: what is removed first, what depends on the final pixels last.

    Errors: `ValueError` where there is nothing to do.
    """
    shape = (given["width"], given["height"]) if given["fit"] == _CROP else (1, 1)
    focal = {"focal": given["focal"]}
    wanted: list[tuple[bool, dict[str, Any]]] = [
        (given["dedupe"], {"step": "dedupe"}),
        (given["background"] != "keep", {"step": "background", "to": given["background"]}),
        (
            given["split"],
            {"step": "split", "threshold": given["threshold"], "overlap": given["overlap"]}
            | {"width": shape[0], "height": shape[1]},
        ),
        (given["upscale"], {"step": "upscale", "least_px": given["upscale_to"]}),
        (given["fit"] == _CROP, {"step": "crop", "width": shape[0], "height": shape[1], **focal}),
        (
            given["fit"] == _BUCKETS,
            {"step": "bucket", "resolution": given["resolution"], **focal}
            | {side: given[side] for side in _BUCKET_SIDES},
        ),
        (given["unsharp"] > 0, {"step": "unsharp", "percent": given["unsharp"]}),
        (given["flip"], {"step": "flip"}),
        (given["copies"] > 1, {"step": "copies", "num": given["copies"]}),
    ]
    steps = [step for is_wanted, step in wanted if is_wanted]
    if not steps:
        raise ValueError("Prepare dataset: there is nothing to do; switch a step on")
    return steps


def new_folder(config: DataConfig, steps: Sequence[Step], tools: Tools, name: str) -> Path:
    """A folder for just these pictures, steps and models: queued again it goes on, and other steps get another one."""
    about = [[concept.folder for concept in config.concepts], steps_to_values(steps), list(tools.names)]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    return paths.prepared_folder() / f"{files.safe_name(name, 'prepared')[:60]}-{digest}"


def report_lines(result: preparing.Preparation) -> list[str]:
    """What `prepare` did, for people."""
    lines = [f"{result.num_made} pictures made, {result.num_kept} were there" + (", stopped" if result.stopped else "")]
    lines += [str(problem) for problem in result.problems if problem.severity != "note"]
    for picture in result.pictures:
        lines += [f"{picture.source} is left out: {picture.left_out}"] if picture.left_out else []
        lines += [f"{picture.source} {note}" for note in picture.notes]
    return lines


def _tried(
    config: DataConfig, steps: Sequence[Step], tools: Tools, most: int, progress: Progress
) -> tuple[list[Image.Image], list[str]]:
    """The first pictures before and after, side by side; and what is to be known of them."""
    found: list[Image.Image] = []
    lines: list[str] = []
    for sample in scan(config).samples[:most]:
        if progress.stopped():
            break
        try:
            with named_faults(sample.path):
                image, alpha, notes = decode(sample.path, config.max_megapixels)
        except PictureError as error:
            lines.append(str(error))
            continue
        before = with_alpha(image, alpha)
        pieces = take(Piece(before, sample.caption, notes=tuple(notes)), steps, tools)
        sizes = ", ".join(f"{piece.image.width} x {piece.image.height}" for piece in pieces)
        lines.append(f"{printable(sample.name)}: {before.width} x {before.height} -> {sizes or 'nothing'}")
        lines += [f"{printable(sample.name)} {note}" for piece in pieces for note in piece.notes]
        row = [on_checks(image) for image in [before, *(piece.image for piece in pieces[:3])]]
        found.append(_row(row))
    return found, list(dict.fromkeys(lines))


def _row(images: Sequence[Image.Image]) -> Image.Image:
    """Side by side at one height."""
    height = min(_PREVIEW_PX, max(image.height for image in images))
    sized = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    row = Image.new("RGB", (sum(image.width for image in sized) + 8 * (len(sized) - 1), height), "#202020")
    left = 0
    for image in sized:
        row.paste(image, (left, 0))
        left += image.width + 8
    return row


def _tools(segmenter: str, upscale_model: Any) -> Tools:
    mask, upscale, names = None, None, []
    if segmenter != model_files.NONE:
        path = model_files.segmenter_file(segmenter)
        mask = Segmenter(path, model_files.device())
        names.append(f"{path.name} {files.sha256_of(path)}")
    if upscale_model is not None:
        upscale = _upscaler(upscale_model)
        weights = json.dumps(fingerprint(upscale_model.model.state_dict().items()))
        digest = hashlib.sha256(weights.encode()).hexdigest()
        names.append(f"{type(upscale_model.model).__name__} x{upscale_model.scale} {digest}")
    return Tools(background_mask=mask, upscale=upscale, names=tuple(names))


def _upscaler(model: Any) -> Callable[[Image.Image], Image.Image]:
    """ComfyUI's own node for it, which tiles and keeps to the memory."""
    # ComfyUI's own module of that name, which it has long since loaded
    kind = sys.modules["nodes"].NODE_CLASS_MAPPINGS["ImageUpscaleWithModel"]

    def upscaled(image: Image.Image) -> Image.Image:
        return _picture(kind.execute(model, as_tensor(image)).args[0][0])

    return upscaled


def _picture(image: torch.Tensor) -> Image.Image:
    pixels = (image[..., :3].detach().float().cpu().numpy().clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels)


def _segmenter_input() -> Any:
    return io.Combo.Input(
        "segmenter",
        display_name="Segmentation model",
        options=model_files.choices(model_files.segmenters()),
        tooltip="an .onnx file in models/segmenters: a U2-Net or IS-Net",
    )


def _switch(name: str, title: str, tooltip: str) -> Any:
    return io.Boolean.Input(name, display_name=title, default=False, tooltip=tooltip)


def _number(name: str, title: str, default: int, low: int, high: int, tooltip: str, advanced: bool = False) -> Any:
    about = {"display_name": title, "default": default, "min": low, "max": high, "tooltip": tooltip}
    return supported(io.Int.Input, name, **about, **({"advanced": True} if advanced else {}))
