"""Each family's small checkpoint learns from photographs, and core's loader gives the live network's picture."""

import csv

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

# checkpoint -> rate and steps that bring the controlled loss down by a fifth on random weights
FAMILIES = {
    "sd15-mini-tae": ("2e-3", 60),
    "sd3-mini": ("2e-3", 60),
    "flux-mini": ("5e-3", 150),
    "sdxl-mini": ("2e-3", 40),
}


def controlled(folder):
    """Step -> controlled loss with the network over that without it."""
    sums = {}
    with open(folder / "probe.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            with_network, without = sums.get(int(row["step"]), (0.0, 0.0))
            sums[int(row["step"])] = (with_network + float(row["loss"]), without + float(row["loss_base"]))
    return {step: with_network / without for step, (with_network, without) in sums.items()}


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", FAMILIES)
def test_a_family_learns_and_its_file_is_the_live_network(server, graphs, photos, checkpoint):
    rate, steps = FAMILIES[checkpoint]
    graph = graphs.training(
        checkpoint,
        photos / "robot_toy",
        name=checkpoint,
        steps=steps,
        save_every_steps=0,
        preview_prompts="a toy",
        preview_every_steps=steps,
        record_probe_every_steps=steps,
        record_probe_images=4,
        record_probe_timesteps=2,
    )
    graph["5"] = graphs.node("AtelierSchedule", schedule=rate)
    graph["6"] = graphs.node("AtelierLora", rank=16, alpha=16.0, layers="all", conv_rank=8, conv_alpha=8.0)
    graph["3"]["inputs"] |= {"schedule": ["5", 0], "lora": ["6", 0]}
    (about,) = server.run(graph)["3"]["atelier"]
    folder = server.output / "atelier" / checkpoint
    assert controlled(folder)[steps] < 0.8
    log = len((server.folder / "log").read_bytes())
    graph, model, clip, vae = graphs.model(checkpoint)
    graph["7"] = graphs.node(
        "LoraLoader", model=model, clip=clip, lora_name=about["file"], strength_model=1.0, strength_clip=1.0
    )
    graph = graphs.picture(graph, checkpoint, ["7", 0], ["7", 1], vae, prefix=checkpoint)
    loaded = server.image(server.run(graph), "15").astype(int)
    said = (server.folder / "log").read_bytes()[log:].decode("utf-8", "replace")
    assert "NOT LOADED" not in said
    assert "lora key not loaded" not in said
    with safe_open(str(server.output / "loras" / about["file"]), framework="pt") as file:
        assert len(list(file.keys())) > 10
    (preview,) = (folder / "previews").glob(f"{steps:06d}-1-*.png")
    with Image.open(preview) as image:
        live = np.asarray(image.convert("RGB")).astype(int)
    # one level of 255 is what rounding to a PNG leaves of 1e-3
    assert np.abs(live - loaded).max() <= 1
