"""`atelier resume`: go on with a run from its newest whole checkpoint, as it was."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...preparation import resume
from ...run_folder import RunFolder
from .train import add_model_arguments, add_setting_arguments, given, put, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `atelier resume`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    add_model_arguments(parser)
    add_setting_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Resume; settings that change what is computed are refused, listed. Returns 0 when finished, 3 when stopped."""
    changes = put({}, given(args))
    folder = args.run
    return train(args, RunFolder.open(folder).config, lambda host, say: resume(host, folder, changes, say))
