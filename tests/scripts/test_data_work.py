"""What takes long on the page of a data set, without a WebUI: progress, stopping, what is kept, what is missing."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx_writer import write_picture_scorer, write_segmenter, write_tagger
from PIL import Image
from sd_atelier.scripts.webui import captioners, data_set, data_work, jobs, looking, upscalers
from webui_stub import installed

WEIGHTS = np.eye(3) * 0.1 - 0.02
ROWS = [[1, "blue_thing", 0, 9], [2, "green_thing", 0, 9], [3, "<b>red</b>", 0, 9]]
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture
def host(tmp_path, monkeypatch):
    return installed(monkeypatch, tmp_path / "webui")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in COLOURS.items():
        image = Image.new("RGB", (40, 24), colour)
        image.paste("white", (4, 4, 12, 8 if name == "red" else 20))
        image.save(folder / f"{name}.png")
    return folder


@pytest.fixture
def tagger(tmp_path):
    pytest.importorskip("onnxruntime", reason="taggers need onnxruntime (the extra tagger)")
    write_tagger(tmp_path / "webui/atelier/taggers/toy", WEIGHTS, [-4, -4, -4], ROWS)
    return "tagger/toy"


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def ended(status, seconds=60):
    job = jobs.find(status["id"])
    job.join(seconds)
    assert not job.is_live
    return job.status()


def test_a_check_names_what_is_wrong_and_changes_nothing(host, photos):
    (photos / "red.txt").write_text("solo, 2girls, hair ornament, star hair ornament")
    (photos / "same.png").write_bytes((photos / "blue.png").read_bytes())
    (photos / "half.png").write_bytes((photos / "blue.png").read_bytes()[:60])
    before = everything(photos)
    status = ended(data_work.check({"folder": str(photos)}))
    assert (status["phase"], status["error"], status["done"]) == ("finished", "", 5)
    result = status["result"]
    said = {(f["name"], severity) for severity, found in result["findings"].items() for s in found for f in s["items"]}
    assert {("half.png", "error"), ("red.png", "warning"), ("red.png", "note")} <= said
    assert result["groups"] == [{"equal": True, "names": ["blue.png", "same.png"]}]
    assert result["num_left_out"] == 1 and not result["tokens"] and everything(photos) == before


def test_pictures_are_prepared_into_a_new_folder_and_what_was_stopped_goes_on(host, photos, tmp_path, monkeypatch):
    (photos / "red.txt").write_text("a toy")
    wanted = {
        "folder": str(photos),
        "out": str(tmp_path / "new"),
        "steps": [{"step": "crop", "width": 16, "height": 16}],
    }
    tried = ended(data_work.prepare({**wanted, "dry_run": True}))["result"]
    assert tried["num_made"] == 3 and tried["made"][0] == {"from": "blue.png", "to": [["blue.png", 16, 16]]}
    assert not (tmp_path / "new").exists()
    progress = jobs.Job.progress

    def stop_after_one(job, done, total):
        progress(job, done, total)
        job.stop()

    monkeypatch.setattr(jobs.Job, "progress", stop_after_one)
    stopped = ended(data_work.prepare(wanted))
    assert stopped["phase"] == "stopped" and 0 < stopped["result"]["num_made"] < 3
    monkeypatch.setattr(jobs.Job, "progress", progress)
    done = ended(data_work.prepare(wanted))
    made, kept = done["result"]["num_made"], done["result"]["num_kept"]
    assert done["phase"] == "finished" and made + kept == 3 and kept == stopped["result"]["num_made"]
    assert (tmp_path / "new/red.txt").read_text() == "a toy"
    assert Image.open(tmp_path / "new/red.png").size == (16, 16)


def test_the_background_is_found_by_a_model_in_our_folder(host, photos, tmp_path):
    pytest.importorskip("onnxruntime", reason="segmentation needs onnxruntime (the extra tagger)")
    wanted = {"folder": str(photos), "out": "new", "steps": [{"step": "background", "to": "alpha"}]}
    missing = ended(data_work.prepare({**wanted, "segmenter": "u2net.onnx"}))
    assert missing["phase"] == "failed" and str(captioners.segmenters_folder()) in missing["error"]
    captioners.segmenters_folder().mkdir(parents=True)
    write_segmenter(captioners.segmenters_folder() / "u2net.onnx")
    assert data_set.words({})["segmenters"]["names"] == ["u2net.onnx"]
    done = ended(data_work.prepare({**wanted, "segmenter": "u2net.onnx"}))
    assert done["error"] == "" and done["result"]["num_made"] == 3
    assert Image.open(tmp_path / "webui/atelier/data/new/blue.png").mode == "RGBA"


def test_small_pictures_are_enlarged_by_an_upscaler_whose_model_is_here(host, photos, tmp_path):
    class Twice:
        def upscale(self, image, scale, path):
            assert host.lock.locked()
            return image.resize((image.width * scale, image.height * scale))

    (tmp_path / "model.pth").write_bytes(b"")
    host.shared.sd_upscalers += [
        SimpleNamespace(name="None", scaler=Twice(), scale=4, data_path=None),
        SimpleNamespace(name="Lanczos", scaler=Twice(), scale=4, data_path=None),
        SimpleNamespace(name="Far", scaler=Twice(), scale=4, data_path="https://example.org/model.pth"),
        SimpleNamespace(name="Near", scaler=Twice(), scale=2, data_path=str(tmp_path / "model.pth")),
    ]
    assert upscalers.names() == ["Lanczos", "Near"]
    wanted = {"folder": str(photos), "out": "new", "steps": [{"step": "upscale", "least_px": 48}]}
    done = ended(data_work.prepare({**wanted, "upscaler": "Near"}))
    assert done["error"] == "" and Image.open(tmp_path / "webui/atelier/data/new/red.png").size == (80, 48)
    (tmp_path / "model.pth").write_bytes(b"of another training")
    assert ended(data_work.prepare({**wanted, "upscaler": "Near"}))["phase"] == "failed", "the name alone is not enough"
    assert "there is no upscaler" in ended(data_work.prepare({**wanted, "out": "other", "upscaler": "Far"}))["error"]
    assert not host.lock.locked()


def test_tags_that_a_model_finds_are_shown_then_written_and_undone(host, photos, tagger):
    (photos / "green.txt").write_text("mine")
    before = everything(photos)
    status = ended(looking.caption({"folder": str(photos), "model": tagger, "tagging": {"order": "csv"}}))
    result = status["result"]
    assert (status["error"], result["num"], result["num_passed_over"]) == ("", 2, 1) and everything(photos) == before
    assert result["changes"][1] == {"name": "red.txt", "parts": [("+", "<b>red</b>")]}
    done = data_set.apply({"folder": str(photos), "job": status["id"], "digest": result["digest"]})
    assert done["num"] == 2 and (photos / "blue.txt").read_text() == "blue thing"
    assert data_work.status({"id": status["id"]})["result"] is None
    data_set.undo({"folder": str(photos)})
    assert everything(photos) == before


def test_only_the_pictures_that_are_meant_are_looked_at(host, photos, tagger):
    status = ended(looking.caption({"folder": str(photos), "model": tagger, "filter": {"text": "red"}}))
    assert [change["name"] for change in status["result"]["changes"]] == ["red.txt"]


def test_stopping_keeps_what_is_found(host, photos, tagger, monkeypatch):
    monkeypatch.setattr(looking, "PICTURES_AT_ONCE", 1)
    progress = jobs.Job.progress

    def stop_after_two(job, done, total):
        progress(job, done, total)
        if done == 2:
            job.stop()

    monkeypatch.setattr(jobs.Job, "progress", stop_after_two)
    status = ended(looking.caption({"folder": str(photos), "model": tagger}))
    assert (status["phase"], status["done"], status["result"]["num"]) == ("stopped", 2, 2)
    done = data_set.apply({"folder": str(photos), "job": status["id"], "digest": status["result"]["digest"]})
    assert done["num"] == 2 and not (photos / "red.txt").exists()


def test_what_was_found_before_a_model_failed_is_kept(host, photos, models, monkeypatch):
    monkeypatch.setattr(looking, "PICTURES_AT_ONCE", 1)
    asked = []

    def fails_at_the_third(picture):
        asked.append(picture)
        if len(asked) == 3:
            raise ValueError("the model failed")
        return "a toy"

    monkeypatch.setattr(host.shared.interrogator, "generate_caption", fails_at_the_third)
    status = ended(looking.caption({"folder": str(photos), "model": "blip"}))
    assert (status["phase"], status["error"], status["result"]["num"]) == ("failed", "the model failed", 2)
    data_set.apply({"folder": str(photos), "job": status["id"], "digest": status["result"]["digest"]})
    assert (photos / "green.txt").read_text() == "a toy" and not (photos / "red.txt").exists()


@pytest.fixture
def predictor(tmp_path):
    """Gives how red a picture's middle is."""
    pytest.importorskip("onnxruntime", reason="aesthetic scores need onnxruntime (the extra tagger)")
    folder = tmp_path / "webui/atelier/aesthetic_predictors"
    folder.mkdir(parents=True)
    write_picture_scorer(folder / "red.onnx", [[1.0, 0.0, 0.0]])
    return "red.onnx"


