"""The routes of the pages in a real WebUI: a run through HTTP alone, and everything that a page asks of it."""

import base64
import importlib.util
import json
import os
import socket
import threading
import time
import urllib.parse
from pathlib import Path

import pytest


def around(name):
    spec = importlib.util.spec_from_file_location(f"webui_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


missing = around("conftest").missing()
served = around("server")
Refused, settings = served.Refused, served.settings
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=missing or "there is a WebUI"),
]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    server = served.Server(tmp_path_factory.mktemp("pages"), free_port())
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def photos():
    return next(p for p in sorted(Path(os.environ["A1111_PHOTOS"]).iterdir()) if p.is_dir())


@pytest.fixture(scope="module")
def finished(webui, photos):
    """A run that was trained to its end, with previews and controlled losses."""
    values = settings(
        photos,
        **{
            "save.every_steps": 3,
            "record.probe_every_steps": 3,
            "record.probe_images": 1,
            "preview.every_steps": 3,
            "preview.prompts": "a photo of m0nster toy",
            "preview.steps": 1,
        },
    )
    run = webui.post("start", values=values)
    ended = webui.ended(run["id"])
    assert (ended["phase"], ended["error"], ended["step"]) == ("finished", "", 6)
    return ended


def test_the_form_names_every_setting_once_with_its_help(webui):
    form = webui.get("form")
    paths = [widget["path"] for group in form["groups"] for widget in group["widgets"]]
    assert len(paths) == len(set(paths)) > 60
    assert all(widget["help"] for group in form["groups"] for widget in group["widgets"])
    assert not {"loop.base_storage", "loop.cpu_blocks"} & set(paths)


def test_the_loaded_checkpoint_is_named_with_its_family(webui):
    webui.picture("to have it loaded")
    model = webui.get("status")["model"]
    assert model["family"] == "sd1" and model["refusal"] == ""


def test_a_check_counts_pictures_buckets_and_steps_and_loads_nothing(webui, photos):
    found = webui.post("check", values=settings(photos))
    assert found["num_pictures"] == len(list(photos.glob("*.jpg")))
    assert sum(bucket["pictures"] for bucket in found["buckets"]) == found["num_pictures"]
    assert found["num_steps"] == 6 and found["steps_per_epoch"] == found["num_pictures"]


def test_a_schedule_is_drawn_with_its_value_at_each_checkpoint(webui):
    drawn = webui.post("schedule", schedule="1e-3->0", steps=100, save_every=50)
    assert drawn["points"][0] == [0, 1e-3] and [step for step, _ in drawn["checkpoints"]] == [50, 100]


def test_a_fault_in_a_schedule_is_answered_with_its_place(webui):
    fault = webui.post("schedule", schedule="1e-3:5:9", steps=100)
    assert fault["column"] == 7 and "points" not in fault


def test_a_run_is_recorded_row_by_row(webui, finished):
    chart = webui.get("chart", run=finished["key"])
    assert chart["steps"] == [0, 1, 2, 3, 4, 5] and len(chart["smooth"]) == 6
    assert [point["step"] for point in chart["controlled"]] == [0, 3, 6]


def test_a_run_is_listed_with_what_it_made(webui, finished):
    run = next(line for line in webui.get("runs")["runs"] if line["key"] == finished["key"])
    assert run["steps"] == [3, 6] and run["picture"].startswith("000006-") and run["host"] == "webui"
    about = webui.get("run", run=finished["key"])
    assert [p["image"] for p in about["pictures"]] and about["verdicts"]
    assert [p["mean"] for p in about["pictures"]] == sorted((p["mean"] for p in about["pictures"]), reverse=True)
    image = urllib.parse.quote(about["pictures"][0]["image"])
    assert webui.get("trained", run=finished["key"], image=image)[:2] == b"\xff\xd8"
    name = urllib.parse.quote("previews/" + about["previews"][-1]["name"])
    assert webui.get("picture", run=finished["key"], name=name)[:4] == b"\x89PNG"


def test_the_report_is_written_by_post_and_read_by_get(webui, finished):
    with pytest.raises(Refused, match="no report yet"):
        webui.get("report", run=finished["key"])
    webui.post("report", run=finished["key"])
    assert b"Content-Security-Policy" in webui.get("report", run=finished["key"])


def test_a_published_step_is_in_the_menu_and_changes_the_picture(webui, finished):
    published = webui.post("publish", run=finished["key"], step=6, name="toy one")
    assert published["prompt"] == "<lora:toy one:1> m0nster toy"
    again = webui.post("publish", run=finished["key"], step=6, name="toy one")
    assert again["file"] == "toy one-2.safetensors"
    assert webui.picture("m0nster toy <lora:toy one:1>") != webui.picture("m0nster toy")
    card = json.loads((webui.folder / "models/Lora/toy one.json").read_text("utf-8"))
    assert card["activation text"] == "m0nster toy"
    assert (webui.folder / "models/Lora/toy one.preview.png").is_file()


