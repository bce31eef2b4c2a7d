"""Which folders of the machine a graph, a page or a route may name.

What is named may come from anywhere, so a path counts below a known root only: folders of the program, and the roots in
`atelier.json`, which only who sits at the machine can write. While the program listens on the machine's own addresses
alone, whoever names a folder sits there, and any absolute path is accepted.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SETTINGS_FILE = "atelier.json"


def unquoted(text: str) -> str:
    """A path as it was meant: without the quotes of "Copy as path" and the space around it."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def is_loopback(address: str) -> bool:
    """Whether what listens on this address can be reached from this machine alone."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_below(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a resolved path lies in one of the roots."""
    return any(path.is_relative_to(root.resolve()) for root in roots)


def roots_in(settings_file: Path) -> list[Path]:
    """The roots that the settings file adds. Errors: `ValueError` naming the file and what is wrong with it."""
    if not settings_file.is_file():
        return []
    form = '{"roots": ["a folder", "another folder"]}'
    try:
        found: Any = json.loads(settings_file.read_text("utf-8-sig"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{settings_file} cannot be read ({error}); it must look like {form}") from None
    roots = found.get("roots") if isinstance(found, dict) else None
    if not isinstance(roots, list) or not all(isinstance(r, str) and Path(r).is_absolute() for r in roots):
        raise ValueError(f"{settings_file} must look like {form}, with absolute paths")
    return [Path(root) for root in roots]


def existing_folder(text: str, roots: Sequence[Path], any_absolute: bool, settings_file: Path, what: str) -> Path:
    """The folder that `text` names: absolute, or relative to the first root that has it.

    `what` is the setting's name. Errors: `ValueError`: empty, not there, a file, or outside the roots while
    `any_absolute` is false; then it says the line to put into `settings_file`.
    """
    given = _given(text, any_absolute, what, "name a folder")
    outside = None
    for candidate in [given] if given.is_absolute() else [root / given for root in roots]:
        try:
            real = candidate.resolve()
            if not (any_absolute or is_below(real, roots)):
                # said of what is not there too: whether something is there is nobody's business from outside
                outside = real
            elif real.is_dir():
                return real
            elif real.exists():
                raise ValueError(f'{what}: "{unquoted(text)}" is a file; name the folder that it lies in')
        except (OSError, RuntimeError) as error:
            raise ValueError(_unopened(text, what, error)) from None
    if outside is not None:
        raise ValueError(_refusal(text, outside, settings_file, what))
    where = "" if given.is_absolute() else f" in {', '.join(map(str, roots))}"
    raise ValueError(f'{what}: there is no folder "{unquoted(text)}"{where}')


def new_folder(text: str, roots: Sequence[Path], any_absolute: bool, settings_file: Path, what: str) -> Path:
    """The folder that `text` names, there or not: absolute, or relative to the first root.

    Errors: `ValueError` as `existing_folder`, except that it may be missing.
    """
    given = _given(text, any_absolute, what, "name a new folder")
    try:
        real = (given if given.is_absolute() else roots[0] / given).resolve()
        if not (any_absolute or is_below(real, roots)):
            raise ValueError(_refusal(text, real, settings_file, what))
        if real.exists() and not real.is_dir():
            raise ValueError(f'{what}: "{unquoted(text)}" is a file; name a new folder')
    except (OSError, RuntimeError) as error:
        raise ValueError(_unopened(text, what, error)) from None
    return real


def _given(text: str, any_absolute: bool, what: str, action: str) -> Path:
    text = unquoted(text)
    if not text:
        raise ValueError(f"{what} is empty; {action}")
    if "\0" in text or len(text) > 4096:
        raise ValueError(f"{what} is not the name of a folder: {text[:40]!r}")
    # who is elsewhere is not told where the home folder is
    return Path(os.path.expanduser(text)) if any_absolute else Path(text)


def _unopened(text: str, what: str, error: OSError | RuntimeError) -> str:
    """Said of a name that is too long, or of a loop of links."""
    return f'{what}: "{unquoted(text)}" cannot be opened: {getattr(error, "strerror", error)}'


def _refusal(text: str, real: Path, settings_file: Path, what: str) -> str:
    line = json.dumps({"roots": [str(real)]}, ensure_ascii=False)
    return (
        f'{what}: "{unquoted(text)}" may not be used, because this program can be reached from other machines; to '
        f"allow it, write this line into {settings_file} on the machine it runs on: {line}"
    )
