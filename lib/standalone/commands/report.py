"""`atelier report`: the charts and the report page of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder")


def run(args: argparse.Namespace) -> int:
    """Write the report and print where its files are. Errors: as `write_report`."""
    page = write_report(args.run_folder)
    print(page)
    for chart in sorted((page.parent / "report").glob("*.png")):
        print(chart)
    return 0