def test_pictures_are_scored_and_no_file_is_changed(host, photos, predictor):
    (photos / "bad.png").write_bytes((photos / "red.png").read_bytes()[:60])
    before = everything(photos)
    status = ended(looking.score({"folder": str(photos), "model": predictor}))
    result = status["result"]
    assert (status["phase"], status["error"]) == ("finished", "") and everything(photos) == before
    names, scores = zip(*result["scores"], strict=True)
    assert names == ("red.png", "blue.png", "green.png") and list(scores) == sorted(scores, reverse=True)
    assert result["csv"].splitlines()[:2] == ["image,score", f"red.png,{scores[0]:.4f}"]
    assert [(problem["name"], problem["text"]) for problem in result["problems"]] == [("bad.png", "is truncated")]
    only = ended(looking.score({"folder": str(photos), "model": predictor, "names": ["blue.png"]}))["result"]["scores"]
    assert only == [("blue.png", pytest.approx(scores[1]))]


def test_a_predictor_that_is_not_there_is_a_sentence_with_what_to_put_where(host, photos, tmp_path):
    for name in ("", "red.onnx", "../red.onnx"):
        with pytest.raises(ValueError, match=r"model must|put an \.onnx file") as said:
            looking.score({"folder": str(photos), "model": name})
        assert not name or str(tmp_path / "webui/atelier/aesthetic_predictors") in str(said.value)


