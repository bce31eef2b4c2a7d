"""Trains one run in children that are forked one after another, so that a killed one costs no start of torch.

Usage: train_in_children.py PICTURES PARENT NUM_STEPS. Each line read is a number: a child goes on with the run (or
begins it) and kills itself at that call to the disk; at 0 it does not. Written are the child's number, the steps it
completes, and how it ended; one more line is read before the next.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 - torch imports it with the first optimizer: a second for each child
from PIL import Image
from sd_atelier.lib import files
from toy_host import ToyHost
from toy_run import resume, settings, start


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def killed_at(number: int) -> None:
    """Make the call to the disk of that number the last thing this process does. Writes in a row count as one."""
    calls: list[str] = []

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            if name != "_write" or calls[-1:] != [name]:
                calls.append(name)
            if len(calls) == number:
                if name == "_write":
                    call(args[0], args[1][: len(args[1]) // 2])
                elif number % 2:
                    call(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args)

        return wrapper

    for name in ("_open", "_write", "_fsync", "_replace", "_close"):
        setattr(files, name, wrapped(name, getattr(files, name)))


def train(pictures: Path, parent: Path, num_steps: int) -> None:
    host = ToyHost()
    host.at = lambda phase: say(f"step {host.step}") if phase == "progress" else None
    begun = sorted(path.parent for path in parent.glob("*/run.json"))
    if begun:
        resume(host, begun[-1])
    else:
        start(host, settings(pictures, loop__steps=num_steps, save__every_steps=1, save__keep_last=3), parent)


def main(pictures: str, parent: str, num_steps: str) -> None:
    Image.init()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            signal.alarm(120)  # none hangs for ever, whatever becomes of the test
            code = 1
            try:
                killed_at(int(line))
                train(Path(pictures), Path(parent), int(num_steps))
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(code)
        say(f"child {child}")
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        say(f"ended {ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status}")
        # until it is waited for, its number is nobody else's: it can be killed without harm
        sys.stdin.readline()
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
