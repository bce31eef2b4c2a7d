"""A data set that a host has encoded already trains as the pictures do that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sd_atelier.lib import preparation
from sd_atelier.lib.config import RunConfig
from sd_atelier.lib.data.cache import LatentEntry
from sd_atelier.lib.data.given import Given
from sd_atelier.lib.data.pictures import load
from sd_atelier.lib.data.scan import scan
from sd_atelier.lib.run_folder import ResumeRefused
from toy_host import ToyHost
from toy_run import settings

PLAIN: dict[str, Any] = {
    "data__flip": False,
    "data__alpha_mask": False,
    "data__shuffle_tags": False,
    "data__tag_dropout": 0.0,
    "trainable__text_encoder": False,
}


def encoded(config: RunConfig, host: ToyHost) -> Given:
    """What the host makes of the pictures and captions of a configuration."""
    samples = scan(config.data, 8).samples
    entries = []
    for sample in samples:
        pixels = load(sample.path, sample.bucket, False, 200.0).pixels
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(127.5).sub(1)
        entries.append(LatentEntry(sample=sample, latents=host.autoencoder.encode(x)[0]))
    return Given(tuple(entries), {s.caption: _text(host, s.caption) for s in samples})


def _text(host: ToyHost, caption: str) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return host.text.encode([caption])


def test_training_from_latents_is_training_from_their_pictures(pictures: Path, tmp_path: Path) -> None:
    config = settings(pictures, **PLAIN)
    with preparation.start(ToyHost(), config, tmp_path / "a") as prepared:
        prepared.trainer.train()
        from_pictures = (prepared.run.path / "run.csv").read_bytes()
    given = encoded(config, ToyHost())
    with preparation.start(ToyHost(), config, tmp_path / "b", given=given) as prepared:
        prepared.trainer.train()
        assert (prepared.run.path / "run.csv").read_bytes() == from_pictures


def test_a_run_on_latents_goes_on_with_the_same_ones_only(pictures: Path, tmp_path: Path) -> None:
    config = settings(pictures, **PLAIN)
    given = encoded(config, ToyHost())
    with preparation.start(ToyHost(), config, tmp_path / "whole", given=given) as prepared:
        prepared.trainer.train()
        whole = (prepared.run.path / "loss.csv").read_bytes()
    with preparation.start(ToyHost(stop_at=5), config, tmp_path / "cut", given=given) as prepared:
        prepared.trainer.train()
        run = prepared.run.path
    first, *rest = given.entries
    changed = LatentEntry(sample=first.sample, latents=first.latents + 1)
    with (
        pytest.raises(ResumeRefused, match="was changed"),
        preparation.resume(ToyHost(), run, given=Given((changed, *rest), given.conditionings)),
    ):
        pass
    with preparation.resume(ToyHost(), run, given=given) as prepared:
        prepared.trainer.train()
        assert (run / "loss.csv").read_bytes() == whole


@pytest.mark.parametrize("setting", ["data__flip", "data__shuffle_tags", "trainable__text_encoder"])
def test_what_needs_the_pictures_or_the_texts_is_refused(pictures: Path, tmp_path: Path, setting: str) -> None:
    given = encoded(settings(pictures, **PLAIN), ToyHost())
    config = settings(pictures, **{**PLAIN, setting: True})
    with (
        pytest.raises(ValueError, match=setting.replace("__", r"\.")),
        preparation.start(ToyHost(), config, tmp_path, given=given),
    ):
        pass


def test_samples_of_two_data_sets_have_two_names(pictures: Path) -> None:
    given = encoded(settings(pictures, **PLAIN), ToyHost())
    with pytest.raises(ValueError, match="two samples are called"):
        Given.joined([given, given])
