"""What the core asks of the program that holds the model.

A host gives its loaded model as it is. It never loads or copies it for us, and `training()` puts back whatever was
changed, in every case. Shapes: pictures (B, 3, H, W) in [-1, 1]; latents (B, C, h, w), scaled as the denoiser sees
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from .control import Control

# Each value is (B, ...): "text" (B, tokens, width), "pooled" (B, width) where the family has it, and whatever else the
# host's text encoders give its denoiser. "num_tokens" (B,), int64 on the CPU, is given where nothing can be added to a
# caption's tokens (T5): "text" is then zeros behind them, and the core runs each length by itself. The core adds
# "sizes" (B, 6), float32 pixels: original width and height, crop left and top, target width and height; and "guidance"
# (B,). A denoiser takes what its family needs.
Conditioning = dict[str, Tensor]


class Denoiser(Protocol):
    """The host's own model behind one face."""

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The prediction, (B, C, h, w). t (B,): whole numbers 0..999 for diffusion, u in (0, 1) for flow."""
        ...


class TextEncoder(Protocol):
    """Tokenizer and text encoders together."""

    @property
    def key(self) -> str:
        """Changes when a caption would be encoded differently (weights, CLIP skip, chunks); keys the text cache."""
        ...

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Encode literally, differentiable where gradients are on.

        Padded to the longest of the batch in chunks; or with zeros, where `lengths.stacked` gives "num_tokens" too.
        """
        ...

    def num_tokens(self, caption: str) -> int:
        """Tokens of the caption, start and end tokens not counted."""
        ...


class Autoencoder(Protocol):
    """Pictures to scaled latents and back."""

    scale_px: int  # picture pixels per latent pixel

    @property
    def key(self) -> str:
        """Changes when the same picture would be encoded differently; keys the latent cache."""
        ...

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w) float32: the mean of the posterior, so that it can be cached."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) in [-1, 1]."""
        ...


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """One picture to sample. `seed` seeds the initial noise, drawn on the CPU so that it is the same everywhere."""

    prompt: str
    negative_prompt: str = ""
    steps: int = 20
    guidance: float = 7.0
    seed: int = 1
    width: int = 512
    height: int = 512


class Sampler(Protocol):
    """The host's own sampler on the model as it stands, network attached; None where the host cut the picture short."""

    def __call__(self, request: SampleRequest) -> Image.Image | None: ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a host shows of a run, once per step."""

    step: int
    num_steps: int
    loss: float | None  # smoothed; None until the first records are fetched
    rate: float
    seconds_per_step: float
    seconds_left: float
    memory_mb: float
    note: str = ""
    step_loss: float | None = None  # of this step, weighted, as it was minimised; None before the first
    controlled: float | None = (
        None  # newest controlled loss against the base: -0.02 is 2 % less; None where none is measured
    )


@runtime_checkable
class KeepsWeights(Protocol):
    """A host that loaded the model itself, so that it may keep the frozen weights as the settings ask."""

    @property
    def num_blocks(self) -> int:
        """Blocks that can be kept in main memory."""
        ...

    def keep(self, base_storage: str, cpu_blocks: int) -> None:
        """Keep the weights so (`loop.base_storage`, `loop.cpu_blocks`). Errors: `ValueError` where it cannot be."""
        ...


class Host(Protocol):
    """The program that holds the model."""

    name: str
    family: str  # a key of the SPELLINGS registry: "sd1", "sd2", "sdxl", "sd3", "flux", or "original"
    device: torch.device
    compute_dtype: (
        torch.dtype
    )  # that of the loaded model; `loop.compute_dtype` other than auto is refused if it cannot be served
    prediction: str  # "epsilon", "v", "x0" or "flow", asked of the model, not looked up by family
    alphas_cumprod: Tensor | None  # (T,) float32, on the CPU; None for flow models
    # part -> module whose named modules are the layers, in the split or the original spelling: "unet" is the denoiser,
    # also where it is a transformer; the rest are text encoders, "te" or "te1", "te2", "te3". May be a container.
    parts: dict[str, nn.Module]
    control: Control  # what the user asks while the run goes on
    model_info: dict[str, str]  # file name, hash, CLIP skip and the like: information for run.json and metadata

    @property
    def denoiser(self) -> Denoiser: ...

    @property
    def text(self) -> TextEncoder: ...

    @property
    def autoencoder(self) -> Autoencoder: ...

    @property
    def sampler(self) -> Sampler: ...

    def weight_of(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a frozen layer as they are now. Asked in each forward and each backward, never kept."""
        ...

    def used(self, layer: nn.Module) -> None:
        """What `weight_of` last gave of this layer is no longer needed: its buffer may be used for another."""
        ...

    def training(self, compute_dtype: torch.dtype, block_checkpointing: bool) -> AbstractContextManager[None]:
        """Ready the loaded model for training and put everything back, whatever happens inside."""
        ...

    def progress(self, progress: Progress) -> None:
        """Show where the run is."""
        ...

    def preview(self, step: int, request: SampleRequest, image: Image.Image) -> None:
        """Show a preview that was made at this step."""
        ...

    def stop_requested(self) -> bool:
        """Whether the run is to be stopped, by `control` or by the host's own way. Asked before each step."""
        ...
