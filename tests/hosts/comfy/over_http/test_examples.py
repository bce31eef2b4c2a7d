"""Each example workflow runs as it is, on a small model, few steps and drawn pictures."""

import json
import shutil

import pytest
from comfy_client import ROOT

FOLDER = ROOT / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
CONTROLS = ("fixed", "increment", "decrement", "randomize")
CHECKPOINT = "sd15-mini-tae"
# so that a test is done in a minute
SMALL = {
    "AtelierTrain": {
        "steps": 4,
        "resolution": 64,
        "bucket_step": 32,
        "save_every_steps": 2,
        "preview_every_steps": 4,
        "preview_steps": 2,
        "preview_width": 64,
        "preview_height": 64,
        "record_probe_every_steps": 0,
    },
    "CheckpointLoaderSimple": {"ckpt_name": f"{CHECKPOINT}.safetensors"},
    "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 2},
}


def as_api(server, workflow):
    """A saved workflow as the browser queues it: widgets by name, links by node and output."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        info = server.call(f"/object_info/{node['type']}")[node["type"]]["input"]
        given = {**info.get("required", {}), **info.get("optional", {})}
        values = list(node.get("widgets_values") or [])
        inputs = {i["name"]: links[i["link"]] for i in node["inputs"] if i.get("link") is not None}
        for name, (kind, *about) in given.items():
            is_widget = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
            if is_widget and not (about and about[0].get("forceInput")):
                inputs.setdefault(name, values.pop(0))
                if values and values[0] in CONTROLS and about and about[0].get("control_after_generate"):
                    values.pop(0)
        assert values == [], f"{node['type']} has values left over: {values}"
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NAMES, key=lambda name: name.startswith("continue")))
def test_an_example_runs(server, graphs, drawn, name):
    graphs.model(CHECKPOINT)
    shutil.copytree(drawn, server.folder / "input" / "my-toy", dirs_exist_ok=True)
    graph = as_api(server, json.loads((FOLDER / f"{name}.json").read_text("utf-8")))
    for node in graph.values():
        node["inputs"] |= SMALL.get(node["class_type"], {})
    train = next(node for node in graph.values() if node["class_type"] == "AtelierTrain")
    if name.startswith("continue"):
        first = as_api(server, json.loads((FOLDER / "train_a_character.json").read_text("utf-8")))
        for node in first.values():
            node["inputs"] |= SMALL.get(node["class_type"], {})
        server.run(first)
        train["inputs"]["steps"] = 8
    outputs = server.run(graph)
    (id_of_train,) = (i for i, node in graph.items() if node is train)
    assert outputs[id_of_train]["atelier"][0]["state"] in ("finished", "restored")
    assert any("images" in output for output in outputs.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_a_picture_for_the_template_browser(name):
    assert (FOLDER / f"{name}.jpg").is_file()
