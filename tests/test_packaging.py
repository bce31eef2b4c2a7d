"""What is said in pyproject.toml, README and .ci/run is so, and what is built from them is whole."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import sd_atelier
from sd_atelier import install
from sd_atelier.lib.standalone.cli import COMMANDS

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHIPPED = ("lib", "nodes", "scripts")


def shipped_files():
    """What has to be in the wheel, relative to the root: the entries, and all files of the folders with code."""
    for folder in SHIPPED:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md":
                yield path.relative_to(ROOT).as_posix()
    yield "__init__.py"


def test_every_folder_with_code_is_a_listed_package():
    folders = {Path(file).parent for file in shipped_files() if file.endswith(".py")}
    packages = {".".join(["sd_atelier", *folder.parts]) for folder in folders}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(packages)


@pytest.mark.parametrize("folder", ["lib", "nodes"])
def test_every_folder_with_code_can_be_imported_as_a_package(folder):
    folders = {path.parent for path in (ROOT / folder).rglob("*.py")}
    assert [path for path in folders if not (path / "__init__.py").exists()] == []


def test_the_wheel_holds_every_file(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    # Built from a copy, because setuptools leaves a build folder behind that a later build would pick up.
    tree, wheels = tmp_path / "tree", tmp_path / "wheels"
    wheels.mkdir()
    for file in [*shipped_files(), "install.py", "pyproject.toml", "README.md", "LICENSE"]:
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tree / file)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(wheels)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        held = {name.removeprefix("sd_atelier/") for name in wheel.namelist() if name.startswith("sd_atelier/")}
    assert [file for file in shipped_files() if file not in held] == []
    assert [name for name in held if name.startswith("tests/")] == []


def test_install_py_wants_what_the_metadata_wants():
    assert set(install.REQUIREMENTS) == set(PROJECT["project"]["dependencies"])
    assert set(install.EXTRAS) == set(PROJECT["project"]["optional-dependencies"]["tagger"])


def test_nothing_that_a_host_has_is_pinned_and_torch_is_not_asked_for():
    dependencies = PROJECT["project"]["dependencies"]
    assert [name for name in dependencies if not re.fullmatch(r"[a-z0-9_-]+", name)] == []
    assert "torch" not in dependencies
    assert not (ROOT / "requirements.txt").exists(), (
        "ComfyUI's manager would install it without install.py's constraint"
    )


def test_the_extras_are_there_and_the_demo_brings_torch_itself():
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"standalone", "demo", "test", "tagger", "optim"}
    assert "sd-atelier[standalone]" in extras["demo"]
    # kornia asks for any torch: only beside a pinned one does pip not fetch the newest with all of CUDA
    assert any(re.fullmatch(r"torch==[\d.]+", requirement) for requirement in extras["demo"])
    assert "sd-atelier[demo]" in extras["test"]


def test_the_oldest_python_is_the_same_everywhere():
    assert PROJECT["project"]["requires-python"] == ">=3.10"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py310"
    assert PROJECT["tool"]["pyright"]["pythonVersion"] == "3.10"


def test_the_comfyui_registry_gets_what_it_reads():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert len(project["name"]) <= 100
    assert "comfyui" not in project["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    # WEB_DIRECTORY names the folder of scripts; a second place could only disagree with it
    assert "web" not in comfy
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= set(comfy)
    assert [key for key in ("Icon", "Banner") if key in comfy and not (ROOT / comfy[key]).exists()] == []


def test_the_readme_has_one_command_to_run_and_one_to_test():
    commands = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert [command.rsplit(" && ", 1)[1] for command in commands] == [
        ".venv/bin/atelier demo",
        ".venv/bin/python -m pytest -n 2 --dist loadfile",
    ]
    named = {extra for command in commands for extra in re.findall(r"\[(\w+)\]", command)}
    assert named <= set(PROJECT["project"]["optional-dependencies"])


def test_the_readme_names_every_command():
    assert set(re.findall(r"^atelier (\w+)", README, re.MULTILINE)) == set(COMMANDS)


def test_ci_runs_the_readmes_test_command():
    pattern = re.search(r"grep -E '(.+)' README\.md", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    assert pattern
    lines = [line for line in README.splitlines() if re.search(pattern[1], line)]
    assert len(lines) == 1
    assert lines[0].endswith(".venv/bin/python -m pytest -n 2 --dist loadfile")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_prescribed_top_level_is_there():
    names = "__init__.py install.py scripts nodes javascript lib tests README.md pyproject.toml LICENSE CHANGELOG.md"
    assert [name for name in names.split() if not (ROOT / name).exists()] == []


def test_the_web_folder_that_comfyui_is_told_is_there():
    assert (ROOT / sd_atelier.WEB_DIRECTORY).is_dir()
    assert list((ROOT / sd_atelier.WEB_DIRECTORY).glob("*.js"))


def test_the_entry_imports_nothing_of_a_host():
    code = f"import sys; sys.path.insert(0, {str(ROOT.parent)!r}); __import__({ROOT.name!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & {"torch", "numpy", "comfy_api", "kornia", "matplotlib"} == set()
