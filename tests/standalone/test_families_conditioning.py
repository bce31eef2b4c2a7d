"""What each denoiser is conditioned on, and its pictures, equal those of diffusers where both mean the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sd_atelier.lib.data.conditioner import Conditioner
from sd_atelier.lib.host import SampleRequest
from sd_atelier.lib.lengths import denoised
from sd_atelier.lib.standalone.denoisers import pack, picture_ids, unpack
from sd_atelier.lib.standalone.host import StandaloneHost
from sd_atelier.lib.standalone.pipeline import load_pipeline
from tiny_families import FAMILIES, FAMILY

CAPTIONS = ["a toy on a table, night", ""]
LONG = "a toy, night, " * 20  # more than one chunk of CLIP, and more than the least of T5 in Stable Diffusion 3
CPU = torch.device("cpu")


@pytest.fixture
def host_of(family_model):
    def make(name: str, **options: Any) -> tuple[StandaloneHost, Any]:
        pipeline, info = load_pipeline(family_model(name), dtype=torch.float32)
        return StandaloneHost(pipeline, model_info=info, device=CPU, **options), pipeline

    return make


def encoded_by_diffusers(pipeline: Any, family: str, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Text and pooled, with T5 filled up as ComfyUI fills it."""
    options: dict[str, Any] = {"prompt": captions, "prompt_2": None, "device": CPU}
    if family == "flux":
        text, pooled, _ = pipeline.encode_prompt(**options, max_sequence_length=256)
        return text, pooled
    options |= {"do_classifier_free_guidance": False}
    if family == "sd3":
        options |= {"prompt_2": captions, "prompt_3": captions, "max_sequence_length": 77}
    text, _, pooled, _ = pipeline.encode_prompt(**options)
    return text, pooled


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux-dev"])
@torch.no_grad()
def test_text_and_pooled_are_those_of_the_pipeline(name, host_of):
    host, pipeline = host_of(name)
    text, pooled = encoded_by_diffusers(pipeline, FAMILY[name], CAPTIONS)
    got = host.text.encode(CAPTIONS)
    assert torch.equal(got["text"], text) and torch.equal(got["pooled"], pooled)
    assert len({tuple(row.flatten().tolist()) for row in text}) == 2


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux-dev"])
@torch.no_grad()
def test_a_caption_is_encoded_the_same_in_every_batch(name, host_of):
    host, _ = host_of(name)
    alone = Conditioner(host.text, None, CPU, False)(["a toy"])
    together = Conditioner(host.text, None, CPU, False)(["a toy", LONG])
    live = host.text.encode(["a toy", LONG])
    num_tokens = alone["text"].shape[1]
    assert together["text"].shape[1] > num_tokens or name == "flux-dev"
    assert torch.equal(together["text"][:1, :num_tokens], alone["text"])
    assert torch.equal(together["pooled"][:1], alone["pooled"])
    assert live.keys() == together.keys()
    assert all(torch.allclose(live[key].float(), together[key].float(), atol=1e-5) for key in live)