def test_a_missing_tagger_is_a_sentence_with_what_to_put_where(host, photos, tmp_path):
    folder = tmp_path / "webui/atelier/taggers"
    assert str(folder) in captioners.offered()[0]["missing"] and not folder.exists()
    (folder / "half").mkdir(parents=True)
    (folder / "half/model.onnx").write_bytes(b"")
    for key, said in (("tagger/half", "selected_tags.csv"), ("tagger/", "no tagger"), ("tagger/../x", "no tagger")):
        status = ended(looking.caption({"folder": str(photos), "model": key}))
        assert status["phase"] == "failed" and said in status["error"] and "nothing is downloaded" in status["error"]


def test_what_the_host_would_download_is_said_and_not_asked_for(host, photos, monkeypatch):
    monkeypatch.setattr(host.shared.interrogator, "load_blip_model", lambda: pytest.fail("it was asked for"))
    monkeypatch.setattr(host.deepbooru.model, "load", lambda: pytest.fail("it was asked for"))
    for key, file in (("blip", "model_base_caption_capfilt_large.pth"), ("deepbooru", "model-resnet_custom_v3.pt")):
        status = ended(looking.caption({"folder": str(photos), "model": key}))
        assert file in status["error"] and str(host.paths.models_path) in status["error"]
        assert "Atelier downloads nothing" in status["error"]


