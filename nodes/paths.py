"""Which folders a graph may name, and where our own lie.

A graph may come from anywhere, so a path in it counts below a known root only: ComfyUI's input and output folders and
the roots in `atelier.json` in ComfyUI's user folder, which only who sits at the machine can write. While the server
listens on the machine's own addresses alone, whoever sends the graph sits there, and any absolute path is accepted.
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


def resolve(text: str, roots: Sequence[Path], any_absolute: bool, settings_file: Path, what: str = "folder") -> Path:
    """The existing folder that `text` names: absolute, or relative to the first root that has it.

    `what` is the input's name. Errors: `ValueError`: empty, not there, a file, or outside the roots while
    `any_absolute` is false; then it says the line to put into `settings_file`.
    """
    text = unquoted(text)
    if not text:
        raise ValueError(f"{what} is empty; name a folder")
    if "\0" in text or len(text) > 4096:
        raise ValueError(f"{what} is not the name of a folder: {text[:40]!r}")
    given = Path(os.path.expanduser(text))
    candidates = [given] if given.is_absolute() else [root / given for root in roots]
    own = [root.resolve() for root in roots]
    outside = None
    for candidate in candidates:
        try:
            real = candidate.resolve()
            allowed = any_absolute or any(real.is_relative_to(root) for root in own)
            if not allowed:
                # said of what is not there too: whether something is there is nobody's business from outside
                outside = real
            elif real.is_dir():
                return real
            elif real.exists():
                raise ValueError(f'{what}: "{text}" is a file; name the folder that it lies in')
        except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links
            raise ValueError(f'{what}: "{text}" cannot be opened: {getattr(error, "strerror", error)}') from None
    if outside is not None:
        line = json.dumps({"roots": [str(outside)]}, ensure_ascii=False)
        raise ValueError(
            f'{what}: "{text}" may not be used, because this server can be reached from other machines; to allow it, '
            f"write this line into {settings_file} on the server: {line}"
        )
    where = "" if given.is_absolute() else f" in {', '.join(map(str, roots))}"
    raise ValueError(f'{what}: there is no folder "{text}"{where}')


def listens_on_loopback_only(listen: str) -> bool:
    """Whether addresses as in `--listen`, separated by commas, are all this machine's own."""

    def own(address: str) -> bool:
        if address == "localhost":
            return True
        try:
            return ipaddress.ip_address(address).is_loopback
        except ValueError:
            return False

    return all(own(address.strip()) for address in listen.split(","))


def roots_in(settings_file: Path) -> list[Path]:
    """The roots that a settings file names; none without a file. Errors: `ValueError` for one that is damaged."""
    if not settings_file.is_file():
        return []
    form = '{"roots": ["a folder", "another folder"]}'
    try:
        found: Any = json.loads(settings_file.read_text("utf-8-sig"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{settings_file} cannot be read ({error}); it must look like {form}") from None
    roots = found.get("roots", []) if isinstance(found, dict) else None
    if not isinstance(roots, list) or not all(isinstance(r, str) and Path(r).is_absolute() for r in roots):
        raise ValueError(f"{settings_file} must look like {form}, with absolute paths")
    return [Path(root) for root in roots]


def named_folder(text: str, what: str = "folder") -> Path:
    """`resolve` with the roots and the addresses of this server. Errors: as `resolve` and `roots_in`."""
    import folder_paths
    from comfy.cli_args import args

    settings_file = Path(folder_paths.get_user_directory()) / SETTINGS_FILE
    roots = [Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())]
    return resolve(text, [*roots, *roots_in(settings_file)], listens_on_loopback_only(args.listen), settings_file, what)


def runs_folder() -> Path:
    """Where run folders are made."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / "atelier"


def loras_folder() -> Path:
    """Where finished networks are put; ComfyUI lists this folder."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / "loras"


def pictures_folder() -> Path:
    """Where pictures that came from the graph are kept."""
    return runs_folder() / "pictures"


def prepared_folder() -> Path:
    """Where data sets are prepared into."""
    return runs_folder() / "prepared"


def run_names() -> list[str]:
    """The names of the run folders, newest last where names are numbered alike."""
    from ..lib.checkpoints import MARKER

    folder = runs_folder()
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if (path / MARKER).is_file())
