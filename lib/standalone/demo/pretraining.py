"""Making the demo's base model: `python -m sd_atelier.lib.standalone.demo.pretraining WORK --base FOLDER`.

First the autoencoder learns to keep drawings, then the U-Net and the text encoder learn to draw them from captions.
WORK holds what was drawn and, every few minutes, the state, from which the same command goes on; `--base` gets the
model as a diffusers folder in fp16, with `learning_curve.csv`. What is trained here is never trained again on a user's
machine, so this is a script: the runs of users are the core's.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...files import write_bytes, write_json
from ..pipeline import quiet_libraries
from .drawing import any_description, draw, words
from .model import Sizes, tiny_pipeline, write_tokenizer
from .muon import Muon
from .style import printed
from .thumbnail import start_as_thumbnail

SEED = 7
SIZES = Sizes(
    text_width=96,
    max_tokens=48,
    latents=16,
    autoencoder=(32, 48, 48),
    unet=(64, 112),
    cross_attention=(False, True),
)
NUM_COLOURED, NUM_PICTURES = 4_000, 24_000
AUTOENCODER_STEPS, DECODER_STEPS, AUTOENCODER_BATCH, AUTOENCODER_RATE = 1_300, 3_000, 8, 2e-3
DENOISER_STEPS, DENOISER_BATCH, DENOISER_RATE = 6_000, 32, 5e-3
WARMUP_STEPS, FALL = 60, 0.35  # of the rate: steps of its rise, part of all steps in which it falls
LATENT_NOISE = 0.06  # what the decoder learns to overlook, since a sampler is never exact; colours deviate by 0.5
# Latents that stay near a smaller picture are what a small U-Net learns soonest; free ones become white noise to it.
COLOUR_KEPT, DETAIL_KEPT, SMOOTHNESS = 2.0, 0.02, 0.05
CAPTION_DROPOUT, TAG_DROPOUT = 0.1, 0.1
LOGIT_MEAN, LOGIT_STD = 0.3, 1.0  # of t: where shapes are decided, rather than texture
EMA_STEPS = 250  # of the average of the weights that is kept
SAVE_SECONDS = 120
CURVE_STEPS = 20  # between rows of the learning curve
BATCH = 64  # where nothing is learned


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's base model, or go on making it.")
    parser.add_argument("work", type=Path, help="folder of the state")
    parser.add_argument("--base", type=Path, required=True, help="folder that the finished model is written to")
    parser.add_argument("--steps", type=int, default=DENOISER_STEPS, help="of the U-Net and the text encoder")
    parser.add_argument("--pictures", type=int, default=NUM_PICTURES)
    args = parser.parse_args()
    make(args.work, args.base, args.steps, args.pictures)


def make(work: Path, base: Path, steps: int, num_pictures: int) -> None:
    """Make the model; whatever of it is in `work` already is not made again."""
    quiet_libraries()
    # a module: its types do not say what its classes take
    diffusers: Any = importlib.import_module("diffusers")
    work.mkdir(parents=True, exist_ok=True)
    pipeline = tiny_pipeline(work, SEED, SIZES, words())
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config, prediction_type="v_prediction", clip_sample=False
    )
    # several times faster than the fused kernel where it runs backward on a CPU
    pipeline.unet.set_attn_processor(importlib.import_module("diffusers.models.attention_processor").AttnProcessor())
    for part in (pipeline.vae, pipeline.unet):
        part.to(memory_format=torch.channels_last)
    # the encoder is done after the first; the decoder, on which faces depend, then goes on alone
    for file, num_steps, whole in (("autoencoder", AUTOENCODER_STEPS, True), ("decoder", DECODER_STEPS, False)):
        kept = work / f"{file}.safetensors"
        if kept.is_file():
            pipeline.vae.load_state_dict(load_file(kept))
        else:
            train_autoencoder(pipeline.vae, num_steps, whole=whole)
            save_file({n: p.contiguous() for n, p in pipeline.vae.state_dict().items()}, kept)
    latents, captions = _encoded(work, pipeline.vae, num_pictures)
    # the samplers and the schedule of noise expect a deviation of 1
    deviation = latents.float().std().item()
    pipeline.vae.register_to_config(scaling_factor=1 / deviation)
    train_denoiser(pipeline, latents, deviation, captions, steps, work, base)


def train_autoencoder(vae: Any, num_steps: int, *, whole: bool) -> None:
    """Train an AutoencoderKL: the whole from the start that `start_as_thumbnail` gives, or its decoder alone."""
    generator = torch.Generator().manual_seed(SEED + (not whole))
    pictures = _coloured(NUM_COLOURED, "whole" if whole else "decoder")
    if whole:
        start_as_thumbnail(vae)
    learner = Learner([vae] if whole else [vae.post_quant_conv, vae.decoder], AUTOENCODER_RATE, num_steps)
    began = time.monotonic()
    for step in range(1, num_steps + 1):
        batch = _scaled(pictures[torch.randint(len(pictures), (AUTOENCODER_BATCH,), generator=generator)])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(whole):
                latents = vae.encode(batch).latent_dist.mean
            noise = torch.randn(latents.shape, generator=generator) * LATENT_NOISE
            decoded = vae.decode(latents + noise).sample
        error = decoded.float() - batch
        # edges are what a mean of pixels forgives and an eye does not
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        loss = error.abs().mean() + 0.5 * edges
        learner.step(loss + _roughness(latents.float(), batch) if whole else loss)
        if step % 50 == 0:
            print(f"autoencoder {step}/{num_steps} loss {loss.item():.4f} {time.monotonic() - began:.0f} s", flush=True)


def _roughness(latents: Tensor, pictures: Tensor) -> Tensor:
    """How far latents (N, 4, h, w) are from the smaller picture in three channels and a faint fourth, all smooth."""
    colours = torch.nn.functional.avg_pool2d(pictures, pictures.shape[-1] // latents.shape[-1])
    away = latents[:, :3] - colours
    detail = latents[:, 3:]
    rough = torch.cat([away, detail], 1)
    smooth = rough.diff(dim=2).square().mean() + rough.diff(dim=3).square().mean()
    return COLOUR_KEPT * away.square().mean() + DETAIL_KEPT * detail.square().mean() + SMOOTHNESS * smooth


def train_denoiser(
    pipeline: Any,
    latents: Tensor,
    deviation: float,
    captions: Sequence[list[str]],
    num_steps: int,
    work: Path,
    base: Path,
) -> None:
    """Train U-Net and text encoder on latents (N, C, h, w) and the tags of each; write `base` at every save."""
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    _start_as_nothing(unet)
    learner = Learner([unet, text_encoder], DENOISER_RATE, num_steps, ema_steps=EMA_STEPS)
    state, curve = work / "state", Curve(work / "learning_curve.csv")
    if (state / "step.json").is_file():
        learner.load(state)
        print(f"goes on at step {learner.num_done}", flush=True)
    curve.cut(learner.num_done)

    def keep() -> None:
        learner.save(state)
        with learner.averaged():
            _write(pipeline, base, curve)
        print(f"step {learner.num_done}/{num_steps} loss {curve.recent:.4f}", flush=True)

    alphas_cumprod = pipeline.scheduler.alphas_cumprod
    saved = time.monotonic()
    while learner.num_done < num_steps:
        # each step's draws have a seed of their own, so that going on is the same as never stopping
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + learner.num_done)
        rng = random.Random(f"{SEED} {learner.num_done}")
        chosen = torch.randint(len(latents), (DENOISER_BATCH,), generator=generator)
        x_0 = latents[chosen].float() / deviation
        ids = _tokens(pipeline.tokenizer, [_caption(captions[i], rng) for i in chosen.tolist()])
        # one t from each part of its distribution, so that a batch sees all of it
        places = (torch.arange(DENOISER_BATCH) + torch.rand(DENOISER_BATCH, generator=generator)) / DENOISER_BATCH
        normal = torch.special.ndtri(places.clamp(1e-4, 1 - 1e-4))
        t = (torch.sigmoid(LOGIT_MEAN + LOGIT_STD * normal) * len(alphas_cumprod)).long()
        noise = torch.randn(x_0.shape, generator=generator)
        alpha = alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
        x_t = (alpha * x_0 + sigma * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            text = text_encoder(ids).last_hidden_state
            prediction = unet(x_t, t, encoder_hidden_states=text, return_dict=False)[0]
        loss = (prediction.float() - (alpha * noise - sigma * x_0)).square().mean()
        learner.step(loss)
        curve.add(learner.num_done, loss.item(), learner.rate)
        if time.monotonic() - saved > SAVE_SECONDS:
            keep()
            saved = time.monotonic()
    keep()


class Learner:
    """Muon for matrices, AdamW for the rest, one rate that rises shortly and at last falls to nothing; an average."""

    def __init__(self, modules: Sequence[nn.Module], rate: float, num_steps: int, ema_steps: int = 0) -> None:
        self._peak, self._num_steps, self._modules = rate, num_steps, modules
        self._ema_steps = ema_steps
        named = [(f"{i}.{n}", p) for i, module in enumerate(modules) for n, p in module.named_parameters()]
        self._named = dict(named)
        # rows of an embedding are updated rarely and each on its own
        self._matrices = {n: p for n, p in named if p.ndim >= 2 and "embedding" not in n}
        self._others = {n: p for n, p in named if n not in self._matrices}
        self._muon = Muon(list(self._matrices.values()))
        self._adam = torch.optim.AdamW(self._others.values(), rate, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)
        self._average = {n: p.detach().clone() for n, p in named} if ema_steps else {}
        self.num_done, self.rate = 0, 0.0

    def step(self, loss: Tensor) -> None:
        """Backward and update."""
        loss.backward()
        step = self.num_done + 1
        # Constant until the last third: until then, how many steps there will be need not be decided.
        fall = (self._num_steps - step) / (self._num_steps * FALL)
        self.rate = self._peak * min(1.0, step / WARMUP_STEPS, 0.02 + fall)
        self._adam.param_groups[0]["lr"] = self.rate * 0.5
        self._adam.step()
        self._muon.step(self.rate)
        for module in self._modules:
            module.zero_grad()
        self.num_done += 1
        if self._average:
            # short at first, so that the average does not remember the beginning
            part = max(1 / self._ema_steps, 1 / (1 + self.num_done / 4))
            with torch.no_grad():
                torch._foreach_lerp_(list(self._average.values()), list(self._named.values()), part)

    def averaged(self) -> _Exchanged:
        """Within it the modules have the average's weights."""
        return _Exchanged(self._named, self._average)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight.{n}": p.detach().contiguous() for n, p in self._named.items()}
        tensors |= {f"average.{n}": p.contiguous() for n, p in self._average.items()}
        tensors |= {f"momentum.{i}": momentum for i, momentum in enumerate(self._muon.momenta())}
        for i, entry in self._adam.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value.contiguous() for name, value in entry.items()}
        path = folder / f"{self.num_done}.safetensors"
        save_file({n: t.clone() for n, t in tensors.items()}, path)
        write_json(folder / "step.json", {"step": self.num_done})
        for old in folder.glob("*.safetensors"):
            if old != path:
                old.unlink()

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        self.num_done = json.loads((folder / "step.json").read_text(encoding="utf-8"))["step"]
        tensors = load_file(folder / f"{self.num_done}.safetensors")
        for name, parameter in self._named.items():
            parameter.copy_(tensors[f"weight.{name}"])
            self._average[name].copy_(tensors[f"average.{name}"])
        for i, momentum in enumerate(self._muon.momenta()):
            momentum.copy_(tensors[f"momentum.{i}"])
        state = self._adam.state_dict()
        for i in range(len(self._others)):
            state["state"][i] = {n: tensors[f"adam.{i}.{n}"] for n in ("step", "exp_avg", "exp_avg_sq")}
        self._adam.load_state_dict(state)


