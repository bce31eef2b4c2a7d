"""Tiny models of each family learn from photographs: the controlled loss falls by a fifth, picture by picture."""

from __future__ import annotations

import pytest
from family_runs import host_of, settings
from sd_atelier.lib import preparation
from sd_atelier.lib.comparison import paired_interval, picture_means
from sd_atelier.lib.records import read_probe
from tiny_families import FAMILIES, FAMILY

STEPS_AND_RATE = {"sdxl": (12, "1e-2"), "sd3": (40, "5e-3"), "flux": (30, "5e-3")}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_on_photographs_learns(name, family_model, photos, tmp_path):
    folders = sorted(folder for folder in photos.iterdir() if folder.is_dir())
    steps, rate = STEPS_AND_RATE[FAMILY[name]]
    config = settings(folders, steps, rate={"schedule": rate})
    with preparation.start(host_of(family_model(name)), config, tmp_path) as prepared:
        assert prepared.trainer.train().step == steps
        probe = read_probe(prepared.run.path / "probe.csv")
    last = probe["step"] == steps
    loss, base = probe["loss"][last], probe["loss_base"][last]
    assert len(set(probe["image"][last])) == 15
    _, _, high = paired_interval(picture_means(probe["image"][last], loss - base))
    assert high < 0
    assert loss.mean() < 0.8 * base.mean()
