"""What a user is told before step 0, and what is refused before there is a folder."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from sd_atelier.lib import preparation
from toy_host import ToyHost
from toy_run import settings

NO_RULES = {"trainable__rules": [], "rate__text_encoder": ""}


def prepared_notes(pictures: Path, parent: Path, **changes: object) -> str:
    with preparation.start(ToyHost(), settings(pictures, **changes), parent) as prepared:
        return "\n".join(prepared.notes)


def test_a_schedule_that_the_run_cuts_is_said(pictures: Path, tmp_path: Path) -> None:
    assert "cut" not in prepared_notes(pictures, tmp_path, rate__schedule="1e-3", **NO_RULES)
    assert "cut" in prepared_notes(pictures, tmp_path, rate__schedule="1e-3:400", **NO_RULES)


@pytest.mark.skipif(importlib.util.find_spec("prodigyopt") is None, reason="prodigyopt is not installed")
def test_a_rate_that_is_no_factor_is_said(pictures: Path, tmp_path: Path) -> None:
    said = prepared_notes(pictures, tmp_path, rate__schedule="1e-4", optimizer__name="prodigy", **NO_RULES)
    assert "usually 1; this schedule's highest is 0.0001" in said
    assert "usually" not in prepared_notes(
        pictures, tmp_path, rate__schedule="1->0.5", optimizer__name="prodigy", **NO_RULES
    )
    assert "usually" not in prepared_notes(pictures, tmp_path, rate__schedule="1e-4", **NO_RULES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate__schedule": "1e-3:3"}, "ends at step 3"),
        ({"trainable__rules": [{"layers": "*", "rank": 0}]}, "chooses no layer"),
        ({"objective__zero_terminal_snr": True}, "epsilon"),
        ({"objective__t_min": 0.5, "objective__t_max": 0.5}, "objective.t_min"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_folder(
    changes: dict, message: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        prepared_notes(pictures, tmp_path, **changes)
    assert not list(tmp_path.glob("*/run.json"))


def test_the_summary_counts_pictures_steps_and_layers(pictures: Path, tmp_path: Path) -> None:
    config = settings(pictures, loop__steps=None, loop__epochs=2)
    with preparation.start(ToyHost(), config, tmp_path) as prepared:
        assert prepared.summary.startswith("7 pictures, 3 steps an epoch, 6 steps for 2 epochs")


def test_a_mirror_that_makes_captions_wrong_is_said(pictures: Path, tmp_path: Path) -> None:
    own = tmp_path / "pictures"
    shutil.copytree(pictures, own)
    caption = sorted(own.rglob("*.txt"))[0]
    said = "captions name what is then wrong"
    assert said not in prepared_notes(own, tmp_path, data__flip=True, **NO_RULES)
    caption.write_text("a cup, english text, eyepatch", "utf-8")
    notes = prepared_notes(own, tmp_path, data__flip=True, **NO_RULES)
    assert said in notes and f"{caption.stem}.png (english text, eyepatch)" in notes
    assert said not in prepared_notes(own, tmp_path, data__flip=False, **NO_RULES)