class _Exchanged:
    def __init__(self, weights: dict[str, nn.Parameter], others: dict[str, Tensor]) -> None:
        self._weights, self._others = weights, others

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self._others[name])
            self._others[name].copy_(kept)


class Curve:
    """The learning curve: means of the loss over `CURVE_STEPS` steps, as CSV."""

    def __init__(self, path: Path) -> None:
        self._path, self._rows, self._losses = path, [], []
        self.recent = float("nan")
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self._rows = list(csv.reader(file))[1:]

    def cut(self, step: int) -> None:
        """Forget what is after this step."""
        self._rows = [row for row in self._rows if int(row[0]) <= step]
        if self._rows:
            self.recent = float(self._rows[-1][1])

    def add(self, step: int, loss: float, rate: float) -> None:
        self._losses.append(loss)
        if step % CURVE_STEPS == 0:
            self.recent = sum(self._losses) / len(self._losses)
            self._rows.append([str(step), f"{self.recent:.5f}", f"{rate:.6f}"])
            self._losses = []
            self._path.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        return "".join(",".join(row) + "\n" for row in [["step", "loss", "rate"], *self._rows])


def _write(pipeline: Any, base: Path, curve: Curve) -> None:
    """The pipeline in fp16 as a diffusers folder, layers in the ordinary order of memory."""
    for name in ("vae", "unet", "text_encoder"):
        part = getattr(pipeline, name)
        weights = {n: p.detach().to(torch.float16).contiguous() for n, p in part.state_dict().items()}
        folder = base / name
        folder.mkdir(parents=True, exist_ok=True)
        part.save_config(folder) if name != "text_encoder" else part.config.save_pretrained(folder)
        file = "model.safetensors" if name == "text_encoder" else "diffusion_pytorch_model.safetensors"
        save_file(weights, folder / file, {"format": "pt"})
    write_tokenizer(base / "tokenizer", words(), SIZES.max_tokens)
    pipeline.scheduler.save_pretrained(base / "scheduler")
    pipeline.save_config(base)
    write_bytes(base / "learning_curve.csv", curve.text().encode())


