"""How pleasing pictures are, by a predictor in an ONNX file that the user has placed: one number a picture.

Two layouts. One file: RGB pictures (N, 3, S, S) in, as CLIP sees them, and out either (N, 1), the score, or (N, 10),
how likely each rating from 1 to 10 is, whose mean is the score (Talebi and Milanfar 2018, arXiv:1709.05424, NIMA). Or
a folder with `image_encoder.onnx`, pictures to embeddings (N, D), and `predictor.onnx`, embeddings of length one to
(N, 1), as the predictors over CLIP of Schuhmann et al. 2022, arXiv:2210.08402, are made.

CLIP sees a picture's middle square, resized by bicubic to S (224 where the file is silent), in [0, 1], less the mean of
its training pictures, over their deviation. Radford et al. 2021, arXiv:2103.00020.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .headers import PictureError, named_faults, printable
from .onnx_model import OnnxModel
from .pictures import decode, on_white
from .scan import Problem

ENCODER, PREDICTOR = "image_encoder.onnx", "predictor.onnx"
_DEFAULT_SIDE_PX = 224
_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
_DEVIATION = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)
_NUM_RATINGS = 10
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # and ' itself, as in the records


@dataclass(frozen=True)
class Scoring:
    """The score of each picture, and which could not be looked at."""

    scores: dict[Path, float]
    problems: tuple[Problem, ...]
    stopped: bool  # before all were done


def is_predictor(place: Path) -> bool:
    """Whether there is a predictor at `place`: an .onnx file, or a folder with both files."""
    return place.suffix == ".onnx" or all((place / name).is_file() for name in (ENCODER, PREDICTOR))


class AestheticScorer:
    """A predictor that the user has placed."""

    def __init__(self, place: Path, device: str = "cpu") -> None:
        """Open an .onnx file, or a folder. Errors: `ValueError` saying which file to put where, and what is wrong."""
        folder = place.is_dir()
        path = place / ENCODER if folder else place
        if not path.is_file() or (folder and not (place / PREDICTOR).is_file()):
            raise ValueError(
                f'there is no aesthetic predictor in "{printable(place)}": name an .onnx file that gives a score for a '
                f"picture, or a folder with {ENCODER} and {PREDICTOR}; nothing is downloaded"
            )
        self.model = OnnxModel(path, device)
        self.predictor = OnnxModel(place / PREDICTOR, device) if folder else None
        shape = self.model.input_shape
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            raise ValueError(f"{printable(path)} must take (N, 3, S, S) pictures; it takes {shape}")
        self.side_px = shape[2] or _DEFAULT_SIDE_PX

    def scores(self, pictures: Sequence[Image.Image]) -> list[float]:
        """The score of each RGB picture. Errors: `ValueError` where the files do not fit."""
        batch = np.stack([clip_input(picture, self.side_px) for picture in pictures])
        output = _in_batches(self.model, batch)
        last = self.model
        if self.predictor is not None:
            if output.ndim != 2:
                raise ValueError(f"{printable(last.path)} gives {output.shape[1:]}; one embedding a picture is needed")
            last = self.predictor
            output = _in_batches(last, output / np.maximum(np.linalg.norm(output, axis=1, keepdims=True), 1e-12))
        output = output.reshape(len(pictures), -1)
        if output.shape[1] == 1:
            return output[:, 0].tolist()
        if output.shape[1] == _NUM_RATINGS and (output >= 0).all():
            ratings = np.arange(1, _NUM_RATINGS + 1, dtype=np.float64)
            return ((output @ ratings) / np.maximum(output.sum(1), 1e-12)).tolist()
        raise ValueError(
            f"{printable(last.path)} gives {output.shape[1]} numbers for a picture; an aesthetic predictor gives one, "
            f"or how likely each rating from 1 to {_NUM_RATINGS} is"
        )


def clip_input(picture: Image.Image, side_px: int) -> np.ndarray:
    """(3, S, S) float32: the middle square of an RGB picture as CLIP sees it."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((side_px, side_px), Image.Resampling.BICUBIC)
    return ((np.asarray(square, np.float32) / 255 - _MEAN) / _DEVIATION).transpose(2, 0, 1)


def score_pictures(
    paths: Iterable[Path],
    scorer: AestheticScorer,
    *,
    batch_size: int = 8,
    max_megapixels: float = 200.0,
    on_progress: Callable[[int, int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Scoring:
    """The score of each picture. Before each batch `stopped()` is asked; what is done by then is returned."""
    todo = list(paths)
    scores: dict[Path, float] = {}
    problems: list[Problem] = []
    done = 0
    for start in range(0, len(todo), batch_size):
        if stopped():
            break
        pictures: dict[Path, Image.Image] = {}
        for path in todo[start : start + batch_size]:
            try:
                with named_faults(path):
                    pictures[path] = on_white(*decode(path, max_megapixels, 2 * scorer.side_px))[0]
            except PictureError as error:
                problems.append(Problem(path, error.reason, "error", error.kind))
        if pictures:
            scores |= zip(pictures, scorer.scores(list(pictures.values())), strict=True)
        done = min(len(todo), start + batch_size)
        if on_progress:
            on_progress(done, len(todo))
    return Scoring(scores, tuple(problems), done < len(todo))


def score_table(scores: Mapping[str, float]) -> bytes:
    """CSV with the columns image and score, the best first, from scores by name."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("image", "score"))
    for name, score in best_first(scores):
        # a name that a spreadsheet would take for a formula
        writer.writerow((f"'{name}" if name[:1] in _FORMULA else name, f"{score:.4f}"))
    return file.getvalue().encode()


def best_first(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Names, fit for a screen, and scores; equal ones by name."""
    return [(printable(name), score) for name, score in sorted(scores.items(), key=lambda item: (-item[1], item[0]))]


def _in_batches(model: OnnxModel, rows: np.ndarray) -> np.ndarray:
    size = model.batch_size or len(rows)
    return np.concatenate([model(rows[start : start + size]) for start in range(0, len(rows), size)])
