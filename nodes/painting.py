"""The pictures of a strip, made as ComfyUI's own nodes make them.

LoraLoader, CLIPTextEncode, KSampler, VAEDecode and SaveImage would give the same bits; here the model is loaded once
and each text encoded once where that changes nothing.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import types
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.sample
import comfy.sd
import comfy.sdxl_clip
import numpy as np
import torch
from PIL import Image

from ..lib.checksum import checksum
from ..lib.files import read_safetensors, sha256_of
from ..lib.host import SampleRequest
from ..lib.named_folders import is_below
from ..lib.strip.render import Column, Paint

_MAX_DEPTH = 6  # of what patches hold; deeper things hardly decide a picture
_NETWORK = re.compile(r"lora|hada_|lokr_|oft_|dora_scale|\.(diff|diff_b|alpha|w_norm|b_norm|set_weight|a1\.weight)$")
_EMBEDDING = re.compile(r"embedding:([^\s,()]+)")
_EMBEDDING_ENDINGS = ("", ".safetensors", ".pt", ".bin")
_PROJECTION = "text_projection.weight"
_known: weakref.WeakKeyDictionary[Any, dict[tuple[str, ...], str]] = weakref.WeakKeyDictionary()


class ComfyPainter:
    """Makes the cells of a strip from the model, CLIP and VAE of a graph.

    positive, negative: conditionings used in place of the prompts of a request, or None. on_step(step) is told of
    each sampling step, and may raise.
    """

    def __init__(
        self,
        model: Any,
        clip: Any | None,
        vae: Any,
        *,
        sampler_name: str,
        scheduler: str,
        positive: Any | None,
        negative: Any | None,
        on_step: Callable[[int], None],
    ) -> None:
        self._model, self._clip, self._vae = model, clip, vae
        self._sampler_name, self._scheduler = sampler_name, scheduler
        self._positive, self._negative = positive, negative
        self._on_step = on_step
        self._texts: dict[str, Any] = {}
        self.base = fingerprint_of(model)
        self.settings: dict[str, Any] = {
            "host": "comfyui",
            "sampler": sampler_name,
            "scheduler": scheduler,
            "clip": "" if clip is None else fingerprint_of(clip.patcher, _unread(model, clip)) + str(clip.layer_idx),
            "vae": fingerprint_of(vae.patcher),
            "positive": _described(_read(model, positive)),
            "negative": _described(_read(model, negative)),
        }

    def named_in(self, request: SampleRequest) -> dict[str, Any]:
        """The embeddings that the prompts name: their files' hashes, None for one that is not there."""
        import folder_paths

        if self._positive is not None:
            return {}
        found: dict[str, Any] = {}
        for name in _EMBEDDING.findall(f"{request.prompt}\n{request.negative_prompt}"):
            folders = [Path(folder) for folder in folder_paths.get_folder_paths("embeddings")]
            paths = [folder / f"{name}{ending}" for folder in folders for ending in _EMBEDDING_ENDINGS]
            file = next((path for path in paths if path.is_file() and is_below(path.resolve(), folders)), None)
            found[f"embedding {name}"] = None if file is None else sha256_of(file)
        return found

    def column(self, label: str, path: Path | None) -> Column:
        """A column for a file, or for the model as it is."""
        if path is None:
            return Column(label, None, self.base)
        try:
            return Column(label, path, f"{self.base} {sha256_of(path)}")
        except OSError as error:
            return Column(label, path, error=f"cannot be read: {error.strerror}")

    @contextmanager
    def ready(self, column: Column) -> Iterator[Paint]:
        """Errors: `ValueError` for a file that is none, or that belongs to another kind of model; `OSError`."""
        if column.source is None:
            yield lambda request, strength: self._picture(self._model, self._clip, request, self._texts)
            return
        tensors, metadata = read_safetensors(column.source)
        if not any(_NETWORK.search(name) for name in tensors):
            del tensors
            model = _diffusion_model(column.source)
            try:
                yield lambda request, strength: self._picture(model, self._clip, request, self._texts)
            finally:
                del model
                comfy.model_management.soft_empty_cache()
            return

        patched: dict[float, tuple[Any, Any, dict[str, Any]]] = {}

        def paint(request: SampleRequest, strength: float) -> Image.Image:
            if strength not in patched:
                # another strength is another set of patches; only the one in use is kept
                patched.clear()
                model, clip = _with_network(self._model, self._clip, tensors, metadata, strength)
                # a network without text-encoder parts leaves every text as it is
                same = clip is None or _num_patches(clip.patcher) == _num_patches(self._clip.patcher)  # type: ignore[union-attr]
                patched[strength] = (model, clip, self._texts if same else {})
            model, clip, texts = patched[strength]
            return self._picture(model, clip, request, texts)

        yield paint

    def _picture(self, model: Any, clip: Any | None, request: SampleRequest, texts: dict[str, Any]) -> Image.Image:
        positive = self._conditioning(self._positive, clip, request.prompt, texts)
        negative = self._conditioning(self._negative, clip, request.negative_prompt, texts)
        latent = _empty(model, request)
        noise = comfy.sample.prepare_noise(latent, request.seed)
        samples = comfy.sample.sample(
            model,
            noise,
            request.steps,
            request.guidance,
            self._sampler_name,
            self._scheduler,
            positive,
            negative,
            latent,
            denoise=1.0,
            callback=lambda step, x0, x, total: self._on_step(step + 1),
            disable_pbar=True,
            seed=request.seed,
        )
        pictures = self._vae.decode(samples)
        pictures = pictures.reshape(-1, *pictures.shape[-3:])  # autoencoders of films give one frame of one
        if not torch.isfinite(pictures).all():
            raise ValueError(
                "the picture is not finite (NaN): the network fell apart, or the model or VAE needs another precision"
            )
        # as SaveImage does it, so that a cell is the file that it would have written
        return Image.fromarray(np.clip(255.0 * pictures[0].cpu().numpy(), 0, 255).astype(np.uint8))

    @staticmethod
    def _conditioning(given: Any | None, clip: Any | None, prompt: str, texts: dict[str, Any]) -> Any:
        if given is not None:
            return given
        if clip is None:
            raise ValueError("the prompt needs a CLIP; connect one, or connect conditionings instead of prompts")
        if prompt not in texts:
            texts[prompt] = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        return texts[prompt]


