"""The host's upscalers, for pictures that are too small; only those whose model is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ...lib.files import sha256_of


def names() -> list[str]:
    """Those that can be used without downloading anything."""
    return [upscaler.name for upscaler in _there()]


def enlarged(image: Image.Image, name: str) -> Image.Image:
    """An RGB picture enlarged by an upscaler, as much as its model does, while the caller has the queue.

    Errors: `ValueError` where there is none of that name.
    """
    upscaler = _named(name)
    return upscaler.scaler.upscale(image, max(2, upscaler.scale), upscaler.data_path).convert("RGB")


def identity(name: str) -> str:
    """The name, and the SHA-256 of the model's file where there is one. Errors: as `enlarged`; `OSError`."""
    path = _named(name).data_path
    return name if path is None else f"{name} {sha256_of(Path(path))}"


def _named(name: str) -> Any:
    upscaler = next((u for u in _there() if u.name == name), None)
    if upscaler is None:
        raise ValueError(f'there is no upscaler "{name}" here; there are {", ".join(names())}')
    return upscaler


def _there() -> list[Any]:
    from modules import shared

    # an address instead of a file: the host would fetch it
    return [
        u
        for u in getattr(shared, "sd_upscalers", [])
        if u.name != "None" and u.scaler is not None and (u.data_path is None or Path(u.data_path).is_file())
    ]
