"""Pictures to latents and back by the host's autoencoder, with whatever VAE is chosen in its settings."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ...lib.fingerprint import fingerprint
from .loaded import Loaded
from .readiness import arrive


class WebuiAutoencoder:
    """The autoencoder of the loaded checkpoint."""

    scale_px = 8

    def __init__(self, loaded: Loaded, device: torch.device) -> None:
        self._model, self._family, self._device = loaded.model, loaded.family, device

    @property
    def _vae(self) -> Any:
        return self._model.first_stage_model

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._vae.parameters()).dtype

    @property
    def key(self) -> str:
        values = fingerprint(self._vae.state_dict().items())
        scale = getattr(self._model, "scale_factor", "sd3")
        scale = float(scale) if not isinstance(scale, str) else scale
        return hashlib.sha256(repr((values, scale, str(self._dtype))).encode()).hexdigest()[:16]

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> the mean of the posterior, scaled, (B, C, h, w) float32.

        In half precision some autoencoders overflow: those pictures are encoded in float32, in which each
        half-precision weight is itself and comes back as itself.
        """
        arrive(self._vae)
        latents = self._mean(pictures)
        if self._dtype == torch.float16 and not torch.isfinite(latents).all():
            self._vae.to(torch.float32)
            try:
                latents = self._mean(pictures)
            finally:
                self._vae.to(torch.float16)
        return latents

    def _mean(self, pictures: Tensor) -> Tensor:
        # SDXL's and SD3's own encode draws from the posterior
        moments = self._vae.encoder(pictures.to(self._device, self._dtype))
        if self._family != "sd3":
            moments = self._vae.quant_conv(moments)
        mean = moments.chunk(2, dim=1)[0].float()
        return self._model.latent_format.process_in(mean) if self._family == "sd3" else self._model.scale_factor * mean

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self._model.decode_first_stage(latents.to(self._device, self._dtype)).float().clamp(-1, 1)