def finished_strip(webui, **wanted):
    started = webui.post("strip", **wanted)
    end = time.monotonic() + 300
    while (strip := webui.get("strip", id=started["id"]))["live"]:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert strip["error"] == "" and strip["phase"] == "finished"
    return strip


def test_a_strip_has_the_untrained_model_first_and_makes_no_cell_twice(webui, finished):
    wanted = {"source": finished["key"], "prompts": "m0nster toy", "steps": 1, "width": 64, "height": 64}
    strips = []
    for _ in range(2):
        strips.append(finished_strip(webui, **wanted))
    assert strips[0]["columns"] == ["no network", "toys-000003", "toys-000006"]
    cells = [webui.get("strip_picture", id=strips[0]["id"], cell=c["key"]) for c in strips[0]["cells"]]
    assert len(set(cells)) == 3, "each checkpoint gives another picture"
    assert strips[0]["cells"] == strips[1]["cells"]
    made = {path.stat().st_mtime_ns for path in Path(finished["folder"], "cells").glob("*.png")}
    assert len(made) == 3


def test_whatever_a_picture_depends_on_makes_other_cells(webui, finished):
    webui.post("publish", run=finished["key"], step=3, name="in the prompt")
    wanted = {"source": finished["key"], "prompts": "m0nster toy <lora:in the prompt:1>\na boat", "steps": 1}
    wanted |= {"width": 64, "height": 64}

    def keys():
        return [cell["key"] for cell in finished_strip(webui, **wanted)["cells"]]

    first = keys()
    assert keys() == first and len(set(first)) == 6
    lora = webui.folder / "models/Lora/in the prompt.safetensors"
    other = sorted(Path(finished["folder"], "checkpoints").glob("*-000006.safetensors"))[0]
    before = lora.read_bytes()
    lora.write_bytes(other.read_bytes())
    second = keys()
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, True] * 3, "only the prompt that names it"
    lora.write_bytes(before)
    webui.request("/sdapi/v1/options", {"eta_noise_seed_delta": 3})
    assert not set(keys()) & {*first, *second}
    webui.request("/sdapi/v1/options", {"eta_noise_seed_delta": 0})
    assert keys() == first


def test_the_plot_has_an_axis_of_checkpoints(webui, finished):
    values = {"prompt": "m0nster toy", "seed": 5, "steps": 1, "width": 64, "height": 64, "sampler_name": "Euler"}
    axes = [
        info
        for info in webui.request("/sdapi/v1/script-info")
        if info["name"] == "x/y/z plot" and not info["is_img2img"]
    ]
    choices = axes[0]["args"][0]["choices"]
    index = choices.index("[Atelier] Checkpoint of run")
    # X, then nothing on Y and Z; legend off, lone images on
    args = [
        index,
        "no network, toys/6",
        [],
        0,
        "",
        [],
        0,
        "",
        [],
        False,
        True,
        False,
        False,
        False,
        False,
        False,
        0,
        True,
    ]
    made = webui.request("/sdapi/v1/txt2img", {**values, "script_name": "x/y/z plot", "script_args": args})
    pictures = [base64.b64decode(image.split(",")[-1]) for image in made["images"]]
    assert len(pictures) >= 2 and pictures[-1] != pictures[-2]


def test_a_picture_that_is_asked_for_during_training_waits_and_then_comes_right(webui, photos):
    before = webui.picture("a picture of before")
    run = webui.post("start", values=settings(photos, **{"loop.steps": 400}))
    webui.until(run["id"], lambda run: run["step"] > 1)
    made = []
    asking = threading.Thread(target=lambda: made.append(webui.picture("a picture of before")))
    asking.start()
    asking.join(3)
    assert not made and webui.run(run["id"])["live"]
    step = webui.run(run["id"])["step"]
    webui.post("stop", id=run["id"])
    ended = webui.ended(run["id"])
    assert ended["phase"] == "stopped" and ended["step"] - step <= 3
    asking.join(300)
    assert made == [before]


