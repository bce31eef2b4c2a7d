"""A whole run by the command line: photographs in, and a network that predicts their noise better comes out.

Every picture is trained as often as it should be, and the controlled loss says how much was learned.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from safetensors import safe_open
from sd_atelier.lib.comparison import paired_interval, picture_means
from sd_atelier.lib.records import read_losses, read_probe
from sd_atelier.lib.standalone.cli import main
from sd_atelier.lib.standalone.demo.pictures import SHAPES, draw_dataset

EPOCHS = 8
TRIGGERS = {"monster_toy": "m0nster toy", "robot_toy": "r0bo toy", "wolf_plushie": "w0lf plush"}
REPEATS = {"monster_toy": 2, "robot_toy": 1, "wolf_plushie": 1}


@pytest.fixture(params=["photographs", "drawn"])
def concepts(request, tmp_path):
    """Three folders of pictures of several shapes."""
    if request.param == "photographs":
        return request.getfixturevalue("photos")
    for number, name in enumerate(TRIGGERS):
        draw_dataset(tmp_path / "drawn" / name, count=4, size_px=96, seed=number, shapes=SHAPES)
    return tmp_path / "drawn"


def expected_captions(concepts) -> dict[str, str]:
    """Picture -> its caption, with the trigger in front unless it is there already."""
    captions = {}
    for name, trigger in TRIGGERS.items():
        for path in sorted((concepts / name).iterdir()):
            if path.suffix != ".txt":
                text = path.with_suffix(".txt").read_text().strip()
                captions[f"{name}/{path.name}"] = text if text.startswith(trigger) else f"{trigger}, {text}"
    return captions


def test_a_run_learns_and_drops_nothing(concepts, tiny_model, tmp_path, capsys):
    arguments = ["train", "--model", str(tiny_model), "--output", str(tmp_path), "--name", "toys", "--device", "cpu"]
    for name, trigger in TRIGGERS.items():
        arguments += ["--data", f"{concepts / name},trigger={trigger},repeats={REPEATS[name]}"]
    arguments += ["--epochs", str(EPOCHS), "--batch-size", "4", "--resolution", "64", "--rate", "5e-3->5e-4 cosine"]
    for setting in ("data.bucket_step=16", "data.bucket_min_px=32", "record.probe_every_steps=10"):
        arguments += ["--set", setting]
    for setting in ("record.probe_images=15", "save.every_epochs=4"):
        arguments += ["--set", setting]
    assert main(arguments) == 0
    run = tmp_path / "toys"
    captions = expected_captions(concepts)

    out, err = capsys.readouterr()
    assert f"{len(captions)} pictures in 3 buckets" in err
    assert (run / "report.html").is_file() and str(run / "report.html") in out

    records = read_losses(run / "loss.csv")
    rows = list(zip(records["epoch"].tolist(), records["image"], strict=True))
    wanted = {(e, name): REPEATS[name.split("/")[0]] for e in range(EPOCHS) for name in captions}
    assert Counter(rows) == wanted
    for name, sha in zip(records["image"], records["caption_sha"], strict=True):
        assert sha == hashlib.sha256(captions[name].encode()).hexdigest()[:12]

    num_steps = records["step"].max() + 1
    networks = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert networks == [f"toys-{num_steps // 2:06d}.safetensors", f"toys-{num_steps:06d}.safetensors"]
    assert f"checkpoints/{networks[-1]}" in out.replace("\\", "/")
    with safe_open(run / "checkpoints" / networks[-1], framework="pt") as file:
        assert file.metadata()["ss_output_name"] == networks[-1].removesuffix(".safetensors")

    probe = read_probe(run / "probe.csv")
    last = probe["step"] == num_steps
    loss, base = probe["loss"][last], probe["loss_base"][last]
    assert set(probe["image"][last]) == captions.keys()
    _, _, high = paired_interval(picture_means(probe["image"][last], loss - base))
    assert high < 0
    assert loss.mean() < 0.8 * base.mean()
