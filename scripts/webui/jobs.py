"""Work on data sets in the background: each a thread of its own, found again when the page is opened anew.

A job belongs to no page and outlives *Reload UI*. What it has done when it is stopped is kept.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEPT = 12  # ended jobs that are remembered
EXPECTED = (ValueError, OSError)
_starting = threading.Lock()


class StoppedError(Exception):
    """The user stopped the job."""


class Job:
    """One piece of work. Its thread tells of progress; any thread may stop it and ask for its status."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.id = secrets.token_hex(6)
        self.started = time.time()
        self.phase, self.note, self.error = "working", "", ""
        self.done = self.total = 0
        self.result: dict[str, Any] | None = None  # JSON values
        self.kept: Any = None  # what a later request needs of it
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_live(self) -> bool:
        return self.phase == "working"

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask it to end after what it is at."""
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Wait for a moment, or until it is to stop."""
        self._stop.wait(seconds)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        if self._thread is not None:
            self._thread.join(timeout)

    def progress(self, done: int, total: int) -> None:
        """Tell how far it is."""
        self.done, self.total = done, total

    def progress_or_stop(self, done: int, total: int) -> None:
        """The same, for work that has no other place to be stopped at. Errors: `StoppedError`."""
        self.progress(done, total)
        if self.stop_requested:
            raise StoppedError

    def status(self) -> dict[str, Any]:
        """JSON values for the page; `phase` is working, finished, stopped or failed."""
        return {
            "id": self.id,
            "kind": self.kind,
            "folder": str(self.folder),
            "phase": self.phase,
            "live": self.is_live,
            "note": self.note,
            "error": self.error,
            "done": self.done,
            "total": self.total,
            "started": self.started,
            "result": self.result,
        }

    def begin(self, work: Callable[[Job], dict[str, Any]]) -> None:
        """Do `work` in a thread; what it returns is the result, which may be a part of it where it sets `error`."""
        self._thread = threading.Thread(target=self._run, args=(work,), name=f"atelier {self.kind}", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Job], dict[str, Any]]) -> None:
        phase = "failed"
        try:
            self.result = work(self)
            phase = "failed" if self.error else "stopped" if self.stop_requested else "finished"
        except StoppedError:
            phase = "stopped"
        except EXPECTED as error:
            self.error = str(error)
        except BaseException as error:
            # the console shows where; the page says what
            self.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.note, self.phase = "", phase


def jobs() -> list[Job]:
    """Jobs of this program, oldest first."""
    from .runs import registry

    return registry().wrapped.setdefault("jobs", [])


def jobs_of(folder: Path) -> list[Job]:
    """The newest job of each kind on a folder."""
    return list({job.kind: job for job in jobs() if job.folder == folder}.values())


def find(job_id: str) -> Job:
    """Errors: `ValueError` where there is none."""
    found = next((job for job in jobs() if job.id == job_id), None)
    if found is None:
        raise ValueError("this work is no longer known; begin it again")
    return found


def start(kind: str, folder: Path, work: Callable[[Job], dict[str, Any]]) -> Job:
    """Begin; returns at once. Errors: `ValueError` where the same goes on with this folder."""
    with _starting:
        known = jobs()
        if any(job.is_live and job.kind == kind and job.folder == folder for job in known):
            raise ValueError(f"this goes on with {folder.name} already; wait for it, or stop it")
        ended = [job for job in known if not job.is_live]
        for old in ended[: max(0, len(ended) - KEPT)]:
            known.remove(old)
        job = Job(kind, folder)
        known.append(job)
    job.begin(work)
    return job


@contextmanager
def the_queue(job: Job) -> Iterator[None]:
    """The host's queue while its models or its device are used. Errors: `StoppedError` while it waits for it."""
    from modules import call_queue

    lock = call_queue.queue_lock
    while not lock.acquire(blocking=False):
        job.note = "waits until the model is free"
        job.wait(0.2)
        if job.stop_requested:
            raise StoppedError
    job.note = ""
    try:
        yield
    finally:
        lock.release()
