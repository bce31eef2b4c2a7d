"""ComfyUI's autoencoder behind the core's face."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..lib.fingerprint import fingerprint


class ComfyAutoencoder:
    """A VAE object: pictures to the latents of a model, and back. `at_work` is the host's own mode of working.

    Errors: `ValueError` for an autoencoder of sound or of other latents than the model's.
    """

    def __init__(self, vae: Any, model: Any, at_work: Callable[[], AbstractContextManager[None]]) -> None:
        vae.throw_exception_if_invalid()
        if vae.latent_dim not in (2, 3):
            raise ValueError("this VAE is not for pictures; connect the VAE that belongs to the model")
        needed = model.latent_format.latent_channels
        if vae.latent_channels != needed:
            raise ValueError(
                f"this VAE makes latents of {vae.latent_channels} channels, the model needs {needed}; connect the VAE "
                "that belongs to the model"
            )
        self._vae, self._model, self._at_work = vae, model, at_work
        self.scale_px = int(vae.spacial_compression_encode())

    @property
    def key(self) -> str:
        facts = (type(self._model.latent_format).__name__, str(self._vae.vae_dtype))
        with self._at_work():
            values = fingerprint(
                (name, tensor)
                for name, tensor in self._vae.first_stage_model.state_dict().items()
                if torch.is_tensor(tensor)
            )
        return hashlib.sha256(repr((values, facts)).encode()).hexdigest()[:16]

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w) float32. ComfyUI encodes to the mean."""
        with self._at_work():
            pixels = pictures.movedim(1, -1).add(1).div(2).cpu()
            if self._vae.latent_dim == 3:
                # several pictures would be taken for the frames of one film
                latents = torch.cat([self._vae.encode(one[None])[:, :, :1] for one in pixels])
            else:
                latents = self._vae.encode(pixels)
            latents = self._model.process_latent_in(latents.float())
        return (latents.squeeze(2) if latents.ndim == 5 else latents).clone()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) in [-1, 1]."""
        with self._at_work():
            if self._model.latent_format.latent_dimensions == 3:
                latents = latents.unsqueeze(2)
            pictures = self.decode_raw(self._model.process_latent_out(latents.float()))
            pictures = pictures.movedim(-1, 1).float().mul(2).sub(1).clamp(-1, 1)
        return pictures.clone()

    def decode_raw(self, latents: Tensor) -> Tensor:
        """ComfyUI's latents, as its samplers give them -> its pictures, (B, H, W, 3) in [0, 1]."""
        pictures = self._vae.decode(latents)
        return pictures.reshape(-1, *pictures.shape[-3:])[..., :3]
