"""The page of a data set, without a WebUI: what its routes answer, write and refuse."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sd_atelier.lib.config import ConceptConfig, DataConfig
from sd_atelier.lib.data.image_steps import STEPS
from sd_atelier.lib.data.pictures import load
from sd_atelier.lib.data.scan import scan
from sd_atelier.lib.data.tag_edits import EDITS
from sd_atelier.scripts.webui import data_set, data_work, looking
from webui_stub import installed

JAVASCRIPT = Path(__file__).parents[2] / "javascript"
HOSTILE = "<img src=x onerror=hit=1>, <script>hit=1</script>"


@pytest.fixture
def host(tmp_path, monkeypatch):
    return installed(monkeypatch, tmp_path / "webui")


@pytest.fixture
def photos(tmp_path):
    """Five pictures; the last has no caption, the fourth a hostile one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    captions = ["1girl, red, hat\n", "red, dog", "café, hat", HOSTILE]
    for i, size in enumerate([(96, 64), (64, 96), (80, 80), (64, 64), (200, 64)]):
        pixels = np.random.default_rng(i).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    for i, caption in enumerate(captions):
        (folder / f"{i}.txt").write_bytes(caption.encode("cp1252" if i == 2 else "utf-8"))
    return folder


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def page(folder, **more):
    return data_set.page({"folder": str(folder), "offset": 0, "limit": 100, **more})


def test_a_page_has_pictures_captions_and_tags(host, photos):
    about = data_set.open_folder({"folder": f'"{photos}"'})
    assert (about["num"], about["name"], about["undo"], about["jobs"]) == (5, "photos", "", [])
    answer = page(photos, tags=True)
    assert [item["name"] for item in answer["items"]] == [f"{i}.png" for i in range(5)]
    assert answer["items"][3]["caption"] == HOSTILE and answer["items"][0]["size"] == (96, 64)
    assert dict(map(tuple, answer["tags"]))["red"] == 2 and answer["num_tags"] == len(answer["tags"])
    json.dumps(answer)


def test_a_page_begins_where_it_is_asked_to(host, photos):
    answer = page(photos, offset=3, limit=1)
    assert [item["name"] for item in answer["items"]] == ["3.png"] and answer["num"] == 5


@pytest.mark.parametrize(
    "given, names",
    [
        ({"all": "red, hat"}, ["0.png"]),
        ({"any": "dog, hat"}, ["0.png", "1.png", "2.png"]),
        ({"none": "red"}, ["2.png", "3.png", "4.png"]),
        ({"least": "3"}, ["0.png"]),
        ({"most": 0}, ["4.png"]),
        ({"text": "SCRIPT"}, ["3.png"]),
        ({"with_problems": True}, ["2.png"]),
        (
            {"all": "", "any": "", "none": "", "least": "", "most": "", "text": "", "with_problems": False},
            list("01234"),
        ),
    ],
)
def test_a_filter_finds_what_it_means(host, photos, given, names):
    found = [item["name"] for item in page(photos, filter=given)["items"]]
    assert found == [name if "." in name else f"{name}.png" for name in names]


def test_an_edit_is_shown_then_written_and_undone_byte_for_byte(host, photos):
    before = everything(photos)
    wanted = {
        "folder": str(photos),
        "filter": {"any": "hat"},
        "edits": [{"name": "remove", "words": "hat"}, {"name": "prepend", "words": "zwx"}],
    }
    plan = data_set.plan(wanted)
    assert (plan["num"], plan["num_meant"]) == (2, 2) and everything(photos) == before
    assert plan["changes"][0] == {"name": "0.txt", "parts": [("+", "zwx"), (" ", "1girl"), (" ", "red"), ("-", "hat")]}
    done = data_set.apply({**wanted, "digest": plan["digest"]})
    assert done == {"num": 2, "undo": "remove=hat prepend=zwx"}
    assert (photos / "0.txt").read_text() == "zwx, 1girl, red\n" and (photos / "2.txt").read_text() == "zwx, café"
    assert data_set.undo({"folder": str(photos)}) == {"title": "remove=hat prepend=zwx", "num": 2, "undo": ""}
    assert everything(photos) == before


def test_nothing_but_what_was_shown_is_written(host, photos):
    wanted = {"folder": str(photos), "edits": [{"name": "append", "words": "toy"}]}
    plan = data_set.plan(wanted)
    (photos / "1.txt").write_text("somebody else was here")
    before = everything(photos)
    with pytest.raises(ValueError, match="look at it again"):
        data_set.apply({**wanted, "digest": plan["digest"]})
    assert everything(photos) == before


def test_one_caption_is_saved_where_it_still_is_what_was_shown(host, photos):
    before = everything(photos)
    about = {"folder": str(photos), "name": "4.png", "before": ""}
    answer = data_set.save({**about, "caption": HOSTILE})
    assert answer["item"]["caption"] == HOSTILE and (photos / "4.txt").read_text() == HOSTILE
    with pytest.raises(ValueError, match="changed meanwhile"):
        data_set.save({**about, "caption": "another"})
    data_set.undo({"folder": str(photos)})
    assert everything(photos) == before


def test_a_thumbnail_is_small_and_of_this_folder_only(host, photos, tmp_path):
    made = data_set.thumbnail({"folder": str(photos), "name": "4.png", "side": "64", "v": "1"})
    with Image.open(io.BytesIO(made.data)) as image:
        assert image.format == "JPEG" and image.size == (64, 20) and made.mime == "image/jpeg"
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "..\\secret.png", "0.txt", "0.png/../../secret.png"):
        with pytest.raises(ValueError, match="no picture"):
            data_set.thumbnail({"folder": str(photos), "name": name, "side": "64"})
    for side in ("", "x", "-1", "99999", "1e3", "٣٢"):
        with pytest.raises(ValueError, match="side"):
            data_set.thumbnail({"folder": str(photos), "name": "0.png", "side": side})


