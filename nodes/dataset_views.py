"""Nodes that look at a data set: its pictures for other nodes, what is wrong with it, what training will cut away."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import comfy.model_management
from comfy_api.latest import io
from PIL import Image

from ..lib.data.bucket_preview import bucket_counts, bucket_cut, bucket_preview
from ..lib.data.duplicates import Duplicates
from ..lib.data.findings import examine, summary
from ..lib.data.headers import PictureError, printable
from ..lib.data.scan import scan
from ..lib.data.tag_rules import tag_rules
from ..lib.data.thumbnails import reduced
from .dataset_work import Progress, data_config, files_config, sheets, shown
from .schema import inputs, schema, socket, supported
from .sockets import DATASET, Dataset
from .text import ComfyText
from .train import as_tensor

_SHEET_PX = 512
_MOST_GROUPS = 24  # of duplicates that are shown
_BUCKETS = ["data.resolution", "data.bucket_step", "data.bucket_min_px", "data.bucket_max_px", "data.bucket_upscale"]


def _dataset_input(text: str) -> Any:
    return socket(DATASET).Input("dataset", tooltip=text)


def _dataset_output() -> Any:
    return socket(DATASET).Output(
        "dataset_out", display_name="dataset", tooltip="the data set as it came, for Train LoRA or another node"
    )


class DatasetPictures(io.ComfyNode):
    """The pictures of a data set as images, for captioners and any other node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierDatasetPictures",
            "Pictures of a dataset",
            "Gives the pictures of a data set one by one, with captions and names: for a captioner whose texts Write "
            "captions writes, or for any other node.",
            inputs=[
                _dataset_input("the data set whose pictures are given"),
                io.Int.Input(
                    "longest_px",
                    display_name="Longest side",
                    default=1024,
                    min=0,
                    max=16384,
                    tooltip="larger pictures are made smaller; 0 gives all as they are",
                ),
                _whole("first", "First", 1, 1, "number of the first picture that is given"),
                _whole("most", "At most", 0, 0, "so many pictures; 0 gives all"),
                io.Boolean.Input(
                    "without_caption",
                    display_name="Only without a caption",
                    default=False,
                    tooltip="give only pictures that have no caption yet",
                ),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="one picture after the other, on white"),
                io.String.Output("captions", is_output_list=True, tooltip="the caption of each, as in its file"),
                io.String.Output("names", is_output_list=True, tooltip="the name of each, for Write captions"),
            ],
            search_aliases=["load images", "image list", "images for captioning", "batch caption"],
        )

    @classmethod
    def execute(cls, dataset: Dataset, longest_px: int, first: int, most: int, without_caption: bool) -> io.NodeOutput:
        config = files_config(dataset)
        samples = [s for s in scan(config).samples if not (without_caption and s.caption)]
        samples = list(islice(samples, first - 1, first - 1 + most if most else None))
        if not samples:
            raise ValueError("Pictures of a dataset: no picture is left; look at First and Only without a caption")
        progress, images = Progress(), []
        for number, sample in enumerate(samples, start=1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            images.append(as_tensor(reduced(sample.path, longest_px or max(sample.size), config.max_megapixels)))
            progress(number, len(samples))
        progress.end()
        return io.NodeOutput(images, [s.caption for s in samples], [s.name for s in samples])


class CheckDataset(io.ComfyNode):
    """What is wrong with a data set, on one page."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierCheckDataset",
            "Check dataset",
            "Looks at every file, pixel and caption of a data set and says what is wrong, on one page: damaged "
            "pictures, encodings, contradictory or doubled tags, long captions, pictures that show the same.",
            is_output_node=True,
            inputs=[
                _dataset_input("the data set that is looked at"),
                io.Clip.Input("clip", optional=True, tooltip="counts tokens: captions of more than 75 are then named"),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                _dataset_output(),
                io.String.Output("report", tooltip="what was found, the worst first"),
                io.Image.Output("duplicates", tooltip="a sheet for each group of pictures that show the same"),
            ],
            search_aliases=[
                "validate dataset",
                "find duplicates",
                "near duplicates",
                "corrupt images",
                "lint captions",
            ],
        )

    @classmethod
    def execute(cls, dataset: Dataset, clip: Any = None) -> io.NodeOutput:
        config, progress = data_config(dataset), Progress()
        num_tokens = ComfyText(clip, config.max_token_chunks, nullcontext).num_tokens if clip is not None else None
        found = examine(config, tag_rules(), num_tokens, on_progress=progress, stopped=progress.stopped)
        root = Path(config.concepts[0].folder) if len(config.concepts) == 1 else Path()
        lines = summary(found.problems, root) or ["nothing is wrong with it"]
        lines.append(f"{len(found.samples)} pictures, {len(found.left_out)} left out")
        lines[-1] += "" if num_tokens else "; tokens not counted (connect a CLIP)"
        lines[-1] += "; stopped before all were looked at" if found.stopped else ""
        text = "\n".join(lines)
        pictures = sheets(map(_group_sheet, found.duplicates[:_MOST_GROUPS]), _SHEET_PX)
        about = shown(cls, text, pictures if found.duplicates else None)
        progress.end()
        return io.NodeOutput(dataset, text, pictures, ui=about)


class BucketPreview(io.ComfyNode):
    """What training will cut away of each picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierBucketPreview",
            "Bucket preview",
            "Shows, before training, which bucket each picture gets and what is cut away from it: the pictures whole, "
            "with that darkened, those that lose most first; and exactly what is trained.",
            is_output_node=True,
            inputs=[
                _dataset_input("the data set that is looked at"),
                *inputs(
                    _BUCKETS,
                    resolution={"tooltip": "side of the square whose area each bucket has at most; as in Train LoRA"},
                ),
                io.Float.Input(
                    "least_lost",
                    display_name="Loses at least",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=1.0,
                    tooltip="only pictures that lose so many percent of their area",
                ),
                _whole("most", "At most", 24, 1, "so many pictures are shown", 256),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                _dataset_output(),
                io.Image.Output("preview", tooltip="whole pictures with what is cut away darkened"),
                io.Image.Output("trained", is_output_list=True, tooltip="what is trained of each, pixel for pixel"),
                io.String.Output("report", tooltip="how many pictures each bucket has, and what each picture loses"),
            ],
            search_aliases=["aspect ratio buckets", "crop preview", "resolution buckets"],
        )

    @classmethod
    def execute(cls, dataset: Dataset, least_lost: float, most: int, **given: Any) -> io.NodeOutput:
        config = data_config(dataset, **given)
        samples = scan(config).samples
        cuts = sorted(map(bucket_cut, samples), key=lambda cut: -cut.lost)
        losing = [cut for cut in cuts if cut.lost * 100 >= least_lost]
        lines = [f"{num} x {width} x {height}" for (width, height), num in bucket_counts(samples).items()]
        lines.append(f"{len(losing)} of {len(samples)} pictures lose {least_lost:g} % or more")
        lines += [
            f"{printable(cut.sample.name)} loses {cut.lost:.0%} in {cut.sample.bucket[0]} x {cut.sample.bucket[1]}"
            + (f", enlarged {cut.scale:.2f} times" if cut.scale > 1 else "")
            for cut in losing
        ]
        progress, whole, trained = Progress(), [], []
        for number, cut in enumerate(losing[:most], start=1):
            comfy.model_management.throw_exception_if_processing_interrupted()
            try:
                preview = bucket_preview(cut.sample, config.max_megapixels, _SHEET_PX)
            except PictureError as error:
                lines.append(str(error))
                continue
            whole.append(preview.whole)
            trained.append(as_tensor(Image.fromarray(preview.trained)))
            progress(number, min(most, len(losing)))
        progress.end()
        text, pictures = "\n".join(lines), sheets(whole, _SHEET_PX)
        return io.NodeOutput(
            dataset, pictures, trained or [pictures], text, ui=shown(cls, text, pictures if whole else None)
        )


def _group_sheet(group: Duplicates) -> Image.Image:
    """The first pictures of a group side by side."""
    images = []
    for path in group.paths[:4]:
        try:
            images.append(reduced(path, _SHEET_PX // 2))
        except PictureError:
            continue  # it was damaged since it was looked at
    return _side_by_side(images)


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    gap = 6
    width = sum(image.width for image in images) + gap * max(0, len(images) - 1)
    row = Image.new("RGB", (max(1, width), max((image.height for image in images), default=1)), "#202020")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + gap
    return row


def _whole(name: str, title: str, default: int, low: int, tooltip: str, high: int = 1_000_000) -> Any:
    about = {"display_name": title, "default": default, "min": low, "max": high, "tooltip": tooltip}
    return supported(io.Int.Input, name, **about)
