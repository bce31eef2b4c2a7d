"""Taggers of the WD14 type: a picture in, a probability for each of thousands of Danbooru tags out.

A folder holds `model.onnx` and `selected_tags.csv`, as the models are published: the input is (N, S, S, 3) float32,
BGR, 0 to 255, the picture padded to a square with white; the output (N, number of tags), in [0, 1]. Layouts v2 and v3
differ in the models only. In the table, `category` is 0 for general tags, 4 for characters and 9 for ratings.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import setting
from .caption_files import EXISTING
from .captions import find_caption
from .headers import PictureError, named_faults, printable
from .onnx_model import OnnxModel
from .pictures import decode
from .scan import Problem
from .tag_rules import TagRules, plain, tag_rules

MODEL, TABLE = "model.onnx", "selected_tags.csv"
GENERAL, CHARACTER, RATING = 0, 4, 9
_DEFAULT_SIDE_PX = 448


@dataclass(frozen=True, kw_only=True)
class TaggingConfig:
    """Which tags are taken, and how they are written."""

    general_threshold: float = setting(0.35, "least probability of a general tag", min=0.0, max=1.0)
    character_threshold: float = setting(0.85, "least probability of a character's name", min=0.0, max=1.0)
    order: str = setting("score", "tags by falling probability, or in the order of the table", choices=("score", "csv"))
    spaces: bool = setting(True, "spaces for underscores, except in faces such as o_o")
    escape: bool = setting(False, "\\( and \\) for parentheses, as prompts of the WebUI need it; captions do not")
    exclude: str = setting("", "tags that are never taken, separated by commas")
    existing: str = setting(
        "skip",
        "pictures that have a caption: leave it, add what it lacks, or replace it",
        choices=EXISTING,
    )


@dataclass(frozen=True)
class TagName:
    """One row of the table."""

    name: str  # as in the file, with underscores
    category: int


@dataclass(frozen=True)
class ScoredTag:
    """A tag that was found, as it is written, and its probability."""

    tag: str
    score: float
    category: int


@dataclass(frozen=True)
class Tagging:
    """What a tagger found in pictures, and which it could not look at."""

    tags: dict[Path, list[ScoredTag]]
    problems: tuple[Problem, ...]
    stopped: bool  # before all were done

    def words(self) -> dict[Path, list[str]]:
        """The tags as they are written, for `caption_files.plan_words`."""
        return {path: [tag.tag for tag in tags] for path, tags in self.tags.items()}


def read_tags(path: Path) -> tuple[TagName, ...]:
    """The table, in the order of the model's outputs. Errors: `ValueError` where it is not such a table."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        return tuple(TagName(str(row["name"]), int(row["category"])) for row in rows)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            f"{printable(path)} must be a table with the columns tag_id, name, category and count, as it comes with "
            f"the model: {type(error).__name__} {error}"
        ) from error


class Tagger:
    """A tagger in a folder that the user has filled."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Open it. Errors: `ValueError` saying which file to put where, and where a file is not what it must be."""
        for name in (MODEL, TABLE):
            if not (folder / name).is_file():
                raise ValueError(
                    f'there is no tagger in "{printable(folder)}": put {MODEL} and {TABLE} of a WD14-type tagger there '
                    f"(missing: {name}); nothing is downloaded"
                )
        self.tags = read_tags(folder / TABLE)
        self.model = OnnxModel(folder / MODEL, device)
        shape = self.model.input_shape
        if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
            raise ValueError(f"{printable(self.model.path)} must take (N, S, S, 3) pictures; it takes {shape}")
        self.side_px = shape[1] or _DEFAULT_SIDE_PX

    def scores(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Probabilities (N, number of tags) of RGB pictures. Errors: `ValueError` where the model does not fit."""
        output = self.model(np.stack([tagger_input(picture, self.side_px) for picture in pictures]))
        if output.shape != (len(pictures), len(self.tags)):
            raise ValueError(
                f"{printable(self.model.path)} gives {output.shape[1:]} numbers for a picture, and {TABLE} beside it "
                f"has {len(self.tags)} tags; take both from the same model"
            )
        if output.min() < -1e-3 or output.max() > 1 + 1e-3:
            raise ValueError(f"{printable(self.model.path)} gives values outside 0 to 1; it is no tagger of this type")
        return output


def tagger_input(picture: Image.Image, side_px: int) -> np.ndarray:
    """(S, S, 3) float32, BGR, 0 to 255: an RGB picture in the middle of a white square, resized."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    if longest != side_px:
        square = square.resize((side_px, side_px), Image.Resampling.BICUBIC)
    return np.asarray(square, np.float32)[..., ::-1]


def chosen_tags(
    scores: np.ndarray, tags: Sequence[TagName], config: TaggingConfig, rules: TagRules | None = None
) -> list[ScoredTag]:
    """The tags of one picture from its probabilities; ratings and other categories are left out."""
    rules = rules or tag_rules()
    # in the precision of the scores, so that one equal to the threshold is taken with every numpy
    least = {GENERAL: np.float32(config.general_threshold), CHARACTER: np.float32(config.character_threshold)}
    never = {plain(tag) for tag in config.exclude.split(",") if tag.strip()}
    found = [
        ScoredTag(written(tag.name, config, rules), float(score), tag.category)
        for score, tag in zip(scores, tags, strict=True)
        if tag.category in least and score >= least[tag.category] and plain(tag.name) not in never
    ]
    # a stable sort: of equally probable tags the table's order counts
    return sorted(found, key=lambda tag: -tag.score) if config.order == "score" else found


def written(name: str, config: TaggingConfig, rules: TagRules) -> str:
    """A tag of the table as captions have it."""
    if config.spaces and plain(name) not in rules.kaomoji:
        name = name.replace("_", " ")
    if config.escape:
        name = name.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
    return name


def tag_pictures(
    paths: Iterable[Path],
    tagger: Tagger,
    config: TaggingConfig,
    *,
    batch_size: int = 8,
    max_megapixels: float = 200.0,
    on_progress: Callable[[int, int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Tagging:
    """The tags of each picture. Before each batch `stopped()` is asked; what is done by then is returned.

    Pictures that have a caption are passed over where `config.existing` is "skip".
    """
    todo = [p for p in paths if config.existing != "skip" or not find_caption(p, False)[0]]
    found: dict[Path, list[ScoredTag]] = {}
    problems: list[Problem] = []
    done = 0
    for batch in _batches(todo, tagger.model.batch_size or batch_size):
        if stopped():
            break
        pictures: dict[Path, Image.Image] = {}
        for path in batch:
            try:
                pictures[path] = _picture(path, max_megapixels)
            except PictureError as error:
                problems.append(Problem(path, error.reason, "error"))
        if pictures:
            for path, scores in zip(pictures, tagger.scores(list(pictures.values())), strict=True):
                found[path] = chosen_tags(scores, tagger.tags, config)
        done += len(batch)
        if on_progress:
            on_progress(done, len(todo))
    return Tagging(found, tuple(problems), done < len(todo))


def _batches(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


def _picture(path: Path, max_megapixels: float) -> Image.Image:
    """RGB, transparency on white. Errors: `PictureError`."""
    with named_faults(path):
        image, alpha, _ = decode(path, max_megapixels)
    return image if alpha is None else Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
