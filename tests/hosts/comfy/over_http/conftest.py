"""The server of the session, and what is trained on."""

import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent))  # for comfy_client

from comfy_client import COMFYUI, ROOT, Graphs, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if not COMFYUI.joinpath("main.py").is_file():
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    server = Server(tmp_path_factory.mktemp("comfyui"), "--disable-api-nodes").start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def idle(request):
    """A test that failed leaves nothing behind that the next would wait for."""
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").clear()


@pytest.fixture(scope="session")
def graphs(server):
    return Graphs(server)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Four drawn pictures with captions, two shapes."""
    folder = tmp_path_factory.mktemp("drawn") / "toys"
    folder.mkdir()
    for number, size in enumerate([(64, 64), (96, 64), (64, 64), (96, 64)]):
        image = Image.new("RGB", size, (60 * number, 200 - 40 * number, 120))
        ImageDraw.Draw(image).ellipse((8, 8, 40 + 4 * number, 56), fill=(255, 220 - 30 * number, 40 * number))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a toy, number {number}, on a table", "utf-8")
    return folder


@pytest.fixture(scope="session")
def photos():
    """Photographs of toys; they are not part of the project."""
    folder = ROOT / "shared" / "data" / "photos"
    if not folder.is_dir():
        folder = ROOT.parent / "shared" / "data" / "photos"
    if not folder.is_dir():
        pytest.skip("there are no photographs in shared/data/photos beside the project")
    return folder


@pytest.fixture
def fresh(tmp_path):
    """A server of the test's own, over folders of its own, to be killed and started again."""
    if not COMFYUI.joinpath("main.py").is_file():
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    server = Server(tmp_path / "comfyui", "--disable-api-nodes", "--cache-none")
    yield server
    if server.process is not None and server.process.poll() is None:
        server.stop()
    shutil.rmtree(tmp_path / "comfyui", ignore_errors=True)
