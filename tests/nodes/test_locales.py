"""The translations of the nodes against the nodes themselves, whose schemas are read with a stand-in for ComfyUI."""

import importlib
import importlib.abc
import importlib.machinery
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

ROOT = Path(__file__).parents[2]
LOCALES = ROOT / "locales"
DOCS = ROOT / "javascript" / "comfyui" / "docs"
KINDS = ("Boolean", "Clip", "Combo", "Conditioning", "Float", "Image", "Int", "Latent", "Model", "String", "Vae")
LANGUAGES = ("en", "ja", "zh")
HOST_MODULES = ("comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "node_helpers")


def translations(language, file):
    return json.loads((LOCALES / language / f"{file}.json").read_text(encoding="utf-8"))


class Kind:
    """A kind of socket or widget: what its Input and Output are given is kept."""

    @staticmethod
    def Input(id, display_name=None, tooltip=None, **about):
        return SimpleNamespace(id=id, display_name=display_name, tooltip=tooltip, **about)

    Output = Input


def stand_in_for_io():
    io = MagicMock()
    io.Schema = lambda **about: SimpleNamespace(**{"inputs": [], "outputs": [], **about})
    io.ComfyNode = type("ComfyNode", (), {})
    io.Custom = lambda name: Kind
    for name in [
        "Boolean",
        "Clip",
        "Combo",
        "Conditioning",
        "Float",
        "Image",
        "Int",
        "Latent",
        "Model",
        "String",
        "Vae",
    ]:
        setattr(io, name, Kind)
    return io


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HOST_MODULES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = MagicMock(__path__=[], __spec__=spec)
        if spec.name == "comfy_api.latest":
            module.io = stand_in_for_io()
            module.ComfyExtension = type("ComfyExtension", (), {})
        if spec.name == "folder_paths":
            module.get_filename_list.return_value = []
            module.get_output_directory.return_value = str(ROOT / "no-such-folder")
        return module

    def exec_module(self, module):
        pass


@pytest.fixture(scope="module")
def schemas():
    """Node id -> schema, of every node that ComfyUI is given."""
    finder = StandIns()
    before = dict(sys.modules)
    sys.meta_path.insert(0, finder)
    try:
        for name in before:
            if name.partition(".")[0] in HOST_MODULES or name.startswith("sd_atelier.nodes."):
                del sys.modules[name]
        nodes = importlib.import_module("sd_atelier.nodes.extension").NODES
        found = [node.define_schema() for node in nodes]
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name not in before]:
            if name.partition(".")[0] in HOST_MODULES or name.startswith("sd_atelier.nodes."):
                del sys.modules[name]
        sys.modules.update(before)
    return {schema.node_id: schema for schema in found}


def keys(value, path=""):
    if isinstance(value, dict):
        return {key for name, item in value.items() for key in keys(item, f"{path}/{name}")}
    return {path}


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_node_input_and_output_has_a_name_and_a_tooltip(schemas, language):
    expected = {
        node_id: {
            "display_name": 0,
            "description": 0,
            "inputs": {i.id: {"name": 0, "tooltip": 0} for i in schema.inputs},
            "outputs": {str(n): {"name": 0, "tooltip": 0} for n in range(len(schema.outputs))},
        }
        for node_id, schema in schemas.items()
    }
    found = translations(language, "nodeDefs")
    assert keys(found) == keys(expected)
    empty = [key for key in keys(found) if not value_at(found, key)]
    assert empty == []


def value_at(tree, path):
    for key in path.strip("/").split("/"):
        tree = tree[key]
    return tree


def test_english_says_what_the_nodes_say(schemas):
    # ComfyUI shows the translation in place of what the node says, so a stale one would hide a change.
    found = translations("en", "nodeDefs")
    for node_id, schema in schemas.items():
        about = found[node_id]
        assert (about["display_name"], about["description"]) == (schema.display_name, schema.description)
        assert {name: i["tooltip"] for name, i in about["inputs"].items()} == {i.id: i.tooltip for i in schema.inputs}
        assert [o["tooltip"] for o in about["outputs"].values()] == [o.tooltip for o in schema.outputs]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_inputs_of_a_node_have_the_same_name(language):
    for node_id, about in translations(language, "nodeDefs").items():
        names = [i["name"] for i in about["inputs"].values()]
        assert len(names) == len(set(names)), node_id


@pytest.mark.parametrize("language", [name for name in LANGUAGES if name != "en"])
@pytest.mark.parametrize("file", ["nodeDefs", "main", "commands", "settings"])
def test_other_languages_have_the_same_keys_and_blanks_as_english(language, file):
    english, other = translations("en", file), translations(language, file)
    assert keys(other) == keys(english)
    for key in keys(english):
        assert blanks(value_at(other, key)) == blanks(value_at(english, key)), key


@pytest.mark.parametrize("language", [name for name in LANGUAGES if name != "en"])
def test_tooltips_are_translated(language):
    english, other = translations("en", "nodeDefs"), translations(language, "nodeDefs")
    same = [key for key in keys(english) if key.endswith("/tooltip") and value_at(english, key) == value_at(other, key)]
    assert same == []


def blanks(text):
    return sorted(re.findall(r"\{\w+\}", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_node_texts_hold_nothing_that_the_page_would_read_as_a_formula(language):
    # In ComfyUI's translations {} is a blank, @ a link to another text, and | separates plurals.
    found = translations(language, "nodeDefs")
    assert [key for key in keys(found) if re.search(r"[{}@|]", value_at(found, key))] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_node_has_a_help_page_with_a_picture_that_names_every_input(schemas, language):
    for node_id, about in translations(language, "nodeDefs").items():
        page = DOCS / (f"{node_id}.md" if language == "en" else f"{node_id}/{language}.md")
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {about['display_name']}\n"), page
        (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert (DOCS / picture).is_file(), page
        for part in ("inputs", "outputs"):
            for value in about[part].values():
                assert f"| {value['name']} | {value['tooltip']} |\n" in text, f"{page}: {value['name']}"
    assert {page.stem for page in DOCS.glob("*.md")} == set(schemas)


def test_words_of_the_panels_that_the_scripts_ask_for_are_there():
    words = translations("en", "main")["atelier"]
    words |= {"commands": translations("en", "commands"), "settings": translations("en", "settings")}
    asked = set()
    for script in DOCS.parent.glob("*.js"):
        asked |= set(re.findall(r"""\bt\(["']([\w.]+)["']""", script.read_text(encoding="utf-8")))
    assert asked, "no script asks for words"
    for key in asked:
        assert isinstance(value_at(words, key.replace(".", "/")), str), key
