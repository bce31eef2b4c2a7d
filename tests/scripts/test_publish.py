"""A published network: a free and friendly name that it says of itself, and nothing overwritten."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from sd_atelier.lib.config import RunConfig, from_dict
from sd_atelier.lib.files import read_safetensors
from sd_atelier.lib.preparation import start
from sd_atelier.scripts.webui.publish import publish

spec = importlib.util.spec_from_file_location("toy_host", Path(__file__).parents[1] / "run/toy_host.py")
toy_host = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy_host)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of two steps with a preview, on two pictures."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("run")
    for number in range(2):
        Image.effect_noise((64, 64), 50 + number).convert("RGB").save(folder / f"{number}.png")
    concept = {"folder": str(folder), "trigger": "m0nster"}
    data = {"concepts": [concept], "resolution": 64, "bucket_min_px": 64, "bucket_max_px": 64}
    values = {
        "name": "toys",
        "data": data,
        "loop": {"steps": 2},
        "save": {"every_steps": 1},
        "preview": {"prompts": ["a toy"], "every_steps": 2, "steps": 1, "width": 64, "height": 64},
    }
    with start(toy_host.ToyHost(), from_dict(RunConfig, values), folder / "runs") as prepared:
        prepared.trainer.train()
    return prepared.run.path


def test_the_copy_has_the_tensors_of_the_step_and_its_own_name(run_folder, tmp_path):
    made = publish(run_folder, 1, "My toys", folder=tmp_path)
    assert (made.path.name, made.prompt, made.trigger) == ("My toys.safetensors", "<lora:My toys:1> m0nster", "m0nster")
    tensors, metadata = read_safetensors(made.path)
    source, before = read_safetensors(next((run_folder / "checkpoints").glob("*-000001.safetensors")))
    assert tensors.keys() == source.keys() and all(torch.equal(tensors[name], source[name]) for name in source)
    assert metadata == {**before, "ss_output_name": "My toys"}
    card = json.loads(made.path.with_suffix(".json").read_text(encoding="utf-8"))
    assert (card["activation text"], card["preferred weight"]) == ("m0nster", 1.0)
    # this step has no preview
    assert not (tmp_path / "My toys.preview.png").exists()


def test_the_card_has_the_picture_of_the_step(run_folder, tmp_path):
    publish(run_folder, folder=tmp_path)
    assert (tmp_path / "toys-2.preview.png").is_file()


TAKEN = ["mine.safetensors", "MINE.pt", "mine.json", "sub/Mine.safetensors", "mine.preview.png"]


@pytest.mark.parametrize("taken", TAKEN)
def test_nothing_that_is_there_is_overwritten(run_folder, tmp_path, taken):
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_bytes(b"as it was")
    assert publish(run_folder, name="mine", folder=tmp_path).path.name == "mine-2.safetensors"
    assert publish(run_folder, name="mine", folder=tmp_path).path.name == "mine-3.safetensors"
    assert (tmp_path / taken).read_bytes() == b"as it was"


def test_a_name_never_ends_the_tag_of_a_prompt(run_folder, tmp_path):
    made = publish(run_folder, name="a:b<c>.d", folder=tmp_path)
    name = made.prompt.removeprefix("<lora:").split(":")[0]
    assert made.path.stem == name and not set(name) & set("<>:.")


def test_a_step_that_is_not_there_is_refused_with_those_that_are(run_folder, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint of step 7; it has 1, 2"):
        publish(run_folder, 7, folder=tmp_path)