@pytest.fixture
def models(host, monkeypatch):
    """The host's own models are there."""
    for folder, file in (("BLIP", "blip.pth"), ("torch_deepdanbooru", "booru.pt")):
        path = Path(host.paths.models_path) / folder / file
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    monkeypatch.setattr(captioners, "_has_words", lambda: True)


def test_the_hosts_own_models_caption_while_the_queue_is_ours(host, photos, models, monkeypatch):
    caption = host.shared.interrogator.generate_caption
    seen = []
    monkeypatch.setattr(
        host.shared.interrogator, "generate_caption", lambda p: seen.append(host.lock.locked()) or caption(p)
    )
    status = ended(looking.caption({"folder": str(photos), "model": "blip"}))
    assert status["error"] == "" and [c["name"] for c in status["result"]["changes"]] == [
        "blue.txt",
        "green.txt",
        "red.txt",
    ]
    assert seen == [True] * 3 and not host.lock.locked()
    data_set.apply({"folder": str(photos), "job": status["id"], "digest": status["result"]["digest"]})
    assert (photos / "blue.txt").read_text() == "a picture of (0, 0, 255)"


def test_the_hosts_tagger_takes_our_settings_and_its_own_stay(host, photos, models):
    tagging = {"general_threshold": 0.25, "existing": "append"}
    status = ended(looking.caption({"folder": str(photos), "model": "deepbooru", "tagging": tagging}))
    assert status["result"]["changes"][0]["parts"] == [("+", "one tag"), ("+", "another_(tag)")]
    assert host.deepbooru.model.seen == [(False, 0.25)] * 3 and not host.deepbooru.model.running
    assert host.deepbooru.shared is host.shared and host.shared.opts.deepbooru_escape is True


def test_a_model_that_the_host_cannot_read_is_a_sentence(host, photos, models, monkeypatch):
    def refuses():
        raise AttributeError("'NoneType' object has no attribute 'keys'")

    monkeypatch.setattr(host.deepbooru.model, "load", refuses)
    status = ended(looking.caption({"folder": str(photos), "model": "deepbooru"}))
    assert status["error"].startswith("the WebUI cannot read its own model") and not host.lock.locked()


def test_while_the_model_is_busy_the_work_waits_and_can_be_stopped(host, photos, models):
    with host.lock:
        status = looking.caption({"folder": str(photos), "model": "blip"})
        job = jobs.find(status["id"])
        end = time.monotonic() + 20
        while "waits" not in job.note:
            assert time.monotonic() < end
            time.sleep(0.01)
        data_work.stop({"id": job.id})
        job.join(20)
    assert job.phase == "stopped" and job.result["num"] == 0


def test_the_same_is_not_begun_twice_and_ended_work_is_found_again(host, photos):
    go_on = threading.Event()

    def work(job):
        go_on.wait(20)
        return {"x": 1}

    job = jobs.start("check", photos, work)
    with pytest.raises(ValueError, match="goes on with photos already"):
        data_work.check({"folder": str(photos)})
    assert data_set.open_folder({"folder": str(photos)})["jobs"][0]["live"]
    go_on.set()
    job.join(20)
    (found,) = data_set.open_folder({"folder": str(photos)})["jobs"]
    assert (found["phase"], found["result"]) == ("finished", {"x": 1})


def test_what_goes_wrong_is_said_and_what_nobody_expected_is_raised_too(host, tmp_path, monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))

    def fails(error):
        def work(job):
            raise error

        job = jobs.start("check", tmp_path, work)
        job.join(20)
        return job.phase, job.error

    assert fails(ValueError("a sentence")) == ("failed", "a sentence") and raised == []
    assert fails(RuntimeError("boom")) == ("failed", "RuntimeError: boom") and raised == [RuntimeError]


def test_few_ended_jobs_are_remembered(host, tmp_path):
    for i in range(3 * jobs.KEPT):
        jobs.start("check", tmp_path / str(i), lambda job: {}).join(20)
    assert len(jobs.jobs()) <= jobs.KEPT + 1