CUTTING = {"resolution": 64, "bucket_step": 8, "bucket_min_px": 32, "bucket_max_px": 128}


def test_what_is_shown_as_cut_is_what_training_uses_pixel_for_pixel(host, photos):
    config = DataConfig(concepts=(ConceptConfig(folder=str(photos)),), **CUTTING)
    answer = data_set.buckets({"folder": str(photos), "settings": CUTTING})
    samples = {sample.path.name: sample for sample in scan(config).samples}
    assert answer["num"] == len(samples) == 5
    assert {cut["name"]: cut["bucket"] for cut in answer["cuts"]} == {n: s.bucket for n, s in samples.items()}
    assert answer["cuts"][0]["lost"] == max(cut["lost"] for cut in answer["cuts"]) > 0
    query = {name: str(value) for name, value in CUTTING.items()} | {"bucket_upscale": "true", "folder": str(photos)}
    for name, sample in samples.items():
        made = data_set.cut({**query, "name": name, "part": "trained"})
        with Image.open(io.BytesIO(made.data)) as image:
            assert (np.asarray(image) == load(sample.path, sample.bucket, False, 200).pixels).all()
        assert data_set.cut({**query, "name": name}).mime == "image/jpeg"


@pytest.mark.parametrize(
    "route, values",
    [
        (data_set.page, {"offset": -1, "limit": 10}),
        (data_set.page, {"offset": 0, "limit": 100000}),
        (data_set.page, {"offset": "0", "limit": 10}),
        (data_set.page, {"offset": 0, "limit": 10, "filter": "red"}),
        (data_set.page, {"offset": 0, "limit": 10, "filter": {"all": 3}}),
        (data_set.page, {"offset": 0, "limit": 10, "filter": {"unknown": 3}}),
        (data_set.plan, {}),
        (data_set.plan, {"edits": "remove"}),
        (data_set.plan, {"edits": [{"name": "no such", "words": ""}]}),
        (data_set.plan, {"edits": [{"name": "remove", "words": ""}]}),
        (data_set.plan, {"edits": [{"name": "remove", "words": "x"}], "names": ["../0.png"]}),
        (data_set.plan, {"edits": [{"name": "remove", "words": "x"}], "names": [3]}),
        (data_set.apply, {"edits": [{"name": "remove", "words": "red"}]}),
        (data_set.save, {"name": "none.png", "caption": "x"}),
        (data_set.undo, {}),
        (data_set.buckets, {"settings": {"resolution": 0}}),
        (data_set.buckets, {"settings": {"resolution": "512"}}),
        (data_set.cut, {"name": "0.png", "resolution": "-5"}),
        (data_work.prepare, {"out": "", "steps": [{"step": "flip"}]}),
        (data_work.prepare, {"out": "new", "steps": []}),
        (data_work.prepare, {"out": "new", "steps": [{"step": "none"}]}),
        (looking.caption, {"model": ""}),
        (looking.caption, {"model": "tagger/x", "tagging": {"general_threshold": 2}}),
        (data_work.status, {"id": "none"}),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(host, photos, route, values):
    before = everything(photos)
    with pytest.raises(ValueError) as refused:
        route({"folder": str(photos), **values})
    assert str(refused.value) and everything(photos) == before


GALLERY = (data_set.open_folder, data_set.page, data_set.plan, data_set.apply, data_set.save, data_set.undo)
PICTURES = (data_set.thumbnail, data_set.buckets, data_set.cut)


@pytest.mark.parametrize(
    "route", [*GALLERY, *PICTURES, data_work.check, data_work.prepare, looking.caption, looking.score]
)
def test_from_other_machines_a_folder_outside_the_roots_is_refused(tmp_path, photos, monkeypatch, route):
    installed(monkeypatch, tmp_path / "webui", local=False)
    with pytest.raises(ValueError, match=r"other machines.*atelier\.json.*photos"):
        route({"folder": str(photos), "name": "0.png", "side": "64", "offset": 0, "limit": 10})


def test_from_other_machines_what_a_link_leads_to_is_not_shown_and_nothing_is_made_outside(
    tmp_path, monkeypatch, photos
):
    installed(monkeypatch, tmp_path / "webui", local=False)
    data = tmp_path / "webui/atelier/data/toys"
    data.mkdir(parents=True)
    (data / "link.png").symlink_to(photos / "0.png")
    assert data_set.open_folder({"folder": "toys"})["num"] == 1
    for route in (data_set.thumbnail, data_set.cut):
        with pytest.raises(ValueError, match="not shown to other machines"):
            route({"folder": "toys", "name": "link.png", "side": "64"})
    for out in (str(photos / "new"), "../../../new"):
        with pytest.raises(ValueError, match="other machines"):
            data_work.prepare({"folder": "toys", "out": out, "steps": [{"step": "flip"}]})


def test_the_page_has_words_for_every_step_and_edit():
    for file, known in (("atelier_data_work.js", STEPS), ("atelier_data.js", EDITS)):
        source = (JAVASCRIPT / file).read_text(encoding="utf-8")
        assert [name for name in known if f'{name}: "' not in source] == []


def test_the_words_of_the_page_can_be_sent(host):
    said = json.loads(json.dumps(data_set.words({})))
    assert {step["name"] for step in said["steps"]} == set(STEPS)
    assert all(widget["help"] for step in said["steps"] for widget in step["widgets"])
    assert {w["path"] for w in said["cutting"]} == {*CUTTING, "bucket_upscale"}
