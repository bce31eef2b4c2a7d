"""Pictures written band by band are those that were given."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sd_atelier.lib.strip.png import png_chunks


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (640, 41)])
@pytest.mark.parametrize("band_px", [1, 5, 100])
def test_bands_make_up_the_picture_whatever_their_height(size, band_px):
    image = picture(*size)
    bands = (image.crop((0, top, size[0], min(top + band_px, size[1]))) for top in range(0, size[1], band_px))
    data = b"".join(png_chunks(size, bands, {"Title": "ünï 日本"}))
    with Image.open(io.BytesIO(data)) as read:
        assert read.mode == "RGB" and np.array_equal(np.asarray(read), np.asarray(image))
        assert read.text["Title"] == "ünï 日本"


@pytest.mark.parametrize(
    ("bands", "text", "said"),
    [
        ([(4, 3)], {}, "bands of 5 px in all were expected, got 3 px"),
        ([(3, 5)], {}, "a band of 4 px was expected, got 3 px"),
        ([(4, 5)], {"": "x"}, "1 to 79 ASCII letters"),
        ([(4, 5)], {"k" * 80: "x"}, "1 to 79 ASCII letters"),
    ],
)
def test_what_is_no_picture_is_refused(bands, text, said):
    with pytest.raises(ValueError, match=said):
        list(png_chunks((4, 5), (picture(*size) for size in bands), text))