def _with_network(
    model: Any, clip: Any | None, tensors: dict[str, torch.Tensor], metadata: dict[str, str], strength: float
) -> tuple[Any, Any]:
    """Model and CLIP with a network, as core's LoraLoader gives them. Errors: `ValueError` where nothing matches."""
    if strength == 0:
        return model, clip
    about = {"lora_metadata": metadata} if "lora_metadata" in _parameters(comfy.sd.load_lora_for_models) else {}
    patched, patched_clip = comfy.sd.load_lora_for_models(model, clip, tensors, strength, strength, **about)
    before = _num_patches(model) + (0 if clip is None else _num_patches(clip.patcher))
    after = _num_patches(patched) + (0 if clip is None else _num_patches(patched_clip.patcher))
    if after == before:
        raise ValueError("matches no layer of this model: it was trained for another kind of model")
    return patched, patched_clip


def _num_patches(patcher: Any) -> int:
    return sum(len(patches) for patches in patcher.patches.values())


def _diffusion_model(path: Path) -> Any:
    """A full model from its file. Errors: `ValueError` for a file that ComfyUI does not know."""
    try:
        return comfy.sd.load_diffusion_model(str(path))
    except RuntimeError as error:
        raise ValueError(
            f"is neither a network nor a diffusion model that ComfyUI knows: {str(error)[:200]}"
        ) from error


