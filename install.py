"""Installs what the pack needs and the host lacks; changes nothing that is installed.

Both hosts run this file as a program of its own: AUTOMATIC1111's WebUI with its root as working folder and on
PYTHONPATH, ComfyUI's manager from this folder. Standard library only. Where nothing is missing it neither calls an
installer nor prints. Whatever is installed, in whatever version, is a constraint on what may be added: a package that
could only come with a change to another one does not come at all, and the message says so. In a Python without torch,
which is no host's, nothing is installed: kornia would bring torch and gigabytes of libraries along. The exit status is
1 when a requirement is still missing at the end; an extra package that could not be had is said and is no failure.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Name of the package -> module that it brings.
REQUIREMENTS = {
    "safetensors": "safetensors",
    "numpy": "numpy",
    "pillow": "PIL",
    "kornia": "kornia",
    "matplotlib": "matplotlib",
}
# onnxruntime comes in variants under other names (-gpu, -directml, ...) that overwrite each other's files; all bring
# the same module, so that with any of them present nothing is missing.
EXTRAS = {"onnxruntime": "onnxruntime"}

# PEP 440, loosely. An installed package with a version of another kind cannot be named in a constraint file.
VERSION = re.compile(
    r"v?(\d+!)?\d+(\.\d+)*([-_.]?(a|b|c|rc|alpha|beta|pre|preview)[-_.]?\d*)?"
    r"(-\d+|[-_.]?(post|rev|r)[-_.]?\d*)?([-_.]?dev[-_.]?\d*)?(\+[a-z0-9]+([-_.][a-z0-9]+)*)?",
    re.IGNORECASE,
)


def missing(packages: dict[str, str]) -> list[str]:
    """Those of `packages` (name -> module) whose module cannot be imported."""
    importlib.invalidate_caches()
    return [name for name, module in packages.items() if not _importable(module)]


def constraints() -> list[str]:
    """`name==version` for each installed package, as Python finds them on `sys.path` (the first of a name counts)."""
    lines: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name, version = distribution.metadata.get("Name"), distribution.metadata.get("Version")
        # An interrupted installation leaves folders without a name or a version.
        if name and version and VERSION.fullmatch(version):
            lines.setdefault(re.sub(r"[-_.]+", "-", name).lower(), f"{name}=={version}")
    return sorted(lines.values())


def install(package: str) -> str:
    """Install `package` beside everything that is installed. Returns what went wrong, or an empty text."""
    if _importable("pip"):
        installer = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        installer += ["--prefer-binary", "--upgrade-strategy", "only-if-needed", "--retries", "2"]
    elif _importable("uv"):
        installer = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    else:
        return "this Python has neither pip nor uv"
    with tempfile.TemporaryDirectory() as folder:
        constraint_file = Path(folder) / "installed.txt"
        constraint_file.write_text("\n".join(constraints()) + "\n", encoding="utf-8")
        command = [*installer, "--constraint", str(constraint_file), package]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode == 0:
        return "" if not missing({package: {**REQUIREMENTS, **EXTRAS}[package]}) else "its installation is damaged"
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in said if line.lower().startswith("error")] or said[-1:]
    return errors[-1] if errors else f"the installer ended with status {done.returncode}"


def main() -> int:
    """Install what is missing. Returns the exit status."""
    lacking = missing({**REQUIREMENTS, **EXTRAS})
    if not lacking:
        return 0
    if _told_to_skip():
        print(f"Atelier: nothing is installed, since the WebUI was started so; missing: {', '.join(lacking)}")
        return 0
    if missing({"torch": "torch"}):
        print(
            f"Atelier: nothing is installed, since {sys.executable} has no torch and so is not the Python of WebUI or "
            'ComfyUI; run install.py with theirs, or follow "Without a host" in README.md'
        )
        return 1
    for package in lacking:
        problem = install(package)
        if problem:
            print(
                f"Atelier: {package} is missing and could not be added to what is installed ({problem}); "
                f"nothing was changed; to add it yourself: {sys.executable} -m pip install {package}"
            )
        else:
            print(f"Atelier: installed {package} {importlib.metadata.version(package)}")
    return 1 if missing(REQUIREMENTS) else 0


def _importable(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    # A folder left behind by an uninstall is found as a namespace without a file.
    return spec is not None and spec.origin is not None


def _told_to_skip() -> bool:
    if not _importable("launch"):
        return False
    launch = importlib.import_module("launch")
    return bool(getattr(getattr(launch, "args", None), "skip_install", False))


if __name__ == "__main__":
    sys.exit(main())
