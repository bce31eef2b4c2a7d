"""The node that draws a checkpoint strip: one node, one press, the model loaded once."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import comfy.samplers
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..lib.files import safe_name
from ..lib.host import SampleRequest
from ..lib.strip.cells import Cell, CellStore
from ..lib.strip.publish import Overview, compose
from ..lib.strip.render import Column, Row, render, rows_of
from .checkpoints import CHECKPOINTS, Checkpoints
from .painting import ComfyPainter
from .schema import schema, socket

BASE = "no network"
MAX_IMAGE_PX = 8192  # of the strip as an IMAGE; the files in the folder are whole
MAX_CELLS_BYTES = 4 << 30
_PREVIEW_PX, _PREVIEW_SECONDS = 768, 1.5


class CheckpointStrip(io.ComfyNode):
    """Checkpoints along X, prompts, seeds and strengths along Y."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierCheckpointStrip",
            "Checkpoint Strip",
            "Checkpoints side by side under fixed seeds, made as LoraLoader, KSampler and VAEDecode would make them, "
            "with the model loaded once. Finished pictures are kept: a strip that was cancelled or grew makes only "
            "what is missing.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="the model that the networks were trained for, without them"),
                io.Vae.Input("vae", tooltip="the VAE that belongs to the model"),
                socket(CHECKPOINTS).Input("checkpoints", tooltip="of the node Checkpoints"),
                io.Clip.Input("clip", optional=True, tooltip="needed for prompts"),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="in place of the prompts; text-encoder parts then do nothing"
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="in place of the negative prompt"),
                io.String.Input(
                    "prompts", display_name="Prompts", multiline=True, default="", tooltip="one a line; each is a row"
                ),
                io.String.Input(
                    "negative_prompt",
                    display_name="Negative prompt",
                    multiline=True,
                    default="",
                    tooltip="the same for all pictures",
                ),
                io.String.Input(
                    "seeds", display_name="Seeds", default="1", tooltip="rows for each of them, such as 1, 2, 3"
                ),
                io.String.Input(
                    "strengths",
                    display_name="Strengths",
                    default="1",
                    tooltip="rows for each strength of the network, such as 0.6, 0.8, 1",
                ),
                io.Int.Input(
                    "steps", display_name="Sampling steps", default=20, min=1, max=1000, tooltip="of each picture"
                ),
                io.Float.Input(
                    "cfg",
                    display_name="CFG",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="guidance; 1 for models that are told theirs, such as Flux",
                ),
                io.Combo.Input(
                    "sampler_name",
                    display_name="Sampler",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    tooltip="as in KSampler",
                ),
                io.Combo.Input(
                    "scheduler",
                    display_name="Scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    tooltip="as in KSampler",
                ),
                _side("width"),
                _side("height"),
                io.Boolean.Input(
                    "base_column",
                    display_name="Column without a network",
                    default=True,
                    tooltip="first the model as it is; differences and signs of collapse are measured against it",
                ),
                io.String.Input(
                    "name",
                    display_name="Name",
                    default="",
                    tooltip="of the strip's folder in output/atelier/strips; empty: that of the run or the folder",
                ),
            ],
            outputs=[
                io.Image.Output("strip", tooltip=f"the first page, at most {MAX_IMAGE_PX} px a side"),
                io.Image.Output("cells", tooltip="all pictures in order, checkpoint by checkpoint"),
                io.String.Output("report", tooltip="the HTML page; the PNG and JSON files lie beside it"),
            ],
            search_aliases=["xy plot", "grid", "compare checkpoints", "compare loras", "x/y/z plot"],
        )

    @classmethod
    def validate_inputs(cls, seeds: str | None, strengths: str | None) -> bool | str:
        try:
            if seeds is not None:
                _numbers(seeds, "seeds", whole=True)
            if strengths is not None:
                _numbers(strengths, "strengths", whole=False)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        checkpoints: Checkpoints,
        prompts: str,
        negative_prompt: str,
        seeds: str,
        strengths: str,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        base_column: bool,
        name: str,
        clip: Any | None = None,
        positive: Any | None = None,
        negative: Any | None = None,
    ) -> io.NodeOutput:
        texts = [line.strip() for line in prompts.splitlines() if line.strip()]
        if positive is not None:
            texts = [texts[0] if texts else "the conditioning that is connected"]
        if not texts:
            raise ValueError("Checkpoint Strip: write at least one prompt, or connect a conditioning")
        requests = [
            SampleRequest(
                prompt=text, negative_prompt=negative_prompt, steps=steps, guidance=cfg, width=width, height=height
            )
            for text in texts
        ]
        rows = rows_of(requests, _numbers(seeds, "seeds", whole=True), _numbers(strengths, "strengths", whole=False))
        num_columns = len(checkpoints.files) + base_column
        _check_cells(num_columns * len(rows), width, height)
        show = _Progress(num_columns, len(rows), (width, height), steps)
        painter = ComfyPainter(
            model,
            clip,
            vae,
            sampler_name=sampler_name,
            scheduler=scheduler,
            positive=positive,
            negative=negative,
            on_step=show.step,
        )
        columns = [painter.column(BASE, None)] if base_column else []
        columns += [painter.column(label, path) for label, path in checkpoints.files]
        folder, stem = _place(checkpoints, name)
        rendered = render(columns, rows, painter, CellStore(folder / "cells"), on_cell=show.cell)
        note = f"{sampler_name}, {scheduler}, {steps} steps, CFG {cfg:g}, {width} x {height} px"
        pages = _write(folder / f"{stem}.png", columns, rows, rendered.cells, note, base_column)
        shown = _image(pages[0])
        return io.NodeOutput(shown, _batch(rendered.cells, (width, height)), str(pages[0].with_suffix(".html")))


