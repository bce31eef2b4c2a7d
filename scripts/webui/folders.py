"""Which folders a page or a route may name, and where our own lie.

While the WebUI listens on this machine's own addresses alone and is not shared, whoever uses the page sits at the
machine, and any absolute path is accepted. Otherwise a path counts below a known root only: our own data folder, the
runs, and the roots in `atelier.json` beside the WebUI's own settings, which only who sits at the machine can write.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...lib.files import make_folder

SETTINGS_FILE = "atelier.json"


def unquoted(text: str) -> str:
    """A path as it was meant: without the quotes of "Copy as path" and the space around it."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text


def listens_on_loopback_only(cmd_opts: Any) -> bool:
    """Whether the WebUI can be reached from this machine alone, by what it was started with."""
    if getattr(cmd_opts, "share", False) or getattr(cmd_opts, "listen", False) or getattr(cmd_opts, "ngrok", None):
        return False
    name = getattr(cmd_opts, "server_name", None)
    if not name or name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def resolve(text: str, roots: Sequence[Path], any_absolute: bool, settings_file: Path, what: str) -> Path:
    """The existing folder that `text` names: absolute, or relative to the first root that has it.

    `what` is the setting's name. Errors: `ValueError`: empty, not there, a file, or outside the roots while
    `any_absolute` is false; then it says the line to put into `settings_file`.
    """
    given = _named(text, any_absolute, what, "name a folder of pictures")
    text = unquoted(text)
    candidates = [given] if given.is_absolute() else [root / given for root in roots]
    for candidate in candidates:
        try:
            real = candidate.resolve()
            if not (any_absolute or is_below(real, roots)):
                # said of what is not there too: whether something is there is nobody's business from outside
                raise ValueError(_refusal(text, real, settings_file, what))
            if real.is_dir():
                return real
            if real.exists():
                raise ValueError(f'{what}: "{text}" is a file; name the folder that it lies in')
        except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links
            raise ValueError(f'{what}: "{text}" cannot be opened: {getattr(error, "strerror", error)}') from None
    where = "" if given.is_absolute() else f" in {', '.join(map(str, roots))}"
    raise ValueError(f'{what}: there is no folder "{text}"{where}')


def resolve_new(text: str, roots: Sequence[Path], any_absolute: bool, settings_file: Path, what: str) -> Path:
    """The folder that `text` names, there or not: absolute, or relative to the first root.

    Errors: `ValueError` as `resolve`, except that it may be missing.
    """
    given = _named(text, any_absolute, what, "name a new folder")
    try:
        real = (given if given.is_absolute() else roots[0] / given).resolve()
        if not (any_absolute or is_below(real, roots)):
            raise ValueError(_refusal(text, real, settings_file, what))
        if real.exists() and not real.is_dir():
            raise ValueError(f'{what}: "{unquoted(text)}" is a file; name a new folder')
    except (OSError, RuntimeError) as error:
        raise ValueError(f'{what}: "{unquoted(text)}" cannot be opened: {getattr(error, "strerror", error)}') from None
    return real


def _named(text: str, any_absolute: bool, what: str, action: str) -> Path:
    text = unquoted(text)
    if not text:
        raise ValueError(f"{what} is empty; {action}")
    if "\0" in text or len(text) > 4096:
        raise ValueError(f"{what} is not the name of a folder: {text[:40]!r}")
    return Path(os.path.expanduser(text)) if any_absolute else Path(text)


def _refusal(text: str, real: Path, settings_file: Path, what: str) -> str:
    line = json.dumps({"roots": [str(real)]}, ensure_ascii=False)
    return (
        f'{what}: "{unquoted(text)}" may not be used, because this WebUI can be reached from other machines; to '
        f"allow it, write this line into {settings_file} on the machine it runs on: {line}"
    )


def is_below(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a resolved path lies in one of the roots."""
    return any(path.is_relative_to(root.resolve()) for root in roots)


def roots_in(settings_file: Path) -> list[Path]:
    """The roots that the settings file adds. Errors: `ValueError` naming the file and what is wrong with it."""
    if not settings_file.is_file():
        return []
    example = '{"roots": ["D:\\\\photos"]}'
    try:
        roots = json.loads(settings_file.read_text("utf-8-sig"))["roots"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{settings_file} cannot be read: {error}; it should be like {example}") from None
    if not isinstance(roots, list) or not all(isinstance(r, str) and Path(r).is_absolute() for r in roots):
        raise ValueError(f"{settings_file}: roots must be a list of absolute folders, such as {example}")
    return [Path(root) for root in roots]


def own_folder() -> Path:
    """Where our own files lie, beside the WebUI's."""
    from modules import paths

    return Path(paths.data_path).absolute() / "atelier"


def data_folder() -> Path:
    """Where relative names of data sets are looked up first."""
    return own_folder() / "data"


def presets_folder() -> Path:
    """Where presets of the user are kept; made where it is not there."""
    folder = own_folder() / "presets"
    make_folder(folder)
    return folder


def settings_file() -> Path:
    """The file that adds roots."""
    from modules import paths

    return Path(paths.data_path).absolute() / SETTINGS_FILE


def is_local() -> bool:
    """Whether this WebUI can be reached from this machine alone."""
    from modules import shared

    return listens_on_loopback_only(shared.cmd_opts)


def run_parents() -> list[Path]:
    """The folders in which runs are looked for: our own, and those of the settings (such as the other host's)."""
    from modules import shared

    from .runs import default_parent

    further = str(getattr(shared.opts, "atelier_further_runs_folders", "") or "")
    parents = [default_parent(), *(Path(unquoted(line)) for line in further.splitlines() if line.strip())]
    parents = [parent.absolute() for parent in parents]
    if not is_local():
        roots = [own_folder(), *roots_in(settings_file())]
        parents = [parent for parent in parents if is_below(parent.resolve(), roots)]
    return list(dict.fromkeys(parents))


def picture_folder(text: str, what: str) -> Path:
    """The folder that a setting names. Errors: as `resolve`."""
    roots = [data_folder(), *roots_in(settings_file())]
    return resolve(text, roots, is_local(), settings_file(), what)


def new_folder(text: str, what: str) -> Path:
    """The folder that a setting names and that may not be there yet; relative names lie in our own data folder.

    Errors: `ValueError` as `resolve_new`.
    """
    return resolve_new(text, [data_folder(), *roots_in(settings_file())], is_local(), settings_file(), what)
