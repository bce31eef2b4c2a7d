"""The nodes that check, caption, prepare and preview data sets, and the routes of the gallery, on a real server."""

import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from comfy_client import Refused
from PIL import Image, ImageDraw
from sd_atelier.lib.data.pictures import load

sys.path.insert(0, str(Path(__file__).parents[3] / "data"))  # for onnx_writer

CAPTIONS = {
    "a.png": "hat, red hat, 1girl",
    "b.png": "holding, lollipop, <b>bold</b>",
    "c.png": "",
    "sub/d.png": "1girl, hat, day, night",
}
ROWS = [[1, "rating", 9, 1], [2, "red_thing", 0, 9], [3, "green_thing", 0, 9], [4, "blue_thing", 0, 9]]
# the mean of a channel above 100 says yes; the input is BGR
WEIGHTS, BIAS = [[0, 0, 0], [0, 0, 0.1], [0, 0.1, 0], [0.1, 0, 0]], [5, -10, -10, -10]


@pytest.fixture
def folder(tmp_path):
    """Four pictures, the subject of each a red circle; two are alike, and one has no caption."""
    root = tmp_path / "toys"
    for i, (name, caption) in enumerate(CAPTIONS.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (160 if i != 3 else 480, 120), (10, 10 + 60 * (i % 3), 200))
        ImageDraw.Draw(image).ellipse((30 + 20 * (i % 3), 20, 110 + 20 * (i % 3), 100), fill=(255, 0, 0))
        image.save(path)
        if caption:
            path.with_suffix(".txt").write_text(caption, "utf-8")
    shutil.copy(root / "a.png", root / "a copy.png")
    return root


