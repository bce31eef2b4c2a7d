"""The panels in the nodes, in a real browser on a real server, in both of ComfyUI's renderers."""

import json
from pathlib import Path

import pytest
from comfy_client import MODELS
from PIL import Image

CHECKPOINT = "sd15-mini-tae.safetensors"
ROOT = Path(__file__).parents[4]
RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
NAME = "toys <img src=x onerror=alert(1)>"


def words(language):
    return json.loads((ROOT / "locales" / language / "main.json").read_text("utf-8"))["atelier"]


@RENDERERS
@pytest.mark.parametrize("width", [260, 420, 900])
def test_the_panel_shows_the_run_and_nothing_of_it_is_cut(browse, vue, width):
    seen = browse("progress", vue=vue, width=width)
    running = seen["running"]
    assert (running["state"], running["steps"]) == ("Running", "50 / 100")
    assert running["numbers"] == ["0.1234", "\N{MINUS SIGN}2.0 %", "5e-5", "0.42", "21 s", "5.1 GB", "40"]
    assert {"dots single few", "line smooth", "line rate", "dots controlled"} <= set(running["curves"])
    assert "step" in seen["hovered"][0] and "each step" not in seen["hovered"]
    assert "filename=a+b.png&subfolder=x&type=temp" in seen["preview"]["src"]
    assert (seen["finished"]["state"], seen["finished"]["buttons"]) == ("Finished", [])
    assert "toys.safetensors" in seen["finished"]["message"]
    assert len(seen["toasts"]) == 1 and "toys.safetensors" in seen["toasts"][0]
    for name in ("idle", "running", "preview", "finished"):
        assert seen[name]["outside"] == [], name
        assert seen[name]["smallestText"] >= 11, name


@RENDERERS
@pytest.mark.parametrize("width", [260, 420, 900])
def test_previews_are_a_strip_that_grows_in_the_train_node(browse, vue, width):
    seen = browse("strip", vue=vue, width=width)
    assert seen["counts"] == [0, 0, 3, 4, 5] and seen["rows"] == 2
    assert seen["heads"] == ["no network", "40", "80"]
    assert "filename=0-1.png" in seen["first"]["src"] and seen["pressed"] == 1
    assert seen["first"]["outside"] == [] and seen["first"]["smallestText"] >= 11


@RENDERERS
def test_names_with_html_in_them_are_shown_and_not_run(browse, vue):
    seen = browse("progress", vue=vue, width=420)["preview"]
    assert seen["name"] == NAME
    assert seen["notes"] == ["<b>one picture has no caption</b>"]
    assert seen["images"] == 1  # the preview, and none out of the name


@RENDERERS
def test_buttons_ask_the_server_once_and_say_so_at_once(browse, vue):
    seen = browse("buttons", vue=vue)
    assert seen["save"]["message"].startswith("Saving after this step")
    assert "Save now" not in seen["save"]["buttons"]
    assert "that run has <b>ended</b>" in seen["toasts"][0]
    assert "Sample now" in seen["sample"]["buttons"]
    assert seen["paused"]["state"] == "Paused" and "Go on" in seen["paused"]["buttons"]
    assert seen["stop"]["buttons"] == []
    asked = [path.rpartition("/")[2] for method, path, kind in seen["posted"] if method == "POST"]
    assert asked == ["save", "sample", "go_on", "stop"]
    assert {kind for method, _, kind in seen["posted"] if method == "POST"} == {"application/json"}


@RENDERERS
def test_the_page_finds_a_run_again_after_it_was_reloaded(browse, vue):
    seen = browse("reload", vue=vue)
    assert (seen["state"], seen["steps"], seen["name"]) == ("Paused", "50 / 100", NAME)
    assert "line smooth" in seen["curves"]
    assert "Go on" in seen["buttons"]


@RENDERERS
def test_a_train_node_inside_a_subgraph_shows_its_run(browse, vue):
    seen = browse("subgraph", vue=vue)
    assert ":" in seen["path"]
    assert (seen["panel"]["state"], seen["panel"]["steps"]) == ("Running", "50 / 100")


@RENDERERS
def test_the_schedule_is_drawn_while_it_is_typed_and_faults_are_marked(browse, vue):
    seen = browse("schedule", vue=vue)
    assert "1e-4" in seen["cosine"]["readout"] and seen["cosine"]["curve"]
    assert seen["cycles"]["cycles"] >= 3
    assert seen["cycles"]["curve"] != seen["cosine"]["curve"]
    assert seen["faulty"]["error"] and seen["faulty"]["place"]
    assert not seen["again"]["error"] and seen["again"]["curve"]
    assert "step 9" in seen["hovered"]


def test_advanced_inputs_are_folded_on_the_canvas_and_still_sent_and_saved(browse):
    seen = browse("folded")
    assert seen["folded"]["hidden"] > 10 and seen["unfolded"]["hidden"] == 0
    assert seen["folded"]["height"] < seen["unfolded"]["height"]
    assert seen["folded"]["label"] != seen["unfolded"]["label"]
    assert "accumulate" in seen["inputs"] and seen["inputs"] == seen["inputsUnfolded"]
    assert not [name for name in seen["inputs"] if name.startswith("atelier")]
    assert seen["same"]


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_the_panel_speaks_the_language_of_the_page(browse, language):
    seen = browse("progress", locale=language, width=420)
    text = words(language)
    assert seen["idle"]["message"] == text["train"]["idle"]
    assert seen["running"]["state"] == text["state"]["running"]
    assert seen["running"]["buttons"] == [text["button"][name]["name"] for name in ("stop", "save", "sample", "pause")]
    for name in ("idle", "running", "preview", "finished"):
        assert seen[name]["outside"] == [], name


def test_every_help_page_is_served(browse, server):
    nodes = [name for name, info in server.call("/object_info").items() if info["python_module"].endswith(".atelier")]
    assert nodes
    assert browse("help", nodes=nodes)["missing"] == []


def test_a_real_run_is_stopped_from_the_page_and_its_network_is_saved(browse, server, tmp_path):
    if not (MODELS / "checkpoints" / CHECKPOINT).is_file():
        pytest.skip(f"there is no {CHECKPOINT} in the checkpoints folder of COMFYUI_MODELS")
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 120, 200)).save(tmp_path / f"{number}.png")
    train = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "dataset": ["2", 0], "name": "from the page"}
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "2": {"class_type": "AtelierDatasetFolder", "inputs": {"folder": str(tmp_path), "trigger": "toy"}},
        "3": {"class_type": "AtelierTrain", "inputs": {**train, "steps": 1000, "resolution": 64, "batch_size": 1}},
    }
    seen = browse("stop", graph=graph)
    assert seen["asked"]["buttons"] == [] and seen["asked"]["message"].startswith("Stopping after this step")
    assert seen["stopped"]["state"] == "Stopped"
    (file,) = (server.output / "loras").glob("*.safetensors")
    assert file.name in seen["stopped"]["message"]
    assert "line smooth" in seen["stopped"]["curves"] or "dots single few" in seen["stopped"]["curves"]
