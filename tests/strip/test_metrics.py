"""The measures do what their papers say, and each sign of collapse is marked by the collapse that it is of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from sd_atelier.lib.strip import metrics

RNG = np.random.default_rng(5)


def scene(seed: int = 0, size: int = 96) -> Image.Image:
    """A picture with a busy, coloured background and a subject in the middle."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), (90, 140, 200))
    draw = ImageDraw.Draw(image)
    for _ in range(120):
        x, y, r = [*rng.integers(0, size, 2).tolist(), int(rng.integers(3, 9))]
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.integers(30, 226, 3).tolist()))
    draw.ellipse((size // 3, size // 3, 2 * size // 3, 2 * size // 3), fill=(220, 60, 50))
    return image.filter(ImageFilter.GaussianBlur(0.8))


def noisy(image: Image.Image, sigma: float) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32) + np.random.default_rng(1).normal(0, sigma, (*image.size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def empty(image: Image.Image) -> Image.Image:
    plain = Image.new("RGB", image.size, (90, 140, 200))
    middle = (image.width // 3, image.height // 3, 2 * image.width // 3, 2 * image.height // 3)
    plain.paste(image.crop(middle), middle[:2])
    return plain


@pytest.mark.parametrize("sigma", [5.0, 12.0, 25.0])
def test_noise_of_a_flat_picture_is_measured_as_it_was_added(sigma):
    luma = 128 + torch.randn(1, 200, 200, generator=torch.Generator().manual_seed(1)) * sigma
    assert metrics.noise_level(luma.expand(3, -1, -1)) == pytest.approx(sigma, rel=0.03)
    ramp = torch.arange(200.0).expand(3, 200, 200)
    assert metrics.noise_level(ramp) < 1e-3


def test_the_lines_of_a_drawing_are_no_noise():
    drawing = torch.full((3, 64, 64), 200.0)
    drawing[:, ::12, :] = drawing[:, :, ::12] = 10.0
    assert metrics.noise_level(drawing) < 1e-3


def test_colour_is_zero_for_grey_and_as_the_paper_defines_it():
    assert metrics.colourfulness(torch.full((3, 8, 8), 90.0)) == 0
    red = torch.zeros(3, 8, 8)
    red[0] = 200.0
    assert metrics.colourfulness(red) == pytest.approx(0.3 * (200**2 + 100**2) ** 0.5)


def test_background_is_the_frame_and_not_the_middle():
    x = torch.full((3, 64, 64), 100.0)
    x[:, 20:44, 20:44] = 250.0
    assert metrics.background_complexity(x) < 1e-3
    x[:, ::4, :6] = 0.0
    assert metrics.background_complexity(x) > 2


def test_dissimilarity_is_zero_for_equal_pictures_and_grows():
    x, other = metrics.as_tensor(scene(0)), metrics.as_tensor(scene(1))
    assert metrics.dissimilarity(x, x) == pytest.approx(0, abs=1e-6)
    slightly = metrics.as_tensor(noisy(scene(0), 4))
    assert 0 < metrics.dissimilarity(x, slightly) < metrics.dissimilarity(x, other) <= 2


FAILURES = {
    "noise rises": lambda image: noisy(image, 40),
    "background gets simpler": empty,
    "colour leaves": grey,
}


@pytest.mark.parametrize("sign", FAILURES)
def test_each_failure_is_marked_by_its_sign(sign):
    grid = [[scene(row), scene(row), FAILURES[sign](scene(row))] for row in range(3)]
    measured = metrics.column_metrics(3, 3, lambda c, r: grid[r][c], base=0)
    assert measured[1].signs == () and sign in measured[2].signs
    assert any(figure.warns and sign.split()[0] in figure.text for figure in measured[2].figures())


def test_other_pictures_of_the_same_kind_are_not_marked():
    grid = [[scene(10 * column + row) for column in range(4)] for row in range(3)]
    measured = metrics.column_metrics(4, 3, lambda c, r: grid[r][c], base=0)
    assert all(m.signs == () for m in measured)
    assert measured[0].to_base is None and measured[0].to_previous is None
    assert all(m.to_base > 0.3 and m.to_previous > 0.3 for m in measured[1:])  # type: ignore[operator]


def test_missing_cells_and_a_grey_base_measure_nothing_rather_than_something_wrong():
    grid = [[grey(scene(0)), None, scene(0)], [grey(scene(1)), None, scene(1).resize((64, 64))]]
    measured = metrics.column_metrics(3, 2, lambda c, r: grid[r][c], base=0)
    assert measured[1] == metrics.ColumnMetrics()
    assert measured[2].colour is None and measured[2].noise is not None
    without = metrics.column_metrics(3, 2, lambda c, r: grid[r][c], base=None)
    assert without[2].to_base is None and without[2].to_previous is not None
