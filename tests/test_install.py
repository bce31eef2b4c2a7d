"""install.py adds what is missing and changes nothing: run in an environment and on packages made on the spot."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

INSTALL = Path(__file__).parents[1] / "install.py"
MODULES = {"pillow": "PIL", "onnxruntime-gpu": "onnxruntime"}

LIST_INSTALLED = """
import importlib.metadata, json
found = [d.metadata for d in importlib.metadata.distributions()]
print(json.dumps(sorted(f'{m.get("Name")}=={m.get("Version")}' for m in found)))
"""


def metadata(name, version, requires):
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    return "\n".join(lines) + "\n"


class Environment:
    """An environment with pip, to which packages are added as a host would have them."""

    def __init__(self, folder):
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.packages = next(folder.rglob("site-packages"))
        self.fresh = set(self.packages.iterdir())

    def begin(self, folder):
        """Forget the packages of the test before; `folder` holds what this test offers for installation."""
        for path in set(self.packages.iterdir()) - self.fresh:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.offers, self.on_path = folder / "offers", folder / "on_path"
        self.offers.mkdir()
        self.on_path.mkdir()

    def has(self, name, version="1.0", requires=(), direct_url=None):
        """Put an installed package in."""
        info = self.packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(metadata(name, version, requires))
        (info / "RECORD").write_text("")
        if direct_url is not None:
            (info / "direct_url.json").write_text(json.dumps(direct_url))
        self.module(self.packages, MODULES.get(name, name))

    def has_all(self, *but):
        """Put in everything that the pack wants, torch included, except `but`."""
        for name in {"torch", "numpy", "pillow", "safetensors", "kornia", "matplotlib", "onnxruntime"} - set(but):
            self.has(name)

    def offer(self, name, version, requires=()):
        """Make a wheel that can be installed."""
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(self.offers / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{MODULES.get(name, name)}/__init__.py", "")
            wheel.writestr(f"{info}/METADATA", metadata(name, version, requires))
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")

    @staticmethod
    def module(folder, name, text=""):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
        (folder / name / "__main__.py").write_text(text)

    def run(self, *arguments):
        """Run Python there, offline; (status, what it said)."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
        env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.offers)}
        env |= {"PYTHONPATH": str(self.on_path)}
        command = [str(self.python), *map(str, arguments)]
        done = subprocess.run(command, env=env, cwd=self.on_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def installed(self):
        status, said = self.run("-c", LIST_INSTALLED)
        assert status == 0, said
        return json.loads(said)

    def watch_pip(self):
        """Put a pip in front of pip that fails and leaves a trace; returns where the trace will be."""
        trace = self.on_path / "called"
        self.module(self.on_path, "pip", f"open({str(trace)!r}, 'w').close(); raise SystemExit(99)")
        return trace


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("environment") / "venv")


@pytest.fixture
def host(environment, tmp_path):
    environment.begin(tmp_path)
    return environment


def test_nothing_missing_calls_no_installer_and_says_nothing(host):
    host.has_all()
    trace = host.watch_pip()
    assert host.run(INSTALL) == (0, "")
    assert not trace.exists()


def test_the_watched_pip_is_called_when_something_is_missing(host):
    host.has_all("matplotlib")
    trace = host.watch_pip()
    status, _ = host.run(INSTALL)
    assert status == 1
    assert trace.exists()


def test_what_is_missing_is_added_in_a_version_that_fits_and_the_rest_stays(host):
    host.has_all("numpy", "matplotlib")
    host.has("numpy", "1.26.2")
    host.offer("numpy", "2.4.0")
    host.offer("matplotlib", "3.8", ["numpy>=1.20", "newcomer"])
    host.offer("matplotlib", "3.11", ["numpy>=2"])
    host.offer("newcomer", "1.0", ["numpy"])
    host.offer("kornia", "9.0")
    before = host.installed()
    status, said = host.run(INSTALL)
    assert (status, said) == (0, "Atelier: installed matplotlib 3.8\n")
    assert host.installed() == sorted([*before, "matplotlib==3.8", "newcomer==1.0"])


def test_what_only_comes_with_a_change_does_not_come_and_the_sentence_says_so(host):
    host.has_all("numpy", "matplotlib")
    host.has("numpy", "1.26.2")
    host.offer("numpy", "2.4.0")
    host.offer("matplotlib", "3.11", ["numpy>=2"])
    before = host.installed()
    status, said = host.run(INSTALL)
    assert status == 1
    assert "matplotlib is missing and could not be added" in said
    assert "Traceback" not in said
    assert said.count("\n") == 1
    assert host.installed() == before


def test_one_that_fails_does_not_stop_the_others(host):
    host.has_all("kornia", "matplotlib")
    host.offer("matplotlib", "3.8")
    status, said = host.run(INSTALL)
    assert status == 1
    assert "kornia is missing" in said
    assert "installed matplotlib 3.8" in said