def test_a_run_is_paused_saved_and_sampled_on_request(webui, photos):
    values = settings(photos, **{"loop.steps": 400, "preview.prompts": "m0nster toy", "preview.steps": 1})
    run = webui.post("start", values=values)
    webui.until(run["id"], lambda run: run["step"] > 1)
    webui.post("pause", id=run["id"])
    paused = webui.until(run["id"], lambda run: run["phase"] == "paused" and run["note"] == "paused")
    webui.post("save", id=run["id"])
    webui.post("sample", id=run["id"])
    webui.until(run["id"], lambda run: len(run["previews"]) == 1)
    assert webui.run(run["id"])["step"] == paused["step"]
    about = webui.get("run", run=paused["key"])
    assert [point["step"] for point in about["checkpoints"]] == [paused["step"]]
    webui.post("go_on", id=run["id"])
    webui.until(run["id"], lambda run: run["step"] > paused["step"])
    webui.post("stop", id=run["id"])
    webui.ended(run["id"])


def test_a_stopped_run_is_resumed_and_branched_at_a_lower_rate(webui, photos):
    run = webui.post("start", values=settings(photos, **{"loop.steps": 60, "name": "parts"}))
    webui.until(run["id"], lambda run: run["step"] > 1)
    webui.post("stop", id=run["id"])
    stopped = webui.ended(run["id"])
    resumed = webui.post("resume", run=stopped["key"])
    webui.until(resumed["id"], lambda run: run["step"] > stopped["step"])
    webui.post("stop", id=resumed["id"])
    assert webui.ended(resumed["id"])["phase"] == "stopped"
    branched = webui.post("branch", run=stopped["key"], step=stopped["step"], factor=0.5, steps=stopped["step"] + 3)
    ended = webui.ended(branched["id"])
    assert (ended["phase"], ended["error"]) == ("finished", "")
    about = webui.get("run", run=ended["key"])
    assert about["lineage"] == {"name": "parts", "step": stopped["step"]} and about["config"]["rate"]["factor"] == 0.5


def test_previews_as_txt2img_take_its_fields(webui, photos):
    fields = {"prompt": "m0nster toy", "negative_prompt": "blue", "steps": 1, "cfg_scale": 3, "seed": -1, "width": 64}
    fields |= {"height": 128, "sampler_name": "Euler", "styles": [], "enable_hr": False, "hr_scale": 2.0}
    values = settings(photos, **{"loop.steps": 2, "preview.every_steps": 2, "preview.seed": 7})
    run = webui.ended(webui.post("start", values=values, txt2img=fields)["id"])
    assert run["phase"] == "finished", run["error"]
    assert {(p["width"], p["height"], p["seed"]) for p in run["previews"]} == {(64, 128, 7)}


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"data.concepts[0].folder": ""}, "data.concepts[0].folder is empty"),
        ({"data.concepts[0].folder": "no such folder"}, "no folder"),
        ({"loop.steps": None}, "loop.steps or loop.epochs"),
        ({"loop.steps": -1}, "at least 1"),
        ({"rate.schedule": "1e-3:5"}, ""),
        ({"rate.schedule": "fast"}, "column 1"),
        ({"trainable.rank": "many"}, "whole number"),
        ({"optimizer.name": "adam"}, "adamw"),
        ({"preview.every_step": 1}, "every_steps"),
    ],
)
def test_bad_input_is_one_sentence(webui, photos, changed, said):
    values = settings(photos, **changed)
    try:
        run = webui.ended(webui.post("start", values=values)["id"])
        sentence = run["error"]
    except Refused as error:
        assert error.status == 422
        sentence = str(error)
    assert sentence and said in sentence and "Traceback" not in sentence and "\n" not in sentence


def test_quotes_of_copy_as_path_are_taken_off(webui, photos):
    assert webui.post("check", values=settings(f'"{photos}"'))["num_pictures"]


def test_another_site_can_change_nothing(webui, photos):
    for headers in (
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Content-Type": "text/plain"},
    ):
        with pytest.raises(Refused) as refused:
            webui.post("stop", headers=headers)
        assert refused.value.status in (403, 415)
    own = {"Origin": f"http://127.0.0.1:{webui.port}", "Sec-Fetch-Site": "same-origin"}
    with pytest.raises(Refused, match="no such run"):
        webui.post("stop", headers=own, id="none")


@pytest.mark.parametrize("name", ["../run.json", "previews/../run.json", "run.json", "previews/..\\run.png", "/x.png"])
def test_a_picture_is_nothing_but_a_picture_of_the_run(webui, finished, name):
    with pytest.raises(Refused):
        webui.get("picture", run=finished["key"], name=urllib.parse.quote(name))


def test_presets_are_offered_by_family_and_saved_as_files(webui):
    answer = webui.get("presets", family="sdxl")
    assert answer["default"].startswith("sdxl, 8 GB")
    values = {"values": {"trainable.rank": 3, "data.resolution": 640, "name": "mine"}}
    assert webui.post("save_preset", name="my own", **values)["name"] == "my own"
    assert {"name": "my own", "kind": "user"} in webui.get("presets", family="sd1")["presets"]
    found = webui.post("preset", name="my own", kind="user", values={"name": "other"})
    assert found["values"]["trainable.rank"] == 3 and found["values"]["name"] == "other"
    assert any(line.startswith("trainable.rank") for line in found["changes"])
    webui.post("remove_preset", name="my own")
    assert all(preset["name"] != "my own" for preset in webui.get("presets", family="sd1")["presets"])