def _empty(model: Any, request: SampleRequest) -> torch.Tensor:
    """As EmptyLatentImage and KSampler make it together, whatever the channels and the scale of the model's latents."""
    management, fix = comfy.model_management, comfy.sample.fix_empty_latent_channels
    dtype = management.intermediate_dtype() if hasattr(management, "intermediate_dtype") else torch.float32
    size = (request.height // 8, request.width // 8)
    latent = torch.zeros([1, 4, *size], device=management.intermediate_device(), dtype=dtype)
    # older versions know latents of an eighth alone
    return fix(
        model, latent, **({"downscale_ratio_spacial": 8} if "downscale_ratio_spacial" in _parameters(fix) else {})
    )


def _parameters(function: Callable[..., Any]) -> Mapping[str, Any]:
    return inspect.signature(function).parameters


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if torch.is_tensor(tensor)}


def _takes_pooled_text(model: Any) -> bool:
    """Whether a model is told the pooled output of the text encoder. Those of Stable Diffusion 1 and 2 are not."""
    return type(model.model).encode_adm is not comfy.model_base.BaseModel.encode_adm


def _unread(model: Any, clip: Any) -> list[str]:
    """Weights of the text encoder that no picture depends on.

    Most files lack the projection of CLIP L's pooled output, which ComfyUI then leaves as the memory happened to be.
    """
    encoder = clip.cond_stage_model
    names = [name for name in encoder.state_dict() if name.endswith(_PROJECTION)]
    if not _takes_pooled_text(model):
        return names
    # of the two it takes the pooled output of CLIP G
    return [n for n in names if n.startswith("clip_l.")] if isinstance(encoder, comfy.sdxl_clip.SDXLClipModel) else []


def _read(model: Any, conditioning: Any | None) -> Any:
    """What of a conditioning a picture depends on."""
    if conditioning is None or _takes_pooled_text(model):
        return conditioning
    return [[text, {k: v for k, v in facts.items() if k != "pooled_output"}] for text, facts in conditioning]


def fingerprint_of(patcher: Any, unread: Collection[str] = ()) -> str:
    """A model exactly: every bit of its weights but those of `unread`, and all that is patched onto it; the same in
    another session. The weights are read once for each loaded model.
    """
    weights = _known.setdefault(patcher.model, {})
    which = tuple(sorted(unread))
    if which not in weights:
        weights[which] = _base_checksum(patcher, which)
    patches = {str(key): value for key, value in sorted(patcher.patches.items(), key=lambda item: str(item[0]))}
    about = [
        weights[which],
        _described(patches),
        _described({str(k): v for k, v in sorted(patcher.object_patches.items())}),
        _described(patcher.model_options),
    ]
    return hashlib.sha256("\0".join(about).encode()).hexdigest()


def _base_checksum(patcher: Any, unread: Collection[str]) -> str:
    """Of the weights without patches: a loaded model may hold them merged, and keeps what was there beside it."""
    tensors = _tensors(patcher.model)
    for key, backup in getattr(patcher, "backup", {}).items():
        if str(key) in tensors:
            tensors[str(key)] = backup.weight if hasattr(backup, "weight") else backup
    return checksum(sorted((name, tensor) for name, tensor in tensors.items() if name not in unread))


def _described(value: Any, depth: int = 0) -> str:
    """A text that is the same for things that would make the same picture, in any session."""
    if depth > _MAX_DEPTH:
        return type(value).__qualname__
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return repr(value)
    if torch.is_tensor(value):
        return checksum([("", value)])
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!s}: {_described(v, depth + 1)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "[" + ", ".join(_described(v, depth + 1) for v in value) + "]"
    if isinstance(value, types.MethodType):
        return _described(value.__func__, depth) + _described(value.__self__, depth + 1)
    if isinstance(value, types.FunctionType):
        inside = [cell.cell_contents for cell in value.__closure__ or ()]
        return f"{value.__module__}.{value.__qualname__}{_described(inside, depth + 1)}"
    if isinstance(value, torch.nn.Module):
        return f"{type(value).__qualname__} {checksum(sorted(_tensors(value).items()))}"
    return f"{type(value).__qualname__} {_described(getattr(value, '__dict__', {}), depth + 1)}"
