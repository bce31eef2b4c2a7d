"""The command line: `atelier COMMAND`.

Exit codes: 0 done, 1 unexpected error, 2 wrong input, 3 stopped by the user with everything saved, 4 out of memory,
5 loss not finite.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

COMMANDS = {
    "train": "train a network on pictures",
    "probe": "two steps of a run: what it needs of memory, hours and money, and what to change if it does not fit",
    "resume": "go on with a run as it was",
    "fork": "branch off from a checkpoint with changed settings",
    "strip": "every checkpoint of a run at fixed seeds, side by side",
    "report": "draw a run's loss and write its report page",
    "schedule": "print or draw a learning-rate schedule",
    "data": "check a data set, count and edit its tags, caption and prepare its pictures",
    "inspect": "say what a network file is",
    "demo": "teach the tiny model that comes with the pack a character it has never seen",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    # nothing is ever loaded from a hub here, and a name that is no folder must not be looked up there
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # threads of torch that wait by spinning for long make everything several times slower where anything else runs too
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    parser = argparse.ArgumentParser(prog="atelier", description="Trains Stable Diffusion networks.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    wanted = next((a for a in argv if not a.startswith("-")), None)
    for name, text in COMMANDS.items():
        command = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == wanted:
            # imported late: drawing a schedule must not wait for torch and diffusers
            module = importlib.import_module(f".commands.{name}", __package__)
            module.add_arguments(command)
            command.set_defaults(execute=module.run)
    args = parser.parse_args(argv)
    try:
        return args.execute(args)
    except BrokenPipeError:
        # whoever read our output has closed it, as `head` does; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"atelier {args.command}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        code = _exit_code(error)
        if code is None:
            raise
        print(f"atelier {args.command}: {error}", file=sys.stderr)
        return code


def _exit_code(error: RuntimeError) -> int | None:
    from ..memory import OutOfMemoryError
    from ..preparation import StoppedError
    from ..trainer import NotFiniteError

    codes = {StoppedError: 3, OutOfMemoryError: 4, NotFiniteError: 5}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), None)


if __name__ == "__main__":
    sys.exit(main())
