"""The scripts of ComfyUI's page that need no page, in node's own test runner. Only development needs node."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "javascript" / "comfyui"
NODE = shutil.which("node")
OLDEST_NODE = (20, 19)  # reads a .js file as the module that it is


def node_is_too_old():
    if NODE is None:
        return True
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_NODE


@pytest.mark.skipif(node_is_too_old(), reason="node 20.19 or later is not installed")
@pytest.mark.parametrize("file", sorted((HERE / "comfyui").glob("*.test.mjs")), ids=lambda path: path.stem)
def test_scripts(file):
    done = subprocess.run([NODE, "--test", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def sources():
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(SCRIPTS.glob("*.js"))}


def test_only_the_adapter_calls_the_page_of_comfyui():
    for name, text in sources().items():
        imported = re.findall(r"""from ["']([^"']+)["']""", text)
        assert imported or name in ("format.js", "series.js", "runs.js", "elements.js", "text.js")
        outside = [path for path in imported if not path.startswith("./")]
        assert outside == (["../../scripts/api.js", "../../scripts/app.js"] if name == "comfy.js" else []), name
        if name != "comfy.js":
            assert not re.search(r"\b(LiteGraph|LGraph\w*|window|comfyAPI)\b", code_of(text)), name


def test_what_is_asked_of_the_adapter_is_in_it():
    found = sources()
    asked = set(re.findall(r"\bcomfy\.(\w+)", code_of(found["atelier.js"]))) - {"js"}
    there = set(re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", found["comfy.js"], re.MULTILINE))
    assert asked and asked <= there


def test_text_is_put_into_the_page_as_text():
    for name, text in sources().items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )


def test_nothing_of_the_host_is_patched_and_no_key_is_taken():
    for name, text in sources().items():
        assert not re.search(r"\.prototype|getCanvasMenuItems|getNodeMenuItems|keybindings", code_of(text)), name


def code_of(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
