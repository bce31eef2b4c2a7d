"""A run in a process that is killed again and again, at any moment: it ends as one that nobody touched."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sd_atelier.lib.run_folder import RunFolder
from toy_host import ToyHost
from toy_run import outcome, settings, start, unlike

NUM_KILLS, NUM_STEPS = 50, 130


class Trainer:
    """The process that forks the children."""

    def __init__(self, pictures: Path, parent: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("train_in_children.py"))]
        self._process = subprocess.Popen(
            [*command, str(pictures), str(parent), str(NUM_STEPS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.child = 0
        self.shown = 0  # the last step that a child said was done
        self.ended: int | None = None

    def begin(self, killed_at: int) -> None:
        """Fork a child."""
        self.child, self.ended = 0, None
        print(killed_at, file=self._process.stdin, flush=True)
        while not self.child:
            self.read()

    def read(self) -> None:
        """Read one line, waiting for it."""
        what, _, number = self._process.stdout.readline().partition(" ")
        if what == "child":
            self.child = int(number)
        elif what == "step":
            self.shown = int(number)
        else:
            assert what == "ended", "the process that forks the children ended"
            self.ended = int(number)

    def kill(self) -> None:
        """Kill the child, if it still runs, and read how it ended."""
        if self.ended is None:
            os.kill(self.child, signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        """Read how the child ended."""
        while self.ended is None:
            self.read()
        print(file=self._process.stdin, flush=True)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_run_that_is_killed_fifty_times_at_any_moment_loses_nothing(pictures: Path, tmp_path: Path) -> None:
    expected, _ = start(ToyHost(), settings(pictures, loop__steps=NUM_STEPS), tmp_path)
    chance = random.Random(0)
    parent = tmp_path / "killed"
    parent.mkdir()
    trainer = Trainer(pictures, parent)
    ends = []
    try:
        for number in range(NUM_KILLS):
            by_itself = number % 2 == 0
            trainer.begin(chance.randint(1, 90) if by_itself else 0)
            if by_itself:
                trainer.wait()
            else:
                begun, first = time.monotonic(), trainer.shown
                wait_for_steps = chance.randint(0, 3)
                while trainer.ended is None and trainer.shown < first + wait_for_steps:
                    trainer.read()
                # some time in what a step takes here, or in what it takes to begin
                usual = (time.monotonic() - begun) / max(1, wait_for_steps)
                time.sleep(chance.uniform(0, min(usual, 0.5) if wait_for_steps else 0.3))
                trainer.kill()
            ends.append(trainer.ended)
            for run in (path.parent for path in parent.glob("*/run.json")):
                folder = RunFolder.open(run)
                saved = list(folder.checkpoints.networks())
                assert folder.steps() == saved, f"kill {number}: a checkpoint is not whole"
                assert max(saved, default=0) >= trainer.shown, f"kill {number}: step {trainer.shown} was saved"
        assert ends == [-signal.SIGKILL] * NUM_KILLS
        assert 10 < trainer.shown < NUM_STEPS
        trainer.begin(0)
        trainer.wait()
        assert trainer.ended == 0
    finally:
        trainer.close()
    run = sorted(path.parent for path in parent.glob("*/run.json"))[-1]
    assert unlike(outcome(run), outcome(expected)) == []
    left = [path.name for path in run.rglob("*") if path.name.endswith((".part", ".removing"))]
    assert left == [] and len(RunFolder.open(run).steps()) == 3
    assert len(list((run / "previews").iterdir())) == NUM_STEPS // 6 + 1
