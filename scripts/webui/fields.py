"""The fields of a request, and pictures as answers."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """A picture as an answer."""

    data: bytes
    mime: str


def text(values: dict[str, Any], name: str) -> str:
    """A text that is not empty. Errors: `ValueError` naming the field."""
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a text, got {json.dumps(value)}")
    return value


def whole(values: dict[str, Any], name: str) -> int:
    """A whole number. Errors: `ValueError` naming the field."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value != value // 1:
        raise ValueError(f"{name} must be a whole number, got {json.dumps(value)}")
    return int(value)


def number(values: dict[str, Any], name: str, default: float) -> float:
    """A finite number, or `default` where it is not given. Errors: `ValueError` naming the field."""
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {json.dumps(value)}")
    return float(value)


def table(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A table, empty where it is not given. Errors: `ValueError` naming the field."""
    value = values.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a table, got {json.dumps(value)[:60]}")
    return value


def jpeg(image: Image.Image, quality: int = 85) -> Picture:
    """A picture, small."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Picture(buffer.getvalue(), "image/jpeg")


def png(image: Image.Image | Path) -> Picture:
    """A picture, pixel for pixel; or the file of one."""
    if isinstance(image, Path):
        return Picture(image.read_bytes(), "image/png")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(buffer.getvalue(), "image/png")
