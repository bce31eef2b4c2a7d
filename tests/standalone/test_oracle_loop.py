"""A run against a plain loop of diffusers, PEFT and torch, fed the same pictures, noise, timesteps and order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from sd_atelier.lib import draws
from sd_atelier.lib.config import RunConfig, from_dict, merge
from sd_atelier.lib.preparation import start
from sd_atelier.lib.records import read_losses, read_run

STEPS, SEED, BATCH_SIZE = 20, 11, 2
# Adam divides by the size of the gradient: where that is next to nothing, rounding alone would decide the update
EPS = 1e-6
SIZES = [(64, 64), (64, 64), (64, 64), (48, 80), (48, 80), (80, 48), (80, 48), (80, 48)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eight pictures of three shapes, which are buckets: no resizing stands between them and the latents."""
    folder = tmp_path_factory.mktemp("data") / "toys"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"toy {number}, on a table")
    return folder


def rate(step: int) -> float:
    """`0->1e-3:10%, 1e-3->1e-5 cosine` over 20 steps."""
    if step < 2:
        return 1e-3 * step / 2
    return 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * (step - 2) / (STEPS - 2))) / 2


def batches_by_step(records, sizes) -> list[list[list[int]]]:
    """Rows of loss.csv as step -> batches: one bucket a batch, full unless its bucket ends."""
    steps = []
    for step in range(STEPS):
        batches: list[list[int]] = []
        for row in np.flatnonzero(records["step"] == step).tolist():
            size = sizes[records["image"][row]]
            full = not batches or len(batches[-1]) == BATCH_SIZE
            if full or sizes[records["image"][batches[-1][0]]] != size:
                batches.append([])
            batches[-1].append(row)
        steps.append(batches)
    return steps


def plain_loop(pipeline, parts, pairs, records, folder, clip_norm):
    """The usual training loop; returns the norm of each step's gradient and the loss of each row."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    parameters = list(pairs.values())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, eps=EPS, weight_decay=0.01)
    latents, tokens, sizes = {}, {}, {}
    for file in sorted(folder.glob("*.png")):
        name = f"{folder.name}/{file.name}"
        pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            latents[name] = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        caption = file.with_suffix(".txt").read_text()
        tokens[name] = pipeline.tokenizer(caption, padding="max_length", return_tensors="pt").input_ids
        sizes[name] = pixels.shape[2:]
    visits = [list(records["image"][:row]).count(name) for row, name in enumerate(records["image"])]
    norms, losses = [], []
    for step, batches in enumerate(batches_by_step(records, sizes)):
        for rows in batches:
            names, seen = [records["image"][r] for r in rows], [visits[r] for r in rows]
            x_0 = torch.cat([latents[n] for n in names])
            noise = torch.stack([draws.noise(SEED, n, v, x_0.shape[1:]) for n, v in zip(names, seen, strict=True)])
            u = [draws.position(SEED, n, v, strata=16, stratified=True) for n, v in zip(names, seen, strict=True)]
            t = torch.tensor([math.floor(1000 * x) for x in u])
            assert t.tolist() == records["t"][rows].tolist()
            text = parts["te"](torch.cat([tokens[n] for n in names])).last_hidden_state
            prediction = parts["unet"](scheduler.add_noise(x_0, noise, t), t, encoder_hidden_states=text).sample
            epsilon = scheduler.config.prediction_type == "epsilon"
            target = noise if epsilon else scheduler.get_velocity(x_0, noise, t)
            each = torch.nn.functional.mse_loss(prediction, target, reduction="none").mean((1, 2, 3))
            (each.mean() / len(batches)).backward()
            losses += each.tolist()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf).item())
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        optimizer.zero_grad()
    return norms, losses


CASES = {
    "epsilon, not clipped": {"optimizer": {"clip_norm": 0.0}},
    "v-prediction": {},
    "accumulation": {"loop": {"accumulate": 2}},
    "text encoder": {"trainable": {"text_encoder": True}},
    "convolutions, recomputed": {"trainable": {"layers": "all"}, "loop": {"block_checkpointing": True}},
}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_equal_a_plain_loop(case, tiny_model, v_model, make_host, peft_twin, pictures, tmp_path):
    from diffusers import StableDiffusionPipeline

    settings = {
        "data": {
            "concepts": [{"folder": str(pictures)}],
            "resolution": 64,
            "bucket_step": 16,
            "bucket_min_px": 32,
            "bucket_max_px": 128,
        },
        "trainable": {"rank": 4, "alpha": 2.0},
        "optimizer": {"clip_norm": 0.04, "eps": EPS},
        "rate": {"schedule": "0->1e-3:10%, 1e-3->1e-5 cosine"},
        "loop": {"steps": STEPS, "batch_size": BATCH_SIZE, "seed": SEED},
    }
    config = merge(from_dict(RunConfig, settings), CASES[case])
    model = v_model if case == "v-prediction" else tiny_model
    host = make_host(model)
    with start(host, config, tmp_path) as prepared:
        trainer, lora = prepared.trainer, prepared.trainer.trainable
        pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
        parts = {"unet": pipeline.unet, "te": pipeline.text_encoder}
        pairs = peft_twin(host.parts, parts, lora)
        assert trainer.train().step == STEPS
        records, run = read_losses(prepared.run.path / "loss.csv"), read_run(prepared.run.path / "run.csv")
    clip_norm = config.optimizer.clip_norm
    norms, losses = plain_loop(pipeline, parts, pairs, records, pictures, clip_norm)

    assert not clip_norm or max(norms) > clip_norm
    assert run["grad_norm"] == pytest.approx(norms, rel=1e-5)
    assert records["loss"] == pytest.approx(losses, rel=1e-5)
    got = {name: lora.delta(name) for name in lora.layer_names()}
    lora.restore({name: p.detach() for name, p in pairs.items()})
    for name, delta in got.items():
        expected = lora.delta(name)
        assert expected.norm() > 0
        assert (delta - expected).norm() < 1e-5 * expected.norm(), name
