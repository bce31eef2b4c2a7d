"""The model that ComfyUI has loaded, while it is trained: where its weights are, and how they are put back.

Weights are never copied. Layers ask for theirs in each forward and each backward through ComfyUI's own
`cast_bias_weight`, which brings what is offloaded, quantised or patched; a weight that lies there as it is needed is
given as it is. Parameters of all other modules are lent: an ordinary tensor on the same memory stands in for a tensor
made under inference mode, which autograd could not save. Whenever ComfyUI itself does something (loads, encodes,
samples), it finds its model as it left it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor, nn

from ..lib.frozen import is_linear
from .blocks import blocks_of

_RESERVE = 0.25  # of a block's activations are kept in training, as a share of what sampling estimates for the whole


def compute_dtype_of(model: Any) -> torch.dtype:
    """The type that ComfyUI computes a model in."""
    return model.manual_cast_dtype or model.get_dtype()


class LoadedModel:
    """A MODEL, and a CLIP where its text encoders are trained too."""

    def __init__(self, patcher: Any, clip: Any | None) -> None:
        self.patcher, self.clip = patcher, clip
        self.device: torch.device = patcher.load_device
        self.inference = torch.is_inference_mode_enabled()
        self.options: dict[str, Any] = {}
        self._text_modules: set[int] = set()
        if clip is not None:
            self._text_modules = {id(m) for m in clip.cond_stage_model.modules()}
        self._lent: list[tuple[dict[str, Any], str, Tensor]] | None = None
        self._borrowed: dict[int, Any] = {}
        self._loaded_for = -1.0
        self._training = self._with_text = self._checkpointed = False

    @property
    def model(self) -> Any:
        return self.patcher.model

    def roots(self) -> list[nn.Module]:
        """What a training step runs through."""
        text = [] if self.clip is None else [self.clip.cond_stage_model]
        return [self.model.diffusion_model, *text]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """ComfyUI's own mode of working, inside: its modules as it left them, its inference mode, no training."""
        training = getattr(comfy.model_management, "in_training", None)
        lent = self._lent is not None
        self._take_back()
        if training is not None:
            comfy.model_management.in_training = False
        try:
            with torch.inference_mode(self.inference), torch.no_grad():
                yield
        finally:
            # whatever was done may have moved the model
            self._loaded_for = -1.0
            if training is not None:
                comfy.model_management.in_training = training
            if lent:
                self._lend()

    def weight_of(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer, on its device, as ComfyUI's own forward would have them."""
        if self._loaded_for < 0 and not self._training:
            self.load(0.0)
        weight, bias = layer.weight, getattr(layer, "bias", None)
        if not hasattr(layer, "weight_function"):
            return weight, bias  # type: ignore[return-value]
        device = self.clip.patcher.load_device if id(layer) in self._text_modules else self.device  # type: ignore[union-attr]
        # a patch is added in the type of the arithmetic, as ComfyUI does it
        dtype = weight.dtype if _is_plain(weight) and not layer.weight_function else self._dtype_of(layer)
        bias_dtype = None if bias is None else (bias.dtype if _is_plain(bias) else dtype)
        weight, bias, stream = comfy.ops.cast_bias_weight(
            layer, None, dtype=dtype, device=device, bias_dtype=bias_dtype, offloadable=True
        )
        self._borrowed[id(layer)] = (layer, weight, bias, stream)
        return weight, bias

    def used(self, layer: nn.Module) -> None:
        borrowed = self._borrowed.pop(id(layer), None)
        if borrowed is not None:
            comfy.ops.uncast_bias_weight(*borrowed)

    def _dtype_of(self, layer: nn.Module) -> torch.dtype:
        return torch.float32 if id(layer) in self._text_modules else compute_dtype_of(self.model)

    def load(self, memory_bytes: float) -> None:
        """Have ComfyUI load the model with room for `memory_bytes` beside it, unless it has."""
        if self._loaded_for >= memory_bytes >= 0:
            return
        with self.at_work():
            patchers = [self.patcher, *self.patcher.get_nested_additional_models()]
            if self._with_text or (self.clip is not None and not self._training):
                patchers.append(self.clip.patcher)
            comfy.model_management.load_models_gpu(patchers, memory_required=memory_bytes)
            if self._training:
                self.patcher.pre_run()
        self._loaded_for = memory_bytes

    def load_for(self, shape: torch.Size) -> None:
        """Load with room for a training step on latents of this shape."""
        self.load(self._memory_of(shape))

    def _memory_of(self, shape: torch.Size) -> float:
        # what sampling needs is that of a block or two; training keeps something of each block, or each block's input
        num_blocks = len(blocks_of(self.model.diffusion_model))
        kept = 2.0 if self._checkpointed else _RESERVE * num_blocks
        return self.model.memory_required(list(shape)) * (1 + kept)

    @contextmanager
    def training(self, with_text: bool, checkpointed: bool) -> Iterator[None]:
        """Loaded and lent, inside; put back in every case."""
        before = getattr(comfy.model_management, "in_training", None)
        self._training, self._with_text, self._checkpointed = True, with_text, checkpointed
        self._loaded_for = -1.0
        self.options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)
        try:
            with torch.inference_mode(self.inference):
                comfy.sampler_helpers.prepare_model_patcher(self.patcher, {}, self.options)
            self.load(0.0)
            comfy.samplers.cast_to_load_options(self.options, self.device, self.patcher.model_dtype())
            if before is not None:
                comfy.model_management.in_training = True
            self._lend()
            yield
        finally:
            self._take_back()
            if before is not None:
                comfy.model_management.in_training = before
            for layer, *borrowed in list(self._borrowed.values()):
                comfy.ops.uncast_bias_weight(layer, *borrowed)
            self._borrowed.clear()
            with torch.inference_mode(self.inference):
                comfy.samplers.cast_to_load_options(self.options, self.patcher.offload_device)
                self.patcher.cleanup()
                self.patcher.restore_hook_patches()
            self.options = {}
            self._training = False
            self._loaded_for = -1.0

    def _lend(self) -> None:
        self._lent = []
        for root in self.roots():
            for module in root.modules():
                if _asks_for_its_weights(module):
                    continue
                for holder in (module._parameters, module._buffers):
                    for name, tensor in holder.items():
                        if tensor is not None and (tensor.is_inference() or tensor.requires_grad) and _is_plain(tensor):
                            self._lent.append((holder, name, tensor))
        for holder, name, tensor in self._lent:
            holder[name] = _ordinary(tensor)

    def _take_back(self) -> None:
        for holder, name, tensor in self._lent or ():
            holder[name] = tensor
        self._lent = None


def _asks_for_its_weights(module: nn.Module) -> bool:
    norms = (nn.LayerNorm, nn.GroupNorm, *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()))
    return is_linear(module) or isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, *norms))


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor can be computed with as it lies there: neither quantised nor in a type of one byte."""
    plain = type(tensor) in (Tensor, nn.Parameter) or type(tensor.data) is Tensor
    return plain and (tensor.element_size() > 1 or not tensor.is_floating_point())


def _ordinary(tensor: Tensor) -> Tensor:
    """An ordinary tensor on the memory of one that was made under inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())  # type: ignore[call-overload]
        return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias
