"""Reads in a 64x64 picture what the demo's drawer would have been told to draw: the yardstick of its learning tests.

A small convolutional network that has seen drawings only, never a picture of a diffusion model, and that shares no code
with what trains one. `train_reader.py` made its weights. A test imports it with this folder on `sys.path`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from sd_atelier.lib.standalone.demo.characters import CHARACTERS
from sd_atelier.lib.standalone.demo.drawing import SIDE_PX, Description
from sd_atelier.lib.standalone.demo.style import printed
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights.safetensors"
NOTHING = "nothing"  # who is in a picture without a figure: an empty place, one colour, noise
FIELDS = ("who", "colour", "pose", "expression", "accessory", "background", "framing")
INK_DISTANCE = 0.05  # a pixel is of a print's colour when it is nearer than this, in RGB of 0..1


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a picture shows, in the words of `drawing.Description`.

    `colour` is None for a character; `pose` in a close-up; everything but `background` where `who` is `NOTHING`.
    `probability` is of each field's word in 0..1, also where it is then left out.
    """

    who: str
    colour: str | None
    pose: str | None
    expression: str | None
    accessory: str | None
    background: str
    framing: str | None
    probability: Mapping[str, float]


class Reader:
    """The trained network. `classes` are the words of each field, in the order of its outputs."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        with safe_open(weights, "pt") as file:
            self.metadata: dict[str, str] = file.metadata()
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        self.classes: dict[str, list[str | None]] = json.loads(self.metadata["classes"])
        self.network = Network([len(self.classes[field]) for field in FIELDS])
        self.network.load_state_dict(state)
        self.network.eval().to(memory_format=torch.channels_last)

    def read(self, images: Tensor | Sequence[Image.Image]) -> list[Reading]:
        """Read RGB pictures: [N, 3, 64, 64] in 0..1, or images, which are resized where they are not 64x64.

        Each is read together with its mirror image. Errors: `ValueError` for another shape or range.
        """
        pictures = images if isinstance(images, Tensor) else as_pictures(images)
        if pictures.shape[1:] != (3, SIDE_PX, SIDE_PX):
            raise ValueError(f"pictures must be [N, 3, {SIDE_PX}, {SIDE_PX}], got {list(pictures.shape)}")
        if len(pictures) and not (pictures.min() >= 0 and pictures.max() <= 1):
            raise ValueError("pictures must be in 0..1: clamp what a model has drawn")
        return [reading for part in pictures.split(64) if len(part) for reading in self._readings(part.float())]

    @torch.no_grad()
    def _readings(self, pictures: Tensor) -> list[Reading]:
        both = torch.cat([pictures, pictures.flip(-1)]).contiguous(memory_format=torch.channels_last)
        words, probabilities = [{} for _ in pictures], [{} for _ in pictures]
        for field, scores in zip(FIELDS, self.network(both), strict=True):
            best, places = scores.softmax(dim=1).unflatten(0, (2, -1)).mean(dim=0).max(dim=1)
            for n, (place, probability) in enumerate(zip(places.tolist(), best.tolist(), strict=True)):
                words[n][field], probabilities[n][field] = self.classes[field][place], probability
        return [_reading(*pair) for pair in zip(words, probabilities, strict=True)]


class Network(nn.Module):
    """Pictures [N, 3, 64, 64] in 0..1 to the scores [N, classes] of each field."""

    def __init__(self, num_classes: Sequence[int]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2), _step(12, 24), _step(24, 48, stride=2), _step(48, 48), _step(48, 64, stride=2),
            _Residual(64), _step(64, 64, stride=2),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(2 * 64, 72), nn.ReLU())
        self.fields = nn.Linear(72, sum(num_classes))
        self.num_classes = list(num_classes)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        seen = self.body(pictures * 4 - 2)
        pooled = torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1)
        return self.fields(self.head(pooled)).split(self.num_classes, dim=1)


class _Residual(nn.Module):
    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(_step(num_channels, num_channels), _step(num_channels, num_channels))

    def forward(self, seen: Tensor) -> Tensor:
        return seen + self.steps(seen)


def as_pictures(images: Sequence[Image.Image]) -> Tensor:
    """Images as [N, 3, 64, 64] in 0..1."""
    size = (SIDE_PX, SIDE_PX)
    fitting = [
        (image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)).convert("RGB")
        for image in images
    ]
    values = np.stack([np.asarray(image) for image in fitting]) if fitting else np.zeros((0, *size, 3), np.uint8)
    return torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255


def right(reading: Reading, description: Description) -> dict[str, bool]:
    """For each field that the description's caption tells, whether the picture was read so."""
    told = set(FIELDS)
    if description.colour is None:
        told.remove("colour")
    if description.framing == "close-up":
        told.remove("pose")
    return {f: getattr(reading, f) == getattr(description, f) for f in FIELDS if f in told}


def is_printed(image: Image.Image | Tensor) -> float:
    """The share of pixels, 0..1, in a colour of `style.printed`: its four inks and the blends of neighbouring ones.

    A tensor is [3, H, W] in 0..1. Prints are near 1, above one half when softened; drawings are below.
    """
    pixels = as_pictures([image])[0] if isinstance(image, Image.Image) else image.float()
    greys = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    colours = torch.from_numpy(np.unique(np.asarray(printed(greys))[0], axis=0)).float() / 255
    distances = torch.cdist(pixels.flatten(1).T, colours).amin(dim=1)
    return (distances < INK_DISTANCE).float().mean().item()


def _reading(words: dict[str, Any], probability: dict[str, float]) -> Reading:
    """The words, without those of fields that such a picture does not have."""
    if words["framing"] == "close-up":
        words = {**words, "pose": None}
    if words["who"] in CHARACTERS:
        words = {**words, "colour": None}
    if words["who"] == NOTHING:
        words = {**dict.fromkeys(FIELDS), "who": NOTHING, "background": words["background"]}
    return Reading(**words, probability=probability)


def _step(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
