"""The axis "[Atelier] Checkpoint of run" of the host's X/Y/Z plot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ...lib.run_folder import RunFolder
from .borrowed_names import lend
from .catalogue import run_folders

LABEL = "[Atelier] Checkpoint of run"
NO_NETWORK = "no network"


def add_axis() -> None:
    """Extend the axes of the plot, unless they have ours already; a host without the plot is left alone."""
    for module in _plots():
        if any(option.label == LABEL for option in module.axis_options):
            # from before Reload UI: its functions are those of the modules before
            module.axis_options[:] = [option for option in module.axis_options if option.label != LABEL]
        module.axis_options.append(
            module.AxisOption(LABEL, str, apply, format_value=_shown, confirm=confirm, choices=choices, cost=0.5)
        )


def choices() -> list[str]:
    """Every checkpoint of every run, such as `toys/800`, and the model without a network."""
    return [NO_NETWORK, *_checkpoints()]


def confirm(p: Any, values: list[str]) -> None:
    """Errors: `RuntimeError`, as the plot wants it, for a value that is none of `choices`."""
    known = _checkpoints()
    for value in values:
        if value != NO_NETWORK and value not in known:
            example = next(iter(known), "toys/800")
            raise RuntimeError(f'there is no checkpoint "{value}"; name a run and a step, such as {example}')


def apply(p: Any, value: str, values: list[str]) -> None:
    """Put the checkpoint into the prompt of one picture."""
    if value == NO_NETWORK:
        return
    tag = f" <lora:{lend(_checkpoints()[value])}:1>"
    prompts = getattr(p, "prompt", "")
    p.prompt = [prompt + tag for prompt in prompts] if isinstance(prompts, list) else prompts + tag


def _checkpoints() -> dict[str, Path]:
    found = {}
    for folder in sorted(run_folders().values(), key=lambda folder: folder.name):
        try:
            networks = RunFolder.open(folder).checkpoints.networks()
        except (ValueError, OSError):
            # a damaged run is shown as such in the list of runs
            continue
        found |= {f"{folder.name}/{step}": path for step, path in networks.items()}
    return found


def _shown(p: Any, option: Any, value: str) -> str:
    return value


def _plots() -> list[Any]:
    from modules import scripts

    names = ("xyz_grid.py", "scripts.xyz_grid")
    loaded = [data.module for data in scripts.scripts_data]
    modules = [module for module in loaded if getattr(module, "__name__", "") in names]
    modules += [sys.modules[name] for name in names if name in sys.modules]
    unique = {id(module): module for module in modules if hasattr(module, "axis_options")}
    return list(unique.values())