def _write(
    path: Path, columns: list[Column], rows: list[Row], cells: list[Cell], note: str, base_column: bool
) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return compose(
        [column.label for column in columns],
        [row.label for row in rows],
        cells,
        path,
        title=path.parent.name,
        note=note,
        base=0 if base_column else None,
    )


def _place(checkpoints: Checkpoints, name: str) -> tuple[Path, str]:
    """The folder of a strip and the stem of its files."""
    if not name.strip():
        return checkpoints.folder, checkpoints.name
    from .paths import runs_folder

    return runs_folder() / "strips" / safe_name(name, "strip"), "strip"


def _check_cells(num_cells: int, width: int, height: int) -> None:
    """Errors: `ValueError` where the pictures would not fit into memory as one batch."""
    if num_cells * width * height * 3 * 4 > MAX_CELLS_BYTES:
        most = MAX_CELLS_BYTES // (width * height * 3 * 4)
        raise ValueError(
            f"Checkpoint Strip: {num_cells} pictures of {width} x {height} px do not fit into one batch of images "
            f"(at most {most}); take fewer checkpoints (every) or smaller pictures"
        )


def _side(name: str) -> io.Input:
    tooltip = f"{name} of each picture in pixels"
    return io.Int.Input(name, display_name=name.capitalize(), default=512, min=16, max=16384, step=8, tooltip=tooltip)


def _numbers(text: str, what: str, *, whole: bool) -> list[Any]:
    """Numbers separated by commas or spaces. Errors: `ValueError` naming the one that is none."""
    found: list[Any] = []
    for word in text.replace(",", " ").split():
        try:
            value = int(word) if whole else float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (whole and not 0 <= value < 2**64) or abs(value) > 2**64:
            kind = "whole numbers from 0" if whole else "numbers"
            raise ValueError(f'{what} must be {kind}, separated by commas, got "{word[:40]}"')
        found.append(value)
    if not found:
        raise ValueError(f"{what} is empty; give at least one number")
    return found


def _image(path: Path) -> torch.Tensor:
    """(1, H, W, 3) in [0, 1]."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # a page of our own may be larger than what Pillow expects of strangers
    try:
        with Image.open(path) as image:
            image.thumbnail((MAX_IMAGE_PX, MAX_IMAGE_PX))
            return _tensor(image)[None]
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _batch(cells: list[Cell], size: tuple[int, int]) -> torch.Tensor:
    """(N, H, W, 3); a cell without a picture is grey."""
    empty = Image.new("RGB", size, "#F1F4F6")
    return torch.stack([_tensor((cell.loaded() or empty).resize(size)) for cell in cells])


def _tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)


class _Progress:
    """The bar of the node, with the strip as it grows. Telling it raises where the user cancelled."""

    def __init__(self, num_columns: int, num_rows: int, size: tuple[int, int], steps: int) -> None:
        self._overview = Overview(num_columns, num_rows, size, _PREVIEW_PX)
        self._steps, self._done, self._shown = steps, 0, -math.inf
        self._total = num_columns * num_rows * steps
        self._bar = comfy.utils.ProgressBar(self._total)

    def step(self, step: int) -> None:
        self._bar.update_absolute(self._done * self._steps + step, self._total)

    def cell(self, cell: Cell, done: int, total: int) -> None:
        self._done = done
        self._overview.paste(cell)
        now = time.monotonic()
        preview = None
        if done == total or now - self._shown >= _PREVIEW_SECONDS:
            preview, self._shown = ("JPEG", self._overview.image, _PREVIEW_PX), now
        self._bar.update_absolute(done * self._steps, self._total, preview)
