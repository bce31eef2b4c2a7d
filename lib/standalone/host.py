"""The standalone host: a Stable Diffusion 1.x or 2.x pipeline loaded with diffusers."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..control import Control
from ..fingerprint import fingerprint
from ..frozen import plain_weight, stays
from ..host import Conditioning, Progress, SampleRequest
from ..recompute import recomputed

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
_RECOMPUTED = ("ResnetBlock2D", "BasicTransformerBlock")


def _key(modules: Iterable[nn.Module], *facts: object) -> str:
    """A short hash of what modules compute: 16 values of each tensor, and further facts."""
    values = [fingerprint(module.state_dict().items()) for module in modules]
    return hashlib.sha256(repr((values, facts)).encode()).hexdigest()[:16]


class StandaloneText:
    """A CLIP tokenizer and text encoder: literal captions, in chunks of 75 tokens."""

    def __init__(self, tokenizer: Any, encoder: Any, clip_skip: int, max_chunks: int) -> None:
        self._tokenizer, self._encoder = tokenizer, encoder
        self._clip_skip, self._max_chunks = clip_skip, max_chunks
        # the tokenizer may not know it: its own limit is in a file of its folder that is often left out
        self._window = encoder.config.max_position_embeddings - 2
        self.dtype = next(encoder.parameters()).dtype

    @property
    def key(self) -> str:
        vocabulary = hashlib.sha256(repr(sorted(self._tokenizer.get_vocab().items())).encode()).hexdigest()
        return _key([self._encoder], vocabulary, self._clip_skip, self._max_chunks, str(self.dtype))

    def _ids(self, caption: str) -> list[int]:
        return self._tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids

    def num_tokens(self, caption: str) -> int:
        return len(self._ids(caption))

    def encode(self, captions: Sequence[str]) -> Conditioning:
        tokenizer, window = self._tokenizer, self._window
        ids = [self._ids(caption)[: window * self._max_chunks] for caption in captions]
        num_chunks = max(1, *(-(-len(i) // window) for i in ids)) if ids else 1
        rows = []
        for caption_ids in ids:
            for c in range(num_chunks):
                chunk = caption_ids[c * window : (c + 1) * window]
                padding = [tokenizer.pad_token_id] * (window - len(chunk))
                rows.append([tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id, *padding])
        device = next(self._encoder.parameters()).device
        output = self._encoder(torch.tensor(rows, device=device), output_hidden_states=self._clip_skip > 1)
        hidden = output.last_hidden_state
        if self._clip_skip > 1:
            norm: Any = getattr(self._encoder, "text_model", self._encoder).final_layer_norm
            hidden = norm(output.hidden_states[-self._clip_skip])
        return {"text": hidden.reshape(len(captions), -1, hidden.shape[-1])}


class StandaloneAutoencoder:
    """A diffusers AutoencoderKL."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.scale_px = 2 ** (len(vae.config.block_out_channels) - 1)
        self._scale = vae.config.scaling_factor
        self._shift = getattr(vae.config, "shift_factor", None) or 0.0

    @property
    def key(self) -> str:
        return _key([self._vae], self._scale, self._shift, str(self._vae.dtype))

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        mean = self._vae.encode(pictures.to(self._vae.device, self._vae.dtype)).latent_dist.mean
        return (mean.float() - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        latents = latents.to(self._vae.device, self._vae.dtype) / self._scale + self._shift
        return self._vae.decode(latents).sample.float().clamp(-1, 1)


class StandaloneHost:
    """A loaded diffusers pipeline as the core's host."""

    name = "standalone"

    def __init__(
        self,
        pipeline: Any,
        *,
        model_info: dict[str, str],
        device: torch.device,
        clip_skip: int = 1,
        max_token_chunks: int = 3,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        from diffusers import DDPMScheduler

        self.device = device
        self._unet, self._scheduler = pipeline.unet, pipeline.scheduler
        # convolutions and the flips around transformer blocks are fastest with the channels last
        self._unet.to(device, memory_format=torch.channels_last)
        pipeline.text_encoder.to(device)
        pipeline.vae.to(device)
        self.family = "sd1" if self._unet.config.cross_attention_dim != 1024 else "sd2"
        training_scheduler: Any = DDPMScheduler.from_config(self._scheduler.config)
        self.prediction = _PREDICTIONS[training_scheduler.config.prediction_type]
        self.alphas_cumprod: Tensor | None = training_scheduler.alphas_cumprod.float().cpu()
        self.compute_dtype = self._dtype = self._unet.dtype
        self.parts: dict[str, nn.Module] = {"unet": self._unet, "te": pipeline.text_encoder}
        self.text = StandaloneText(pipeline.tokenizer, pipeline.text_encoder, clip_skip, max_token_chunks)
        self.autoencoder = StandaloneAutoencoder(pipeline.vae)
        self.sampler = self._sample
        self.model_info = {**model_info, "clip_skip": str(clip_skip), "prediction": self.prediction}
        self._modules = (self._unet, pipeline.text_encoder, pipeline.vae)
        self.control = Control()
        self._on_progress, self._stop_requested = on_progress, stop_requested

    weight_of = staticmethod(plain_weight)
    used = staticmethod(stays)

    @contextmanager
    def training(self, compute_dtype: torch.dtype, block_checkpointing: bool) -> Iterator[None]:
        wanted = [(p, p.requires_grad) for m in self._modules for p in m.parameters()]
        modes = [(m, m.training) for root in self._modules for m in root.modules()]
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
                for module in self._modules:
                    module.eval().requires_grad_(False)
                self._dtype = compute_dtype
                if block_checkpointing:
                    blocks = [m for m in self._unet.modules() if type(m).__name__ in _RECOMPUTED]
                    stack.enter_context(recomputed(blocks))
                yield
        finally:
            self._dtype = self.compute_dtype
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)
                parameter.grad = None
            for module, mode in modes:
                module.training = mode

    def denoiser(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        x_t = x_t.to(self.device, self._dtype, memory_format=torch.channels_last)
        text = conditioning["text"].to(self.device, self._dtype)
        return self._unet(x_t, t.to(self.device), encoder_hidden_states=text, return_dict=False)[0].float()

    @torch.no_grad()
    def _sample(self, request: SampleRequest) -> Image.Image:
        scheduler = copy.deepcopy(self._scheduler)
        scheduler.set_timesteps(request.steps)
        generator = torch.Generator().manual_seed(request.seed)
        step_px = self.autoencoder.scale_px * 2 ** (len(self._unet.config.block_out_channels) - 1)
        for name, size in (("width", request.width), ("height", request.height)):
            if size % step_px:
                raise ValueError(f"preview {name} must be a multiple of {step_px} px for this model, got {size}")
        shape = (
            1,
            self._unet.config.in_channels,
            *(s // self.autoencoder.scale_px for s in (request.height, request.width)),
        )
        latents = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
        guided = request.guidance != 1.0
        conditioning = self.text.encode([request.negative_prompt, request.prompt] if guided else [request.prompt])
        extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for t in scheduler.timesteps:
            x_t = scheduler.scale_model_input(latents, t)
            x_t = torch.cat([x_t, x_t]) if guided else x_t
            prediction = self.denoiser(x_t, t.expand(x_t.shape[0]), conditioning).cpu()
            if guided:
                without, prompted = prediction.chunk(2)
                prediction = without + request.guidance * (prompted - without)
            latents = scheduler.step(prediction, t, latents, return_dict=False, **extra)[0]
        picture = self.autoencoder.decode(latents)[0].cpu()
        pixels = ((picture + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        return Image.fromarray(pixels)

    def progress(self, progress: Progress) -> None:
        self._on_progress(progress)

    def preview(self, step: int, request: SampleRequest, image: Image.Image) -> None:
        """Previews lie in the run folder; a terminal shows none."""

    def stop_requested(self) -> bool:
        return self.control.stop_requested or self._stop_requested()
