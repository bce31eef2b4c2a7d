"""Which folders a page or a route may name, and where our own lie: data, runs, presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...lib.files import make_folder
from ...lib.named_folders import SETTINGS_FILE, existing_folder, is_below, is_loopback, roots_in, unquoted
from ...lib.named_folders import new_folder as new_below


def listens_on_loopback_only(cmd_opts: Any) -> bool:
    """Whether the WebUI can be reached from this machine alone, by what it was started with."""
    if getattr(cmd_opts, "share", False) or getattr(cmd_opts, "listen", False) or getattr(cmd_opts, "ngrok", None):
        return False
    name = getattr(cmd_opts, "server_name", None)
    return not name or is_loopback(name)


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
    """The folder that a setting names. Errors: as `existing_folder`."""
    roots = [data_folder(), *roots_in(settings_file())]
    return existing_folder(text, roots, is_local(), settings_file(), what)


def new_folder(text: str, what: str) -> Path:
    """The folder that a setting names and that may not be there yet; relative names lie in our own data folder.

    Errors: `ValueError` as `lib.named_folders.new_folder`.
    """
    return new_below(text, [data_folder(), *roots_in(settings_file())], is_local(), settings_file(), what)