@torch.no_grad()
def test_long_captions_are_read_in_chunks_by_clip_and_at_once_by_t5(host_of):
    lengths = {}
    for name in ("sdxl", "sd3", "flux-dev"):
        host, _ = host_of(name)
        lengths[name] = host.text.encode([LONG])["text"].shape[1]
        pooled = host.text.encode([LONG])["pooled"]
        assert torch.allclose(pooled, host.text.encode([LONG + "more of it"])["pooled"], atol=1e-5), (
            "of the first chunk"
        )
    num_t5 = len(host_of("flux-dev")[1].tokenizer_2(LONG).input_ids)
    assert 77 < num_t5 < 256
    num_clip = -(-len(host_of("sdxl")[1].tokenizer(LONG, truncation=False).input_ids[1:-1]) // 75) * 77
    assert num_clip > 77
    assert lengths == {"sdxl": num_clip, "sd3": num_clip + num_t5, "flux-dev": 256}


def test_sizes_reach_the_unet_in_the_order_of_diffusers(host_of):
    host, pipeline = host_of("sdxl")
    seen = []
    forward = pipeline.unet.forward

    def sees(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["added_cond_kwargs"]["time_ids"])
        return forward(*args, **kwargs)

    pipeline.unet.forward = sees
    width, height, left, top, target_width, target_height = 1000, 700, 30, 20, 640, 448
    conditioning = {
        **host.text.encode(["a toy"]),
        "sizes": torch.tensor([[width, height, left, top, target_width, target_height]], dtype=torch.float32),
    }
    host.denoiser(torch.zeros(1, 4, 8, 8), torch.tensor([500]), conditioning)
    expected = pipeline._get_add_time_ids(
        (height, width), (top, left), (target_height, target_width), torch.float32, text_encoder_projection_dim=128
    )
    assert torch.equal(seen[0], expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sampled_picture_is_that_of_the_pipeline(name, host_of):
    host, pipeline = host_of(name)
    width, height, steps, seed = 96, 64, 3, 5
    family = FAMILY[name]
    negative = "" if family == "flux" else "red"
    request = SampleRequest(
        prompt="a toy, night",
        negative_prompt=negative,
        steps=steps,
        guidance=3.5,
        seed=seed,
        width=width,
        height=height,
    )
    got = np.asarray(host.sampler(request)).astype(int)

    channels = pipeline.vae.config.latent_channels
    noise = torch.randn(1, channels, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    options: dict[str, Any] = {"prompt": request.prompt, "width": width, "height": height, "guidance_scale": 3.5}
    options |= {"num_inference_steps": steps, "output_type": "np", "latents": noise}
    if family == "flux":
        options |= {"latents": pack(noise), "max_sequence_length": 256}
    else:
        options["negative_prompt"] = negative
    if family == "sd3":
        options["max_sequence_length"] = 77
    pipeline.set_progress_bar_config(disable=True)
    expected = (pipeline(**options).images[0] * 255).round().astype(int)
    assert expected.std() > 5
    # rounding to whole values may go either way
    assert np.abs(got - expected).max() <= 1


def test_guidance_is_read_by_the_distilled_flux_alone(host_of):
    changed = {}
    for name in ("flux-dev", "flux-schnell"):
        host, _ = host_of(name)
        text = host.text.encode(["a toy"])
        x_t, t = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])
        with torch.no_grad():
            one, two = (denoised(host.denoiser, x_t, t, {**text, "guidance": torch.tensor([g])}) for g in (1.0, 4.0))
        changed[name] = not torch.equal(one, two)
    assert changed == {"flux-dev": True, "flux-schnell": False}


def test_tokens_of_flux_are_pixels_in_rows():
    latents = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    tokens = pack(latents)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(unpack(tokens, 4, 6), latents)
    ids = picture_ids(2, 3)
    assert ids.tolist() == [[0, row, column] for row in range(2) for column in range(3)]
    for place, (_, row, column) in enumerate(ids.int().tolist()):
        square = latents[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(tokens[:, place], square.flatten(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flux_sees_the_exact_t_in_every_type(dtype, family_model):
    pipeline, _ = load_pipeline(family_model("flux-dev"), dtype=dtype)
    host = StandaloneHost(pipeline, model_info={}, device=CPU)
    seen = []
    projection = pipeline.transformer.time_text_embed.time_proj
    forward = projection.forward
    projection.forward = lambda values: seen.append(values) or forward(values)
    t, guidance = torch.tensor([0.7013]), torch.tensor([3.51])
    with torch.no_grad():
        host.denoiser(torch.zeros(1, 16, 4, 4), t, {**host.text.encode(["a"]), "guidance": guidance})
    assert torch.equal(seen[0], t * 1000) and torch.equal(seen[1], guidance * 1000)


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_t5_reads_a_caption_once_while_only_clip_is_trained(name, host_of):
    host, pipeline = host_of(name)
    t5, clip = (pipeline.text_encoder_3 if name == "sd3" else pipeline.text_encoder_2), pipeline.text_encoder
    calls = {"t5": 0, "clip": 0}
    for what, model in (("t5", t5), ("clip", clip)):
        model.register_forward_pre_hook(lambda *_, what=what: calls.__setitem__(what, calls[what] + 1))
    trained = next(layer for key, layer in clip.named_modules() if key.endswith("layers.0.mlp.fc1")).weight
    with torch.no_grad():
        expected = host.text.encode([LONG, "a toy"])
    calls.update(t5=0, clip=0)
    with host.training(torch.float32, False):
        trained.requires_grad_(True)
        for _ in range(3):
            conditioning = host.text.encode([LONG, "a toy"])
        assert calls["t5"] == 2 and calls["clip"] >= 3
        assert all(torch.allclose(expected[key].float(), conditioning[key].float(), atol=1e-5) for key in expected)
        conditioning["pooled"].sum().backward()
        assert trained.grad is not None and trained.grad.abs().sum() > 0
    with torch.no_grad():
        host.text.encode(["a toy"])
    assert calls["t5"] == 3, "nothing is kept behind the training"


def test_t5_that_is_trained_is_never_kept(host_of):
    host, pipeline = host_of("flux-dev")
    with host.training(torch.float32, False):
        weight = pipeline.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q.weight.requires_grad_(True)
        first = host.text.encode(["a toy"])["text"]
        with torch.no_grad():
            weight.mul_(1.5)
        assert not torch.equal(host.text.encode(["a toy"])["text"], first)


@pytest.mark.parametrize(("name", "skip"), [("sdxl", 3), ("sd3", 3)])
@torch.no_grad()
def test_clip_skip_counts_from_the_last_layer(name, skip, host_of):
    usual, other = (host_of(name, clip_skip=k)[0].text for k in (2, skip))
    assert torch.equal(host_of(name)[0].text.encode(["a toy"])["text"], usual.encode(["a toy"])["text"])
    assert not torch.equal(usual.encode(["a toy"])["text"], other.encode(["a toy"])["text"])
    assert usual.key != other.key


def test_clip_skip_is_refused_where_it_does_nothing_or_too_much(host_of):
    for name, skip, what in (("flux-dev", 2, "nothing for Flux"), ("sdxl", 9, "from 1 to 3")):
        with pytest.raises(ValueError, match=what):
            host_of(name, clip_skip=skip)


def test_a_preview_of_odd_latents_is_refused(host_of):
    host, _ = host_of("flux-dev")
    with pytest.raises(ValueError, match="multiple of 16 px"):
        host.sampler(SampleRequest(prompt="a", width=72, height=64, steps=1))
