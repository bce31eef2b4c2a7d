"""When checkpoints and previews are made, which ones stay, and that making them changes nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sd_atelier.lib.host import SampleRequest
from sd_atelier.lib.run_folder import RunFolder
from toy_host import ToyHost
from toy_run import outcome, resume, settings, start, unlike


def steps_on_disk(run: Path) -> list[int]:
    return list(RunFolder.open(run).checkpoints.networks())


@pytest.mark.parametrize(("keep_last", "pins"), [(1, ()), (2, (3,)), (3, (1, 4, 99)), (100, ()), (0, (2,))])
def test_at_any_time_the_newest_the_pinned_and_at_least_two_checkpoints_are_there(
    keep_last: int, pins: tuple[int, ...], uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    host, run = ToyHost(stop_at=8), tmp_path / "run"

    def at(phase: str) -> None:
        if phase == "progress":
            every = range(1, host.step + 1)
            kept = set(every[-max(2, keep_last) :] if keep_last else every) | set(pins) & set(every)
            assert steps_on_disk(run) == RunFolder.open(run).steps() == sorted(kept)
            assert len(list((run / "checkpoints").iterdir())) == len(kept)
            assert len(list((run / "state").iterdir())) == 2 * len(kept)

    host.at = at
    start(host, settings(pictures, save__every_steps=1, save__keep_last=keep_last, save__pins=list(pins)), tmp_path)
    host.stop_at = None
    resume(host, run)
    assert unlike(outcome(run), uninterrupted) == []


@pytest.mark.parametrize(
    ("save", "expected"),
    [
        ({}, [12]),
        ({"every_steps": 5}, [5, 10, 12]),
        ({"every_epochs": 1}, [3, 6, 9, 12]),
        ({"every_epochs": 2}, [6, 12]),
        ({"every_epochs": 3, "every_steps": 4}, [4, 8, 9, 12]),
    ],
)
def test_checkpoints_come_when_they_are_asked_for_and_at_the_end(
    save: dict[str, Any], expected: list[int], pictures: Path, tmp_path: Path
) -> None:
    changes = {f"save__{key}": value for key, value in save.items()}
    for stop_at in (None, 7):
        run, _ = start(ToyHost(stop_at=stop_at), settings(pictures, preview__every_steps=0, **changes), tmp_path)
        if stop_at:
            resume(ToyHost(), run)
        assert steps_on_disk(run) == sorted({*expected, *([stop_at] if stop_at else [])})


def test_checkpoints_and_previews_come_at_the_ends_of_cycles(pictures: Path, tmp_path: Path) -> None:
    config = settings(
        pictures,
        rate__schedule="4 x (0->1e-3:+2, 1e-3->1e-5 cosine:+8)",
        rate__text_encoder="1e-4",
        trainable__rules=[],
        loop__steps=40,
        save__at_cycle_ends=True,
        preview__every_steps=0,
        preview__at_cycle_ends=True,
    )
    host, run = ToyHost(), tmp_path / "run"
    previewed = []

    def at(phase: str) -> None:
        if phase == "preview":
            previewed.append(host.step + 1)
            assert host.step == -1 or steps_on_disk(run)[-1] == host.step + 1

    host.at = at
    start(host, config, tmp_path)
    assert steps_on_disk(run) == [10, 20, 30, 40]
    assert previewed == [0, 10, 20, 30, 40]
    names = [f"{step:06d}-1-a cup.png" for step in previewed]
    assert sorted(p.name for p in (run / "previews").iterdir()) == names
    assert len({(run / "previews" / name).read_bytes() for name in names}) == 5, "training changes the picture"


def test_a_checkpoint_comes_before_a_preview_that_nobody_asked_to_save(pictures: Path, tmp_path: Path) -> None:
    host, run = ToyHost(), tmp_path / "run"
    saved = []

    def at(phase: str) -> None:
        if phase == "preview":
            saved.append(steps_on_disk(run))

    host.at = at
    start(host, settings(pictures, preview__every_steps=3), tmp_path)
    assert saved == [[], [3], [3, 6], [3, 6, 9], [3, 6, 9, 12]]


def random_states() -> tuple[Any, ...]:
    return (*torch.get_rng_state().tolist(), *np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


def test_a_run_neither_reads_nor_moves_the_random_states_of_the_program(
    uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    host = ToyHost()
    before = random_states()
    host.sampler(SampleRequest(prompt="", steps=1, width=64, height=64))
    moved = random_states()
    assert moved != before and moved[-1] != before[-1], "the sampler of the toy moves them"
    run, _ = start(ToyHost(stop_at=7), settings(pictures), tmp_path)
    resume(ToyHost(), run)
    assert random_states() == moved
    assert unlike(outcome(run), uninterrupted) == []


def test_a_run_without_previews_probes_and_checkpoints_trains_the_same(
    uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    changes = {"preview__prompts": [], "record__probe_every_steps": 0, "record__flush_every_steps": 1000}
    run, _ = start(ToyHost(), settings(pictures, **changes), tmp_path)
    assert not list((run / "previews").iterdir()) and not (run / "probe.csv").exists()
    assert set(unlike(outcome(run), uninterrupted)) == {"probe.csv", "records", "value probed_step"}


def test_the_first_preview_is_of_the_untouched_model(pictures: Path, tmp_path: Path) -> None:
    run, _ = start(ToyHost(), settings(pictures), tmp_path)
    request = SampleRequest(prompt="a cup", steps=2, seed=1, width=64, height=64)
    first = Image.open(run / "previews" / "000000-1-a cup.png")
    assert first.tobytes() == ToyHost().sampler(request).tobytes()


def test_the_previews_grow_into_a_strip_and_a_damaged_one_does_not_cost_the_run(pictures: Path, tmp_path: Path) -> None:
    host, run, pages = ToyHost(), tmp_path / "run", []

    def at(phase: str) -> None:
        page = run / "previews.html"
        if phase == "preview":
            pages.append(page.read_text("utf-8") if page.is_file() else "")

    host.at = at
    start(host, settings(pictures, preview__every_steps=6), tmp_path)
    assert [page.count("<img ") for page in pages] == [0, 1, 2]
    assert all("refresh" in page for page in pages[1:])
    assert "refresh" not in (run / "previews.html").read_text("utf-8") and (run / "previews.png").is_file()
    columns = json.loads((run / "previews.json").read_text("utf-8"))["columns"]
    assert [column["label"] for column in columns] == ["no network", "run-000006", "run-000012"]

    def damage(phase: str) -> None:
        if phase == "preview" and host.step == 5:
            next((tmp_path / "run-2" / "previews").glob("000000-*")).write_bytes(b"no picture")

    host, prepared = ToyHost(), []
    host.at = damage
    start(host, settings(pictures, preview__every_steps=6), tmp_path, prepared.append)
    assert ["the strip of the previews was not written" in note for note in prepared[0].trainer.notes] == [True]
    assert (tmp_path / "run-2" / "previews").is_dir() and steps_on_disk(tmp_path / "run-2")[-1] == 12
