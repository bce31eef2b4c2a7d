"""The routes of the page of a data set in a real WebUI, with its checkpoint's tokenizer, its upscalers and faces."""

import importlib.util
import os
import shutil
import socket
import sys
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))  # for onnx_writer
from onnx_writer import write_picture_scorer, write_tagger


def around(name):
    spec = importlib.util.spec_from_file_location(f"webui_data_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


missing = around("conftest").missing()
served = around("server")
Refused = served.Refused
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing), reason=missing or "there is a WebUI")]


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = served.Server(tmp_path_factory.mktemp("data"), port)
    try:
        server.picture("to have the checkpoint loaded")
        yield server
    finally:
        server.close()


@pytest.fixture
def photos(tmp_path):
    """Three photographs with captions."""
    source = next(p for p in sorted(Path(os.environ["A1111_PHOTOS"]).iterdir()) if p.is_dir())
    folder = tmp_path / "toys"
    folder.mkdir()
    captions = ("a toy, hat", ", ".join(f"tag{i}" for i in range(90)), "<b>hat</b>")
    for path, caption in zip(sorted(source.glob("*.jpg")), captions, strict=False):
        shutil.copy(path, folder)
        (folder / path.name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def ended(webui, job, seconds=300):
    end = time.monotonic() + seconds
    while (job := webui.get("data_job", id=job["id"]))["live"]:
        assert time.monotonic() < end, job
        time.sleep(0.2)
    return job


def test_pictures_and_captions_are_shown_as_they_are(webui, photos):
    assert webui.post("data_open", folder=f'"{photos}"')["num"] == 3
    page = webui.post("data_page", folder=str(photos), offset=0, limit=100, tags=True)
    assert [item["caption"] for item in page["items"]][2] == "<b>hat</b>" and page["num"] == 3
    name = urllib.parse.quote(page["items"][0]["name"])
    picture = webui.get("data_thumbnail", folder=urllib.parse.quote(str(photos)), name=name, side=128)
    assert picture[:2] == b"\xff\xd8"
    for name in ("../log.txt", "..%2F..%2Flog.txt", "%2Fetc%2Fpasswd", page["items"][0]["name"][:-3] + "txt"):
        with pytest.raises(Refused, match="no picture"):
            webui.get("data_thumbnail", folder=urllib.parse.quote(str(photos)), name=name, side=128)


def test_an_edit_is_shown_written_and_undone_byte_for_byte(webui, photos):
    before = everything(photos)
    wanted = {"folder": str(photos), "filter": {"text": "hat"}, "edits": [{"name": "remove", "words": "hat"}]}
    plan = webui.post("data_plan", **wanted)
    assert plan["num"] == 1 and plan["num_meant"] == 2 and everything(photos) == before
    with pytest.raises(Refused, match="look at it again"):
        webui.post("data_apply", **wanted, digest="another")
    assert webui.post("data_apply", **wanted, digest=plan["digest"])["num"] == 1
    assert everything(photos) != before
    assert webui.post("data_undo", folder=str(photos))["num"] == 1 and everything(photos) == before


def test_another_site_can_neither_read_nor_write(webui, photos):
    wanted = {"folder": str(photos), "edits": [{"name": "append", "words": "x"}]}
    for headers in (
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Content-Type": "text/plain"},
    ):
        for route in ("data_apply", "data_undo", "data_save", "data_prepare", "data_page"):
            with pytest.raises(Refused) as refused:
                webui.post(route, headers=headers, **wanted)
            assert refused.value.status in (403, 415)


def test_a_check_counts_tokens_with_the_loaded_checkpoint(webui, photos):
    job = ended(webui, webui.post("data_check", folder=str(photos)))
    assert job["error"] == "" and job["result"]["tokens"]
    sorts = [sort["heading"] for sort in job["result"]["findings"]["warning"]]
    assert any("more than 75 tokens" in heading for heading in sorts)


def test_what_is_cut_is_shown(webui, photos):
    settings = {"resolution": 256, "bucket_step": 64, "bucket_min_px": 128, "bucket_max_px": 512}
    found = webui.post("data_buckets", folder=str(photos), settings=settings)
    assert sum(bucket["pictures"] for bucket in found["buckets"]) == 3
    query = {
        **settings,
        "folder": urllib.parse.quote(str(photos)),
        "name": urllib.parse.quote(found["cuts"][0]["name"]),
    }
    assert webui.get("data_cut", **query)[:2] == b"\xff\xd8"
    assert webui.get("data_cut", **query, part="trained")[:4] == b"\x89PNG"


def test_pictures_are_prepared_with_the_hosts_upscaler_and_faces(webui, photos, tmp_path):
    words = webui.get("data_words")
    assert "Lanczos" in words["upscalers"] and "ESRGAN_4x" not in words["upscalers"] and words["faces"]
    before = everything(photos)
    steps = [{"step": "upscale", "least_px": 2000}, {"step": "crop", "width": 320, "height": 256, "focal": True}]
    wanted = {"folder": str(photos), "out": str(tmp_path / "new"), "steps": steps, "upscaler": "Lanczos"}
    job = ended(webui, webui.post("data_prepare", **wanted))
    assert job["error"] == "" and job["result"]["num_made"] == 3
    assert Image.open(next((tmp_path / "new").glob("*.png"))).size == (320, 256)
    again = ended(webui, webui.post("data_prepare", **wanted))
    assert again["result"]["num_made"] == 0 and again["result"]["num_kept"] == 3
    assert everything(photos) == before


def test_a_tagger_in_our_folder_captions_in_the_hosts_process(webui, photos):
    before = everything(photos)
    folder = webui.folder / "atelier/taggers/toy"
    rows = [[1, "red_thing", 0, 9], [2, "Train", 0, 9]]
    write_tagger(folder, np.zeros((2, 3)), [4, 4], rows)
    job = webui.post("data_caption", folder=str(photos), model="tagger/toy", tagging={"existing": "append"})
    job = ended(webui, job)
    if "need onnxruntime" in job["error"]:
        pytest.skip("the WebUI's Python has no onnxruntime")
    assert job["error"] == "" and job["result"]["num"] == 3
    done = webui.post("data_apply", folder=str(photos), job=job["id"], digest=job["result"]["digest"])
    assert done["num"] == 3 and all(
        b"red thing, Train" in data for n, data in everything(photos).items() if n[-3:] == "txt"
    )
    webui.post("data_undo", folder=str(photos))
    assert everything(photos) == before


def test_pictures_are_scored_in_the_hosts_process(webui, photos):
    with pytest.raises(Refused, match="there is no aesthetic predictor"):
        webui.post("data_score", folder=str(photos), model="red.onnx")
    folder = webui.folder / "atelier/aesthetic_predictors"
    folder.mkdir(parents=True)
    write_picture_scorer(folder / "red.onnx", [[1.0, 0.0, 0.0]])
    assert webui.get("data_words")["predictors"]["names"] == ["red.onnx"]
    before = everything(photos)
    job = ended(webui, webui.post("data_score", folder=str(photos), model="red.onnx"))
    if "need onnxruntime" in job["error"]:
        pytest.skip("the WebUI's Python has no onnxruntime")
    scores = [score for _, score in job["result"]["scores"]]
    assert job["error"] == "" and len(set(scores)) == 3 and scores == sorted(scores, reverse=True)
    assert job["result"]["csv"].startswith("image,score\n") and everything(photos) == before


@pytest.mark.parametrize("key, file", [("blip", "model_base_caption"), ("deepbooru", "model-resnet_custom")])
def test_what_the_host_would_download_is_said(webui, photos, key, file):
    entry = next(model for model in webui.get("data_words")["taggers"] if model["key"] == key)
    assert file in entry["missing"] and str(webui.folder) in entry["missing"]
    job = ended(webui, webui.post("data_caption", folder=str(photos), model=key))
    assert job["phase"] == "failed" and file in job["error"] and "Traceback" not in job["error"]


def test_a_job_goes_on_without_a_page_and_can_be_stopped(webui, photos, tmp_path):
    steps = [{"step": "upscale", "least_px": 4000}, {"step": "copies", "num": 3}]
    wanted = {"folder": str(photos), "out": str(tmp_path / "new"), "steps": steps}
    job = webui.post("data_prepare", **wanted)
    with pytest.raises(Refused, match="goes on with toys already"):
        webui.post("data_prepare", **wanted)
    webui.post("data_stop", id=job["id"])
    assert ended(webui, job)["phase"] == "stopped"
    (found,) = webui.post("data_open", folder=str(photos))["jobs"]
    assert found["id"] == job["id"]
