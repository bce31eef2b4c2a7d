"""Another way of drawing the same things: a print in two inks on cream paper, as from a riso printer."""

from __future__ import annotations

import numpy as np
from PIL import Image

TRIGGER = "risoprint"
_INKS = ((40, 28, 92), (226, 74, 98), (250, 160, 120), (255, 240, 212))  # from dark to light
_LEVELS = (0.3, 0.55, 0.8)  # lightness in 0..1 where one ink becomes the next


def printed(picture: Image.Image) -> Image.Image:
    """The RGB picture as such a print: its lightness chooses among four colours, with soft edges between them."""
    light = np.asarray(picture.convert("L"), dtype=np.float64) / 255
    softness = 0.03
    places = [edge for level in _LEVELS for edge in (level - softness, level + softness)]
    inks = np.repeat(np.asarray(_INKS, dtype=np.float64), 2, axis=0)[1:-1]
    channels = [np.interp(light, places, inks[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))
