"""The same checkpoint in ComfyUI and in the standalone host: the same base, latents, text and loss.

`COMFYUI_CHECKPOINTS` names a folder with sd15-mini.safetensors, a small checkpoint of Stable Diffusion 1.5's kind.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

if (
    not os.environ.get("COMFYUI_PATH")
    or not os.environ.get("COMFYUI_CHECKPOINTS")
    or not importlib.util.find_spec("diffusers")
):
    pytest.skip("COMFYUI_PATH, COMFYUI_CHECKPOINTS or diffusers is missing", allow_module_level=True)

import comfy.sd
from sd_atelier.lib.config import ObjectiveConfig
from sd_atelier.lib.diffusion_loss import DiffusionLoss
from sd_atelier.lib.fingerprint import compare_fingerprints
from sd_atelier.lib.preparation import base_of
from sd_atelier.lib.standalone.host import StandaloneHost
from sd_atelier.lib.standalone.pipeline import load_pipeline
from sd_atelier.nodes.host import ComfyHost

CHECKPOINT = Path(os.environ["COMFYUI_CHECKPOINTS"]) / "sd15-mini.safetensors"
CAPTIONS = ["a toy (red:1.2), on a table", "b"]


@pytest.fixture(scope="module")
def hosts():
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT), output_vae=True, output_clip=True)
        inside = ComfyHost(model, clip, vae)
    tokenizer = Path(os.environ["COMFYUI_PATH"]) / "comfy" / "sd1_tokenizer"
    pipeline, info = load_pipeline(CHECKPOINT, dtype=torch.float32, tokenizer=tokenizer)[:2]
    return inside, StandaloneHost(pipeline, model_info=info, device=torch.device("cpu"))


def test_the_base_is_the_same(hosts):
    assert compare_fingerprints(*(base_of(host) for host in hosts)) == []


def test_latents_are_the_same(hosts):
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, second = (host.autoencoder.encode(picture) for host in hosts)
    assert torch.allclose(first, second, atol=1e-5)


def test_noise_t_and_loss_are_the_same(hosts):
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for host in hosts:
        loss = DiffusionLoss(host, ObjectiveConfig(), 7)
        drawn = loss.draw(["x", "y"], [0, 1], latents.shape[1:])
        with host.training(torch.float32, False), torch.no_grad():
            text = host.text.encode(CAPTIONS)
            found.append((drawn, text["text"], loss(latents, drawn, text, [[128] * 6] * 2)))
    (drawn, text, losses), (other_drawn, other_text, other_losses) = found
    assert torch.equal(drawn.t, other_drawn.t) and torch.equal(drawn.noise, other_drawn.noise)
    assert torch.allclose(text, other_text, atol=1e-5)
    assert torch.allclose(losses, other_losses, rtol=1e-6)
