"""A real WebUI for the tests of this folder, which are skipped, saying so, where none is named.

A1111_PATH: a checkout of AUTOMATIC1111's WebUI. A1111_CHECKPOINTS: a folder of small checkpoints of random weights,
whose names say what they are (sd15, sd2, sdxl, with -v for v-prediction). A1111_PYTHON: the Python that the WebUI runs
in, this one by default. A1111_PHOTOS: a folder of a few pictures.
"""

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NEEDED = ("A1111_PATH", "A1111_CHECKPOINTS", "A1111_PHOTOS")
FAMILIES = {"sd15": "sd1", "sd2": "sd2", "sdxl": "sdxl"}


def missing():
    """Why these tests cannot run here, or an empty text."""
    lacking = [name for name in NEEDED if not Path(os.environ.get(name) or "/nothing at all").exists()]
    return f"{', '.join(lacking)} must name a WebUI, checkpoints and pictures" if lacking else ""


def checkpoints():
    """The checkpoints that there are: file stem -> (path, family)."""
    if missing():
        return {}
    found = {}
    for path in sorted(Path(os.environ["A1111_CHECKPOINTS"]).glob("*.safetensors")):
        family = next((family for part, family in FAMILIES.items() if part in path.stem.split("-")), None)
        if family:
            found[path.stem] = path, family
    return found


def laws(file):
    """The names of the laws in a file, in order."""
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("law_")]


def go_on(checkpoint, data, **environment):
    """What `go_on.py` says of a run in a new WebUI process, with a checkpoint's file and an empty folder of its own."""
    environment = {**os.environ, "A1111_CHECKPOINT": str(checkpoint), "A1111_DATA": str(data), **environment}
    command = [os.environ.get("A1111_PYTHON", sys.executable), str(HERE / "go_on.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"status"')]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(lines[0])


@dataclass
class WebUi:
    """WebUI processes, one for each checkpoint and set of options, and what they said of each law."""

    folder: Path
    said: dict = field(default_factory=dict)

    def wrong(self, checkpoint, law, wanted, arguments="--no-half", **environment):
        """What is wrong with a law on a checkpoint, or an empty text. `wanted`: the laws that the process runs."""
        key = (checkpoint, arguments, *environment.items())
        if key not in self.said:
            self.said[key] = self.run(checkpoint, wanted, arguments, **environment)
        said, output = self.said[key]
        return said[law] if law in said else f"the WebUI ended before it was tried:\n{output[-4000:]}"

    def run(self, checkpoint, wanted, arguments, **environment):
        """Run laws in a new process: (law -> what is wrong with it, everything that it printed)."""
        path, family = checkpoints()[checkpoint]
        data = self.folder / f"{checkpoint}{len(self.said)}"
        environment = {
            **os.environ,
            "A1111_CHECKPOINT": str(path),
            "A1111_FAMILY": family,
            "A1111_DATA": str(data),
            "A1111_ARGS": arguments,
            "A1111_LAWS": " ".join(wanted),
            **environment,
        }
        python = os.environ.get("A1111_PYTHON", sys.executable)
        done = subprocess.run(
            [python, str(HERE / "laws.py")], env=environment, capture_output=True, text=True, timeout=1800, check=False
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"law"')]
        return {line["law"]: line["wrong"] for line in lines}, done.stdout + done.stderr


@pytest.fixture(scope="session")
def webui(tmp_path_factory):
    """The WebUI's processes of this session."""
    return WebUi(tmp_path_factory.mktemp("webui"))
