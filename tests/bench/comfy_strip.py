"""What a strip costs in a real ComfyUI beside its pictures, and whether they are core's, all in one run on the CPU.

    python tests/bench/comfy_strip.py --comfyui FOLDER --models FOLDER [--checkpoint sd15-mini] [--networks 10]

In ComfyUI's Python, with pytest. Starts a server of its own. Three prompts for each of some random networks: half of
the workflows (LoraLoader, CLIPTextEncode, KSampler, VAEDecode, SaveImage) are queued over HTTP at once, then the strip,
then the other half, so that a machine that gets slower meets both. Within the server it is noted when it samples and
decodes: a strip's time is divided by the time that sampling and decoding took in that very strip. Processor time is
steadier where other programs run too; OMP_NUM_THREADS=1 makes it comparable. Then two networks are added, and the strip
is queued once more, each time after the server forgot everything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

PROMPTS = ("a photo of a toy", "a red (robot:1.2) on grass", "a wolf")
NEGATIVE, SEED = "blurry", 5
HERE = Path(__file__).parent
CLIENT = HERE.parent / "hosts" / "comfy" / "over_http"


def workflow(checkpoint, lora, prompt, px, steps, cfg):
    """One picture by core's nodes."""
    sampling = {
        "seed": SEED,
        "steps": steps,
        "cfg": cfg,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    links = {"model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0]}
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint}),
        "2": ("LoraLoader", {"model": ["1", 0], "clip": ["1", 1], "lora_name": lora, **strengths}),
        "3": ("CLIPTextEncode", {"clip": ["2", 1], "text": prompt}),
        "4": ("CLIPTextEncode", {"clip": ["2", 1], "text": NEGATIVE}),
        "5": ("EmptyLatentImage", {"width": px, "height": px, "batch_size": 1}),
        "6": ("KSampler", {**links, **sampling}),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "bench"}),
    }
    return {key: {"class_type": kind, "inputs": given} for key, (kind, given) in nodes.items()}


def strip(checkpoint, source, px, steps, cfg):
    """The same pictures as a strip."""
    given = {
        "model": ["1", 0],
        "clip": ["1", 1],
        "vae": ["1", 2],
        "checkpoints": ["2", 0],
        "prompts": "\n".join(PROMPTS),
        "negative_prompt": NEGATIVE,
        "seeds": str(SEED),
        "strengths": "1",
        "steps": steps,
        "cfg": cfg,
        "sampler_name": "euler",
        "scheduler": "normal",
        "width": px,
        "height": px,
        "base_column": False,
        "name": "bench",
    }
    chosen = {"sources": str(source), "every": 1, "first_step": 0, "last_step": 0}
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint}),
        "2": ("AtelierCheckpoints", chosen),
        "3": ("AtelierCheckpointStrip", given),
    }
    return {key: {"class_type": kind, "inputs": i} for key, (kind, i) in nodes.items()}


def timed(server, graphs):
    """Queue graphs at once, and wait until the last is done."""
    before = server.call("/bench/times")["processor"]
    began = time.monotonic()
    ids = [server.queue(graph) for graph in graphs]
    outputs = []
    for prompt_id in ids:
        # to look more often would take processor time of the server
        while not (entry := server.call(f"/history/{prompt_id}").get(prompt_id)):
            time.sleep(0.5)
        if entry["status"]["status_str"] != "success":
            raise RuntimeError(json.dumps(entry["status"]["messages"])[-2000:])
        outputs.append(entry["outputs"])
    seconds = time.monotonic() - began
    times = server.call("/bench/times")
    return Timed(seconds, times["processor"] - before, outputs, times["sampling"], times["decoding"])


@dataclass
class Timed:
    """What it took to run graphs; each sampling and decoding is begin, end, processor time, in seconds."""

    seconds: float
    processor: float
    outputs: list
    sampling: list
    decoding: list

    def pictures(self):
        """Seconds of each picture: of sampling and decoding alone."""
        pairs = zip(self.sampling, self.decoding, strict=True)
        return [s[1] - s[0] + d[1] - d[0] for s, d in pairs]

    def gaps(self):
        """From the end of each picture to the end of the next, divided by the seconds of the latter."""
        ends = [decoding[1] for decoding in self.decoding]
        return [(b - a) / own for (a, b), own in zip(pairwise(ends), self.pictures()[1:], strict=True)]

    def __str__(self):
        own, processor = sum(self.pictures()), sum(entry[2] for entry in (*self.sampling, *self.decoding))
        return (
            f"{self.seconds:.1f} s, {self.seconds / own:.3f} of its sampling and decoding; processor time "
            f"{self.processor:.1f} s, {self.processor / processor:.3f}; from picture to picture median "
            f"{statistics.median(self.gaps()):.3f} ({min(self.gaps()):.3f} to {max(self.gaps()):.3f})"
        )


