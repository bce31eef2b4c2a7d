"""Forks: a run that goes on from a checkpoint of another with changed settings, and leaves that one alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sd_atelier.lib.checkpoints import NoCheckpointError
from sd_atelier.lib.preparation import Prepared
from sd_atelier.lib.records import read_losses, read_run
from toy_host import ToyHost, bits
from toy_run import all_bytes, checkpoint, fork, outcome, records, resume, settings, start, unlike

COPIES = {f"cups/{i}.png": 1 for i in range(5)} | {f"hats/{i}.png": 2 for i in range(2)}
Drawn = dict[tuple[str, int], tuple[bytes, ...]]


@pytest.fixture(scope="module")
def source(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with a checkpoint at each."""
    return start(ToyHost(), settings(pictures, save__every_steps=1), tmp_path_factory.mktemp("source"))[0]


def watched(drawn: Drawn) -> Any:
    """Notes what each (picture, visit) is trained with: noise, t, shift and further noise."""

    def watch(prepared: Prepared) -> None:
        draw = prepared.trainer.loss.draw

        def drawing(names: Any, visits: Any, shape: Any) -> Any:
            result = draw(names, visits, shape)
            for i, key in enumerate(zip(names, visits, strict=True)):
                assert key not in drawn, f"{key} is trained twice"
                drawn[key] = tuple(bits(t[i]) for t in (result.noise, result.t, result.shift, result.extra))
            return result

        prepared.trainer.loss.draw = drawing

    return watch


def test_a_fork_that_changes_nothing_is_the_run_that_it_comes_from(source: Path) -> None:
    before = all_bytes(source)
    for step in (1, 5, 12):
        run, ended = fork(ToyHost(), source, step)
        assert run != source and ended.reason == "finished"
        assert unlike(outcome(run), outcome(source)) == [], f"forked at step {step}"
    assert unlike(all_bytes(source), before) == []


def test_a_fork_goes_on_at_a_tenth_of_the_rate(source: Path) -> None:
    before = all_bytes(source)
    run, _ = fork(ToyHost(), source, 5, rate__factor=0.1)
    assert unlike(all_bytes(source), before) == []
    old, new = read_losses(source / "loss.csv"), read_losses(run / "loss.csv")
    for column in ("step", "epoch", "image", "caption_sha", "t", "seed"):
        assert old[column].tolist() == new[column].tolist()
    # step 5 is still computed with the weights of the source
    same = new["loss"] == old["loss"]
    assert same[new["step"] <= 5].all() and not same[new["step"] > 6].any()
    old_rates, new_rates = read_run(source / "run.csv"), read_run(run / "run.csv")
    for column in (c for c in old_rates if c.startswith("lr_")):
        assert new_rates[column][:5].tolist() == old_rates[column][:5].tolist()
        assert new_rates[column][5:] == pytest.approx(0.1 * old_rates[column][5:], rel=1e-15)
    described = json.loads((run / "run.json").read_text())
    parent = json.loads((source / "run.json").read_text())
    assert described["lineage"] == {"run": parent["id"], "name": "run", "path": str(source), "step": 5}
    assert described["config"]["rate"]["factor"] == 0.1 and parent["lineage"] is None
    assert described["id"] != parent["id"]


