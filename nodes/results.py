"""What came of a run: the Run node, which finds one, and the Loss Report."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..lib.report import write_report
from ..lib.run_folder import RunFolder
from . import keeping, paths
from .schema import schema, socket
from .sockets import RUN, Run
from .train import as_tensor

_CHARTS = ("loss.png", "probe.png", "timesteps.png")
_NO_RUN = "(no run yet)"


class RunLoader(io.ComfyNode):
    """A run by its name, or by its folder where another program made it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierRun",
            "Run",
            "A run of this ComfyUI by its name, or one that another program made by its folder: to look at, to use, to "
            "continue or to fork.",
            inputs=[
                io.Combo.Input(
                    "run", display_name="Run", options=paths.run_names() or [_NO_RUN], tooltip="a run in output/atelier"
                ),
                io.String.Input(
                    "folder",
                    display_name="Folder",
                    default="",
                    optional=True,
                    tooltip="a run folder from elsewhere instead; below input or output, or a whole path",
                ),
                io.Int.Input(
                    "step",
                    display_name="Step",
                    default=-1,
                    min=-1,
                    max=100_000_000,
                    optional=True,
                    tooltip="the checkpoint that is meant; -1 is the newest",
                ),
            ],
            outputs=[
                socket(RUN).Output("run_out", display_name="run", tooltip="for Train LoRA, Loss Report and Save LoRA"),
                io.String.Output("folder_out", display_name="folder", tooltip="the run folder"),
            ],
            search_aliases=["load run", "resume", "continue training"],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = "") -> bool | str:
        try:
            if folder:
                RunFolder.open(paths.named_folder(folder))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run: str | None = None, folder: str | None = "", step: int | None = -1) -> str:
        try:
            path = _folder(run or "", folder or "")
            status = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted((path / "state").glob("*.json"))]
        except (ValueError, OSError) as error:
            return str(error)
        return hashlib.sha256(repr((path, status)).encode()).hexdigest()

    @classmethod
    def execute(cls, run: str, folder: str = "", step: int = -1) -> io.NodeOutput:
        path = RunFolder.open(_folder(run, folder)).path
        wanted = None if step < 0 else step
        if wanted is not None:
            keeping.network_file(RunFolder.open(path), wanted)
        return io.NodeOutput(Run(folder=path, step=wanted), str(path))


def _folder(run: str, folder: str) -> Path:
    if folder.strip():
        return paths.named_folder(folder)
    if run not in paths.run_names():
        raise ValueError(f'there is no run "{run}" in {paths.runs_folder()}')
    return paths.runs_folder() / run


class LossReport(io.ComfyNode):
    """Charts of a run, its tables, and the page that has both."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierLossReport",
            "Loss Report",
            "Draws loss by step, controlled loss and loss by timestep of a run, and writes report.html into its "
            "folder. The loss of single steps is mostly noise; the controlled loss is what to go by.",
            is_output_node=True,
            inputs=[socket(RUN).Input("run", tooltip="from Train LoRA or Run")],
            outputs=[
                io.Image.Output("charts", tooltip="three pictures of one size: by step, controlled, by timestep"),
                io.String.Output("csv_path", tooltip="loss.csv: a row for each picture of each step"),
                io.String.Output("report_path", tooltip="report.html: charts, pictures and checkpoints on one page"),
            ],
            search_aliases=["loss graph", "plot loss", "training chart"],
        )

    @classmethod
    def execute(cls, run: Run) -> io.NodeOutput:
        report = write_report(run.folder)
        charts = in_one_size([run.folder / "report" / name for name in _CHARTS])
        preview = ui.PreviewImage(charts, cls=cls)
        return io.NodeOutput(charts, str(run.folder / "loss.csv"), str(report), ui=preview)


def in_one_size(files: list[Path]) -> torch.Tensor:
    """Pictures as one batch (N, H, W, 3), each in the middle of a white sheet."""
    images = []
    for path in files:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    size = (max(image.width for image in images), max(image.height for image in images))
    sheets = []
    for image in images:
        sheet = Image.new("RGB", size, "#FFFFFF")
        sheet.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
        sheets.append(as_tensor(sheet))
    return torch.cat(sheets)
