"""What a user asks of a run while it goes on. Any thread may ask; the trainer looks before each step."""

from __future__ import annotations

import threading


class Control:
    """Stop, save now, sample now, pause.

    Stopping saves and ends the run as if it had been that long; saving and sampling are done once for each time they
    are asked for; while the run is paused it takes no step and still saves, samples and stops when asked to.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = self._pause = False
        self._wanted: set[str] = set()

    def stop(self) -> None:
        """Save and end before the next step."""
        with self._lock:
            self._stop = True

    def save(self) -> None:
        """Write a checkpoint before the next step."""
        with self._lock:
            self._wanted.add("save")

    def sample(self) -> None:
        """Make previews before the next step."""
        with self._lock:
            self._wanted.add("sample")

    def pause(self) -> None:
        """Take no step until `go_on`."""
        with self._lock:
            self._pause = True

    def go_on(self) -> None:
        """End the pause."""
        with self._lock:
            self._pause = False

    @property
    def stop_requested(self) -> bool:
        return self._stop

    @property
    def paused(self) -> bool:
        return self._pause

    def taken(self) -> set[str]:
        """What is to be done now, "save" and "sample"; it is then no longer asked for."""
        with self._lock:
            wanted, self._wanted = self._wanted, set()
        return wanted
