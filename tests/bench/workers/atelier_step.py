"""Contender: ours. One step of `lib/trainer.py`, guard and records included, on a U-Net in the dtype under test.

Latents, text, noise and t are given instead of read and drawn; what is trained is float32 and the layout channels last,
as in the standalone host.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from contender import ALPHA, NUM_CAPTIONS, RANK, RATE, Batch, Setup, Step, adapter_weights, load_base, serve, text_of
from diffusers import DDPMScheduler, UNet2DConditionModel
from sd_atelier.lib import optimizers
from sd_atelier.lib.base_weights import BaseWeights
from sd_atelier.lib.config import RunConfig, merge
from sd_atelier.lib.data.sample import Batch as SampleBatch
from sd_atelier.lib.diffusion_loss import DiffusionLoss, Drawn
from sd_atelier.lib.frozen import attached
from sd_atelier.lib.lr_schedule import parse
from sd_atelier.lib.recompute import recomputed
from sd_atelier.lib.recorder import Recorder
from sd_atelier.lib.trainables.lora import Lora
from sd_atelier.lib.trainer import Trainer


class Host:
    """As much of a host as a step needs."""

    name, family, prediction, device = "bench", "sd1", "epsilon", torch.device("cpu")

    def __init__(self, setup: Setup) -> None:
        with torch.device("meta"):
            unet = UNet2DConditionModel(**setup.architecture)
        load_base(unet, setup)
        self.parts = {"unet": unet.eval()}
        self.compute_dtype = setup.dtype
        self.blocks = [m for m in unet.modules() if type(m).__name__ in ("ResnetBlock2D", "BasicTransformerBlock")]
        self.weights = BaseWeights(unet, self.blocks, self.device, setup.dtype)
        self.weights.keep(setup.storage, self.weights.num_blocks if setup.cpu_blocks < 0 else setup.cpu_blocks)
        self.weight_of, self.used = self.weights.of, self.weights.used
        self.alphas_cumprod = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ).alphas_cumprod

    def denoiser(self, x_t: torch.Tensor, t: torch.Tensor, conditioning: dict[str, torch.Tensor]) -> torch.Tensor:
        x_t = x_t.to(self.compute_dtype, memory_format=torch.channels_last)
        text = conditioning["text"].to(self.compute_dtype)
        return self.parts["unet"](x_t, t, encoder_hidden_states=text, return_dict=False)[0].float()


class GivenLoss(DiffusionLoss):
    """The objective on given noise and t; keeps the batch's losses."""

    given: Drawn
    losses: torch.Tensor

    def draw(self, *args: Any) -> Drawn:
        return self.given

    def __call__(self, *args: Any) -> torch.Tensor:
        self.losses = super().__call__(*args)
        return self.losses


class Given:
    """The loader's and the conditioner's place: one batch, and the few captions, encoded before."""

    position = None

    def __init__(self) -> None:
        self.batches: list[SampleBatch] = []
        self.texts = {str(caption): text_of(caption) for caption in range(NUM_CAPTIONS)}

    def next_step(self) -> list[SampleBatch]:
        return self.batches

    def conditioning(self, captions: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return {"text": torch.stack([self.texts[caption] for caption in captions])}


def build(setup: Setup) -> Step:
    host, given = Host(setup), Given()
    config = merge(RunConfig(), {"trainable": {"rank": RANK, "alpha": ALPHA, "layers": "kohya"}})
    lora = Lora(config.trainable, seed=0)
    lora.prepare(host)
    lora.restore(_named(setup, lora))
    parameters = lora.parameters()
    group = {"params": list(parameters.values()), "names": list(parameters), "lr": RATE}
    loss = GivenLoss(host, config.objective, seed=0)
    trainer = Trainer(
        host=host,
        config=config,
        run=SimpleNamespace(),
        trainable=lora,
        loader=given,
        cache=SimpleNamespace(),
        conditioner=given.conditioning,
        loss=loss,
        optimizer=optimizers.create("adamw", [group], config.optimizer),
        group_names=["unet"],
        rates=[parse(str(RATE)).resolve(1_000_000)],
        recorder=Recorder(Path(), config.record, 0, ["unet"]),  # never flushed, so nothing is written
        probe=None,
        metadata=lambda stem, step, epoch: {},
        compute_dtype=setup.dtype,
    )
    readied = ExitStack()  # `step` holds it until the process ends
    readied.enter_context(recomputed(host.blocks if setup.checkpointing else []))
    readied.enter_context(attached(host.parts.values(), host.weight_of, lora.branch_of, host.used))
    trainer.optimizer.allocate()

    def step(batch: Batch, readied: ExitStack = readied) -> float:
        captions = tuple(map(str, batch.captions))
        given.batches = [
            SampleBatch(
                latents=batch.latents,
                names=captions,
                visits=(0,) * len(captions),
                captions=captions,
                weight=torch.ones(len(captions)),
                mask=None,
                sizes=(),
                epoch=0,
            )
        ]
        loss.given = Drawn(batch.noise, batch.t)
        trainer.one_step()
        return loss.losses.mean().item()

    step.kept_mb = host.weights.away_bytes / 2**20
    return step


def _named(setup: Setup, lora: Lora) -> dict[str, torch.Tensor]:
    """The seeded adapter under the names and in the shapes of our files."""
    shapes = {name: parameter.shape for name, parameter in lora.parameters().items()}
    tensors = {}
    for module, down, up in adapter_weights(setup):
        stem = "lora_unet_" + module.replace(".", "_")
        for half, value in (("down", down), ("up", up)):
            name = f"{stem}.lora_{half}.weight"
            tensors[name] = value.reshape(shapes[name])
    return tensors


if __name__ == "__main__":
    serve(build)