def test_reload_ui_loses_neither_the_run_nor_its_routes(webui, photos):
    run = webui.post("start", values=settings(photos, **{"loop.steps": 2000, "name": "outlives"}))
    at = webui.until(run["id"], lambda run: run["step"] > 1)["step"]
    starts = webui.starts()
    restart(webui)
    webui.wait_for_start(starts)
    later = webui.until(run["id"], lambda run: run["step"] > at + 1)
    assert later["phase"] == "training"
    webui.post("stop", id=run["id"])
    assert webui.ended(run["id"])["phase"] == "stopped"
    # and the routes are those of the new page: a run can be started there
    assert webui.ended(webui.post("start", values=settings(photos))["id"])["phase"] == "finished"


def restart(webui):
    """Press *Reload UI* in the footer: gradio's own call of the button that says so."""
    config = webui.request("/config")
    button = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "settings_restart_gradio")
    index = next(
        i
        for i, d in enumerate(config["dependencies"])
        if button in [t if isinstance(t, int) else t[0] for t in d["targets"]]
    )
    webui.request("/run/predict", {"fn_index": index, "data": [], "session_hash": "test"})


@pytest.mark.parametrize(
    "checkpoint, family",
    [("mini-sd15", "sd1"), ("mini-sd2-v", "sd2"), ("mini-sdxl", "sdxl"), ("mini-sdxl-v", "sdxl")],
)
def test_every_family_is_trained_published_and_compared_in_place(tmp_path, photos, checkpoint, family):
    webui = served.Server(tmp_path, free_port(), f"{checkpoint}.safetensors", ["--loglevel", "DEBUG"])
    try:
        before = webui.picture("m0nster toy")
        model = webui.get("status")["model"]
        assert (model["family"], model["refusal"]) == (family, "")
        values = settings(photos, **{"save.every_steps": 3, "preview.every_steps": 6, "preview.steps": 1})
        values |= {"preview.prompts": "m0nster toy", "trainable.text_encoder": True}
        run = webui.ended(webui.post("start", values=values)["id"])
        assert (run["phase"], run["error"], run["step"]) == ("finished", "", 6)
        assert webui.picture("m0nster toy") == before, "the loaded model is as it was"
        webui.post("publish", run=run["key"], step=6, name="toy")
        # what this leaves in the weights is no part of the strip's base
        assert webui.picture("m0nster toy <lora:toy:1>") != before
        log = webui.log.read_text(errors="replace")
        assert "didn't match" not in log and "Lora/Networks: errors" not in log
        wanted = {"prompts": "m0nster toy", "steps": 1, "width": 64, "height": 64}
        strip = finished_strip(webui, source=run["key"], **wanted)
        cells = [webui.get("strip_picture", id=strip["id"], cell=c["key"]) for c in strip["cells"]]
        assert strip["columns"] == ["no network", "toys-000003", "toys-000006"] and len(set(cells)) == 3
        assert webui.picture("m0nster toy") == before
    finally:
        webui.close()


def test_a_webui_that_others_reach_asks_for_the_password_and_says_the_line_that_allows_a_folder(tmp_path, photos):
    webui = served.Server(tmp_path, free_port(), more=["--listen", "--api-auth", "me:secret"])
    me = {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}
    try:
        for headers in ({}, {"Authorization": "Basic " + base64.b64encode(b"me:wrong").decode()}):
            with pytest.raises(Refused) as refused:
                webui.get("status", headers=headers)
            assert refused.value.status == 401 and "--api-auth" in str(refused.value)
        for route, values in (
            ("check", {"values": settings(photos)}),
            ("data_open", {"folder": str(photos)}),
            ("data_thumbnail", None),
        ):
            with pytest.raises(Refused, match="from other machines") as refused:
                if values is None:
                    webui.get(route, headers=me, folder=urllib.parse.quote(str(photos)), name="00.jpg", side=64)
                else:
                    webui.post(route, headers=me, **values)
            assert f'{{"roots": ["{photos}"]}}' in str(refused.value)
        (tmp_path / "atelier.json").write_text(json.dumps({"roots": [str(photos)]}), encoding="utf-8")
        assert webui.post("check", headers=me, values=settings(photos))["num_pictures"]
        assert webui.post("data_open", headers=me, folder=str(photos))["num"]
    finally:
        webui.close()
