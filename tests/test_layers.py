"""The rules that keep the core apart from its hosts, read from the source: imports, layers, unsafe calls, bad handlers.

The layers are read from the map in lib/__init__.py, so that the map cannot say one thing and this test another.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What the core may import when it is imported itself, and what it may import inside functions only.
AT_TOP = {"torch", "safetensors", "numpy", "PIL", "kornia"}
INSIDE = {"onnxruntime", "matplotlib", "bitsandbytes", "prodigyopt", "schedulefree", "transformers", "filelock", "tqdm"}
# The standalone host has its own packages; tomllib is there from Python 3.11 on, tomli before.
STANDALONE = {"diffusers", "transformers", "tqdm", "tomli", "tomllib"}
STANDARD = sys.stdlib_module_names - {"tomllib"}
OUR_FOLDERS = {"lib", "nodes", "scripts", "sd_atelier"}
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "marshal", "shelve", "joblib"}
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|opt|mnt|srv|tmp|usr|var|work|Users)/|\b[A-Z]:\\\w")


def layers_of(text):
    """Layer by file ("trainer.py") or folder ("data/") from the map."""
    layers, layer = {}, None
    for line in text.splitlines():
        entry = re.match(r" {4}(?:L(\d))? +(\w+(?:\.py|/))  ", line)
        if entry:
            layer = int(entry[1]) if entry[1] else layer
            layers[entry[2]] = layer
    return layers


LAYERS = layers_of(ast.get_docstring(ast.parse((ROOT / "lib/__init__.py").read_text(encoding="utf-8")), clean=False))


def layer_of(path):
    """Layer of a path inside lib ("data/scan.py"), or None where the map does not name it."""
    first, _, rest = path.partition("/")
    return LAYERS.get(f"{first}/") if rest else LAYERS.get(first)


def imports(tree):
    """(node, number of dots, dotted name, whether inside a function) for each import."""
    inside = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node, 0, name.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            # `from . import a` names the module only in what is imported
            names = [node.module] if node.module else [name.name for name in node.names]
            for name in names:
                yield node, node.level, name, id(node) in inside


def wrong_imports(path, tree):
    """Sentences about the imports of the file at `path`, posix and relative to the root, that break a rule."""
    folders = path.split("/")[:-1]
    core = folders[:1] == ["lib"]
    standalone = folders[:2] == ["lib", "standalone"]
    for node, dots, name, inside in imports(tree):
        first = name.split(".")[0]
        where = f"{path}:{node.lineno}"
        if dots:
            if dots > len(folders) + 1:
                yield f"{where} imports from outside the pack"
                continue
            target = [*folders[: len(folders) + 1 - dots], *name.split(".")]
            yield from (f"{where} {fault}" for fault in wrong_target(path, target))
        elif first in OUR_FOLDERS:
            yield f"{where} imports {name} by an absolute name; another extension's may answer to it"
        elif first in UNPICKLERS:
            yield f"{where} imports {first}, which executes what it reads"
        elif core and first not in STANDARD | AT_TOP | (STANDALONE if standalone else set()):
            if first not in INSIDE:
                yield f"{where} imports {first}, which the core may not need"
            elif not inside:
                yield f"{where} imports {first} at the top; import it inside the function that needs it"
        elif path == "install.py" and first not in sys.stdlib_module_names:
            yield f"{where} imports {first}; install.py has only the standard library"


def wrong_target(path, target):
    """Sentences about a relative import of `target`, folders and module from the root, in the file at `path`."""
    source = path.split("/")[0]
    if source == "lib" and target[0] != "lib":
        yield f"imports {'.'.join(target)}; the core knows nothing outside lib"
    elif {source, target[0]} == {"nodes", "scripts"}:
        yield f"imports {'.'.join(target)}; the two hosts never import each other"
    elif source == "lib" and len(target) > 1:
        inner = f"{target[1]}/" if f"{target[1]}/" in LAYERS else f"{target[1]}.py"
        own, other = layer_of(path[len("lib/") :]), LAYERS.get(inner)
        if own is not None and other is not None and other > own:
            yield f"is of layer {own} and imports lib.{target[1]} of layer {other}"


def dotted(node):
    """`a.b.c` of an expression, or an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def unsafe_code(path, tree):
    """Sentences about what no file may do: run data or a shell, swallow every error, name a path of one machine."""
    for node in ast.walk(tree):
        where = f"{path}:{getattr(node, 'lineno', 1)}"
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if name in {"eval", "exec", "compile", "__import__"}:
                yield f"{where} calls {name}"
            elif name == "torch.load" and given.get("weights_only") is not True:
                yield f"{where} calls torch.load without weights_only=True"
            elif name in {"os.system", "os.popen"} or given.get("shell") is True:
                yield f"{where} runs a shell"
            elif given.get("allow_pickle") is True:
                yield f"{where} allows pickles"
        elif isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = node.type is None or {dotted(c) for c in caught} & {"Exception", "BaseException"}
            if broad and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                yield f"{where} catches everything and raises nothing"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MACHINE_PATH.search(node.value):
            yield f"{where} names a path of one machine: {MACHINE_PATH.search(node.value)[0]}"