def test_any_installed_package_can_be_a_constraint(host):
    host.has_all("torch", "matplotlib")
    host.has("torch", "2.1.2+cu121")
    host.has("from-a-link", "1.0", direct_url={"url": "https://example.org/a.whl", "archive_info": {}})
    host.has("from-a-folder", "2.0", direct_url={"url": "file:///a", "dir_info": {"editable": True}})
    host.has("oddly-versioned", "2004d-custom build")
    (host.packages / "~ornia-0.6.dist-info").mkdir()
    # Found first, so this is the version that Python imports; the one in the environment is hidden by it.
    twice = host.on_path / "from_a_link-3.0.dist-info"
    twice.mkdir()
    (twice / "METADATA").write_text(metadata("From_A.Link", "3.0", []))
    host.offer("matplotlib", "3.8", ["torch>=2", "from-a-folder", "from-a-link"])
    status, said = host.run(INSTALL)
    assert "installed matplotlib 3.8" in said
    assert status == 0
    assert {"torch==2.1.2+cu121", "from-a-folder==2.0"} <= set(host.installed())


def test_a_folder_left_by_an_uninstall_counts_as_missing(host):
    host.has_all("matplotlib")
    (host.packages / "matplotlib" / "leftover").mkdir(parents=True)
    host.offer("matplotlib", "3.8")
    assert host.run(INSTALL) == (0, "Atelier: installed matplotlib 3.8\n")


def test_a_damaged_installation_is_named_and_not_repaired_behind_the_users_back(host):
    host.has_all()
    shutil.rmtree(host.packages / "matplotlib")
    host.offer("matplotlib", "3.8")
    before = host.installed()
    status, said = host.run(INSTALL)
    assert status == 1
    assert "damaged" in said
    assert host.installed() == before


def test_a_variant_of_onnxruntime_is_enough(host):
    host.has_all("onnxruntime")
    host.has("onnxruntime-gpu", "1.17")
    host.offer("onnxruntime", "1.31")
    assert host.run(INSTALL) == (0, "")


def test_onnxruntime_is_added_where_there_is_no_variant(host):
    host.has_all("onnxruntime")
    host.offer("onnxruntime", "1.31")
    assert host.run(INSTALL) == (0, "Atelier: installed onnxruntime 1.31\n")


def test_an_extra_that_cannot_be_had_is_said_and_is_no_failure(host):
    host.has_all("onnxruntime")
    status, said = host.run(INSTALL)
    assert status == 0
    assert "onnxruntime is missing" in said


@pytest.mark.parametrize("skip", [True, False])
def test_the_webui_can_say_that_nothing_is_to_be_installed(host, skip):
    host.has_all("matplotlib")
    host.offer("matplotlib", "3.8")
    (host.on_path / "launch.py").write_text(f"class args:\n    skip_install = {skip}\n")
    before = host.installed()
    status, said = host.run(INSTALL)
    assert status == 0
    assert "matplotlib" in said
    assert (host.installed() == before) is skip


def test_nothing_is_installed_where_there_is_no_torch(host):
    host.has_all("torch", "kornia")
    host.offer("kornia", "0.9", ["torch"])
    host.offer("torch", "2.12")
    before = host.installed()
    status, said = host.run(INSTALL)
    assert status == 1
    assert "has no torch" in said
    assert host.installed() == before


def test_importing_it_does_nothing(host):
    trace = host.watch_pip()
    status, said = host.run("-c", f"import sys; sys.path.insert(0, {str(INSTALL.parent)!r}); import install")
    assert (status, said) == (0, "")
    assert not trace.exists()


def test_uv_is_used_under_the_same_constraints_where_there_is_no_pip(host):
    host.has_all("matplotlib")
    # A pip without a file cannot be run, as in an environment that uv made.
    runner = host.on_path / "without_pip.py"
    runner.write_text(
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'pip' else find(name, *rest)\n"
        f"runpy.run_path({str(INSTALL)!r}, run_name='__main__')\n"
    )
    status, said = host.run(runner)
    assert status == 1
    assert "neither pip nor uv" in said
    trace = host.on_path / "uv.json"
    host.module(
        host.on_path,
        "uv",
        "import json, pathlib, sys\n"
        "lines = pathlib.Path(sys.argv[sys.argv.index('--constraint') + 1]).read_text().splitlines()\n"
        f"pathlib.Path({str(trace)!r}).write_text(json.dumps([sys.argv[1:], lines]))\n"
        "raise SystemExit(1)\n",
    )
    host.run(runner)
    arguments, constraints = json.loads(trace.read_text())
    assert arguments[:2] == ["pip", "install"]
    assert arguments[-1] == "matplotlib"
    assert "torch==1.0" in constraints
