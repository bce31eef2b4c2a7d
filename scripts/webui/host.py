"""The WebUI as the core's host: the checkpoint that it has loaded, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ...lib.config import RunConfig
from ...lib.control import Control
from ...lib.frozen import plain_weight, stays
from ...lib.host import Conditioning, Progress, SampleRequest
from . import builtin_lora
from .autoencoder import WebuiAutoencoder
from .loaded import information, is_still_loaded, loaded_checkpoint
from .readiness import arrive, ready
from .sampler import WebuiSampler
from .text import WebuiText


class CheckpointGoneError(RuntimeError):
    """The checkpoint was unloaded or another one loaded while the run went on."""


class WebuiHost:
    """The loaded checkpoint as the core's host. To be made and used by the thread that holds the queue lock.

    `txt2img`: further fields for previews (`sampler.WebuiSampler`). Errors: `ValueError` for a checkpoint or a setting
    of the host with which training does not work, saying what to change.
    """

    name = "webui"

    def __init__(
        self,
        control: Control,
        *,
        txt2img: dict[str, Any] | None = None,
        max_token_chunks: int = 3,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_preview: Callable[[int, SampleRequest, Image.Image], None] = lambda step, request, image: None,
        on_problem: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        from modules import devices

        self._loaded = loaded = loaded_checkpoint()
        self.device = torch.device(devices.device)
        self.family, self.prediction = loaded.family, loaded.prediction
        self.alphas_cumprod, self.parts = loaded.alphas_cumprod, loaded.parts
        self.compute_dtype = self._dtype = _compute_dtype(devices, self.device)
        self.text = WebuiText(loaded, max_token_chunks)
        self.autoencoder = WebuiAutoencoder(loaded, self.device)
        self.sampler = WebuiSampler(loaded, txt2img or {}, on_problem)
        self.model_info = information(loaded)
        self.control = control
        self._on_progress, self._on_preview = on_progress, on_preview

    used = staticmethod(stays)

    def weight_of(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weight and bias where they are computed with: --medvram and --lowvram move them away before the backward."""
        weight, bias = plain_weight(layer)
        return weight.to(self.device), None if bias is None else bias.to(self.device)

    def check(self, config: RunConfig) -> None:
        """Whether this run can be trained on the model as the host keeps it. Errors: `ValueError`, what to change."""
        moved = getattr(self._loaded.model, "lowvram", False)
        if config.trainable.text_encoder and moved and (self._loaded.fused or self.family == "sd3"):
            # autograd keeps parameters of theirs that are no layer's, and the host moves them away before the backward
            raise ValueError(
                "the text encoders of this checkpoint cannot be trained with --medvram or --lowvram; start the WebUI "
                "without, or turn off trainable.text_encoder"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """The checkpoint as its file has it, inside: no network merged, no other U-Net in its place, no tokens merged.

        To be entered before anything is encoded; the host's next generation brings back what its prompt asks for.
        """
        from modules import sd_models, sd_unet

        model = self._loaded.model
        sd_unet.apply_unet("None")
        sd_models.apply_token_merging(model, 0)
        builtin_lora.clear(model)
        try:
            yield
        finally:
            builtin_lora.clear(model)

    @contextmanager
    def training(self, compute_dtype: torch.dtype, block_checkpointing: bool) -> Iterator[None]:
        self._dtype = compute_dtype
        try:
            with ready(self._loaded, compute_dtype, block_checkpointing, lambda: self.sampler.is_running):
                yield
        finally:
            self._dtype = self.compute_dtype

    def denoiser(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        unet = self._loaded.unet
        arrive(self._loaded.model.model)
        x_t, t = x_t.to(self.device, self._dtype), t.to(self.device)
        context = conditioning["text"].to(self.device, self._dtype)
        if self.family == "sd3":
            y = conditioning["pooled"].to(self.device, self._dtype)
            return unet(x_t, t.float() * 1000, context=context, y=y).float()
        if self.family == "sdxl":
            y = self.text.vector(conditioning, self.device).to(self._dtype)
            return unet(x_t, timesteps=t, context=context, y=y).float()
        return unet(x_t, timesteps=t, context=context).float()

    def progress(self, progress: Progress) -> None:
        from modules import shared

        state = shared.state
        state.job_count, state.sampling_steps, state.sampling_step = 1, progress.num_steps, progress.step
        loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
        state.textinfo = f"Atelier: step {progress.step} of {progress.num_steps}{loss}" + (
            f", {progress.note}" if progress.note else ""
        )
        self._on_progress(progress)

    def preview(self, step: int, request: SampleRequest, image: Image.Image) -> None:
        from modules import shared

        shared.state.assign_current_image(image)
        self._on_preview(step, request, image)

    def stop_requested(self) -> bool:
        """Errors: `CheckpointGoneError`, so that what is trained is saved before anything is computed with another."""
        if not is_still_loaded(self._loaded):
            raise CheckpointGoneError(
                f"the checkpoint {self.model_info['name']} was unloaded or replaced while it was trained; load it "
                "again and resume the run"
            )
        return self.control.stop_requested


def _compute_dtype(devices: Any, device: torch.device) -> torch.dtype:
    """What the host computes its U-Net in; with 8-bit weights that is not what they are stored in."""
    if devices.fp8 and device.type == "cpu":
        return torch.bfloat16
    return devices.dtype_unet