def sources():
    """Every file of Python that is shipped, posix and relative to the root."""
    files = [ROOT / "__init__.py", ROOT / "install.py"]
    for folder in ("lib", "nodes", "scripts"):
        files += sorted((ROOT / folder).rglob("*.py"))
    return [file.relative_to(ROOT).as_posix() for file in files]


@pytest.mark.parametrize("path", sources())
def test_a_file_keeps_the_rules(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert [*wrong_imports(path, tree), *unsafe_code(path, tree)] == []
    assert ast.get_docstring(tree) or not tree.body, f"{path} does not say what it is"


def test_the_map_names_every_file_and_nothing_else():
    inside = [Path(path).relative_to("lib").as_posix() for path in sources() if path.startswith("lib/")]
    inside.remove("__init__.py")
    assert [path for path in inside if layer_of(path) is None] == []
    assert [entry for entry in LAYERS if not (ROOT / "lib" / entry).exists()] == []


def test_the_map_itself_imports_nothing():
    tree = ast.parse((ROOT / "lib/__init__.py").read_text(encoding="utf-8"))
    assert list(imports(tree)) == []


def test_layers_are_read_from_the_map():
    text = "Words.\n\n    L0  first.py     words\n        second.py    words\n    L1  third/       words\n"
    assert layers_of(text) == {"first.py": 0, "second.py": 0, "third/": 1}
    assert LAYERS["registry.py"] == 0
    assert LAYERS["trainer.py"] > LAYERS["data/"] > LAYERS["noise.py"] > LAYERS["config.py"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("lib/noise.py", "from .trainer import train"),
        ("lib/noise.py", "def f():\n    from . import trainer"),
        ("lib/data/scan.py", "from ..strip import compose"),
        ("lib/data/scan.py", "from ...nodes import host"),
        ("lib/data/scan.py", "from .... import anything"),
        ("lib/noise.py", "import lib.config"),
        ("lib/noise.py", "from sd_atelier.lib import config"),
        ("lib/noise.py", "import diffusers"),
        ("lib/noise.py", "def f():\n    import diffusers"),
        ("lib/noise.py", "import comfy.model_management"),
        ("lib/noise.py", "def f():\n    from modules import shared"),
        ("lib/noise.py", "import tomllib"),
        ("lib/charts.py", "import matplotlib.pyplot as plt"),
        ("lib/charts.py", "try:\n    import matplotlib\nexcept ImportError:\n    matplotlib = None"),
        ("lib/charts.py", "class A:\n    import matplotlib"),
        ("lib/standalone/cli.py", "import gradio"),
        ("lib/standalone/cli.py", "import pickle"),
        ("nodes/train.py", "from ..scripts.webui import host"),
        ("nodes/train.py", "from .. import scripts"),
        ("scripts/webui/tab.py", "from ...nodes import train"),
        ("scripts/atelier.py", "from lib import config"),
        ("install.py", "import torch"),
    ],
)
def test_a_wrong_import_is_found(path, code):
    assert list(wrong_imports(path, ast.parse(code)))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (
            "lib/trainer.py",
            "import math\nimport torch.nn.functional as F\nfrom .noise import x\nfrom .data.scan import y",
        ),
        ("lib/data/scan.py", "from . import captions\nfrom .captions import read\nfrom ..config import DataConfig"),
        ("lib/charts.py", "def f():\n    import matplotlib.pyplot as plt"),
        ("lib/standalone/cli.py", "import diffusers\nfrom .. import trainer\nfrom ..trainer import train"),
        ("nodes/train.py", "import comfy.sd\nfrom ..lib.trainer import train\nfrom .host import ComfyHost"),
        ("scripts/webui/tab.py", "import gradio\nfrom modules import shared\nfrom ...lib.trainer import train"),
        ("install.py", "import subprocess"),
    ],
)
def test_a_right_import_is_left_alone(path, code):
    assert list(wrong_imports(path, ast.parse(code))) == []


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "try:\n    f()\nexcept:\n    pass",
        "try:\n    f()\nexcept Exception as error:\n    print(error)",
        "try:\n    f()\nexcept (ValueError, BaseException):\n    pass",
        "path = '/home/someone/models'",
        'path = "C:\\\\Users\\\\someone"',
        "def f():\n    'Reads /opt/models/x.'",
    ],
)
def test_unsafe_code_is_found(code):
    assert list(unsafe_code("lib/noise.py", ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "re.compile(text)",
        "torch.load(path, weights_only=True)",
        "try:\n    f()\nexcept OSError:\n    pass",
        "try:\n    f()\nexcept BaseException:\n    put_back()\n    raise",
        "route = '/atelier/v1/start'",
        "text = 'loss and/or rate, https://example.org/home/x'",
    ],
)
def test_safe_code_is_left_alone(code):
    assert list(unsafe_code("lib/noise.py", ast.parse(code))) == []
