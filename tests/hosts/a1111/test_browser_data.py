"""The page of a data set in a real browser, with 1,000 pictures, in Japanese, on hostile names and captions.

Environment as in `test_browser.py`.
"""

import importlib.util
import json
import os
import random
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from PIL import Image


def around(name):
    spec = importlib.util.spec_from_file_location(f"webui_data_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


why_not = around("test_browser").missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not), reason=why_not or "there is a browser")]

NUM = 1000
HOSTILE_NAME = "!<img src=x onerror=hit=1>"
HOSTILE = "<script>hit=1</script>, <img src=x onerror=hit=1>, Train"


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def make_data_set(folder):
    """1,000 cuts of the photographs; every second is "odd", the last is the copy of another."""
    photos = [Image.open(p).convert("RGB") for p in sorted(Path(os.environ["A1111_PHOTOS"]).rglob("*.jpg"))[:6]]
    chance = random.Random(7)
    folder.mkdir()
    for i in range(NUM):
        photo = photos[i % len(photos)]
        width, height = chance.randint(120, photo.width), chance.randint(120, photo.height)
        left, top = chance.randint(0, photo.width - width), chance.randint(0, photo.height - height)
        name = HOSTILE_NAME if i == 0 else f"{i:04d}"
        cut = photo.crop((left, top, left + width, top + height))
        cut.resize((chance.choice((192, 256, 320)), 256)).save(folder / f"{name}.jpg", quality=80)
        caption = HOSTILE if i == 0 else "common, odd, toy" if i % 2 else "common, café"
        (folder / f"{name}.txt").write_bytes(caption.encode("cp1252" if i == 2 else "utf-8") + b"\n" * (i % 3))
    (folder / f"{NUM - 1:04d}.jpg").write_bytes((folder / f"{NUM - 2:04d}.jpg").read_bytes())


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a user saw: name -> answer of browser_data.js; and the files before, after the edits and after undoing."""
    folder = tmp_path_factory.mktemp("browser_data")
    data = folder / "toys"
    make_data_set(data)
    before = everything(data)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = around("server").Server(folder / "webui", port, settings={"localization": "ja_JP"})
    answers = {"before": before}
    try:
        script = Path(__file__).with_name("browser_data.js")
        command = ["node", str(script), str(server.port), str(data), str(folder / "made")]
        browser = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # a browser that hangs ends all the same
        watch = threading.Timer(1500, browser.kill)
        watch.start()
        for line in browser.stdout:
            answers |= json.loads(line)
            if "edited" in json.loads(line):
                answers["after"] = everything(data)
                browser.stdin.write("go on\n")
                browser.stdin.flush()
        browser.wait(60)
        watch.cancel()
    finally:
        server.close()
    answers["undone"] = everything(data)
    answers["made"] = everything(folder / "made") if (folder / "made").is_dir() else {}
    print({name: value for name, value in answers.items() if name.endswith("_ms") or name == "scrolled"})
    assert "broken" not in answers, answers["broken"]
    return answers


def test_a_folder_that_is_not_there_is_said(said):
    assert "no folder" in said["error"]


def test_the_page_is_in_the_language_of_the_webui_and_tags_stay_as_they_are(said):
    assert said["words"] == ["データセット", "切り取られる部分", "画像 1,000 枚", "変更点を表示"]
    # the host translates text that is one of its words, such as Train
    assert {"common", "odd", "toy", "Train"} <= set(said["tags"])


def test_a_thousand_pictures_do_not_freeze_the_browser(said):
    assert said["scrolled"]["cards"] < 80 and said["scrolled"]["frames"] > 20
    assert said["scrolled"]["longest_ms"] < 1000
    assert said["opened_ms"] < 20_000 and said["end_ms"] < 20_000


def test_names_and_captions_of_others_are_shown_and_never_run(said):
    assert said["first"] == [f"{HOSTILE_NAME}.jpg", HOSTILE] and said["caption"] == HOSTILE
    assert "<script>hit=1</script>" in said["tags"] and said["harmless"]


def test_edits_are_written_as_they_were_shown(said):
    num, gone, lines = said["difference"]
    assert "500" in num and gone == "odd" and lines == 200
    assert not any(tag.startswith("odd") for tag in said["written"])
    changed = {name for name, data in said["after"].items() if said["before"].get(name) != data and name[0] != "."}
    assert changed == {f"{HOSTILE_NAME}.txt"} | {f"{i:04d}.txt" for i in range(1, NUM, 2)}
    assert said["after"][f"{HOSTILE_NAME}.txt"].decode() == "<b onmouseover=hit=1>one</b>, 日本"
    assert said["after"]["0005.txt"] == b"common, toy\n"


def test_undo_puts_everything_back_byte_for_byte(said):
    assert said["undone"] == said["before"]


def test_what_will_be_cut_is_shown(said):
    assert all("%" in cut and "→" in cut for cut in said["cut"])
    width, height = said["trained"]
    assert width % 64 == height % 64 == 0 and f"{width}\N{MULTIPLICATION SIGN}{height}" in said["cut"][0]


def test_a_check_finds_what_is_there_twice_and_leads_to_it(said):
    assert f"{NUM - 2:04d}.jpg" in "".join(said["same"]) and said["led_to"].endswith(".jpg")
    assert "Windows-1252" in said["found"]


def test_pictures_are_prepared_into_a_new_folder(said):
    pictures = [name for name in said["made"] if name.endswith(".png")]
    assert 0 < len(pictures) < NUM and str(len(pictures)) in said["prepared"]


def test_what_models_lack_is_said_with_the_place(said):
    missing = said["missing"]
    assert "selected_tags.csv" in missing["tagger/"] and "taggers" in missing["tagger/"]
    assert "models" in missing["blip"] and "torch_deepdanbooru" in missing["deepbooru"]


def test_nothing_of_ours_fails_in_the_browser(said):
    assert [fault for fault in said["faults"] if "reading 'props'" not in fault] == []
