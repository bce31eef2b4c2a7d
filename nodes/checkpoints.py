"""Which checkpoints a strip shows, and linking checkpoint folders into ComfyUI's model folder."""

from __future__ import annotations

import glob
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from comfy_api.latest import io

from ..lib.files import safe_name
from ..lib.named_folders import unquoted
from ..lib.run_folder import RunFolder
from ..lib.strip.names import checkpoint_files, natural_step, selected
from . import paths
from .schema import schema, socket
from .sockets import RUN, Run

CHECKPOINTS = "ATELIER_CHECKPOINTS"
_MODEL_FOLDER = "diffusion_models"


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Label -> file, in the order in which they are shown; and where a strip of them is kept."""

    files: tuple[tuple[str, Path], ...]
    folder: Path
    name: str


class CheckpointList(io.ComfyNode):
    """The checkpoints of a run, a folder, a glob or a list."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierCheckpoints",
            "Checkpoints",
            "The checkpoints of a run, of folders, of globs or single files, in the order of their steps: networks, or "
            "diffusion models as trainers leave them (checkpoint-800/transformer/...).",
            inputs=[
                socket(RUN).Input("run", optional=True, tooltip="a run of Train LoRA; or name folders below"),
                io.String.Input(
                    "sources",
                    display_name="Folders, globs or files",
                    multiline=True,
                    default="",
                    placeholder="models/loras/toy-*.safetensors",
                    tooltip="one a line: a folder, a glob such as folder/toy-*.safetensors, or a file; below ComfyUI's "
                    "input, output or LoRA folders, or a whole path",
                ),
                _number("every", 1, 1, "every so many checkpoints, counted from the last"),
                _number("first_step", 0, 0, "leaves out checkpoints before this step; 0 leaves out none"),
                _number("last_step", 0, 0, "leaves out checkpoints after this step; 0 leaves out none"),
            ],
            outputs=[socket(CHECKPOINTS).Output("checkpoints", tooltip="for Checkpoint Strip")],
            search_aliases=["xy plot", "checkpoint comparison", "lora list"],
        )

    @classmethod
    def validate_inputs(
        cls, sources: str | None, every: int | None, first_step: int | None, last_step: int | None
    ) -> bool | str:
        try:
            if sources is not None and sources.strip():
                _chosen(files_of(sources), every or 1, first_step or 0, last_step or 0)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, sources: str = "", run: Run | None = None, **given: int) -> str:
        try:
            files = files_of(sources) if sources and sources.strip() else {}
            return repr(
                [(label, str(path), path.stat().st_mtime_ns, path.stat().st_size) for label, path in files.items()]
            )
        except (ValueError, OSError) as error:
            return str(error)

    @classmethod
    def execute(
        cls, sources: str, every: int, first_step: int, last_step: int, run: Run | None = None
    ) -> io.NodeOutput:
        files = files_of(sources) if sources.strip() else {}
        folder, name = paths.runs_folder() / "strips", "strip"
        if run is not None:
            found = RunFolder.open(run.folder).checkpoints.networks()
            if run.step is not None:
                found = {step: path for step, path in found.items() if step <= run.step}
            files = {path.stem: path for path in found.values()} | files
            folder, name = run.folder, "strip"
        elif files:
            name = safe_name(next(iter(files.values())).parent.name, "strip")
            folder = folder / name
        if not files:
            raise ValueError("Checkpoints: connect a run, or name at least one folder, glob or file")
        return io.NodeOutput(Checkpoints(files=_chosen(files, every, first_step, last_step), folder=folder, name=name))


def files_of(sources: str) -> dict[str, Path]:
    """Label -> file of what the lines name. Errors: `ValueError`: nothing there, or a place that may not be named."""
    found: dict[str, Path] = {}
    for line in (unquoted(line) for line in sources.splitlines()):
        if line:
            # of two with the same label the later one is told apart by its folder
            for label, path in _files_of_one(line).items():
                found[label if found.get(label, path) == path else f"{path.parent.name}/{label}"] = path
    if not found:
        raise ValueError("sources: name at least one folder, glob or file")
    return found


