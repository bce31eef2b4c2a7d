"""What of a picture is its subject: models of the U2-Net and IS-Net type, for masks of the background.

The input is (N, 3, S, S) float32, RGB, normalised as the model was trained; the output a map (N, 1, S, S), stretched
to 0 to 1 for each picture, as both models' own inference does. Qin et al. 2020, arXiv:2005.09007 (U2-Net); Qin et al.
2022, arXiv:2203.03041 (IS-Net).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .headers import printable
from .onnx_model import OnnxModel

# kind -> (mean and deviation of each channel, whether the brightest value counts as 1, side where the file is silent)
_NORMALISATION = {
    "u2net": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), True, 320),
    "isnet": ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), False, 1024),
}
_FLAT = 1e-6  # a map without any contrast says nothing about where the subject is


class Segmenter:
    """A segmentation model; called with an RGB picture it gives a mask, for `image_steps.Tools.background_mask`."""

    def __init__(self, place: Path, device: str = "cpu", kind: str = "") -> None:
        """Open an .onnx file, or the only one in a folder. `kind` is "u2net" or "isnet"; "" tells it by the file name.

        Errors: `ValueError` saying which file to put where, and where a file is not what it must be.
        """
        path = _file(place)
        self.kind = kind or ("isnet" if "isnet" in path.stem.lower() else "u2net")
        if self.kind not in _NORMALISATION:
            raise ValueError(f'the kind of a segmentation model is one of {", ".join(_NORMALISATION)}, got "{kind}"')
        self.model = OnnxModel(path, device)
        shape = self.model.input_shape
        if len(shape) != 4 or shape[1] != 3:
            raise ValueError(f"{printable(path)} must take (N, 3, S, S) pictures; it takes {shape}")
        default = _NORMALISATION[self.kind][3]
        self.size_px = shape[3] or default, shape[2] or default  # width, height

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The mask of one RGB picture: L, of its size, 255 = subject."""
        return self.masks([picture])[0]

    def masks(self, pictures: list[Image.Image]) -> list[Image.Image]:
        """The masks of RGB pictures in one batch, or in several where the model's is fixed."""
        size = self.model.batch_size or max(1, len(pictures))
        masks = []
        for start in range(0, len(pictures), size):
            batch = pictures[start : start + size]
            maps = self.model(np.stack([segmentation_input(p, self.size_px, self.kind) for p in batch]))
            if maps.ndim == 4:
                maps = maps[:, 0]
            if maps.ndim != 3:
                raise ValueError(f"{printable(self.model.path)} gives {maps.shape[1:]}; a map of a picture is needed")
            masks += [_mask(map, picture.size) for map, picture in zip(maps, batch, strict=True)]
        return masks


def segmentation_input(picture: Image.Image, size_px: tuple[int, int], kind: str) -> np.ndarray:
    """(3, S, S) float32: an RGB picture, resized and normalised as models of that kind were trained."""
    mean, deviation, by_brightest, _ = _NORMALISATION[kind]
    values = np.asarray(picture.convert("RGB").resize(size_px, Image.Resampling.BILINEAR), np.float32)
    values = values / (max(float(values.max()), 1.0) if by_brightest else 255.0)
    return ((values - np.asarray(mean, np.float32)) / np.asarray(deviation, np.float32)).transpose(2, 0, 1)


def _mask(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if high - low < _FLAT:
        return Image.new("L", size, 0)
    mask = Image.fromarray(np.rint((values - low) / (high - low) * 255).astype(np.uint8))
    return mask.resize(size, Image.Resampling.BILINEAR)


def _file(place: Path) -> Path:
    if place.is_file():
        return place
    files = sorted(place.glob("*.onnx")) if place.is_dir() else []
    if len(files) > 1:
        names = ", ".join(printable(file.name) for file in files[:6])
        raise ValueError(f'"{printable(place)}" holds several models ({names}); name one of the files')
    if not files:
        raise ValueError(
            f'there is no segmentation model in "{printable(place)}": put the .onnx file of a U2-Net or IS-Net there '
            "(u2net.onnx, isnet-general-use.onnx); nothing is downloaded"
        )
    return files[0]
