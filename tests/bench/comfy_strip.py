"""What a strip costs in ComfyUI beside its pictures: python tests/bench/comfy_strip.py URL CHECKPOINT LORA_FOLDER.

Against a running server. LORA_FOLDER is a folder of networks that LoraLoader lists. Three prompts; for each network in
turn, its three workflows are queued over HTTP, and a strip of it alone is drawn, so that both see the same machine.
Prints the strip's time against that of the workflows, which sample and decode the same pictures.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

PROMPTS = ("a photo of a toy", "a red robot on grass", "a wolf")
SIDE_PX, STEPS = 256, 20


def call(url: str, body: Any = None) -> Any:
    """The server's JSON answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read() or b"null")


def seconds_of(url: str, graph: dict[str, Any]) -> float:
    """From queueing to the end, looking every 20 ms."""
    began = time.monotonic()
    prompt_id = call(f"{url}/prompt", {"prompt": graph})["prompt_id"]
    while not (found := call(f"{url}/history/{prompt_id}").get(prompt_id)):
        time.sleep(0.02)
    seconds = time.monotonic() - began
    if found["status"]["status_str"] != "success":
        raise RuntimeError(json.dumps(found["status"]["messages"])[-2000:])
    return seconds


def loaded(checkpoint: str) -> dict[str, Any]:
    """The loader."""
    return {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}}}


def workflow(checkpoint: str, lora: str, prompt: str, seed: int) -> dict[str, Any]:
    """One picture by core's nodes."""
    sampling = {
        "seed": seed,
        "steps": STEPS,
        "cfg": 5.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    links = {"model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0]}
    nodes = {
        "2": ("LoraLoader", {"model": ["1", 0], "clip": ["1", 1], "lora_name": lora, **strengths}),
        "3": ("CLIPTextEncode", {"clip": ["2", 1], "text": prompt}),
        "4": ("CLIPTextEncode", {"clip": ["2", 1], "text": "blurry"}),
        "5": ("EmptyLatentImage", {"width": SIDE_PX, "height": SIDE_PX, "batch_size": 1}),
        "6": ("KSampler", {**links, **sampling}),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "bench"}),
    }
    return loaded(checkpoint) | {key: {"class_type": kind, "inputs": given} for key, (kind, given) in nodes.items()}


def strip(checkpoint: str, source: str, seed: int, name: str) -> dict[str, Any]:
    """The same pictures as a strip."""
    given = {
        "model": ["1", 0],
        "clip": ["1", 1],
        "vae": ["1", 2],
        "checkpoints": ["2", 0],
        "prompts": "\n".join(PROMPTS),
        "negative_prompt": "blurry",
        "seeds": str(seed),
        "strengths": "1",
        "steps": STEPS,
        "cfg": 5.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "width": SIDE_PX,
        "height": SIDE_PX,
        "base_column": False,
        "name": name,
    }
    chosen = {"sources": source, "every": 1, "first_step": 0, "last_step": 0}
    nodes = {"2": ("AtelierCheckpoints", chosen), "3": ("AtelierCheckpointStrip", given)}
    return loaded(checkpoint) | {key: {"class_type": kind, "inputs": i} for key, (kind, i) in nodes.items()}


def main(url: str, checkpoint: str, folder: Path) -> None:
    """Print both ratios."""
    networks = sorted(folder.glob("*.safetensors"))
    stamp = int(time.time())
    seconds_of(url, workflow(checkpoint, f"{folder.name}/{networks[0].name}", "warm up", 1))
    ratios, strips, queued = [], [], []
    for number, network in enumerate(networks):
        seed = stamp % 100_000 + number
        lora = f"{folder.name}/{network.name}"
        each = [lambda p=p, s=seed, n=lora: seconds_of(url, workflow(checkpoint, n, p, s)) for p in PROMPTS]
        drawn = lambda s=seed, n=network: seconds_of(url, strip(checkpoint, str(n), s, f"bench-{stamp}-{s}"))  # noqa: E731
        if number % 2:
            strips.append(drawn())
            queued.append(sum(one() for one in each))
        else:
            queued.append(sum(one() for one in each))
            strips.append(drawn())
        ratios.append(strips[-1] / queued[-1])
    ratio = f"{statistics.median(ratios):.3f} (median; {min(ratios):.3f} to {max(ratios):.3f})"
    what = f"{len(networks)} networks x {len(PROMPTS)} prompts, {SIDE_PX} px, {STEPS} steps"
    print(f"{what}: strip {sum(strips):.1f} s, queued {sum(queued):.1f} s, ratio {ratio}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