def _start_as_nothing(unet: nn.Module) -> None:
    """Let every block begin as the identity and the output as zero: the first steps then learn what matters most."""
    for module in unet.modules():
        kind = type(module).__name__
        for layer in {"ResnetBlock2D": ("conv2",), "Transformer2DModel": ("proj_out",)}.get(kind, ()):
            nn.init.zeros_(getattr(module, layer).weight)
            nn.init.zeros_(getattr(module, layer).bias)
    nn.init.zeros_(unet.conv_out.weight)  # type: ignore[union-attr, arg-type]


def _coloured(num: int, part: str) -> Tensor:
    """Pictures (N, 3, H, W) of bytes, many in colours without a name or as prints: the autoencoder is to keep any."""
    rng = random.Random(f"{SEED} colours {part}")
    drawn = []
    for _ in range(num):
        colour = (rng.randrange(30, 256), rng.randrange(30, 256), rng.randrange(30, 256))
        picture = draw(any_description(rng), rng, colour=colour if rng.random() < 0.5 else None)
        pixels = np.asarray(printed(picture) if rng.random() < 0.1 else picture)
        if rng.random() < 0.3:
            pixels = pixels[..., rng.sample(range(3), 3)]
        drawn.append(pixels)
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)


@torch.no_grad()
def _encoded(work: Path, vae: Any, num: int) -> tuple[Tensor, list[list[str]]]:
    """Latents (N, C, h, w) of drawings, float16, not scaled, and the tags of each; from `work` where they are there."""
    latents_file, tags_file = work / "latents.safetensors", work / "tags.json"
    if tags_file.is_file():
        return load_file(latents_file)["latents"], json.loads(tags_file.read_text(encoding="utf-8"))
    rng = random.Random(f"{SEED} pictures")
    latents, tags = [], []
    while len(tags) < num:
        descriptions = [any_description(rng) for _ in range(BATCH)]
        pixels = np.stack([np.asarray(draw(description, rng)) for description in descriptions])
        batch = _scaled(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(batch).latent_dist.mean.half().contiguous())
        tags += [description.tags() for description in descriptions]
    save_file({"latents": torch.cat(latents)}, latents_file)
    write_json(tags_file, tags)
    return torch.cat(latents), tags


def _scaled(pixels: Tensor) -> Tensor:
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _caption(tags: list[str], rng: random.Random) -> str:
    """A caption as people write them: now and then a tag is missing, or all are."""
    if rng.random() < CAPTION_DROPOUT:
        return ""
    kept = [tag for tag in tags if rng.random() >= TAG_DROPOUT]
    if rng.random() < 0.3:
        rng.shuffle(kept)
    return ", ".join(kept)


def _tokens(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    length = tokenizer.model_max_length
    return tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


if __name__ == "__main__":
    main()
