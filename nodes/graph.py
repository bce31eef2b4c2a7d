"""The graph that is being queued, for checks that concern more than one node, and what its loaders would load.

ComfyUI checks a node's own widgets before anything runs, and knows of others only that they are linked. So the graph
is noted when it comes in, and checked in the same task.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_queued: ContextVar[Mapping[str, Any]] = ContextVar("atelier_queued", default={})  # noqa: B039 - never changed
_CONTEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
# class of a loader -> (its widget, the kind of folder)
_LOADERS = {
    "CheckpointLoaderSimple": ("ckpt_name", "checkpoints"),
    "CheckpointLoader": ("ckpt_name", "checkpoints"),
    "unCLIPCheckpointLoader": ("ckpt_name", "checkpoints"),
    "UNETLoader": ("unet_name", "diffusion_models"),
}


def note(data: dict[str, Any]) -> dict[str, Any]:
    """Called by ComfyUI with each graph that is queued; gives it back as it is."""
    prompt = data.get("prompt")
    _queued.set(prompt if isinstance(prompt, dict) else {})
    return data


def loaded_by(node: str, name: str) -> tuple[str, str] | None:
    """(kind of folder, file) of the loader that the input `name` of a node comes from, through nodes that change a
    model; None where that is not known before it runs."""
    graph, visited = _queued.get(), set()
    while True:
        link = _inputs(graph, node).get(name)
        if not isinstance(link, list) or not link or link[0] in visited:
            return None
        node = str(link[0])
        visited.add(link[0])
        about = graph.get(node)
        kind = about.get("class_type") if isinstance(about, dict) else None
        if kind in _LOADERS:
            widget, folder = _LOADERS[kind]
            file = _inputs(graph, node).get(widget)
            return (folder, file) if isinstance(file, str) else None


def own_inputs(node: str) -> Mapping[str, Any]:
    """What a node of the graph is given: values, and links as [node, output]."""
    return _inputs(_queued.get(), node)


def users(node: str, kind: str, name: str) -> list[Mapping[str, Any]]:
    """The inputs of the nodes of a class whose input `name` comes from this node."""
    graph = _queued.get()
    of_kind = [key for key, about in graph.items() if isinstance(about, dict) and about.get("class_type") == kind]
    found = [_inputs(graph, key) for key in of_kind]
    return [inputs for inputs in found if isinstance(inputs.get(name), list) and str(inputs[name][0]) == node]


def _inputs(graph: Mapping[str, Any], node: str) -> Mapping[str, Any]:
    about = graph.get(node)
    inputs = about.get("inputs") if isinstance(about, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def family_of_file(path: Path) -> str:
    """The family of a model file, told by names and shapes alone; empty where they do not tell."""
    try:
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys())
            for name in names:
                if name.endswith("attn2.to_k.weight") and ("input_blocks" in name or "down_blocks" in name):
                    return _CONTEXT_WIDTHS.get(file.get_slice(name).get_shape()[1], "")
    except (SafetensorError, OSError):
        return ""
    if any("joint_blocks." in name for name in names):
        return "sd3"
    if any("double_blocks." in name for name in names) and any("vector_in." in name for name in names):
        return "flux"
    return ""
