"""Seconds a training step takes in ComfyUI: ours and its own TrainLoraNode, in turn in one process, on the CPU.

    python tests/bench/comfy_step.py --comfyui FOLDER --checkpoint FILE [--px 256] [--rounds 3] [--steps 3]

In ComfyUI's Python. Both train a LoRA of the same rank in float32 on the same layers (those that ComfyUI's node
chooses: all), from cached latents and conditioning. Its node runs in bypass mode with checkpointing of depth 3, as it
needs the least memory; it copies the model, so the full-size one needs 13 GB beside the loaded one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types
from itertools import pairwise
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).parents[2]


def between(moments):
    """Seconds between moments, without the first, in which memory is had and caches are filled."""
    return [b - a for a, b in pairwise(moments)][1:]


def theirs(model, latents, conditioning, steps, rank):
    """Seconds of each step of TrainLoraNode."""
    from comfy_extras.nodes_train import TrainLoraNode

    moments, step = [], torch.optim.AdamW.step

    def timed(*args, **kwargs):
        done = step(*args, **kwargs)
        moments.append(time.monotonic())
        return done

    settings = {
        "batch_size": 1,
        "steps": steps + 2,
        "grad_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "rank": rank,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": True,
        "checkpoint_depth": 3,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": True,
    }
    with mock.patch.object(torch.optim.AdamW, "step", timed):
        TrainLoraNode.execute(
            [model], [{"samples": latents}], [conditioning], **{name: [value] for name, value in settings.items()}
        )
    return between(moments)


def ours(model, latents, conditioning, steps, rank, checkpointing):
    """Seconds of each step of ours, and the number of layers."""
    from sd_atelier.lib.config import TrainableConfig
    from sd_atelier.lib.frozen import attached
    from sd_atelier.lib.trainables.lora import Lora
    from sd_atelier.nodes.host import ComfyHost

    host = ComfyHost(model)
    with torch.inference_mode(False):
        trainable = Lora(TrainableConfig(rank=rank, alpha=1.0, layers="all"), seed=0)
        trainable.prepare(host)
        optimizer = torch.optim.AdamW(trainable.parameters().values(), lr=1e-4)
        x_t, target = latents.clone(), torch.randn(latents.shape)
        given = {"text": conditioning[0][0].clone(), "guidance": torch.ones(1)}
        given["sizes"] = torch.tensor([[8.0 * latents.shape[3], 8.0 * latents.shape[2], 0, 0, 512, 512]])
        pooled = conditioning[0][1].get("pooled_output")
        if pooled is not None:
            given["pooled"] = pooled.clone()
        t = torch.tensor([0.5]) if host.alphas_cumprod is None else torch.tensor([500])
        moments = []
        with (
            host.training(host.compute_dtype, checkpointing),
            attached([host.parts["unet"]], host.weight_of, trainable.branch_of, host.used),
        ):
            for _ in range(steps + 2):
                (host.denoiser(x_t, t, given) - target).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                moments.append(time.monotonic())
    return between(moments), len(trainable.layer_names())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", required=True, help="folder of ComfyUI")
    parser.add_argument(
        "--checkpoint", required=True, help="a checkpoint of Stable Diffusion 1.5 or XL, or a part of one"
    )
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    sys.path.insert(0, args.comfyui)
    package = types.ModuleType("sd_atelier")
    package.__path__ = [str(ROOT)]
    sys.modules.setdefault("sd_atelier", package)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.sd

    ratios = []
    with torch.inference_mode():
        model, clip, _, _ = comfy.sd.load_checkpoint_guess_config(args.checkpoint, output_vae=False, output_clip=True)
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("a toy"))
        channels = model.model.latent_format.latent_channels
        latents = torch.randn(1, channels, args.px // 8, args.px // 8)
        del clip
        for number in range(args.rounds):
            own, num_layers = ours(model, latents, conditioning, args.steps, args.rank, False)
            spared, _ = ours(model, latents, conditioning, args.steps, args.rank, True)
            other = theirs(model, latents, conditioning, args.steps, args.rank)
            a, b, c = (statistics.median(seconds) for seconds in (own, spared, other))
            ratios.append((c / a, c / b))
            print(
                f"round {number}: ours {a:.2f} s, with checkpointing {b:.2f} s ({num_layers} layers); "
                f"TrainLoraNode {c:.2f} s; ratios {c / a:.2f} and {c / b:.2f}",
                flush=True,
            )
    print("median ratios: " + ", ".join(f"{statistics.median(r):.2f}" for r in zip(*ratios, strict=True)))


if __name__ == "__main__":
    main()
