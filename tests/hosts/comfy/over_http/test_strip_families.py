"""A run of each family as a strip of the same graph: bit by bit what core's nodes make of its checkpoints."""

import json

import numpy as np
import pytest
from comfy_client import OLD
from PIL import Image


@pytest.mark.parametrize(
    "checkpoint",
    [
        pytest.param("flux-mini", marks=pytest.mark.skipif(OLD, reason="it does not read the width of a Flux")),
        "sd3-mini",
        "sd2-mini-v",
        pytest.param("sdxl-mini", marks=pytest.mark.slow),
    ],
)
def test_a_run_becomes_a_strip_in_its_own_graph(server, graphs, drawn, checkpoint):
    name = f"strip of {checkpoint}"
    graph = graphs.training(checkpoint, drawn, name=name, steps=4, save_every_steps=2)
    flow = checkpoint.startswith(("sd3", "flux"))
    scheduler = "simple" if flow else "normal"
    model, clip = ["1", 0], ["4", 0] if "flux" in checkpoint else ["1", 1]
    graph["5"] = graphs.node("AtelierCheckpoints", run=["3", 4])
    graph["6"] = graphs.node(
        "AtelierCheckpointStrip", model=model, clip=clip, vae=["1", 2], checkpoints=["5", 0], prompts="a sks toy",
        seeds="1", steps=2, cfg=1.0, sampler_name="euler", scheduler=scheduler, width=64, height=64, name=name,
    )  # fmt: skip
    server.run(graph)
    folder = server.output / "atelier" / "strips" / name
    about = json.loads((folder / "strip.json").read_text("utf-8"))
    assert [column["label"] for column in about["columns"]] == ["no network", f"{name}-000002", f"{name}-000004"]
    checkpoints = sorted((server.output / "atelier" / name / "checkpoints").glob("*.safetensors"))
    seen = []
    for cell in about["cells"]:
        assert not cell.get("error"), cell
        graph, model, clip, vae = graphs.model(checkpoint)
        if cell["column"]:
            file = server.output / "loras" / f"{checkpoint}-column-{cell['column']}.safetensors"
            file.write_bytes(checkpoints[cell["column"] - 1].read_bytes())
            graph["5"] = graphs.node(
                "LoraLoader", model=model, clip=clip, lora_name=file.name, strength_model=1.0, strength_clip=1.0
            )
            model, clip = ["5", 0], ["5", 1]
        prefix = f"{checkpoint}-column-{cell['column']}"
        graph = graphs.picture(graph, checkpoint, model, clip, vae, "a sks toy", prefix=prefix)
        if "16" in graph:  # a strip says no guidance of its own, as core's default graph
            graph["13"]["inputs"]["positive"] = ["10", 0]
            del graph["16"]
        wanted = server.image(server.run(graph), "15")
        with Image.open(folder / cell["file"]) as image:
            seen.append(np.asarray(image))
        assert np.array_equal(seen[-1], wanted), cell
    assert not np.array_equal(seen[0], seen[2])
