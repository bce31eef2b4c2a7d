"""`--preset`: the recipe comes first, then the settings file, then the options."""

from __future__ import annotations

import argparse

import pytest
from sd_atelier.lib import presets
from sd_atelier.lib.config import RunConfig, difference
from sd_atelier.lib.standalone.commands import train


def settings(*argv):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return train.settings(parser.parse_args([*argv, "--model", "m"]))


def test_a_preset_gives_its_recipe_and_how_the_weights_are_kept():
    config = settings("--preset", "flux,12GB,style")
    assert config == presets.preset("flux", "12 GB", "style").apply(RunConfig(), storage=True)
    assert (config.loop.base_storage, config.loop.cpu_blocks) == ("float8", 16)


def test_the_settings_file_overrides_the_preset_and_options_override_both(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[trainable]\nrank = 5\nalpha = 3.0\n[[data.concepts]]\nfolder = "cats"\n')
    recipe = presets.preset("sdxl", "24 GB", "character").apply(RunConfig(), storage=True)
    config = settings(str(file), "--preset", "sdxl,24GB", "--rank", "6")
    assert difference(recipe, config)[-2:] == ["trainable.alpha: 16.0 -> 3.0", "trainable.rank: 32 -> 6"]
    assert [concept.folder for concept in config.data.concepts] == ["cats"]


def test_epochs_take_the_place_of_the_presets_steps():
    loop = settings("--preset", "sd1,8GB", "--epochs", "10").loop
    assert (loop.steps, loop.epochs) == (None, 10)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match='unknown memory class of sd1 "40 GB"'):
        settings("--preset", "sd1,40GB")
