"""Finished cells on the disk, known by everything that they depend on: none is made twice, in any strip."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..files import write_image, write_json
from ..host import SampleRequest


def cell_key(model_fingerprint: str, request: SampleRequest, **settings: Any) -> str:
    """SHA-256, in hex, of the model with its patches and of every sampling setting. `settings` are those of the host
    that a request does not hold (sampler, CLIP skip, strength), as JSON values."""
    parts = {"model": model_fingerprint, "request": dataclasses.asdict(request), "settings": settings}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True)
class Cell:
    """One picture of a strip. `column` and `row` count from 0; `key` and `file` say where it is kept.

    `image` is the picture, or the path of its file, which is then read when it is drawn; None where there is none, and
    `error` says why.
    """

    column: int
    row: int
    image: Image.Image | Path | None
    key: str = ""
    file: str = ""
    error: str = ""

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the picture; None where there is none. Errors: as `loaded`."""
        if isinstance(self.image, Path):
            with Image.open(self.image) as image:
                return image.size
        return None if self.image is None else self.image.size

    def loaded(self) -> Image.Image | None:
        """The picture as RGB. Errors: `OSError` when its file cannot be read."""
        if isinstance(self.image, Path):
            with Image.open(self.image) as image:
                return image.convert("RGB")
        return None if self.image is None else self.image.convert("RGB")


class CellStore:
    """Finished cells in a folder: KEY.png, and KEY.json with what it is and the hash of the picture.

    The JSON file is written last, so a cell is there whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def find(self, key: str) -> Path | None:
        """The file of a finished picture; None if it was never finished or is no longer what was written."""
        picture, about = self._paths(key)
        if not (picture.is_file() and about.is_file()):
            return None
        try:
            written = json.loads(about.read_text("utf-8"))["sha256"]
        except (ValueError, KeyError, TypeError):  # damaged: made again, like a cell that was never finished
            return None
        return picture if hashlib.sha256(picture.read_bytes()).hexdigest() == written else None

    def get(self, key: str) -> Image.Image | None:
        """The finished picture, or None as `find`."""
        path = self.find(key)
        if path is None:
            return None
        with Image.open(path) as image:
            return image.convert("RGB")

    def put(
        self,
        key: str,
        image: Image.Image,
        about: Mapping[str, Any] | None = None,
        text: Mapping[str, str] | None = None,
    ) -> Path:
        """Keep a finished picture. `about` is information for people, as JSON values; `text` goes into the PNG.

        Returns the picture's path.
        """
        picture, information = self._paths(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        info = PngInfo()
        for name, value in (text or {}).items():
            info.add_itxt(name, value)
        written = write_image(picture, image.convert("RGB"), pnginfo=info)
        write_json(information, {**(about or {}), "sha256": written})
        return picture

    def _paths(self, key: str) -> tuple[Path, Path]:
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise ValueError(f'a cell\'s key must be 64 hexadecimal digits, got "{key}"')
        return self.folder / f"{key}.png", self.folder / f"{key}.json"
