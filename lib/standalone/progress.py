"""What a run shows in a terminal: sentences, and one status line; and how Ctrl-C stops it within one step."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..host import Progress


def duration(seconds: float) -> str:
    """`1:02:03` or `02:03`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"


def status_line(progress: Progress) -> str:
    """Step, smoothed loss, rate, seconds a step, time left, memory."""
    loss = "loss -" if progress.loss is None else f"loss {progress.loss:.4f}"
    parts = [
        f"step {progress.step}/{progress.num_steps}",
        loss,
        f"rate {progress.rate:.3g}",
        f"{progress.seconds_per_step:.2f} s/step",
        f"{duration(progress.seconds_left)} left",
        f"{progress.memory_mb:.0f} MiB",
    ]
    return "  ".join(parts + ([progress.note] if progress.note else []))


class Terminal:
    """Standard error: a status line that is rewritten on a terminal, and a line every few seconds in a log."""

    def __init__(self, every_seconds: float = 5.0) -> None:
        self._live = sys.stderr.isatty()
        self._every_seconds = every_seconds
        self._shown = 0.0
        self._open = False

    def say(self, text: str) -> None:
        """A sentence on a line of its own."""
        if self._open:
            sys.stderr.write("\n")
            self._open = False
        print(text, file=sys.stderr, flush=True)

    def show(self, progress: Progress) -> None:
        """The status line."""
        now = time.monotonic()
        last = progress.step == progress.num_steps
        if self._live:
            sys.stderr.write("\r\x1b[K" + status_line(progress))
            sys.stderr.flush()
            self._open = True
        elif last or progress.note or now - self._shown >= self._every_seconds:
            self.say(status_line(progress))
            self._shown = now


class StopRequest:
    """Set by the first Ctrl-C or SIGTERM; the second one interrupts at once."""

    def __init__(self, say: Terminal) -> None:
        self._terminal = say
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over, inside."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True
            self._terminal.say("stopping after this step and saving; once more to interrupt at once")

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def counting(terminal: Terminal, what: str) -> Callable[[int, int], None]:
    """Says every tenth part of the way."""

    def progress(done: int, total: int) -> None:
        if done == total or done * 10 // total > (done - 1) * 10 // total:
            terminal.say(f"{what} {done}/{total}")

    return progress