def _files_of_one(line: str) -> dict[str, Path]:
    given = Path(os.path.expanduser(line))
    if not glob.has_magic(line):
        if given.suffix == ".safetensors":
            return checkpoint_files(paths.named_folder(str(given.parent), "sources") / given.name)
        return checkpoint_files(paths.named_folder(line, "sources"))
    parts = given.parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    if fixed == 0:
        raise ValueError(f'sources: a glob needs a folder in front, as in "loras/{line}"')
    base = paths.named_folder(str(Path(*parts[:fixed])), "sources")
    files = checkpoint_files(str(Path(glob.escape(str(base)), *parts[fixed:])))
    # a link below the folder may lead anywhere
    inside = {label: path for label, path in files.items() if path.resolve().is_relative_to(base)}
    if not inside:
        raise ValueError(f'sources: what "{line}" finds lies elsewhere, behind links; name that folder itself')
    return inside


def _chosen(files: dict[str, Path], every: int, first: int, last: int) -> tuple[tuple[str, Path], ...]:
    labels = selected(list(files), every=every, steps=[natural_step(n) for n in files], first=first, last=last)
    return tuple((label, files[label]) for label in labels)


def _number(name: str, default: int, least: int, tooltip: str) -> io.Input:
    return io.Int.Input(
        name,
        display_name=name.replace("_", " ").capitalize(),
        default=default,
        min=least,
        max=100_000_000,
        tooltip=tooltip,
    )


class LinkCheckpoints(io.ComfyNode):
    """Folders of full-model checkpoints, put where ComfyUI's loaders list them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierLinkCheckpoints",
            "Link Checkpoints",
            "Links checkpoints of full models (checkpoint-800/transformer/diffusion_pytorch_model.safetensors) into "
            "ComfyUI's diffusion_models folder: as a symbolic link, else a hard link, else a copy. Nothing is "
            "overwritten.",
            is_output_node=True,
            inputs=[
                socket(CHECKPOINTS).Input("checkpoints", tooltip="of the node Checkpoints"),
                io.String.Input(
                    "name", display_name="Folder", default="atelier", tooltip="the folder below diffusion_models"
                ),
            ],
            outputs=[io.String.Output("names", is_output_list=True, tooltip="as Load Diffusion Model lists them")],
            search_aliases=["symlink", "diffusers checkpoint"],
        )

    @classmethod
    def execute(cls, checkpoints: Checkpoints, name: str) -> io.NodeOutput:
        import folder_paths

        root = Path(folder_paths.get_folder_paths(_MODEL_FOLDER)[0])
        folder = root / safe_name(name, "atelier")
        folder.mkdir(parents=True, exist_ok=True)
        linked = [
            link(path, folder, safe_name(label.replace("/", "-"), "checkpoint")) for label, path in checkpoints.files
        ]
        folder_paths.filename_list_cache.pop(_MODEL_FOLDER, None)
        return io.NodeOutput([path.relative_to(root).as_posix() for path in linked])


def link(source: Path, folder: Path, stem: str) -> Path:
    """Put a file into a folder under `stem` without a second copy where the disk allows it; an equal one is kept.

    Errors: `OSError` when it can be neither linked nor copied.
    """
    number = 1
    while True:
        target = folder / (f"{stem}.safetensors" if number == 1 else f"{stem}-{number}.safetensors")
        if not target.exists() and not target.is_symlink():
            break
        if target.exists() and target.samefile(source):
            return target
        number += 1
    for make in (_symbolic, os.link, shutil.copy2):
        try:
            make(source.resolve(), target)
            return target
        except OSError:
            if make is shutil.copy2:
                raise
    raise AssertionError("a copy was made or its error raised")


def _symbolic(source: Path, target: Path) -> None:
    target.symlink_to(source)
