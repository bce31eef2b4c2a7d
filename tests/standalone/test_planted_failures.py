"""Runs whose faults are known are told from healthy ones, and healthy ones learn: the claims about learning, tested.

Every run is really trained, so this takes minutes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))  # for quality

from planted_failures import LEAKED, PLANTED, WRONG_CAPTIONS, make
from quality import Gauge
from sd_atelier.lib.run_folder import RunFolder

HEALTHY = [name for name, planted in PLANTED.items() if not planted.fault]
COLLAPSED = [name for name, planted in PLANTED.items() if planted.signs]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="module")
def gauge() -> Gauge:
    return Gauge()


def signs(run: RunFolder) -> Counter[str]:
    columns = json.loads((run.path / "strip.json").read_text(encoding="utf-8"))["columns"]
    return Counter(sign for column in columns for sign in column.get("signs", []))


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_the_default_recipe_learns_the_character_and_keeps_the_rest(name: str, output: Path, gauge: Gauge) -> None:
    run = make(name, output)
    networks = run.checkpoints.networks()
    quality = gauge.measure(networks[max(networks)], PLANTED[name].trigger)
    assert quality.trigger >= 0.8 and quality.trigger_before <= 0.05, quality
    assert quality.obeyed >= 0.8, quality
    assert quality.species >= 0.9, quality


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_shows_no_sign_of_collapse(name: str, output: Path) -> None:
    assert not signs(make(name, output))


@pytest.mark.slow
@pytest.mark.parametrize("name", COLLAPSED)
def test_a_collapsed_run_is_marked(name: str, output: Path) -> None:
    assert PLANTED[name].signs <= set(signs(make(name, output)))


def test_two_captions_of_the_wrong_ones_tell_another_picture() -> None:
    planted = PLANTED["wrong captions"]
    right = PLANTED["healthy zuzu"].draw("zuzu", planted.count, 0)
    wrong = planted.draw("zuzu", planted.count, 0)
    assert [a.picture.tobytes() for a in right] == [b.picture.tobytes() for b in wrong]
    changed = [i for i, (a, b) in enumerate(zip(right, wrong, strict=True)) if a.caption != b.caption]
    assert changed == sorted(WRONG_CAPTIONS)
    assert Counter(a.caption for a in right) == Counter(b.caption for b in wrong)


def test_leaking_captions_tell_what_the_trigger_is_for() -> None:
    planted = PLANTED["leaking captions"]
    assert all(LEAKED in captioned.caption for captioned in planted.draw("zuzu", planted.count, 0))
