"""The standalone host: a pipeline of Stable Diffusion 1.x, 2.x, XL, 3 or 3.5, or Flux, loaded with diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..base_weights import BaseWeights
from ..control import Control
from ..data.buckets import LATENT_STEP
from ..frozen import attached
from ..host import Conditioning, Progress, SampleRequest
from ..lengths import denoised
from ..recompute import recomputed
from . import text
from .denoisers import DENOISERS
from .sampling import sample

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
_RECOMPUTED = (
    "ResnetBlock2D",
    "BasicTransformerBlock",
    "JointTransformerBlock",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
)
# part -> its name in a pipeline; T5 is the third everywhere, as its files count it
_ENCODERS = {
    "sd1": {"te": ""},
    "sd2": {"te": ""},
    "sdxl": {"te1": "", "te2": "_2"},
    "sd3": {"te1": "", "te2": "_2", "te3": "_3"},
    "flux": {"te1": "", "te3": "_2"},
}
# ComfyUI fills T5 up to these
_T5_TOKENS = {"sd3": 77, "flux": 256}


def family_of(pipeline: Any) -> str:
    """The family of a pipeline, told from its denoiser."""
    if hasattr(pipeline, "unet"):
        config = pipeline.unet.config
        if config.addition_embed_type == "text_time":
            return "sdxl"
        return "sd2" if config.cross_attention_dim == 1024 else "sd1"
    return "flux" if "Flux" in type(pipeline.transformer).__name__ else "sd3"


def _text_of(pipeline: Any, family: str, clip_skip: int, max_chunks: int) -> tuple[text.StandaloneText, dict[str, Any]]:
    """The text encoders together, and each by its part."""
    found = {
        part: (getattr(pipeline, f"tokenizer{end}"), getattr(pipeline, f"text_encoder{end}"))
        for part, end in _ENCODERS[family].items()
    }
    models = {part: model for part, (_, model) in found.items() if model is not None}
    t5 = text.T5(*found["te3"], min_tokens=_T5_TOKENS[family]) if "te3" in models else None
    if family in ("sd1", "sd2"):
        return text.of_sd(text.Clip(*found["te"], layer=clip_skip), max_chunks), models
    if family == "flux":
        if clip_skip > 1:
            raise ValueError(f"clip skip changes nothing for Flux, which reads CLIP's pooled output; got {clip_skip}")
        assert t5 is not None
        return text.of_flux(text.Clip(*found["te1"]), t5, max_chunks), models
    # these families read the second layer from the last, without the final norm
    first, second = (text.Clip(*found[part], layer=max(2, clip_skip), normed=False) for part in ("te1", "te2"))
    if family == "sdxl":
        return text.of_sdxl(first, second, max_chunks), models
    return text.of_sd3(first, second, t5, pipeline.transformer.config.joint_attention_dim, max_chunks), models


class StandaloneAutoencoder:
    """A diffusers AutoencoderKL."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.scale_px = 2 ** (len(vae.config.block_out_channels) - 1)
        self.num_channels: int = vae.config.latent_channels
        self._scale = vae.config.scaling_factor
        self._shift = getattr(vae.config, "shift_factor", None) or 0.0

    @property
    def key(self) -> str:
        return text.key_of([self._vae], self._scale, self._shift, str(self._vae.dtype))

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        mean = self._vae.encode(pictures.to(self._vae.device, self._vae.dtype)).latent_dist.mean
        return (mean.float() - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        latents = latents.to(self._vae.device, self._vae.dtype) / self._scale + self._shift
        return self._vae.decode(latents).sample.float().clamp(-1, 1)


def _objective(scheduler: Any) -> tuple[str, Tensor | None]:
    """What the model predicts, and alphas_cumprod, (T,) float32, or None for flow."""
    from diffusers import DDPMScheduler

    if "FlowMatch" in type(scheduler).__name__:
        return "flow", None
    # in training the last step may be pure noise, which some samplers round off
    training: Any = DDPMScheduler.from_config(scheduler.config)
    return _PREDICTIONS[training.config.prediction_type], training.alphas_cumprod.float().cpu()


class StandaloneHost:
    """A loaded diffusers pipeline as the core's host. Its text encoders may stay on a device of their own."""

    name = "standalone"

    def __init__(
        self,
        pipeline: Any,
        *,
        model_info: dict[str, str],
        device: torch.device,
        text_device: torch.device | None = None,
        clip_skip: int = 1,
        max_token_chunks: int = 3,
        base_storage: str = "model",
        cpu_blocks: int = 0,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.device = device
        self.family = family_of(pipeline)
        self._scheduler = pipeline.scheduler
        self._model = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
        # convolutions and the flips around transformer blocks are fastest with the channels last
        self._format = torch.channels_last if hasattr(pipeline, "unet") else torch.contiguous_format
        self.compute_dtype = self._dtype = self._model.dtype
        self._blocks = [m for m in self._model.modules() if type(m).__name__ in _RECOMPUTED]
        self._weights = BaseWeights(self._model, self._blocks, device, self.compute_dtype, self._format)
        self._served = ExitStack()
        self.keep(base_storage, cpu_blocks)
        self.text, encoders = _text_of(pipeline, self.family, clip_skip, max_token_chunks)
        for encoder in encoders.values():
            encoder.to(text_device or device)
        pipeline.vae.to(device)
        self.prediction, self.alphas_cumprod = _objective(pipeline.scheduler)
        self.parts: dict[str, nn.Module] = {"unet": self._model, **encoders}
        self.autoencoder = StandaloneAutoencoder(pipeline.vae)
        self.sampler = self._sample
        self.model_info = {**model_info, "clip_skip": str(clip_skip), "prediction": self.prediction}
        self._modules = (*self.parts.values(), pipeline.vae)
        self.control = Control()
        self._on_progress, self._stop_requested = on_progress, stop_requested

    @property
    def num_blocks(self) -> int:
        return self._weights.num_blocks

    def keep(self, base_storage: str, cpu_blocks: int) -> None:
        self._weights.keep(base_storage, cpu_blocks)
        if base_storage != "model" or cpu_blocks:
            # for as long as the model is there: its layers cannot read such weights themselves
            self._served.close()
            self._served.enter_context(attached([self._model], self.weight_of, used=self.used))

    def weight_of(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        return self._weights.of(layer)

    def used(self, layer: nn.Module) -> None:
        self._weights.used(layer)

    @contextmanager
    def training(self, compute_dtype: torch.dtype, block_checkpointing: bool) -> Iterator[None]:
        wanted = [(p, p.requires_grad) for m in self._modules for p in m.parameters()]
        modes = [(m, m.training) for root in self._modules for m in root.modules()]
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
                stack.enter_context(self.text.training())
                for module in self._modules:
                    module.eval().requires_grad_(False)
                self._dtype = self._weights.compute_dtype = compute_dtype
                if block_checkpointing:
                    stack.enter_context(recomputed(self._blocks))
                yield
        finally:
            self._dtype = self._weights.compute_dtype = self.compute_dtype
            self._weights.release()
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)
                parameter.grad = None
            for module, mode in modes:
                module.training = mode

    def denoiser(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        x_t = x_t.to(self.device, self._dtype, memory_format=self._format)
        conditioning = {name: values.to(self.device) for name, values in conditioning.items()}
        return DENOISERS[self.family](self._model, x_t, t.to(self.device), conditioning).float()

    @torch.no_grad()
    def _sample(self, request: SampleRequest) -> Image.Image:
        scale_px = self.autoencoder.scale_px
        step_px = scale_px * self._latent_step
        for name, size in (("width", request.width), ("height", request.height)):
            if size % step_px:
                raise ValueError(f"preview {name} must be a multiple of {step_px} px for this model, got {size}")
        # where guidance is an input there is no factor left for a negative prompt
        distilled = getattr(self._model.config, "guidance_embeds", False)
        guided = request.guidance != 1.0 and not distilled
        if self.family == "flux" and not request.negative_prompt:
            guided = False
        prompts = [request.negative_prompt, request.prompt] if guided else [request.prompt]
        size = [request.width, request.height]
        conditioning = {
            **self.text.encode(prompts),
            "sizes": torch.tensor([[*size, 0, 0, *size]] * len(prompts), dtype=torch.float32),
            "guidance": torch.full((len(prompts),), request.guidance),
        }
        latents = sample(
            self._scheduler,
            lambda x_t, t: denoised(self.denoiser, x_t, t, conditioning),
            (self.autoencoder.num_channels, request.height // scale_px, request.width // scale_px),
            seed=request.seed,
            steps=request.steps,
            guidance=request.guidance if guided else None,
            even_steps=self.family == "flux",
        )
        picture = self.autoencoder.decode(latents)[0].cpu()
        pixels = ((picture + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        return Image.fromarray(pixels)

    @property
    def _latent_step(self) -> int:
        if self.family in LATENT_STEP:
            return LATENT_STEP[self.family]
        return 2 ** (len(self._model.config.block_out_channels) - 1)

    def progress(self, progress: Progress) -> None:
        self._on_progress(progress)

    def preview(self, step: int, request: SampleRequest, image: Image.Image) -> None:
        """Previews lie in the run folder; a terminal shows none."""

    def stop_requested(self) -> bool:
        return self.control.stop_requested or self._stop_requested()
