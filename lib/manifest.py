"""Manifests: JSON files that carry their own SHA-256, so that a flipped bit is found and named."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import files


class DamagedError(ValueError):
    """A file is missing, cannot be read, or is not what was written."""


def write_manifest(path: Path, values: dict[str, Any]) -> None:
    """Write `values` and their checksum under "sha256", read back from the disk. Errors: as `files.write_bytes`."""
    files.write_json(path, {**values, "sha256": _checksum(values)}, verify=True)


def read_manifest(path: Path, version: int) -> dict[str, Any]:
    """The values of a manifest whose "format" is `version`. Errors: `DamagedError` saying what is wrong with it."""
    with damage_named(path):
        raw = path.read_bytes()
        values = json.loads(raw)
    # The bytes themselves are compared, because not every flipped bit changes what JSON means.
    if not isinstance(values, dict) or files.json_bytes(values) != raw or values.pop("sha256", "") != _checksum(values):
        raise DamagedError(f"{path} was changed since it was written (its checksum differs)")
    if values.get("format") != version:
        raise DamagedError(f"{path} has format {values.get('format')!r}; this version reads {version}")
    return values


def check_json(value: Any, where: str) -> None:
    """Refuse what would come back from JSON as something else. Errors: `ValueError` naming the place."""
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise ValueError(f"{where} must have texts as keys, got {key!r}")
            check_json(item, f"{where}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            check_json(item, f"{where}[{i}]")
    elif type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(f"{where} must be a JSON value, got {type(value).__name__}")


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Whatever keeps a file from being read becomes a `DamagedError` that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing") from error
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}") from error
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:  # RecursionError: JSON nested thousands deep
        raise DamagedError(f"{path} is not what was written: {error}") from error


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(files.json_bytes(values)).hexdigest()
