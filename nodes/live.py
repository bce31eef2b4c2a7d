"""Runs that go on, and those that ended since the server began: what a page is told, and what it may ask of them.

The training thread tells, the server's thread asks; every method may be called from either.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..lib.control import Control
from ..lib.host import Progress

Send = Callable[[str, dict[str, Any]], None]  # (event, payload)

EVENT_SECONDS = 0.25  # between two events of progress
MAX_POINTS = 4000  # in an answer that redraws a whole chart
NUM_KEPT = 20  # ended runs
ENDED = ("finished", "stopped", "interrupted", "failed", "restored")
WHAT = ("stop", "save", "sample", "pause", "go_on")


class LiveRun:
    """One run of one train node."""

    def __init__(self, node: str, send: Send) -> None:
        self.id, self.node = secrets.token_hex(8), node
        self.control = Control()
        self._send, self._lock = send, threading.Lock()
        self._run: dict[str, Any] = {
            "name": "",
            "folder": "",
            "state": "preparing",
            "message": "",
            "num_steps": None,
            "first_step": None,
            "summary": "",
            "notes": [],
            "schedule": [],
            "file": "",
        }
        self._progress: dict[str, Any] = {}
        self._points: list[list[Any]] = []
        self._controlled: list[list[Any]] = []  # [step, controlled loss] of each measurement
        self._num_sent = 0
        self._previews: list[dict[str, Any]] = []
        self._last_sent = 0.0

    @property
    def ended(self) -> bool:
        """Whether nothing more can be asked of it."""
        return self._run["state"] in ENDED

    @property
    def state(self) -> str:
        """As in the event `atelier.run`."""
        return self._run["state"]

    def update(self, **facts: Any) -> None:
        """Set facts of `atelier.run` and tell them."""
        with self._lock:
            self._run.update(facts)
            payload = self._head() | self._run
        self._send("atelier.run", payload)

    def progress(self, progress: Progress, saved_step: int | None) -> None:
        """Tell where the run is; at most every `EVENT_SECONDS`, and none of its points is left out."""
        with self._lock:
            if progress.step_loss is not None and (not self._points or self._points[-1][0] < progress.step):
                self._points.append([progress.step, progress.step_loss, progress.loss])
            controlled = progress.controlled
            if controlled is not None and (not self._controlled or self._controlled[-1][1] != controlled):
                self._controlled.append([progress.step, controlled])
            self._progress = {
                "step": progress.step,
                "num_steps": progress.num_steps,
                "loss": progress.loss,
                "step_loss": progress.step_loss,
                "controlled": progress.controlled,
                "rate": progress.rate,
                "seconds_per_step": progress.seconds_per_step,
                "seconds_left": progress.seconds_left,
                "memory_mb": progress.memory_mb,
                "saved_step": saved_step,
                "note": progress.note,
            }
            payload = self._progress_payload(time.monotonic())
        if payload:
            self._send("atelier.progress", payload)

    def preview(self, step: int, prompt: str, seed: int, image: Mapping[str, str]) -> None:
        """Tell of a preview; `image` is filename, subfolder and type, as ComfyUI's /view takes them."""
        about = {"step": step, "prompt": prompt, "seed": seed, "image": dict(image)}
        with self._lock:
            self._previews.append(about)
        self._send("atelier.preview", self._head() | about)

    def end(self, state: str, message: str, file: str = "") -> None:
        """The last word; what was held back goes before it."""
        assert state in ENDED, state
        with self._lock:
            self._run.update(state=state, message=message, file=file)
            held_back = self._progress_payload(float("inf"))
            run = self._head() | self._run
            last = {"step": self._progress.get("step"), "num_steps": self._run["num_steps"]}
        if held_back:
            self._send("atelier.progress", held_back)
        self._send("atelier.run", run)
        self._send("atelier.finished", self._head() | last | {"state": state, "message": message, "file": file})

    def ask(self, what: str) -> str:
        """Ask the run for one of `WHAT`; its state then. Errors: `ValueError` for anything else."""
        if what not in WHAT:
            raise ValueError(f"a run can be asked to {', '.join(WHAT)}; got {what[:40]!r}")
        getattr(self.control, what)()
        state = {"stop": "stopping", "pause": "paused", "go_on": "running"}.get(what)
        if state and self.state in ("running", "paused") and not (what != "stop" and self.control.stop_requested):
            self.update(state=state)
        return self.state

    def about(self) -> dict[str, Any]:
        """What the last events said, in one."""
        with self._lock:
            return self._head() | self._run | {k: v for k, v in self._progress.items() if k != "num_steps"}

    def history(self) -> dict[str, Any]:
        """`about`, and everything that a page needs to draw it anew."""
        about = self.about()
        with self._lock:
            every = -(-len(self._points) // MAX_POINTS) or 1
            points = self._points[::-1][::every][::-1]  # the newest is among them
            controlled = list(self._controlled)
            return about | {"points": points, "controlled_points": controlled, "previews": list(self._previews)}

    def _head(self) -> dict[str, Any]:
        return {"node": self.node, "run": self.id}

    def _progress_payload(self, now: float) -> dict[str, Any] | None:
        if not self._progress or now - self._last_sent < EVENT_SECONDS:
            return None
        points, self._num_sent = self._points[self._num_sent :], len(self._points)
        self._last_sent = now
        return self._head() | {"state": self._run["state"]} | self._progress | {"points": points}


class Runs:
    """All of them, by id."""

    def __init__(self) -> None:
        self._runs: dict[str, LiveRun] = {}
        self._lock = threading.Lock()
        self._unfinished: dict[str, int] = {}

    def begin(self, node: str, send: Send) -> LiveRun:
        """A new run of a node."""
        run = LiveRun(node, send)
        with self._lock:
            self._runs[run.id] = run
            ended = [r.id for r in self._runs.values() if r.ended]
            for old in ended[: max(0, len(ended) - NUM_KEPT)]:
                del self._runs[old]
        run.update()
        return run

    def find(self, name: str) -> LiveRun | None:
        """By id, or "node:ID" for the newest run of a node, one that goes on first."""
        with self._lock:
            if not name.startswith("node:"):
                return self._runs.get(name)
            of_node = [run for run in self._runs.values() if run.node == name.removeprefix("node:")]
        return next((run for run in reversed(of_node) if not run.ended), of_node[-1] if of_node else None)

    def all(self) -> list[LiveRun]:
        """Oldest first."""
        with self._lock:
            return list(self._runs.values())

    def ended_unfinished(self, node: str) -> None:
        """Note that a node's run was stopped: the node has outputs, and is to go on when it is queued again all the
        same, which ComfyUI does where its fingerprint changes."""
        with self._lock:
            self._unfinished[node] = self._unfinished.get(node, 0) + 1

    def fingerprint(self, node: str) -> int:
        """Changes where the node has to be run again although none of its inputs changed."""
        return self._unfinished.get(node, 0)


RUNS = Runs()
