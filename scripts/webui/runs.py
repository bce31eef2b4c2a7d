"""Runs in the WebUI: each a thread of its own that holds the host's queue lock while it trains.

A run belongs to no page: its page may be closed, and *Reload UI* neither ends it nor loses it. The runs of this
program are in one object on `modules.shared`, which a reload leaves alone. A generation that is asked for meanwhile
waits in the host's queue and then works.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from ...lib import preparation
from ...lib.config import RunConfig
from ...lib.control import Control
from ...lib.host import Progress, SampleRequest
from ...lib.manifest import read_manifest, write_manifest
from ...lib.memory import OutOfMemoryError, let_go_of_frames
from ...lib.preparation import Prepared, Report, StoppedError, check_settings
from ...lib.run_folder import RunFolder
from ...lib.trainer import NotFiniteError
from .host import CheckpointGoneError, WebuiHost
from .patched import patched
from .sampler import check_fields

# what a user can do something about: a sentence is enough
EXPECTED = (ValueError, OSError, OutOfMemoryError, NotFiniteError, CheckpointGoneError)
LIVE = ("waiting", "preparing", "training", "paused")
PREVIEWS_FILE, PREVIEWS_FORMAT = "webui.json", 1

Opener = Callable[[WebuiHost, Report], AbstractContextManager[Prepared]]


def registry() -> Any:
    """The one object on `modules.shared`: `runs`, oldest first, and `wrapped`, what pages keep over *Reload UI*."""
    from modules import shared

    if not hasattr(shared, "atelier"):
        shared.atelier = SimpleNamespace(runs=[], wrapped={})
    return shared.atelier


def all_runs() -> list[Run]:
    """Live and ended runs of this program, oldest first."""
    return list(registry().runs)


def find(run_id: str) -> Run | None:
    """The run with this id, or None."""
    return next((run for run in all_runs() if run.id == run_id), None)


def live_run() -> Run | None:
    """The live run that was started last, or None."""
    return next((run for run in reversed(all_runs()) if run.is_live), None)


def default_parent() -> Path:
    """Where run folders are made: the folder of the settings, or `atelier/runs` beside the host's own data."""
    from modules import paths, shared

    chosen = str(getattr(shared.opts, "atelier_runs_folder", "") or "").strip()
    return Path(chosen).absolute() if chosen else Path(paths.data_path).absolute() / "atelier" / "runs"


def start(config: RunConfig, *, parent: Path | None = None, txt2img: dict[str, Any] | None = None) -> Run:
    """A new run; returns at once. `txt2img`: further fields of the host's txt2img for previews.

    Errors: `ValueError` for settings that are wrong whatever the data and the model are.
    """
    config, fields = check_settings(config), _checked(txt2img)
    folder = parent or default_parent()
    return _launched(config.name, config, fields, lambda host, report: preparation.start(host, config, folder, report))


def resume(folder: Path | str, changes: dict[str, Any] | None = None, *, txt2img: dict[str, Any] | None = None) -> Run:
    """Go on with a run folder; returns at once. `changes` are settings nested as in `config.from_dict`.

    `txt2img` None: previews as before. Errors: `ValueError`, also where a live run has this folder.
    """
    run = RunFolder.open(folder)
    taken = next((r for r in all_runs() if r.is_live and r.folder == run.path), None)
    if taken is not None:
        raise ValueError(f"{run.path.name} is already running")
    config = check_settings(preparation.merge(run.config, changes or {}))
    fields = _checked(_previews_of(run.path) if txt2img is None else txt2img)
    opener: Opener = lambda host, report: preparation.resume(host, run.path, changes, report)  # noqa: E731
    return _launched(run.path.name, config, fields, opener, folder=run.path)


def fork(
    source: Path | str,
    step: int | None,
    changes: dict[str, Any],
    *,
    parent: Path | None = None,
    txt2img: dict[str, Any] | None = None,
) -> Run:
    """A new run from a checkpoint of another (None: its newest), with changed settings; returns at once.

    Errors: `ValueError` as `start`.
    """
    old = RunFolder.open(source)
    config = check_settings(preparation.merge(old.config, changes))
    fields = _checked(_previews_of(old.path) if txt2img is None else txt2img)
    folder = parent or default_parent()
    opener: Opener = lambda host, report: preparation.fork(host, old.path, step, changes, folder, report)  # noqa: E731
    return _launched(config.name, config, fields, opener)


