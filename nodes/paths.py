"""Which folders a graph may name, and where our own lie: ComfyUI's input and output folders, and what its user adds."""

from __future__ import annotations

from pathlib import Path

from ..lib.named_folders import SETTINGS_FILE, existing_folder, is_loopback, roots_in


def listens_on_loopback_only(listen: str) -> bool:
    """Whether addresses as in `--listen`, separated by commas, are all this machine's own."""
    return all(is_loopback(address.strip()) for address in listen.split(","))


def named_folder(text: str, what: str = "folder") -> Path:
    """The folder that `text` names, by the roots and the addresses of this server. Errors: as `existing_folder`."""
    import folder_paths
    from comfy.cli_args import args

    settings_file = Path(folder_paths.get_user_directory()) / SETTINGS_FILE
    roots = [Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())]
    roots += roots_in(settings_file)
    return existing_folder(text, roots, listens_on_loopback_only(args.listen), settings_file, what)


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
