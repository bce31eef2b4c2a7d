"""What the nodes that work on data sets share: their folders, progress that keeps what is done, texts and previews."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from PIL import Image
from server import PromptServer

from ..lib.config import DataConfig, from_dict, to_dict
from ..lib.data.gallery import EditPlan, Gallery, opened
from . import progress_text
from .sockets import Dataset
from .train import as_tensor

MOST_LINES = 1000  # of a text output
SHOWN_LINES = 12  # on the node itself


class Progress:
    """The bar of a node. A cancel is noted, so that the work ends between two pictures with what is done."""

    def __init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(1)
        self.is_cancelled = False

    def __call__(self, done: int, total: int) -> None:
        """Show how far the work is."""
        try:
            self._bar.update_absolute(done, total)
        except comfy.model_management.InterruptProcessingException:
            self.is_cancelled = True

    def stopped(self) -> bool:
        """Whether the user has cancelled."""
        self.is_cancelled = self.is_cancelled or comfy.model_management.processing_interrupted()
        return self.is_cancelled

    def end(self) -> None:
        """Tell ComfyUI of a cancel, after what is done was kept."""
        if self.is_cancelled:
            comfy.model_management.interrupt_current_processing(False)
            raise comfy.model_management.InterruptProcessingException()


def data_config(dataset: Dataset, **changes: Any) -> DataConfig:
    """The settings of a data set of folders. Errors: `ValueError` for one of latents."""
    _check_folders(dataset)
    concepts = [to_dict(concept) for concept in dataset.concepts]
    return from_dict(DataConfig, {**dataset.settings, **changes, "concepts": concepts}, "data")


def files_config(dataset: Dataset) -> DataConfig:
    """The same with captions as their files have them: nothing in front or behind, none from names."""
    config = data_config(dataset, caption_from_name=False)
    concepts = tuple(replace(concept, trigger="", append="") for concept in config.concepts)
    return replace(config, concepts=concepts)


def galleries(dataset: Dataset) -> list[Gallery]:
    """Each folder of a data set once. Errors: `ValueError` for one of latents, and for a folder that is gone."""
    _check_folders(dataset)
    found = {gallery.folder: gallery for gallery in (opened(concept.folder) for concept in dataset.concepts)}
    for gallery in found.values():
        gallery.refresh()
    return list(found.values())


def edited_text(plans: Sequence[tuple[Gallery, EditPlan]], written: bool) -> str:
    """What edits change, or changed, for people."""
    num = sum(len(plan.changes) for _, plan in plans)
    num_meant = sum(plan.num_meant for _, plan in plans)
    num_left_out = sum(plan.num_left_out for _, plan in plans)
    lines = [f"{num} of {num_meant} captions {'were changed' if written else 'would change'}"]
    if num_left_out:
        lines[0] += f"; {num_left_out} cannot be edited"
    if num and not written:
        lines[0] += "; switch Write on to write them"
    for gallery, plan in plans:
        if plan.changes:
            lines += [f"{gallery.folder}:"] if len(plans) > 1 else []
            lines.append(plan.diff(MOST_LINES))
    return "\n".join(lines)


def shown(node: type, text: str, pictures: torch.Tensor | None = None) -> dict[str, Any]:
    """What the node itself shows: the begin of a text, and pictures. Returns the `ui` of its output."""
    from comfy_api.latest import ui

    lines = text.splitlines()
    more = [f"and {len(lines) - SHOWN_LINES} more lines"] if len(lines) > SHOWN_LINES else []
    node_id = str(node.hidden.unique_id)  # type: ignore[attr-defined]
    progress_text.send(PromptServer.instance, "\n".join([*lines[:SHOWN_LINES], *more]), node_id)
    about: dict[str, Any] = {} if pictures is None else ui.PreviewImage(pictures, cls=node).as_dict()
    return {**about, "text": (text,)}


def sheets(images: Iterable[Image.Image], side_px: int) -> torch.Tensor:
    """Pictures as one batch (N, side, side, 3), each as large as fits in the middle of a dark sheet."""
    found = []
    for image in images:
        scale = min(side_px / image.width, side_px / image.height)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        sheet = Image.new("RGB", (side_px, side_px), "#202020")
        sheet.paste(image.resize(size), ((side_px - size[0]) // 2, (side_px - size[1]) // 2))
        found.append(as_tensor(sheet))
    return torch.cat(found) if found else as_tensor(Image.new("RGB", (side_px, side_px), "#202020"))


def on_checks(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows a chequered ground."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    ground = Image.new("RGB", image.size, "#909090")
    light = Image.new("RGB", (8, 8), "#C0C0C0")
    for top in range(0, image.height, 8):
        for left in range(top // 8 % 2 * 8, image.width, 16):
            ground.paste(light, (left, top))
    ground.paste(image, mask=image.getchannel("A"))
    return ground


def _check_folders(dataset: Dataset) -> None:
    if dataset.given is not None:
        raise ValueError("a data set of latents has no pictures and captions; use one from a folder or from images")