class Run:
    """One run of this program: what a page asks of it and shows of it. Any thread may use it."""

    def __init__(
        self, title: str, config: RunConfig, txt2img: dict[str, Any], opener: Opener, folder: Path | None
    ) -> None:
        self.id = secrets.token_hex(6)
        self.title, self.config, self.folder = title, config, folder
        self.control = _UntilTheEnd()
        self.started = time.time()
        self.ended: float | None = None
        self._txt2img, self._opener = txt2img, opener
        self._phase, self._note, self._error = "waiting", "", ""
        self._notes: list[str] = []
        self._summary = ""
        self._step = 0
        self._progress: Progress | None = None
        self._previews: list[dict[str, Any]] = []
        self._host: WebuiHost | None = None
        # not a daemon: a program that ends waits until what is trained is saved, see `_UntilTheEnd`
        self._thread = threading.Thread(target=self._run, name=f"atelier {title}", daemon=False)

    @property
    def is_live(self) -> bool:
        return self._phase in LIVE

    def stop(self) -> None:
        """Save and end within a step; a preview that is being made is cut short."""
        self.control.stop()
        host = self._host
        if host is not None and host.sampler.is_running:
            from modules import shared

            shared.state.interrupted = True

    def save(self) -> None:
        """Write a checkpoint before the next step."""
        self.control.save()

    def sample(self) -> None:
        """Write a checkpoint and make previews before the next step."""
        self.control.sample()

    def pause(self) -> None:
        """Take no step until `go_on`; the checkpoint and the queue stay the run's."""
        self.control.pause()

    def go_on(self) -> None:
        """End the pause."""
        self.control.go_on()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(timeout)

    def status(self) -> dict[str, Any]:
        """JSON values.

        id, title, phase (waiting, preparing, training, paused, finished, stopped, failed), live, folder (str or None),
        note (a sentence on what goes on), notes (what the user should know), summary, error (a sentence or ""),
        started and ended (seconds since 1970), step, previews (newest last: step, prompt, seed, width, height), and
        progress: None before the first step, else the fields of `lib.host.Progress`.
        """
        phase = "paused" if self._phase == "training" and self.control.paused else self._phase
        return {
            "id": self.id,
            "title": self.title,
            "phase": phase,
            "live": self.is_live,
            "folder": None if self.folder is None else str(self.folder),
            "note": self._note,
            "notes": list(self._notes),
            "summary": self._summary,
            "error": self._error,
            "started": self.started,
            "ended": self.ended,
            "step": self._step,
            "previews": list(self._previews),
            "progress": None if self._progress is None else asdict(self._progress),
        }

    def _run(self) -> None:
        from modules import call_queue

        phase = "failed"
        try:
            with call_queue.queue_lock:
                phase = self._train()
        except StoppedError as error:
            phase, self._note = "stopped", str(error)
        except EXPECTED as error:
            self._error = str(error)
            let_go_of_frames(error)
        except BaseException as error:
            # the console shows where; the page says what
            self._error = f"{type(error).__name__}: {error}"
            let_go_of_frames(error)
            raise
        finally:
            self._host = None
            self.ended = time.time()
            self._phase = phase

    def _train(self) -> str:
        """Everything that is done with the queue lock. Returns the phase that the run ends in."""
        if self.control.stop_requested:
            raise StoppedError("stopped before it began")
        self._phase = "preparing"
        with ExitStack() as stack:
            stack.enter_context(_job(self.control))
            self._host = host = WebuiHost(
                self.control,
                txt2img=self._txt2img,
                max_token_chunks=self.config.data.max_token_chunks,
                on_progress=self._on_progress,
                on_preview=self._on_preview,
                on_problem=self._on_problem,
            )
            host.check(self.config)
            stack.enter_context(host.held())
            prepared = stack.enter_context(self._opener(host, self._report))
            self.folder = prepared.run.path
            if self._txt2img:
                write_manifest(self.folder / PREVIEWS_FILE, {"format": PREVIEWS_FORMAT, "txt2img": self._txt2img})
            self._notes, self._summary = list(prepared.notes), prepared.summary
            self._step = prepared.trainer.step
            self._phase, self._note = "training", ""
            outcome = prepared.trainer.train()
            self._step = outcome.step
            self._notes += prepared.trainer.notes
            return outcome.reason

    def _report(self, sentence: str) -> None:
        from modules import shared

        self._note = sentence
        shared.state.textinfo = f"Atelier: {sentence}"

    def _on_progress(self, progress: Progress) -> None:
        self._progress, self._step, self._note = progress, progress.step, progress.note

    def _on_problem(self, sentence: str) -> None:
        self._notes.append(f"step {self._step}: {sentence}")

    def _on_preview(self, step: int, request: SampleRequest, image: Image.Image) -> None:
        shown = {"prompt": request.prompt, "seed": request.seed, "width": image.width, "height": image.height}
        self._previews.append({"step": step, **shown})


class _UntilTheEnd(Control):
    """Also asks for a stop once the program has come to its end and only waits for its threads."""

    @property
    def stop_requested(self) -> bool:
        return super().stop_requested or not threading.main_thread().is_alive()


@contextmanager
def _job(control: Control) -> Iterator[None]:
    """The host's job while a run has the queue: its Interrupt button stops the run, and *Reload UI* does not."""
    from modules import shared

    state = shared.state

    def interrupt() -> None:
        # Reload UI interrupts what goes on by this very call; a run outlives it
        if sys._getframe(1).f_code.co_name != "request_restart":
            state.interrupted = True
            control.stop()

    def stop_generating() -> None:
        state.stopping_generation = True
        control.stop()

    state.begin(job="atelier")
    try:
        with patched(state, interrupt=interrupt, stop_generating=stop_generating):
            yield
    finally:
        state.end()
        state.interrupted = state.stopping_generation = state.skipped = False
        state.current_latent = state.textinfo = None


def _launched(
    title: str, config: RunConfig, txt2img: dict[str, Any], opener: Opener, folder: Path | None = None
) -> Run:
    run = Run(title, config, txt2img, opener, folder)
    registry().runs.append(run)
    run._thread.start()
    return run


def _checked(txt2img: dict[str, Any] | None) -> dict[str, Any]:
    fields = dict(txt2img or {})
    check_fields(fields)
    return fields


def _previews_of(folder: Path) -> dict[str, Any]:
    """The further fields of txt2img that previews of a run were made with."""
    path = folder / PREVIEWS_FILE
    return read_manifest(path, PREVIEWS_FORMAT)["txt2img"] if path.exists() else {}
