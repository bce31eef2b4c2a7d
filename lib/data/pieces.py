"""What goes through the steps of preparing: one picture with its caption, and the models that steps may ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from PIL import Image

from .focal_point import FaceDetector
from .tag_rules import TagRules, tag_rules


@dataclass(frozen=True)
class Piece:
    """A picture on its way: RGB or RGBA, upright, in sRGB."""

    image: Image.Image
    caption: str
    suffix: str = ""  # what its name gets
    notes: tuple[str, ...] = ()  # rest of a sentence that begins with the picture's name

    def noted(self, note: str) -> Piece:
        return replace(self, notes=(*self.notes, note))


@dataclass(frozen=True)
class Tools:
    """What steps need from outside: models that a host or a user has. `names` says which they are, for the record.

    They are called in the thread of whoever prepares: a host's models may hold to it by locks, and by what torch keeps
    for each thread.
    """

    detect_faces: FaceDetector | None = None
    background_mask: Callable[[Image.Image], Image.Image] | None = None  # RGB -> L of the same size, 255 = subject
    upscale: Callable[[Image.Image], Image.Image] | None = None  # RGB -> RGB, twice or four times as large, say
    rules: TagRules = field(default_factory=tag_rules)
    names: tuple[str, ...] = ()

    @property
    def models(self) -> bool:
        """Whether there are any."""
        return any(model is not None for model in (self.detect_faces, self.background_mask, self.upscale))


class Step(Protocol):
    """One step; a frozen dataclass of settings."""

    def pieces(self, piece: Piece, tools: Tools) -> list[Piece]: ...
