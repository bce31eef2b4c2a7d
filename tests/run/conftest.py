"""Whole runs on a toy host, which need torch alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for toy_host and toy_run, which a child process imports as well

from sd_atelier.lib import files
from toy_host import ToyHost
from toy_run import draw_pictures, outcome, settings, start


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses power, and flushing would take longer than training."""
    monkeypatch.setattr(files, "_fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def uninterrupted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What 12 steps come to when nothing happens."""
    run, ended = start(ToyHost(), settings(pictures), tmp_path_factory.mktemp("uninterrupted"))
    assert (ended.reason, ended.step) == ("finished", 12)
    return outcome(run)
