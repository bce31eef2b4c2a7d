"""The WebUI's own training of embeddings and hypernetworks, with every picture's loss and our schedules.

The WebUI itself trains with torch up to 2.1 only: where the torch of A1111_PYTHON is newer, this is skipped, saying so.
"""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sd_atelier.lib.records import read_losses


def around(name):
    spec = importlib.util.spec_from_file_location(f"webui_stock_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing():
    """Why the WebUI's own training cannot run here, or an empty text."""
    why = around("conftest").missing()
    if why:
        return why
    python = os.environ.get("A1111_PYTHON", sys.executable)
    command = [python, "-c", "import torch; print(torch.__version__)"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if tuple(map(int, version.split("+")[0].split(".")[:2])) > (2, 1):
        return f"the WebUI's own training does not run with torch {version}; name a Python with torch 2.1.2"
    return ""


why_not = missing()
served = around("server")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not), reason=why_not or "it runs")]

STEPS = 6
COMMON = {
    "id_task": "x",
    "training_width": 64,
    "training_height": 64,
    "varsize": False,
    "steps": STEPS,
    "clip_grad_mode": "disabled",
    "clip_grad_value": "0.1",
    "shuffle_tags": False,
    "tag_drop_out": 0,
    "latent_sampling_method": "once",
    "use_weight": False,
    "create_image_every": 0,
    "template_filename": "style_filewords.txt",
    "preview_from_txt2img": False,
    "preview_prompt": "",
    "preview_negative_prompt": "",
    "preview_steps": 1,
    "preview_sampler_name": "Euler",
    "preview_cfg_scale": 7,
    "preview_seed": 1,
    "preview_width": 64,
    "preview_height": 64,
}


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # safe.py of the WebUI refuses the .pt files that this torch writes
    settings = {"training_write_csv_every": 1}
    server = served.Server(tmp_path_factory.mktemp("stock"), port, more=["--disable-safe-unpickle"], settings=settings)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def photos():
    return next(p for p in sorted(Path(os.environ["A1111_PHOTOS"]).iterdir()) if p.is_dir())


def train(webui, photos, kind, name, rate, **more):
    """Train one of the WebUI's own; (its CSV's rows, our rows, what it answered)."""
    log = webui.folder / "log"
    values = {**COMMON, "learn_rate": rate, "data_root": str(photos), "log_directory": str(log), **more}
    values |= {"batch_size": more.get("batch_size", 2), "gradient_step": more.get("gradient_step", 1)}
    # the WebUI makes its log folder only where it may save something there
    if kind == "embedding":
        made = {"name": name, "num_vectors_per_token": 1, "overwrite_old": True, "init_text": "toy"}
        values |= {"embedding_name": name, "save_embedding_every": 1000, "save_image_with_stored_embedding": False}
    else:
        made = {"name": name, "enable_sizes": ["128"], "overwrite_old": True, "layer_structure": [1, 2, 1]}
        made |= {"activation_func": "linear", "weight_init": "Normal", "add_layer_norm": False, "use_dropout": False}
        values |= {"hypernetwork_name": name, "save_hypernetwork_every": 1000}
    webui.request(f"/sdapi/v1/create/{kind}", made)
    answer = webui.request(f"/sdapi/v1/train/{kind}", values, timeout=900)["info"]
    file = "textual_inversion_loss.csv" if kind == "embedding" else "hypernetwork_loss.csv"
    path = next(iter(log.glob(f"*/{name}/{file}")), None)
    if path is None:
        return [], None, answer
    with open(path, newline="") as lines:
        rows = list(csv.DictReader(lines))
    return rows, read_losses(path.with_name("loss.csv")), answer


KINDS = ("embedding", "hypernetwork")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient_step, use_weight", [(1, False), (2, False), (1, True)])
def test_the_means_of_the_rows_are_the_hosts_own_losses(webui, photos, kind, gradient_step, use_weight):
    name = f"{kind}{gradient_step}{use_weight}"
    more = {"gradient_step": gradient_step, "use_weight": use_weight}
    theirs, ours, answer = train(webui, photos, kind, name, "0.0005", **more)
    assert "error: None" in answer and len(theirs) == STEPS
    assert len(ours["step"]) == STEPS * 2 * gradient_step
    assert set(ours["image"]) <= {path.name for path in photos.glob("*.jpg")} and len(set(ours["image"])) > 2
    assert ours["t"].min() >= 0 and ours["t"].max() <= 999 and len(set(ours["t"])) > 3
    for row in theirs:
        mean = ours["loss"][ours["step"] == int(row["step"]) - 1].mean()
        assert abs(mean - float(row["loss"])) < 2e-6, row


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_of_ours_is_followed(webui, photos, kind):
    theirs, ours, answer = train(webui, photos, kind, f"{kind}curve", "1e-3->0 linear")
    assert "error: None" in answer
    wanted = [1e-3 * (1 - step / STEPS) for step in range(STEPS)]
    assert np.allclose([float(row["learn_rate"]) for row in theirs], wanted)
    assert np.allclose(ours["lr"][::2], wanted)


def test_epochs_of_a_schedule_are_those_of_the_data_set(webui, photos):
    theirs, _, _ = train(webui, photos, "embedding", "byepoch", "1e-3:1ep, 1e-4")
    per_epoch = len(list(photos.glob("*.jpg"))) // 2
    assert [float(row["learn_rate"]) for row in theirs] == [1e-3] * per_epoch + [1e-4] * (STEPS - per_epoch)


def test_a_trap_of_the_hosts_parser_is_an_error_that_says_where(webui, photos):
    _, _, answer = train(webui, photos, "embedding", "trap", "1e-3:5:9")
    assert "column 7" in answer


def test_switched_off_the_host_is_as_without_us(webui, photos):
    webui.request("/sdapi/v1/options", {"atelier_stock_training": False})
    try:
        rows, ours, answer = train(webui, photos, "embedding", "plain", "0.0005")
        assert "error: None" in answer and len(rows) == STEPS and not len(ours["step"])
        assert not list(webui.folder.glob("log/*/plain/loss.csv"))
    finally:
        webui.request("/sdapi/v1/options", {"atelier_stock_training": True})
