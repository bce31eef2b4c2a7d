"""Tests on ComfyUI, which `COMFYUI_PATH` names. They run in a Python that has ComfyUI's packages and pytest:

    COMFYUI_PATH=/path/to/ComfyUI python -m pytest tests/hosts/comfy

Those in `in_process/` import ComfyUI into the test's own process, on the CPU.
"""

import os
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMFYUI = os.environ.get("COMFYUI_PATH", "")

if "sd_atelier" not in sys.modules and not any((Path(p) / "sd_atelier").exists() for p in sys.path):
    # ComfyUI's Python need not have the project installed
    package = types.ModuleType("sd_atelier")
    package.__path__ = [str(ROOT)]
    sys.modules["sd_atelier"] = package


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if not COMFYUI and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="COMFYUI_PATH names no ComfyUI"))
