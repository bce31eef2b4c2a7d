"""ComfyUI as the core's host: training on the MODEL that it has loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from PIL import Image
from torch import Tensor, nn

from ..lib.control import Control
from ..lib.frozen import attached
from ..lib.host import Autoencoder, Conditioning, Progress, SampleRequest, TextEncoder
from ..lib.recompute import recomputed
from .blocks import blocks_of
from .conditions import WANTS_A_PICTURE, model_conds
from .families import family_of, text_parts
from .latents import ComfyAutoencoder
from .loaded import LoadedModel, compute_dtype_of
from .prediction import prediction_of, raw_prediction, sigma_of
from .rope import differentiable_rope
from .sampling import ComfySampler
from .text import ComfyText


class ComfyHost:
    """A MODEL with its CLIP and VAE, as sockets give them, behind the core's `Host`.

        ComfyHost(model, clip, vae, clip_skip=None, max_token_chunks=3, train_text=False, control=None,
                  on_progress=..., on_preview=..., sampler_name="", scheduler="", model_info={}, text=None,
                  autoencoder=None)

    clip_skip: 1 for the last layer, 2 for the one before and so on; None leaves it as it is. max_token_chunks: chunks
    of 75 tokens that a caption may fill. train_text: whether text encoders are trained, so that they are kept loaded
    beside the model (`config.trainable.text_encoder`). control: what buttons set. on_progress(Progress) after each
    step, on_preview(step, SampleRequest, PIL image) after each preview; both may raise. sampler_name, scheduler:
    ComfyUI's names for previews; empty for euler, with normal or simple. model_info: name and hash where they are
    known. text, autoencoder: used instead of CLIP and VAE, for what was encoded elsewhere.

    Make it where the node runs, in ComfyUI's own inference mode, and use it in that thread.
    Errors: `ValueError` for a model that cannot be trained, or a VAE that is not its own.
    """

    name = "comfyui"

    def __init__(
        self,
        model: Any,
        clip: Any | None = None,
        vae: Any | None = None,
        *,
        clip_skip: int | None = None,
        max_token_chunks: int = 3,
        train_text: bool = False,
        control: Control | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_preview: Callable[[int, SampleRequest, Image.Image], None] = lambda step, request, image: None,
        sampler_name: str = "",
        scheduler: str = "",
        model_info: Mapping[str, str] | None = None,
        text: TextEncoder | None = None,
        autoencoder: Autoencoder | None = None,
    ) -> None:
        base = model.model
        if not hasattr(base, "diffusion_model") or not hasattr(base, "model_sampling"):
            raise ValueError(f"{type(base).__name__} is no diffusion model; connect the MODEL of a checkpoint")
        if getattr(base, "concat_keys", ()):  # others show it in their first conditioning only
            raise ValueError(WANTS_A_PICTURE)
        if clip is not None and clip_skip is not None:
            clip = clip.clone()
            clip.clip_layer(-clip_skip)
        self.family = family_of(base)
        self.device: torch.device = model.load_device
        self.compute_dtype: torch.dtype = compute_dtype_of(base)
        self._sampling = model.get_model_object("model_sampling")
        self.prediction, self.alphas_cumprod = prediction_of(self._sampling)
        latent_format = model.get_model_object("latent_format")
        self._latent_dimensions = latent_format.latent_dimensions
        if self._latent_dimensions not in (2, 3):
            raise ValueError("this model makes no pictures; only models of pictures can be trained")
        self._loaded = LoadedModel(model, clip)
        self._clip, self._vae = clip, vae
        self._train_text = train_text
        self.parts: dict[str, nn.Module] = {"unet": base.diffusion_model}
        if clip is not None:
            self.parts |= text_parts(self.family, clip.cond_stage_model)
        if train_text and len(self.parts) == 1:
            missing = "there is no CLIP" if clip is None else "the names of its text encoders are not known"
            raise ValueError(f"trainable.text_encoder cannot be on for this model: {missing}")
        self._text = text
        if text is None and clip is not None:
            self._text = ComfyText(clip, max_token_chunks, self._loaded.at_work)
        self._autoencoder = autoencoder
        if autoencoder is None and vae is not None:
            self._autoencoder = ComfyAutoencoder(vae, base, self._loaded.at_work)
        self._sampler = ComfySampler(
            model,
            clip,
            lambda: self.autoencoder,
            self._loaded.at_work,
            sampler_name=sampler_name,
            scheduler=scheduler,
            is_flow=self.alphas_cumprod is None,
        )
        self.control = control or Control()
        self._on_progress, self._on_preview = on_progress, on_preview
        self.model_info = {**(model_info or {}), "prediction": self.prediction}
        if clip is not None:
            layer = clip.layer_idx
            self.model_info["clip_skip"] = "model's own" if layer is None else str(-layer)

    @property
    def text(self) -> TextEncoder:
        if self._text is None:
            raise ValueError("captions need a CLIP; connect the one that belongs to the model")
        return self._text

    @property
    def autoencoder(self) -> Autoencoder:
        if self._autoencoder is None:
            raise ValueError("pictures need a VAE; connect the one that belongs to the model")
        return self._autoencoder

    @property
    def sampler(self) -> ComfySampler:
        return self._sampler

    def weight_of(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        return self._loaded.weight_of(layer)

    def used(self, layer: nn.Module) -> None:
        self._loaded.used(layer)

    @contextmanager
    def training(self, compute_dtype: torch.dtype, block_checkpointing: bool) -> Iterator[None]:
        if compute_dtype != self.compute_dtype:
            raise ValueError(
                f"loop.compute_dtype asks for {compute_dtype}, and ComfyUI computes this model in "
                f"{self.compute_dtype}; use auto, or start ComfyUI with --fp32-unet, --bf16-unet or --fp16-unet"
            )
        self._refuse_replaced_forwards()
        base = self._loaded.model
        with ExitStack() as stack:
            stack.enter_context(self._loaded.training(self._train_text, block_checkpointing))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(differentiable_rope())
            if self._train_text and isinstance(self._text, ComfyText):
                stack.enter_context(self._text.training())
            roots = self._loaded.roots() if self._train_text else [base.diffusion_model]
            # layers outside the parts that are trained stand between them and the loss all the same
            stack.enter_context(attached(roots, self.weight_of, used=self.used))
            if block_checkpointing:
                stack.enter_context(recomputed(blocks_of(base.diffusion_model)))
            yield

    def denoiser(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        x_t, t = x_t.to(self.device, torch.float32), t.to(self.device)
        if self._latent_dimensions == 3:
            x_t = x_t.unsqueeze(2)
        self._loaded.load_for(x_t.shape)
        base = self._loaded.model
        conditioning = {name: tensor.to(self.device) for name, tensor in conditioning.items()}
        sigma = sigma_of(base.model_sampling, t)
        # ComfyUI's own scale of noisy latents: x_0 + sigma * noise in diffusion, as in the core for flow
        scale = 1 if self.alphas_cumprod is None else (sigma.square() + 1).sqrt().view(-1, *(1 for _ in x_t.shape[1:]))
        each = model_conds(base, conditioning, x_t)
        with raw_prediction(base.model_sampling):
            predictions = [
                self._predicted(x, s, conds)
                for x, s, conds in zip((x_t * scale).chunk(len(each)), sigma.chunk(len(each)), each, strict=True)
            ]
        prediction = torch.cat(predictions) if len(predictions) > 1 else predictions[0]
        return prediction.squeeze(2) if self._latent_dimensions == 3 else prediction

    def _predicted(self, x: Tensor, sigma: Tensor, conds: dict[str, Any]) -> Tensor:
        """Through the wrappers and patches that the MODEL carries."""
        options = self._loaded.options.get("transformer_options", {}).copy()
        options |= {"cond_or_uncond": [0], "sigmas": sigma}
        options.setdefault("optimized_attention_override", _differentiable_attention)
        conds["transformer_options"] = options
        apply_model = self._loaded.model.apply_model
        wrapper = self._loaded.options.get("model_function_wrapper")
        if wrapper is None:
            return apply_model(x, sigma, **conds)
        return wrapper(apply_model, {"input": x, "timestep": sigma, "c": conds, "cond_or_uncond": [0]})

    def progress(self, progress: Progress) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._on_progress(progress)

    def preview(self, step: int, request: SampleRequest, image: Image.Image) -> None:
        self._on_preview(step, request, image)

    def stop_requested(self) -> bool:
        # ComfyUI's cancel is an exception: it ends the node, after the trainer has saved
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self.control.stop_requested

    def _refuse_replaced_forwards(self) -> None:
        for root in self._loaded.roots():
            for name, module in root.named_modules():
                if "forward" in vars(module) and hasattr(module, "weight_function"):
                    raise ValueError(
                        f"another node has replaced what {name} computes (a LoRA in bypass mode, for instance); load "
                        "that LoRA the ordinary way, or train without it"
                    )


def _differentiable_attention(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    """torch's attention, which has a gradient everywhere, in place of what the host samples with."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)
