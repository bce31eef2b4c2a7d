"""The demo's model: a tiny pipeline that learns to draw animals in a few places, in about a minute.

First the autoencoder learns to keep drawings, then the U-Net and the text encoder learn to draw them from captions.
What comes out is a sketch of a model: places and colours follow the prompt, shapes are blobs. The numbers of steps are
fixed, so that the same recipe gives the same model on the same machine.
"""

from __future__ import annotations

import importlib
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...host import Progress
from ...memory import peak_mb
from ...preparation import StoppedError
from ..pipeline import quiet_libraries
from .animals import draw_animal, words
from .model import Sizes, tiny_pipeline
from .muon import Muon
from .thumbnail import start_as_thumbnail

SIDE_PX = 64
SIZES = Sizes(text_width=64, max_tokens=32, autoencoder=(16, 32, 32), unet=(32, 64), cross_attention=(False, True))
AUTOENCODER_BATCH, AUTOENCODER_RATE = 4, 3e-3
DENOISER_BATCH, DENOISER_RATE = 16, 1e-2
LATENT_NOISE = 0.15  # of the latents' deviation: what the decoder learns to overlook, since a sampler is never exact
CAPTION_DROPOUT = 0.1
LOGIT_MEAN, LOGIT_STD = 0.3, 0.8  # of t: where shapes are decided, rather than texture
BATCH = 32  # where nothing is learned


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the model."""

    seed: int = 0
    num_pictures: int = 800
    autoencoder_steps: int = 200
    denoiser_steps: int = 300
    version: int = 1  # changes whenever the same recipe would give another model


@dataclass(frozen=True)
class Watch:
    """What sees the steps, and what can stop them."""

    say: Callable[[str], None] = lambda text: None
    show: Callable[[Progress], None] = lambda progress: None
    stop_requested: Callable[[], bool] = lambda: False


def build_model(folder: Path, recipe: Recipe = Recipe(), watch: Watch = Watch()) -> Path:
    """Write the model as a diffusers folder. Errors: `StoppedError`; nothing that could be loaded is written then."""
    quiet_libraries()
    # a module: its types do not say what its classes take
    diffusers: Any = importlib.import_module("diffusers")
    pipeline = tiny_pipeline(folder, recipe.seed, SIZES, words())
    rng = random.Random(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    watch.say(f"draws {recipe.num_pictures} pictures of animals")
    coloured, _ = _pictures(recipe.num_pictures, rng, any_colour=True)
    pictures, captions = _pictures(recipe.num_pictures, rng)
    watch.say("teaches the autoencoder to keep them")
    train_autoencoder(pipeline.vae, coloured, recipe.autoencoder_steps, generator, watch)
    latents = _encode(pipeline.vae, pictures)
    # the samplers and the schedule of noise expect a deviation of 1
    pipeline.vae.register_to_config(scaling_factor=1 / latents.std().item())
    watch.say("teaches the U-Net to draw them")
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config, prediction_type="v_prediction", clip_sample=False
    )
    train_denoiser(pipeline, latents / latents.std(), captions, recipe.denoiser_steps, generator, watch)
    for part in (pipeline.vae, pipeline.unet):
        part.to(memory_format=torch.contiguous_format)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def train_autoencoder(vae: Any, pictures: Tensor, num_steps: int, generator: torch.Generator, watch: Watch) -> None:
    """Train an AutoencoderKL from the start that `start_as_thumbnail` gives. Pictures (N, 3, H, W) in [-1, 1]."""
    vae.to(memory_format=torch.channels_last)
    start_as_thumbnail(vae)
    learner = _Learner([vae], AUTOENCODER_RATE, num_steps, watch)
    for _ in range(num_steps):
        batch = pictures[torch.randint(len(pictures), (AUTOENCODER_BATCH,), generator=generator)]
        latents = vae.encode(batch).latent_dist.mean
        noise = torch.randn(latents.shape, generator=generator) * LATENT_NOISE * latents.std().detach()
        learner.step((vae.decode(latents + noise).sample - batch).abs().mean())


def train_denoiser(
    pipeline: Any, latents: Tensor, captions: Sequence[str], num_steps: int, generator: torch.Generator, watch: Watch
) -> None:
    """Train U-Net and text encoder on latents (N, C, h, w) of deviation 1, one caption each."""
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    unet.to(memory_format=torch.channels_last)
    _start_as_nothing(unet)
    tokens, empty = _tokens(pipeline.tokenizer, captions), _tokens(pipeline.tokenizer, [""])
    alphas_cumprod = pipeline.scheduler.alphas_cumprod
    learner = _Learner([unet, text_encoder], DENOISER_RATE, num_steps, watch)
    for _ in range(num_steps):
        chosen = torch.randint(len(latents), (DENOISER_BATCH,), generator=generator)
        x_0, ids = latents[chosen], tokens[chosen]
        ids[torch.rand(DENOISER_BATCH, generator=generator) < CAPTION_DROPOUT] = empty
        # one t from each part of its distribution, so that a batch sees all of it
        places = (torch.arange(DENOISER_BATCH) + torch.rand(DENOISER_BATCH, generator=generator)) / DENOISER_BATCH
        normal = torch.special.ndtri(places.clamp(1e-4, 1 - 1e-4))
        t = (torch.sigmoid(LOGIT_MEAN + LOGIT_STD * normal) * len(alphas_cumprod)).long()
        noise = torch.randn(x_0.shape, generator=generator)
        alpha = alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
        x_t = (alpha * x_0 + sigma * noise).contiguous(memory_format=torch.channels_last)
        text = text_encoder(ids).last_hidden_state
        prediction = unet(x_t, t, encoder_hidden_states=text, return_dict=False)[0]
        learner.step((prediction - (alpha * noise - sigma * x_0)).square().mean())


def _start_as_nothing(unet: nn.Module) -> None:
    """Let every block begin as the identity and the output as zero: the first steps then learn what matters most."""
    for module in unet.modules():
        kind = type(module).__name__
        for layer in {"ResnetBlock2D": ("conv2",), "Transformer2DModel": ("proj_out",)}.get(kind, ()):
            nn.init.zeros_(getattr(module, layer).weight)
            nn.init.zeros_(getattr(module, layer).bias)
    nn.init.zeros_(unet.conv_out.weight)  # type: ignore[union-attr, arg-type]


def _pictures(num: int, rng: random.Random, any_colour: bool = False) -> tuple[Tensor, list[str]]:
    drawn = [draw_animal(SIDE_PX, rng, any_colour) for _ in range(num)]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture, _ in drawn])).permute(0, 3, 1, 2)
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last), [c for _, c in drawn]


@torch.no_grad()
def _encode(vae: Any, pictures: Tensor) -> Tensor:
    return torch.cat([vae.encode(batch).latent_dist.mean for batch in pictures.split(BATCH)])


def _tokens(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    length = tokenizer.model_max_length
    return tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


class _Learner:
    """Muon for matrices, AdamW for the rest, one rate that rises shortly and then falls to nothing."""

    def __init__(self, modules: Sequence[nn.Module], rate: float, num_steps: int, watch: Watch) -> None:
        self._rate, self._num_steps, self._watch = rate, num_steps, watch
        named = [(n, p) for module in modules for n, p in module.named_parameters()]
        # rows of an embedding are updated rarely and each on its own
        matrices = [p for name, p in named if p.ndim >= 2 and "embedding" not in name]
        others = [p for name, p in named if p.ndim < 2 or "embedding" in name]
        self._muon = Muon(matrices)
        self._adam = torch.optim.AdamW(others, rate, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)
        self._modules = modules
        self._step = 0
        self._losses: deque[float] = deque(maxlen=20)
        self._seconds: deque[float] = deque(maxlen=20)
        self._last = time.monotonic()

    def step(self, loss: Tensor) -> None:
        """Backward, update, and what the user sees."""
        if self._watch.stop_requested():
            raise StoppedError("stopped while the model was built; the next time it is built from the start")
        loss.backward()
        done = (self._step + 1) / self._num_steps
        rate = self._rate * min(1.0, done / 0.05) * (1 - 0.97 * done)
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()
        self._muon.step(rate)
        for module in self._modules:
            module.zero_grad()
        self._step += 1
        self._show(loss.item(), rate)

    def _show(self, loss: float, rate: float) -> None:
        now = time.monotonic()
        self._losses.append(loss)
        self._seconds.append(now - self._last)
        self._last = now
        seconds = statistics.median(self._seconds)
        self._watch.show(
            Progress(
                step=self._step,
                num_steps=self._num_steps,
                loss=statistics.fmean(self._losses),
                rate=rate,
                seconds_per_step=seconds,
                seconds_left=seconds * (self._num_steps - self._step),
                memory_mb=peak_mb(torch.device("cpu")),
            )
        )
