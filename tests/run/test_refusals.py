"""A run goes on only as it began: whatever changed is named, and nothing is touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sd_atelier.lib.checkpoints import NoCheckpointError
from sd_atelier.lib.owner import FolderInUseError
from sd_atelier.lib.run_folder import ResumeRefused, RunFolder
from toy_host import ToyHost
from toy_run import all_bytes, outcome, resume, settings, start, unlike


@pytest.fixture
def own_pictures(pictures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "pictures"))


@pytest.fixture
def stopped(own_pictures: Path, tmp_path: Path) -> Path:
    """A run that was stopped at step 3, on pictures of its own."""
    return start(ToyHost(stop_at=3), settings(own_pictures), tmp_path)[0]


def change_caption(pictures: Path) -> None:
    (pictures / "cups/3.txt").write_text("something else")


def remove_caption(pictures: Path) -> None:
    (pictures / "cups/3.txt").unlink()


def change_picture(pictures: Path) -> None:
    picture = Image.open(pictures / "cups/3.png").convert("RGB")
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(pictures / "cups/3.png")


def remove_picture(pictures: Path) -> None:
    (pictures / "cups/3.png").unlink()


def damage_picture(pictures: Path) -> None:
    data = (pictures / "cups/3.png").read_bytes()
    (pictures / "cups/3.png").write_bytes(data[: len(data) // 2])


def add_picture(pictures: Path) -> None:
    shutil.copy(pictures / "cups/3.png", pictures / "cups/9.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_caption, "data: cups/3.png was changed"),
        (remove_caption, "data: cups/3.png was changed"),
        (change_picture, "data: cups/3.png was changed"),
        (remove_picture, "data: cups/3.png is missing"),
        (damage_picture, "data: cups/3.png is missing"),
        (add_picture, "data: cups/9.png is new"),
    ],
)
def test_changed_data_are_refused_by_name(
    change: Callable[[Path], None],
    said: str,
    stopped: Path,
    own_pictures: Path,
    pictures: Path,
    uninterrupted: dict[str, Any],
) -> None:
    before = all_bytes(stopped)
    change(own_pictures)
    with pytest.raises(ResumeRefused) as caught:
        resume(ToyHost(), stopped)
    assert caught.value.differences == [said] and said in str(caught.value) and "fork the run" in str(caught.value)
    assert unlike(all_bytes(stopped), before) == []
    # put back, it goes on
    shutil.rmtree(own_pictures)
    shutil.copytree(pictures, own_pictures)
    resume(ToyHost(), stopped)
    assert unlike(outcome(stopped), uninterrupted) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rate__schedule": "1e-3"}, "rate.schedule: "),
        ({"rate__factor": 0.1}, "rate.factor: 1.0 -> 0.1"),
        ({"loop__steps": 13}, "loop.steps: 12 -> 13"),
        ({"loop__batch_size": 1}, "loop.batch_size: 2 -> 1"),
        ({"loop__seed": 8}, "loop.seed: 7 -> 8"),
        ({"loop__ema_decay": 0.0}, "loop.ema_decay: 0.9 -> 0.0"),
        ({"optimizer__name": "lion"}, "optimizer.name: adamw -> lion"),
        ({"optimizer__weight_decay": 0.1}, "optimizer.weight_decay: 0.01 -> 0.1"),
        ({"objective__noise_offset": 0.0}, "objective.noise_offset: 0.05 -> 0.0"),
        ({"trainable__rank": 4}, "trainable.rank: 2 -> 4"),
        ({"data__tag_dropout": 0.0}, "data.tag_dropout: 0.2 -> 0.0"),
        ({"record__probe_every_steps": 4}, "record.probe_every_steps: 5 -> 4"),
        ({"save__dtype": "fp16"}, "save.dtype: fp32 -> fp16"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_matter_are_refused_by_name(changes: dict[str, Any], said: str, stopped: Path) -> None:
    before = all_bytes(stopped)
    with pytest.raises(ResumeRefused) as caught:
        resume(ToyHost(), stopped, **changes)
    assert len(caught.value.differences) == 1
    assert caught.value.differences[0].replace('"', "").startswith(said)
    assert unlike(all_bytes(stopped), before) == []


def one_weight(host: ToyHost) -> None:
    with torch.no_grad():
        host.parts["unet"].get_submodule("down_blocks.0.attentions.0.proj_in").weight[0, 0] += 0.01


def one_weight_of_the_text_encoder(host: ToyHost) -> None:
    with torch.no_grad():
        host.parts["te"].get_submodule("text_model.encoder.layers.0.mlp.fc1").weight[0, 0] += 0.01


def one_layer_less(host: ToyHost) -> None:
    del host.parts["unet"].down_blocks[0].resnets[0].time_emb_proj


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_weight, "weights differ in 1 of 24 layers: lora_unet_down_blocks_0_attentions_0_proj_in"),
        (one_weight_of_the_text_encoder, "weights differ in 1 of 24 layers: lora_te_text_model_encoder_layers_0_mlp"),
        (one_layer_less, "layers missing (1): lora_unet_down_blocks_0_resnets_0_time_emb_proj"),
    ],
)
def test_another_base_model_is_refused(change: Callable[[ToyHost], None], said: str, stopped: Path) -> None:
    before = all_bytes(stopped)
    host = ToyHost()
    change(host)
    untouched = host.everything() if change is not one_layer_less else {}
    with pytest.raises(ResumeRefused) as caught:
        resume(host, stopped)
    assert len(caught.value.differences) == 1 and f"base model: {said}" in caught.value.differences[0]
    assert unlike(all_bytes(stopped), before) == []
    assert change is one_layer_less or unlike(host.everything(), untouched) == []


def test_settings_without_effect_on_what_is_trained_may_change(
    stopped: Path, uninterrupted: dict[str, Any], own_pictures: Path, tmp_path: Path
) -> None:
    moved = own_pictures.rename(tmp_path / "elsewhere")
    changes = {
        "save": {"every_steps": 2, "every_epochs": 1, "keep_last": 3, "pins": [4]},
        "preview": {"prompts": ["a hat", "two hats"], "every_steps": 4, "steps": 1, "seed": 9, "width": 128},
        "record": {"flush_every_steps": 1},
        "data": {
            "concepts": [
                {"folder": str(moved / "cups"), "trigger": "sks"},
                {"folder": str(moved / "hats"), "repeats": 2, "weight": 0.7},
            ]
        },
    }
    notes: list[str] = []
    resume(ToyHost(), stopped, lambda prepared: notes.extend(prepared.notes), **changes)
    assert unlike(outcome(stopped), uninterrupted) == []
    assert RunFolder.open(stopped).steps() == [4, 9, 10, 12]
    assert len(list((stopped / "previews").glob("000008-*"))) == 2
    assert any(note.startswith("setting changed: preview.seed: 1 -> 9") for note in notes)
    assert RunFolder.open(stopped).config.save.keep_last == 3


def test_a_live_run_is_not_resumed_a_second_time(uninterrupted: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    host, refusals = ToyHost(), []

    def at(phase: str) -> None:
        if phase == "backward" and host.step == 7:
            with pytest.raises(FolderInUseError) as caught:
                resume(ToyHost(), tmp_path / "run")
            refusals.append(str(caught.value))

    host.at = at
    start(host, settings(pictures), tmp_path)
    assert len(refusals) == 2 and f"in use by process {os.getpid()} on " in refusals[0]
    assert unlike(outcome(tmp_path / "run"), uninterrupted) == []


def test_a_missing_folder_of_pictures_is_named(stopped: Path, own_pictures: Path) -> None:
    shutil.rmtree(own_pictures / "hats")
    with pytest.raises(ValueError, match=r"data\.concepts\[1\]\.folder.*there is no folder"):
        resume(ToyHost(), stopped)


@pytest.mark.parametrize("file", ["loss.csv", "run.csv", "probe.csv"])
@pytest.mark.parametrize("how", ["missing", "shorter"])
def test_records_that_were_lost_are_named(how: str, file: str, stopped: Path) -> None:
    if how == "missing":
        (stopped / file).unlink()
    else:
        (stopped / file).write_bytes((stopped / file).read_bytes()[:-9])
    before = all_bytes(stopped)
    with pytest.raises(ValueError, match=file):
        resume(ToyHost(), stopped)
    assert unlike(all_bytes(stopped), before) == []


def test_a_run_whose_states_were_lost_does_not_begin_again_over_its_networks(pictures: Path, tmp_path: Path) -> None:
    run, _ = start(ToyHost(stop_at=4), settings(pictures, save__every_steps=2), tmp_path)
    for path in (run / "state").iterdir():
        path.unlink()
    before = all_bytes(run)
    with pytest.raises(NoCheckpointError, match="no checkpoint to go on from"):
        resume(ToyHost(), run)
    assert unlike(all_bytes(run), before) == []