def everything(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def captions(root):
    return {path.stem: path.read_text("utf-8") for path in sorted(root.rglob("*.txt"))}


@pytest.fixture
def models(server):
    """A tagger, a segmentation model and a predictor with known answers, where a user would put them."""
    pytest.importorskip("onnxruntime")
    from onnx_writer import write_picture_scorer, write_segmenter, write_tagger

    write_tagger(server.folder / "taggers" / "known", WEIGHTS, BIAS, ROWS)
    (server.folder / "segmenters").mkdir(exist_ok=True)
    write_segmenter(server.folder / "segmenters" / "u2net-red.onnx")
    (server.folder / "aesthetic_predictors").mkdir(exist_ok=True)
    write_picture_scorer(server.folder / "aesthetic_predictors" / "green.onnx", [[0.0, 1.0, 0.0]])


def graph_of(graphs, folder, class_type, **inputs):
    """Node 2: the data set; node 3: a node on it; nodes 5 and on: its texts."""
    return {
        "2": graphs.node("AtelierDatasetFolder", folder=str(folder)),
        "3": graphs.node(class_type, dataset=["2", 0], **inputs),
    }


def text_of(outputs, node="3"):
    return outputs[node]["text"][0]


def pictures_of(server, outputs, node="3"):
    found = []
    for about in outputs[node]["images"]:
        place = server.output if about["type"] == "output" else server.folder / "temp"
        if not (place / about["subfolder"] / about["filename"]).is_file():
            place = place / "temp"
        found.append(np.asarray(Image.open(place / about["subfolder"] / about["filename"]).convert("RGB")))
    return found


def test_an_edit_is_shown_first_then_written_then_taken_back(server, graphs, folder):
    before = everything(folder)
    edits = "subsumed\njoin\nreplace = 1girl -> girl"
    shown = text_of(server.run(graph_of(graphs, folder, "AtelierEditCaptions", edits=edits)))
    assert shown.startswith("3 of 5 captions would change; switch Write on")
    assert "a.txt: -hat, -1girl, +girl" in shown
    assert everything(folder) == before
    written = text_of(server.run(graph_of(graphs, folder, "AtelierEditCaptions", edits=edits, write=True)))
    assert written.startswith("3 of 5 captions were changed")
    assert captions(folder) == {
        "a": "red hat, girl",
        "b": "holding lollipop, <b>bold</b>",
        "d": "girl, hat, day, night",
    }
    # an unchanged graph is not run again until a caption changes
    assert text_of(server.run(graph_of(graphs, folder, "AtelierEditCaptions", edits=edits))).startswith("0 of 5")
    undone = server.call("/atelier/gallery/undo", {"folder": str(folder)})
    assert undone["num"] == 3 and everything(folder) == before


def test_an_edit_is_for_the_captions_that_the_filter_finds(server, graphs, folder):
    graph = graph_of(graphs, folder, "AtelierEditCaptions", edits="prepend = zwx", with_all="1girl", with_none="day")
    shown = text_of(server.run(graph))
    assert shown.startswith("1 of 1 captions would change") and "a.txt: +zwx" in shown


@pytest.mark.parametrize(
    ("edits", "said"), [("", "write one a line"), ("erase = x", "unknown edit"), ("replace = x", 'needs "old -> new"')]
)
def test_an_edit_that_is_none_is_said_before_anything_runs(server, graphs, folder, edits, said):
    with pytest.raises(Refused) as refused:
        server.queue(graph_of(graphs, folder, "AtelierEditCaptions", edits=edits))
    assert said in json.dumps(refused.value.answer["node_errors"]["3"], ensure_ascii=False).replace('\\"', '"')


def test_a_missing_model_is_said_with_the_place_that_it_belongs_into(server, graphs, folder):
    for class_type, inputs, file in (
        ("AtelierTagPictures", {"tagger": "wd14"}, "selected_tags.csv"),
        ("AtelierScorePictures", {"predictor": "nima"}, "image_encoder.onnx"),
        ("AtelierPrepareDataset", {"segmenter": "u2net.onnx", "background": "white"}, "u2net.onnx"),
    ):
        with pytest.raises(Refused) as refused:
            server.queue(graph_of(graphs, folder, class_type, **inputs))
        (error,) = refused.value.answer["node_errors"]["3"]["errors"]
        assert "there is no" in error["details"] and file in error["details"]
        assert "nothing is downloaded" in error["details"]


def test_a_tagger_gives_its_known_answers_and_leaves_captions_that_are_there(server, graphs, folder, models):
    graph = graph_of(graphs, folder, "AtelierTagPictures", tagger="known")
    assert text_of(server.run(graph)).startswith("2 of 2 captions would change")
    assert "c" not in captions(folder)
    graph["3"]["inputs"]["write"] = True
    text = text_of(server.run(graph))
    assert "c.txt: +blue thing" in text and captions(folder)["c"].startswith("blue thing")
    assert captions(folder)["a"] == CAPTIONS["a.png"]
    graph["3"]["inputs"]["existing"] = "append"
    server.run(graph)
    assert captions(folder)["a"].startswith(CAPTIONS["a.png"] + ", blue thing")


def test_cancelling_keeps_what_is_tagged(server, graphs, tmp_path, models):
    noise = np.random.default_rng(0).integers(0, 255, (768, 768, 3), np.uint8)
    (tmp_path / "many").mkdir()
    Image.fromarray(noise).save(tmp_path / "one.png", compress_level=9)
    for i in range(300):
        shutil.copy(tmp_path / "one.png", tmp_path / "many" / f"{i:03d}.png")
    prompt = server.queue(graph_of(graphs, tmp_path / "many", "AtelierTagPictures", tagger="known", write=True))
    while not server.call("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(2)
    server.call("/interrupt", {})
    entry = server.wait(prompt)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    num = len(list((tmp_path / "many").glob("*.txt")))
    assert 0 < num < 300 and num % 8 == 0, num


def test_pictures_are_scored_the_best_first_and_nothing_is_changed(server, graphs, folder, models):
    (folder / "bad.png").write_bytes((folder / "b.png").read_bytes()[:150])
    before = everything(folder)
    graph = graph_of(graphs, folder, "AtelierScorePictures", predictor="green.onnx", most=3)
    graph["5"] = graphs.node("PreviewAny", source=["3", 1])
    graph["6"] = graphs.node("SaveImage", images=["3", 2], filename_prefix="scored")
    outputs = server.run(graph)
    lines = text_of(outputs).splitlines()
    # the green of the grounds is 130, 70 and 10, and the middle of d.png has no red circle; equal ones by name
    names = [line.split(maxsplit=1)[1] for line in lines[:5]]
    assert names == ["toys/c.png", "toys/b.png", "toys/sub/d.png", "toys/a copy.png", "toys/a.png"]
    assert "bad.png" in lines[5] and lines[5].endswith("it gets no score")
    table = outputs["5"]["text"][0].splitlines()
    assert table[0] == "image,score" and table[1].startswith("toys/c.png,") and len(table) == 6
    assert len(pictures_of(server, outputs, "6")) == 3 and everything(folder) == before


def test_any_text_of_the_graph_becomes_a_caption(server, graphs, folder):
    graph = {
        "2": graphs.node("AtelierDatasetFolder", folder=str(folder), trigger="zwx"),
        "4": graphs.node("AtelierDatasetPictures", dataset=["2", 0], longest_px=64),
        "5": graphs.node("StringConcatenate", string_a=["4", 1], string_b="from the graph", delimiter="; "),
        "3": graphs.node(
            "AtelierWriteCaptions", dataset=["2", 0], captions=["5", 0], names=["4", 2], existing="replace", write=True
        ),
        "6": graphs.node("SaveImage", images=["4", 0], filename_prefix="given"),
    }
    outputs = server.run(graph)
    assert text_of(outputs).startswith("5 of 5 captions were changed")
    assert captions(folder) == {
        "a": "hat, red hat, 1girl; from the graph",
        "a copy": "; from the graph",
        "b": "holding, lollipop, <b>bold</b>; from the graph",
        "c": "; from the graph",
        "d": "1girl, hat, day, night; from the graph",
    }
    assert [image.shape for image in pictures_of(server, outputs, "6")] == [(48, 64, 3)] * 4 + [(16, 64, 3)]


def test_too_few_texts_are_refused(server, graphs, folder):
    graph = {
        "2": graphs.node("AtelierDatasetFolder", folder=str(folder)),
        "4": graphs.node("AtelierDatasetPictures", dataset=["2", 0], most=2),
        "3": graphs.node("AtelierWriteCaptions", dataset=["2", 0], captions=["4", 1], existing="skip", write=True),
    }
    with pytest.raises(Exception, match="one for each of the 5 pictures, got 2"):
        server.run(graph)


def test_the_check_names_what_is_wrong(server, graphs, folder):
    (folder / "bad.png").write_bytes((folder / "b.png").read_bytes()[:150])
    (folder / "b.txt").write_bytes("café".encode("cp1252"))
    outputs = server.run(graph_of(graphs, folder, "AtelierCheckDataset"))
    text = text_of(outputs)
    for word in ("bad.png", "contradict", "says already", "Windows-1252", "a copy.png", "tokens not counted"):
        assert word in text, text
    assert len(outputs["3"]["images"]) >= 1


def test_the_bucket_preview_is_what_is_trained_pixel_for_pixel(server, graphs, folder):
    graph = graph_of(
        graphs, folder, "AtelierBucketPreview", resolution=128, bucket_step=32, bucket_min_px=64, bucket_max_px=256
    )
    graph["6"] = graphs.node("SaveImage", images=["3", 2], filename_prefix="trained")
    outputs = server.run(graph)
    lines = text_of(outputs).splitlines()
    losing = [line.partition(" loses ") for line in lines if " loses " in line]
    assert len(losing) == 5 and len(outputs["3"]["images"]) == 5
    for (name, _, rest), trained in zip(losing, pictures_of(server, outputs, "6"), strict=True):
        size = tuple(int(part) for part in rest.partition(" in ")[2].partition(",")[0].split(" x "))
        expected = load(folder / name.partition("/")[2], size, False, 200.0).pixels
        assert trained.shape == expected.shape and np.array_equal(trained, expected), name


def test_pictures_are_tried_then_prepared_into_a_new_folder_that_goes_on(server, graphs, folder, models):
    before = everything(folder)
    inputs = {
        "background": "white",
        "segmenter": "u2net-red.onnx",
        "dedupe": True,
        "fit": "crop",
        "width": 96,
        "height": 96,
        "flip": True,
    }
    graph = graph_of(graphs, folder, "AtelierPrepareDataset", **inputs)
    tried = server.run(graph)
    assert text_of(tried).startswith("tried 4 of 5 pictures") and len(tried["3"]["images"]) == 4
    prepared = server.output / "atelier" / "prepared"
    assert not prepared.exists() or not list(prepared.iterdir())
    graph["3"]["inputs"]["write"] = True
    graph["7"] = graphs.node("AtelierCheckDataset", dataset=["3", 0])
    outputs = server.run(graph)
    (new,) = prepared.iterdir()
    assert "8 pictures made, 0 were there" in text_of(outputs) and "is the same file as" in text_of(outputs)
    assert "8 pictures, 0 left out" in text_of(outputs, "7"), "the data set that goes on is the new one"
    made = sorted(path.relative_to(new).as_posix() for path in new.rglob("*.png"))
    assert "a-flip.png" in made and "sub/d.png" in made and len(made) == 8
    with Image.open(new / "c.png") as image:
        assert image.size == (96, 96) and image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((48, 48))[0] > 200 > image.getpixel((48, 48))[2]
    assert (new / "a.txt").read_text("utf-8") == CAPTIONS["a.png"]
    assert everything(folder) == before, "the originals stay"

    (new / "sub/d.png").unlink()
    graph["3"]["inputs"]["preview_pictures"] = 1  # ComfyUI would return what it keeps for an unchanged graph
    assert "2 pictures made, 6 were there" in text_of(server.run(graph))
    graph["3"]["inputs"]["flip"] = False
    server.run(graph)
    assert len(list(prepared.iterdir())) == 2, "other steps get a folder of their own"
    shutil.rmtree(prepared)


def test_small_pictures_are_enlarged_by_the_hosts_upscaler_and_another_one_begins_anew(server, graphs, folder):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    architectures = pytest.importorskip("spandrel.architectures.ESRGAN")
    (server.folder / "upscale_models").mkdir(exist_ok=True)
    for number in (1, 2):
        torch.manual_seed(number)
        weights = architectures.ESRGAN(num_filters=8, num_blocks=1, scale=4).state_dict()
        save_file(weights, server.folder / "upscale_models" / f"small-{number}.safetensors")
    prepared, made = server.output / "atelier" / "prepared", {}
    for number in (1, 2):
        graph = graph_of(graphs, folder, "AtelierPrepareDataset", upscale_to=240, write=True)
        graph["4"] = graphs.node("UpscaleModelLoader", model_name=f"small-{number}.safetensors")
        graph["3"]["inputs"]["upscale_model"] = ["4", 0]
        assert "5 pictures made, 0 were there" in text_of(server.run(graph))
        made = {path: (path / "a.png").read_bytes() for path in prepared.iterdir()}
        assert len(made) == number
    assert len(set(made.values())) == 2
    for path in made:
        with Image.open(path / "a.png") as image:
            assert image.size == (320, 240)
    shutil.rmtree(prepared)


def test_the_background_of_an_image_is_removed(server, graphs, folder, models):
    shutil.copy(folder / "a.png", server.folder / "input" / "a.png")
    graph = {
        "1": graphs.node("LoadImage", image="a.png"),
        "3": graphs.node("AtelierRemoveBackground", images=["1", 0], segmenter="u2net-red.onnx"),
        "4": graphs.node("MaskToImage", mask=["3", 1]),
        "5": graphs.node("SaveImage", images=["3", 0], filename_prefix="white"),
        "6": graphs.node("SaveImage", images=["4", 0], filename_prefix="mask"),
    }
    outputs = server.run(graph)
    (white,), (mask,) = pictures_of(server, outputs, "5"), pictures_of(server, outputs, "6")
    assert tuple(white[0, 0]) == (255, 255, 255) and mask[0, 0, 0] == 0
    assert white[60, 70, 0] > 200 > white[60, 70, 2] and mask[60, 70, 0] > 200


def test_the_gallery_answers_in_json_and_refuses_in_words(server, folder):
    page = server.call("/atelier/gallery/page", {"folder": str(folder), "limit": 2})
    assert page["num_all"] == 5 and len(page["items"]) == 2
    for path, body, headers, status, said in (
        ("page", {"folder": "/nothing/there"}, {}, 400, "there is no folder"),
        ("page", {"folder": str(folder), "limit": 0}, {}, 400, "a page"),
        ("erase", {"folder": str(folder)}, {}, 404, "can be asked for"),
        ("undo", {"folder": str(folder)}, {"Sec-Fetch-Site": "same-site"}, 403, "own page"),
        ("undo", {"folder": str(folder)}, {"Content-Type": "text/plain"}, 403, "Content-Type"),
        ("caption", {"folder": str(folder), "name": "../x.png"}, {}, 400, "there is no picture"),
    ):
        with pytest.raises(Refused) as refused:
            server.call(f"/atelier/gallery/{path}", body, headers)
        assert refused.value.status == status and said in refused.value.answer["error"]


def test_a_thumbnail_is_a_picture_for_the_servers_own_page_only(server, folder):
    url = f"{server.url}/atelier/gallery/thumbnail?folder={folder}&name=sub/d.png&side=64"
    with urllib.request.urlopen(url) as answer:
        assert answer.headers["Content-Type"] == "image/jpeg" and "max-age" in answer.headers["Cache-Control"]
        assert Image.open(answer).size == (64, 16)
    for bad, headers, status in (
        (url, {"Sec-Fetch-Site": "cross-site"}, 403),
        (url.replace("sub/d.png", "../../etc/passwd"), {}, 400),
        (url.replace("side=64", "side=9999"), {}, 400),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(bad, headers=headers))
        assert refused.value.code == status


def test_a_server_that_others_reach_opens_no_gallery_outside_its_roots(fresh, folder):
    fresh.arguments += ("--listen", "0.0.0.0")
    fresh.start()
    for what in ("page", "tags", "plan", "apply", "caption", "undo"):
        with pytest.raises(Refused) as refused:
            fresh.call(f"/atelier/gallery/{what}", {"folder": str(folder)})
        assert refused.value.status == 400 and "may not be used" in refused.value.answer["error"]
    shutil.copytree(folder, fresh.folder / "input" / "toys")
    assert fresh.call("/atelier/gallery/page", {"folder": "toys"})["num_all"] == 5
