"""`atelier probe`: what a run needs, from two steps of it, before it is begun."""

from __future__ import annotations

import argparse

from ...preflight import preflight
from ...preparation import check_settings
from ..progress import StopRequest, Terminal
from . import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `atelier probe`: those of `atelier train`, and the two that it measures against."""
    train.add_arguments(parser)
    parser.add_argument("--memory", type=float, metavar="MIB", help="memory that may be used; default: what there is")
    parser.add_argument("--price", type=float, metavar="MONEY", help="price of an hour, to say what the run costs")


def run(args: argparse.Namespace) -> int:
    """Try two steps and print what they say. Returns 0 when the run fits, 4 when nothing tried does."""
    for name, value in (("--memory", args.memory), ("--price", args.price)):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be a number of at least 0, got {value}")
    config = check_settings(train.settings(args))
    terminal = Terminal()
    stop = StopRequest(terminal)
    with stop.listening():
        host = train.load_host(args, config, config.loop.compute_dtype, terminal, stop)
        forecast = preflight(
            host, config, args.output, budget_mb=args.memory, price_per_hour=args.price, report=terminal.say
        )
    print(*forecast.lines(), sep="\n")
    return 4 if forecast.fits is False else 0
