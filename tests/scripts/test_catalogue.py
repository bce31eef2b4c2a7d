"""Runs on the disk as the WebUI's pages show them, without a WebUI."""

import math

import numpy as np
import pytest
from PIL import Image
from sd_atelier.lib.config import ConceptConfig, RunConfig, merge, to_dict
from sd_atelier.lib.files import append_bytes
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.scripts.webui import catalogue


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that was begun, with a preview and some losses; its key."""
    pictures = tmp_path / "photos"
    pictures.mkdir()
    Image.new("RGB", (80, 60)).save(pictures / "a.png")
    concept = to_dict(ConceptConfig(folder=str(pictures), trigger="toy"))
    config = merge(RunConfig(name="toys"), {"data": {"concepts": [concept]}, "loop": {"steps": 3}})
    made = RunFolder.create(tmp_path / "runs", "toys", config, versions={"host": "webui"}, base={}, data_manifest={})
    Image.new("RGB", (8, 8)).save(made.path / "previews/000002-1-a toy.png")
    rows = "step,epoch,image,caption_sha,t,loss,weight,lr,seed\n0,0,photos/a.png,x,5,0.5,1.0,1e-4,0\n"
    append_bytes(made.path / "loss.csv", rows.encode(), 0)
    steps = (
        "step,epoch,loss,loss_latest,loss_window,loss_window_se,n,grad_norm\n0,0,0.5,0.5,0.5,,1,1.0\n1,0,nan,,,,0,1.0\n"
    )
    append_bytes(made.path / "run.csv", steps.encode(), 0)
    monkeypatch.setattr(catalogue, "run_parents", lambda: [tmp_path / "runs", tmp_path / "not there"])
    monkeypatch.setattr(catalogue, "is_local", lambda: True)
    return catalogue.key_of(made.path)


def test_a_run_is_listed_and_shown_by_its_key(run):
    (line,) = catalogue.run_list([])
    assert (line["key"], line["name"], line["host"], line["steps"]) == (run, "toys", "webui", [])
    about = catalogue.details(run)
    assert [p["image"] for p in about["pictures"]] == ["photos/a.png"] and about["trigger"] == "toy"
    assert catalogue.chart(catalogue.folder_of(run))["loss"] == [0.5, None]
    assert catalogue.trained_picture(run, "photos/a.png").name == "a.png"


def test_a_damaged_run_is_listed_with_the_reason(run):
    (catalogue.folder_of(run) / "run.json").write_text("{")
    (line,) = catalogue.run_list([])
    assert line["error"] and line["name"] == "toys"


def test_a_key_that_is_none_finds_nothing(run):
    with pytest.raises(ValueError, match="no longer there"):
        catalogue.folder_of("../toys")


@pytest.mark.parametrize("name", ["previews/000002-1-a toy.png"])
def test_a_picture_of_the_run_is_given(run, name):
    assert catalogue.picture_file(run, name).is_file()


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "../x.png",
        "previews/../../x.png",
        "previews/x/../y.png",
        "/etc/x.png",
        "previews\\x.png",
        "x.png",
        ".png",
    ],
)
def test_no_other_file_is(run, name):
    with pytest.raises(ValueError, match="picture"):
        catalogue.picture_file(run, name)


def test_a_link_out_of_the_run_is_not_followed(run, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (catalogue.folder_of(run) / "previews/000003-1-x.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="no longer"):
        catalogue.picture_file(run, "previews/000003-1-x.png")


def test_pictures_outside_the_known_folders_stay_on_the_machine(run, monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "is_local", lambda: False)
    monkeypatch.setattr(catalogue, "settings_file", lambda: tmp_path / "atelier.json")
    with pytest.raises(ValueError, match="other machines"):
        catalogue.trained_picture(run, "photos/a.png")


def test_the_smooth_curve_neither_lags_nor_hears_what_is_not_finite():
    line = np.arange(400, dtype=float)
    assert np.allclose(catalogue.smoothed(line)[20:-20], line[20:-20])
    line[100] = math.nan
    assert np.isfinite(catalogue.smoothed(line)).all()


def test_a_long_run_is_thinned(run):
    folder = catalogue.folder_of(run)
    rows = "".join(f"{s},0,0.5,0.5,0.5,,1,1.0\n" for s in range(2, 3000))
    with open(folder / "run.csv", "a") as file:
        file.write(rows)
    drawn = catalogue.chart(folder, 100)
    assert len(drawn["steps"]) == 100 and (drawn["steps"][0], drawn["steps"][-1]) == (0, 2999)
