"""The pages in a real browser: from the form to the prompt of txt2img, in Japanese, on hostile names and captions.

NODE_PATH: a folder of node packages with playwright-core. CHROMIUM: a browser.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest


def around(name):
    spec = importlib.util.spec_from_file_location(f"webui_browser_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing():
    """Why there is no browser, or an empty text."""
    packages = [Path(p) for p in os.environ.get("NODE_PATH", "").split(os.pathsep) if p]
    if not (shutil.which("node") and any((p / "playwright-core").is_dir() for p in packages)):
        return "NODE_PATH must name a folder with playwright-core, and node be installed"
    return around("conftest").missing()


why_not = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not), reason=why_not or "there is a browser")]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a user saw: name -> answer of browser.js."""
    folder = tmp_path_factory.mktemp("browser")
    photos = next(p for p in sorted(Path(os.environ["A1111_PHOTOS"]).iterdir()) if p.is_dir())
    data = folder / "toys"
    data.mkdir()
    for number, path in enumerate(sorted(photos.glob("*.jpg"))[:3]):
        name = f"{number}<img src=x onerror=hit=1>"
        shutil.copy(path, data / f"{name}.jpg")
        (data / f"{name}.txt").write_text("<script>hit=1</script>, <img src=x onerror=hit=1>", encoding="utf-8")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = around("server").Server(folder / "webui", port, settings={"localization": "ja_JP"})
    try:
        script = Path(__file__).with_name("browser.js")
        done = subprocess.run(
            ["node", str(script), str(port), str(data)], capture_output=True, text=True, timeout=1500, check=False
        )
    finally:
        server.close()
    answers = {}
    for line in done.stdout.splitlines():
        answers |= json.loads(line)
    assert "broken" not in answers, answers["broken"]
    return answers


def test_the_page_is_in_the_language_of_the_webui(said):
    assert said["words"] == ["学習を開始", "画像", "ランク"]


def test_a_missing_folder_is_said_in_the_page(said):
    assert said["error"].startswith("data.concepts[0].folder is empty")


def test_a_fault_of_the_schedule_is_marked_in_its_place(said):
    assert said["fault"].startswith(":9")


def test_the_data_set_is_counted(said):
    assert "画像 3 枚" in said["checked"]


def test_the_run_is_watched_and_found_again(said):
    assert "ステップ" in said["running"] and "/ 4,000" in said["running"]
    assert said["found"] == "<img src=x onerror=hit=1>"


def test_the_previews_of_the_run_are_a_strip_that_grows(said):
    first, *steps = said["grows"]
    assert first == "ネットワークなし" and steps == [f"{3 * (n + 1):,}" for n in range(len(steps))]


def test_a_checkpoint_comes_into_the_prompt_with_its_trigger(said):
    assert said["prompt"].startswith("<lora:") and said["prompt"].endswith(":1> <b onmouseover=hit=1>toy")


def test_previews_as_txt2img_read_every_field(said):
    fields = said["fields"]
    assert fields["prompt"] == "read from txt2img" and fields["sampler_name"]
    wanted = {"negative_prompt", "steps", "cfg_scale", "seed", "width", "height", "styles", "enable_hr", "hr_upscaler"}
    assert wanted <= fields.keys()


def test_names_and_captions_of_others_are_shown_and_never_run(said):
    assert said["harmless"] and all("onerror" in name for name in said["pictures"])


def test_nothing_of_ours_fails_in_the_browser(said):
    assert [fault for fault in said["faults"] if "reading 'props'" not in fault] == []
