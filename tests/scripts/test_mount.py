"""The WebUI's entry: the pack under a name of its own, imported anew unless a run goes on."""

import importlib
import runpy
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def entry(monkeypatch):
    """`scripts/atelier.py` as the WebUI executes it, and the modules of this process as they were afterwards."""
    before = dict(sys.modules)
    yield types.SimpleNamespace(**runpy.run_path(str(ROOT / "scripts/atelier.py")))
    sys.modules.clear()
    sys.modules.update(before)


def test_the_pack_is_found_below_its_folder_though_others_have_the_same_names(entry):
    sys.modules["lib"] = sys.modules["scripts"] = types.ModuleType("another extension's")
    path = list(sys.path)
    entry.mount(ROOT, False)
    config = importlib.import_module("sd_atelier.lib.config")
    runs = importlib.import_module("sd_atelier.scripts.webui.runs")
    assert Path(config.__file__) == ROOT / "lib/config.py" and runs.RunConfig is config.RunConfig
    assert sys.modules["lib"].__name__ == "another extension's" and sys.path == path


def test_mounting_again_imports_anew(entry):
    entry.mount(ROOT, False)
    first = importlib.import_module("sd_atelier.lib.config")
    entry.mount(ROOT, False)
    assert importlib.import_module("sd_atelier.lib.config") is not first


def test_modules_stay_under_a_live_run(entry):
    entry.mount(ROOT, False)
    first = importlib.import_module("sd_atelier.lib.config")
    entry.mount(ROOT, True)
    assert importlib.import_module("sd_atelier.lib.config") is first


@pytest.mark.parametrize("is_live", [False, True])
def test_a_run_that_goes_on_is_seen_on_the_hosts_shared_module(entry, monkeypatch, is_live):
    shared = types.ModuleType("modules.shared")
    monkeypatch.setitem(sys.modules, "modules", types.SimpleNamespace(shared=shared))
    monkeypatch.setitem(sys.modules, "modules.shared", shared)
    assert not entry.live_runs()
    ended = types.SimpleNamespace(is_live=False)
    shared.atelier = types.SimpleNamespace(runs=[ended, types.SimpleNamespace(is_live=is_live)])
    assert entry.live_runs() == is_live
