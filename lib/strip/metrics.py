"""What the pixels of a strip say: how far each checkpoint went, and the three signs of collapse.

Collapse shows in pictures of the same prompt and seed as noise that rises, a background that gets simpler, and colour
that leaves. Each is compared with the same cell of the column without a network; a checkpoint is marked where the
median over its rows passes a limit. It is a reason to look, not a verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .page import Figure

# Limits of the ratio to the picture without a network. Healthy training changes what is drawn, and with it all three
# by some tens of percent; what fell apart is off by a factor.
NOISE_RISES, BACKGROUND_SIMPLER, COLOUR_LEAVES = 2.0, 0.5, 0.4
_BORDER = 8  # the background is looked for in the outer eighth of each side
_FLOOR = {"noise": 1.0, "background": 1.0, "colour": 2.0}  # in values of 0..255: below it, a ratio says nothing


def as_tensor(image: Image.Image) -> Tensor:
    """A picture as (3, H, W) float32 in [0, 255]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1).copy())


def noise_level(x: Tensor) -> float:
    """Standard deviation of the noise in luma, in values of 0..255; x (3, H, W) in [0, 255].

    median |I * N| / (6 * 0.6745) with N = [[1, -2, 1], [-2, 4, -2], [1, -2, 1]]: Gaussian noise of deviation 1 gives
    I * N a deviation of 6, and its magnitude a median of 0.6745 times that. The filter is from Immerkaer 1996, "Fast
    Noise Variance Estimation", Computer Vision and Image Understanding 64(2). The median in place of the mean (Donoho
    and Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 81(3)) overlooks the lines of a
    drawing, which in a mean outweigh the noise.
    """
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]).view(1, 1, 3, 3)
    response = torch.nn.functional.conv2d(_luma(x)[None, None], kernel)
    return float(response.abs().median() / (6 * 0.6745))


def background_complexity(x: Tensor) -> float:
    """Mean length of the luma gradient (Sobel, normalised) in the outer eighth of each side; x (3, H, W) in [0, 255].

    The subject of a training picture stands in the middle, so that the frame is mostly background.
    """
    from kornia.filters import sobel

    gradient = sobel(_luma(x)[None, None])[0, 0]
    height, width = gradient.shape
    inner = torch.zeros_like(gradient, dtype=torch.bool)
    top, left = max(1, height // _BORDER), max(1, width // _BORDER)
    inner[top : height - top, left : width - left] = True
    return float(gradient[~inner].mean())


def colourfulness(x: Tensor) -> float:
    """How colourful a picture is, 0 for grey; x (3, H, W) in [0, 255].

    sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2) with rg = R - G and yb = (R + G) / 2 - B. Hasler and
    Suesstrunk 2003, "Measuring colourfulness in natural images", SPIE 5007, section 7.
    """
    red, green, blue = x
    rg, yb = red - green, (red + green) / 2 - blue
    spread = math.sqrt(float(rg.var(correction=0) + yb.var(correction=0)))
    return spread + 0.3 * math.hypot(float(rg.mean()), float(yb.mean()))


def dissimilarity(x: Tensor, y: Tensor) -> float:
    """1 - SSIM of two pictures (3, H, W) in [0, 255]: 0 for equal ones, about 1 for unlike ones.

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", window of 11.
    """
    from kornia.metrics import ssim

    return 1 - float(ssim(x[None], y[None], 11, max_val=255.0).mean())


def _luma(x: Tensor) -> Tensor:
    return 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]


MEASURES: dict[str, Callable[[Tensor], float]] = {
    "noise": noise_level,
    "background": background_complexity,
    "colour": colourfulness,
}


@dataclass(frozen=True)
class ColumnMetrics:
    """Of one checkpoint, over its rows: differences are means of 1 - SSIM, ratios medians; None where unmeasured."""

    to_base: float | None = None
    to_previous: float | None = None
    noise: float | None = None
    background: float | None = None
    colour: float | None = None

    @property
    def signs(self) -> tuple[str, ...]:
        """The signs of collapse that show."""
        found = []
        if self.noise is not None and self.noise > NOISE_RISES:
            found.append("noise rises")
        if self.background is not None and self.background < BACKGROUND_SIMPLER:
            found.append("background gets simpler")
        if self.colour is not None and self.colour < COLOUR_LEAVES:
            found.append("colour leaves")
        return tuple(found)

    def figures(self, controlled: float | None = None) -> list[Figure]:
        """Lines for a strip. `controlled` is the controlled loss against the base: -0.04 is 4 % less."""
        lines = []
        if self.to_base is not None:
            lines.append(Figure(f"to base {self.to_base:.2f}"))
        if self.to_previous is not None:
            lines.append(Figure(f"to previous {self.to_previous:.2f}"))
        signs = {"noise": "noise rises", "background": "background gets simpler", "colour": "colour leaves"}
        for name, sign in signs.items():
            ratio = getattr(self, name)
            if ratio is not None:
                lines.append(Figure(f"{name} x{ratio:.2f}", sign in self.signs))
        if controlled is not None:
            lines.append(Figure(f"controlled loss {controlled:+.1%}"))
        return lines


def column_metrics(
    num_columns: int, num_rows: int, picture: Callable[[int, int], Image.Image | None], base: int | None
) -> list[ColumnMetrics]:
    """The metrics of each column. `picture(column, row)` is asked once a place, row by row; two are held at a time.

    `base` is the column without a network, or None: then only the difference to the previous column is measured.
    """
    to_base: list[list[float]] = [[] for _ in range(num_columns)]
    to_previous: list[list[float]] = [[] for _ in range(num_columns)]
    ratios: list[dict[str, list[float]]] = [{name: [] for name in MEASURES} for _ in range(num_columns)]
    for row in range(num_rows):
        origin = None if base is None else _tensor(picture(base, row))
        at_origin = None if origin is None else {name: measure(origin) for name, measure in MEASURES.items()}
        previous: Tensor | None = None
        for column in range(num_columns):
            x = origin if column == base else _tensor(picture(column, row))
            if x is None:
                continue
            if previous is not None and previous.shape == x.shape:
                to_previous[column].append(dissimilarity(x, previous))
            previous = x
            if origin is None or at_origin is None or column == base or x.shape != origin.shape:
                continue
            to_base[column].append(dissimilarity(x, origin))
            for name, measure in MEASURES.items():
                if name == "noise":  # which may rise from nothing
                    noise, at_first = (max(value, _FLOOR[name]) for value in (measure(x), at_origin[name]))
                    ratios[column][name].append(noise / at_first)
                elif at_origin[name] > _FLOOR[name]:
                    ratios[column][name].append(measure(x) / at_origin[name])
    return [
        ColumnMetrics(
            to_base=_or_none(statistics.fmean, to_base[column]),
            to_previous=_or_none(statistics.fmean, to_previous[column]),
            **{name: _or_none(statistics.median, values) for name, values in ratios[column].items()},
        )
        for column in range(num_columns)
    ]


def _tensor(image: Image.Image | None) -> Tensor | None:
    return None if image is None else as_tensor(image)


def _or_none(mean: Callable[[Sequence[float]], float], values: Sequence[float]) -> float | None:
    return mean(values) if values else None
