"""`atelier schedule`: the rate of every step of a run, as CSV and as a plot."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...lr_schedule import parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("text", metavar="SCHEDULE", help='such as "0->1e-4:10%%, 1e-4->0 cosine"')
    parser.add_argument("--steps", type=_length, required=True, metavar="N", help="the run's optimizer updates")
    parser.add_argument("--steps-per-epoch", type=_length, metavar="M", help='for ends in epochs, such as "3ep"')
    parser.add_argument("--stop-at-end", action="store_true", help="accept a schedule that ends before the run")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the schedule")


def run(args: argparse.Namespace) -> int:
    """Print `step,rate` and a row for each step, the rates exact. Notes and errors go to standard error.

    Returns 0; 2 for a schedule that cannot be used; 1 if the plot cannot be made. An error prints no rows.
    """
    try:
        schedule = parse(args.text).resolve(args.steps, args.steps_per_epoch, args.stop_at_end)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in schedule.notes:
        print(f"note: {note}", file=sys.stderr)
    steps = range(schedule.num_steps)
    if args.plot is not None:
        from ... import charts

        try:
            charts.schedule_plot([schedule.rate(step) for step in steps], schedule.cycle_ends, args.plot)
        except (OSError, ValueError) as error:
            print(f"error: no plot at {args.plot}: {error}", file=sys.stderr)
            return 1
    print("step,rate")
    for step in steps:
        print(f"{step},{schedule.rate(step)!r}")
    return 0


def _length(text: str) -> int:
    if not (text.isascii() and text.isdigit() and text.strip("0")):
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, got "{text}"')
    return int(text)
