"""Pictures from the model as it stands, by ComfyUI's own samplers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import comfy.sample
import torch
from PIL import Image

from ..lib.host import Autoencoder, SampleRequest
from ..lib.previews import random_state_kept


class ComfySampler:
    """Sample a request. Prompts are read as ComfyUI reads them, emphasis included.

    A model that is told its guidance is told that of the request, and sampled without a negative prompt.
    """

    def __init__(
        self,
        patcher: Any,
        clip: Any | None,
        autoencoder: Callable[[], Autoencoder],
        at_work: Callable[[], AbstractContextManager[None]],
        *,
        sampler_name: str,
        scheduler: str,
        is_flow: bool,
    ) -> None:
        self._patcher, self._clip, self._autoencoder, self._at_work = patcher, clip, autoencoder, at_work
        self._sampler_name = sampler_name or "euler"
        self._scheduler = scheduler or ("simple" if is_flow else "normal")

    def __call__(self, request: SampleRequest) -> Image.Image:
        """Errors: `ValueError` without a CLIP or a VAE, and for a size that the model cannot have."""
        if self._clip is None:
            raise ValueError("previews need a CLIP; connect the one that belongs to the model")
        autoencoder = self._autoencoder()
        scale_px = autoencoder.scale_px
        for name, size in (("width", request.width), ("height", request.height)):
            if size % scale_px:
                raise ValueError(f"preview {name} must be a multiple of {scale_px} px for this model, got {size}")
        latent_format = self._patcher.get_model_object("latent_format")
        with random_state_kept(), self._at_work():
            told = _is_told_guidance(self._patcher.model)
            positive = self._encoded(request.prompt, request.guidance if told else None)
            negative = self._encoded(request.negative_prompt, request.guidance if told else None)
            size = (request.height // scale_px, request.width // scale_px)
            empty = torch.zeros(1, latent_format.latent_channels, *size)
            empty = comfy.sample.fix_empty_latent_channels(self._patcher, empty)
            noise = torch.randn(empty.shape, generator=torch.Generator().manual_seed(request.seed))
            latents = comfy.sample.sample(
                self._patcher,
                noise,
                request.steps,
                1.0 if told else request.guidance,
                self._sampler_name,
                self._scheduler,
                positive,
                negative,
                empty,
                disable_pbar=True,
                seed=request.seed,
            )
            pictures = autoencoder.decode_raw(latents)  # type: ignore[attr-defined]
            pixels = (pictures[0].float() * 255).round().clamp(0, 255).byte().cpu().numpy()
        return Image.fromarray(pixels)

    def _encoded(self, prompt: str, guidance: float | None) -> list[Any]:
        encoded = self._clip.encode_from_tokens_scheduled(self._clip.tokenize(prompt))  # type: ignore[union-attr]
        if guidance is not None:
            encoded = [[text, {**facts, "guidance": guidance}] for text, facts in encoded]
        return encoded


def _is_told_guidance(model: Any) -> bool:
    """Whether guidance is an input of the model (distilled, as Flux dev)."""
    return bool(getattr(getattr(model.diffusion_model, "params", None), "guidance_embed", False))
