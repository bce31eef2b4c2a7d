"""`atelier fork`: a new run that goes on from a checkpoint of another with changed settings."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...config import merge
from ...preparation import fork
from ...run_folder import RunFolder
from .train import add_model_arguments, add_setting_arguments, given, put, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `atelier fork`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--step", type=int, help="checkpoint to branch off from; the newest if left out")
    add_model_arguments(parser)
    add_setting_arguments(parser)
    parser.add_argument(
        "--output", type=Path, help="folder that the new run is made in; beside the old one if left out"
    )


def run(args: argparse.Namespace) -> int:
    """Fork; `--set rate.factor=0.1` goes on at a tenth of the rate. Returns 0 when finished, 3 when stopped."""
    changes = put({}, given(args))
    old = RunFolder.open(args.run)
    parent = args.output or old.path.parent
    config = merge(old.config, changes)
    return train(args, config, lambda host, say: fork(host, old.path, args.step, changes, parent, say))