def test_a_fork_resumes_bit_for_bit_also_without_the_run_that_it_comes_from(source: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rate__factor": 0.5, "loop__batch_size": 3, "loop__accumulate": 1, "loop__steps": 16}
    lost = tmp_path / "run"
    shutil.copytree(source, lost)
    whole, _ = fork(ToyHost(), lost, 4, **changes)
    cut, ended = fork(ToyHost(stop_at=7), lost, 4, **changes)
    assert (ended.reason, ended.step) == ("stopped", 7)
    shutil.rmtree(lost)
    resume(ToyHost(stop_at=8), cut)
    resume(ToyHost(), cut)
    assert unlike(outcome(cut), outcome(whole)) == []


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """What the source trains, in order."""
    drawn: Drawn = {}
    start(ToyHost(), settings(pictures), tmp_path_factory.mktemp("trained"), watched(drawn))
    assert len(drawn) == 36
    return drawn


@pytest.mark.parametrize("step", [1, 2, 4, 5])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (3, 1), (2, 1), (2, 3), (9, 2)])
def test_a_fork_with_other_batches_sees_what_is_left_of_the_epoch_once_and_with_the_same_noise(
    step: int, batch_size: int, accumulate: int, source: Path, trained: Drawn
) -> None:
    num_before = checkpoint(source, step)["images_seen"]
    seen = dict(list(trained.items())[:num_before])
    host = ToyHost()

    def stop_after_three_epochs(phase: str) -> None:
        if phase == "progress" and len(seen) >= 27:
            host.stop_at = 0

    host.at = stop_after_three_epochs
    changes = {"loop__batch_size": batch_size, "loop__accumulate": accumulate, "loop__steps": 40}
    fork(host, source, step, watched(seen), **changes)
    assert len(seen) >= 27
    epochs = Counter((name, visit // COPIES[name]) for name, visit in seen)
    assert all(epochs[name, epoch] == copies for name, copies in COPIES.items() for epoch in range(3))
    assert unlike({k: v for k, v in seen.items() if k in trained}, {k: trained[k] for k in seen if k in trained}) == []


def test_a_fork_on_changed_data_starts_the_next_epoch_with_them(source: Path, pictures: Path, tmp_path: Path) -> None:
    own = tmp_path / "pictures"
    shutil.copytree(pictures, own)
    Image.new("RGB", (64, 64), (9, 200, 9)).save(own / "cups/new.png")
    (own / "hats/0.png").unlink()
    (own / "cups/1.txt").write_text("another caption")
    seen: Drawn = {}
    notes: list[str] = []

    def before(prepared: Prepared) -> None:
        notes.extend(prepared.notes)
        watched(seen)(prepared)

    concepts = [
        {"folder": str(own / "cups"), "trigger": "sks"},
        {"folder": str(own / "hats"), "repeats": 2, "weight": 0.7},
    ]
    run, _ = fork(ToyHost(stop_at=6), source, 4, before, data__concepts=concepts)
    assert "the data set changed: an epoch starts with it" in notes
    # 8 pictures an epoch; step 4 lies in epoch 1, so it goes on with epoch 2
    names = [f"cups/{n}.png" for n in (0, 1, 2, 3, 4, "new")]
    assert set(seen) == {(name, 2) for name in names} | {("hats/1.png", 4), ("hats/1.png", 5)}
    assert set(read_losses(run / "loss.csv")["epoch"]) == {0, 1, 2}
    assert records(run)["loss.csv"].startswith(records(source)["loss.csv"].split(b"\n4,1,")[0])
    assert resume(ToyHost(stop_at=9), run).step == 9


@pytest.mark.parametrize(
    "changes",
    [
        {"trainable__rank": 4},
        {"trainable__text_encoder": False},
        {"trainable__dropout": 0.0},
        {"optimizer__name": "lion"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_fork_keeps_the_network_and_the_optimizer(changes: dict[str, Any], source: Path) -> None:
    around = set(source.parent.iterdir())
    with pytest.raises(ValueError, match=r"trainable\.\* and optimizer\.name cannot change"):
        fork(ToyHost(), source, 5, **changes)
    assert set(source.parent.iterdir()) == around


def test_a_fork_past_its_own_end_or_from_nowhere_is_refused_and_makes_no_folder(source: Path) -> None:
    around = set(source.parent.iterdir())
    with pytest.raises(ValueError, match="at step 5, past its end at step 4; give more steps"):
        fork(ToyHost(), source, 5, loop__steps=4)
    with pytest.raises(NoCheckpointError, match="no checkpoint of step 13 to go on from"):
        fork(ToyHost(), source, 13)
    assert set(source.parent.iterdir()) == around


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_fork_may_change_the_moving_average(decay: float, source: Path) -> None:
    run, _ = fork(ToyHost(stop_at=7), source, 5, loop__ema_decay=decay)
    resume(ToyHost(), run)
    whole, _ = fork(ToyHost(), source, 5, loop__ema_decay=decay)
    assert unlike(outcome(run), outcome(whole)) == []
    has_average = any(name.startswith("state ema.") for name in checkpoint(run))
    assert has_average == (decay > 0)


def test_a_longer_fork_of_a_finished_run_goes_on_where_it_ended(source: Path, pictures: Path, tmp_path: Path) -> None:
    constant = {"rate__schedule": "1e-3", "rate__text_encoder": "", "trainable__rules": []}
    long, _ = start(ToyHost(), settings(pictures, loop__steps=15, **constant), tmp_path)
    short, _ = start(ToyHost(), settings(pictures, loop__steps=10, **constant), tmp_path)
    run, _ = fork(ToyHost(), short, None, loop__steps=15)
    assert unlike(outcome(run), outcome(long)) == []
