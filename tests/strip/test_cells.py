"""A finished cell comes back, a damaged one does not, and every setting is in its key."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from sd_atelier.lib.host import SampleRequest
from sd_atelier.lib.strip import cells as strip

REQUEST = SampleRequest(prompt="a photo of zwx toy", seed=3)


def test_every_setting_is_in_the_key_of_a_cell():
    others = {
        "prompt": "b", "negative_prompt": "b", "steps": 21, "guidance": 6.5, "seed": 4, "width": 520, "height": 520,
    }  # fmt: skip
    assert set(others) == {f.name for f in dataclasses.fields(SampleRequest)}
    keys = [strip.cell_key("model", dataclasses.replace(REQUEST, **{k: v})) for k, v in others.items()]
    keys += [strip.cell_key("model", REQUEST), strip.cell_key("other", REQUEST)]
    keys += [strip.cell_key("model", REQUEST, sampler="Euler"), strip.cell_key("model", REQUEST, strength=0.8)]
    assert len(set(keys)) == len(keys)
    assert strip.cell_key("model", dataclasses.replace(REQUEST)) == strip.cell_key("model", REQUEST)


def test_finished_cell_comes_back_and_a_damaged_one_does_not(tmp_path):
    store, key = strip.CellStore(tmp_path / "cells"), strip.cell_key("model", REQUEST)
    assert store.get(key) is None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    path = store.put(key, image, {"prompt": REQUEST.prompt})
    assert np.array_equal(np.asarray(store.get(key)), np.asarray(image))
    assert json.loads(path.with_suffix(".json").read_text())["prompt"] == REQUEST.prompt

    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert store.get(key) is None
    path.write_bytes(whole)
    path.with_suffix(".json").write_text("[")
    assert store.get(key) is None
    path.with_suffix(".json").unlink()
    assert store.get(key) is None


@pytest.mark.parametrize("key", ["", "../" + "0" * 61, "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_key_that_is_not_a_hash_names_no_file(key, tmp_path):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        strip.CellStore(tmp_path).get(key)
