"""A browser on a real ComfyUI.

Beside `COMFYUI_PATH` it takes node, the package playwright-core in the folder that `PLAYWRIGHT_CORE` names, and a
Chromium: the one that `CHROMIUM` names, or that is on the path. Without one of them the tests are skipped, and say so.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "over_http"))  # for comfy_client

from comfy_client import COMFYUI, Server  # noqa: E402 - the line above finds it

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PLAYWRIGHT = Path(os.environ.get("PLAYWRIGHT_CORE") or "/nowhere")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if not COMFYUI.joinpath("main.py").is_file():
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not PLAYWRIGHT.joinpath("package.json").is_file():
        pytest.skip("PLAYWRIGHT_CORE names no folder with playwright-core")
    if CHROMIUM is None:
        pytest.skip("CHROMIUM names no browser, and there is none on the path")
    server = Server(tmp_path_factory.mktemp("comfyui"), "--disable-api-nodes").start()
    yield server
    server.stop()


@pytest.fixture
def browse(server):
    """Play one scenario of scenarios.mjs; what it saw."""

    def play(scenario, vue=False, locale="en", **about):
        for name, value in {
            "Comfy.VueNodes.Enabled": vue,
            "Comfy.Locale": locale,
            "Comfy.TutorialCompleted": True,
        }.items():
            server.call(f"/api/settings/{name}", value)
        asked = {"url": server.url, "scenario": scenario, "chromium": CHROMIUM, "playwright": str(PLAYWRIGHT), **about}
        done = subprocess.run(
            ["node", str(HERE / "scenarios.mjs"), json.dumps(asked)], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        seen = json.loads(done.stdout.splitlines()[-1])
        assert seen.pop("faults") == []
        return seen

    return play