def measure(server, models, checkpoint, num_networks, **settings):
    """Measure, compare and print. Errors: `AssertionError` for a cell that is not core's."""
    import numpy as np
    from PIL import Image
    from random_network import network
    from safetensors.torch import save_file

    folder, later = server.output / "loras" / "bench", server.folder / "later"
    for place in (folder, later):
        place.mkdir(parents=True)
    labels = [f"toy-{200 * (k + 1):06d}" for k in range(num_networks + 2)]
    for k, label in enumerate(labels):
        # one has text-encoder layers too
        tensors = network(models / "checkpoints" / checkpoint, k, k == 3, 0.01 * (k + 1))
        save_file(tensors, (folder if k < num_networks else later) / f"{label}.safetensors")
    places = [(label, prompt) for label in labels[:num_networks] for prompt in PROMPTS]
    each = [workflow(checkpoint, f"bench/{label}.safetensors", prompt, **settings) for label, prompt in places]
    timed(server, [workflow(checkpoint, f"bench/{labels[0]}.safetensors", "warm up", **settings)])
    half = len(each) // 2
    queued = []
    for part in (each[:half], [strip(checkpoint, folder, **settings)], each[half:]):
        found = timed(server, part)
        print(f"{len(found.sampling)} pictures by {len(part)} workflows: {found}", flush=True)
        queued.append(found)
    first, whole, second = queued
    print(
        f"{num_networks} networks x {len(PROMPTS)} prompts, {settings}: the strip took "
        f"{whole.seconds / (first.seconds + second.seconds):.3f} of the time of the workflows, "
        f"{whole.processor / (first.processor + second.processor):.3f} of their processor time; medians of a picture "
        f"{statistics.median(whole.pictures()):.2f} s and "
        f"{statistics.median(first.pictures() + second.pictures()):.2f} s",
        flush=True,
    )
    place = server.output / "atelier" / "strips" / "bench"
    about = json.loads((place / "strip.json").read_text("utf-8"))
    cells = {(cell["column"], cell["row"]): place / cell["file"] for cell in about["cells"]}
    for number, made in enumerate([*first.outputs, *second.outputs]):
        with Image.open(cells[divmod(number, len(PROMPTS))]) as image:
            assert np.array_equal(np.asarray(image), server.image(made, "8")), f"cell {number} is not core's"
    print(f"all {len(cells)} cells are what core's nodes give, bit by bit", flush=True)
    before = {path: path.stat().st_mtime_ns for path in (place / "cells").glob("*.png")}
    assert len(before) == len(cells)
    for path in later.iterdir():
        path.rename(folder / path.name)
    for what, number in (("two networks added", 2 * len(PROMPTS)), ("queued again", 0)):
        server.call("/free", {"unload_models": True, "free_memory": True})
        time.sleep(3)  # until it has
        found = timed(server, [strip(checkpoint, folder, **settings)])
        now = {path: path.stat().st_mtime_ns for path in (place / "cells").glob("*.png")}
        assert {path: now[path] for path in before} == before, f"{what}: a finished cell was made again"
        assert len(found.sampling) == len(now) - len(before) == number, f"{what}: {len(found.sampling)} rendered"
        print(f"{what}: {number} cells rendered, {found.seconds:.1f} s, the model loaded again included", flush=True)
        before = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", required=True, type=Path, help="folder of ComfyUI")
    parser.add_argument("--models", required=True, type=Path, help="a folder with checkpoints/")
    parser.add_argument("--checkpoint", default="sd15-mini", help="of Stable Diffusion 1.5, without the suffix")
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--cfg", type=float, default=5.0, help="1 samples without the negative prompt, in half the time"
    )
    args = parser.parse_args()
    os.environ["COMFYUI_PATH"], os.environ["COMFYUI_MODELS"] = str(args.comfyui), str(args.models)
    sys.path.insert(0, str(CLIENT))
    from comfy_client import Server

    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), "--disable-api-nodes")
        (server.folder / "nodes" / "times").symlink_to(HERE / "workers" / "comfy_times", target_is_directory=True)
        server.start()
        try:
            measure(
                server,
                args.models,
                f"{args.checkpoint}.safetensors",
                args.networks,
                px=args.px,
                steps=args.steps,
                cfg=args.cfg,
            )
        finally:
            server.stop()


if __name__ == "__main__":
    main()
