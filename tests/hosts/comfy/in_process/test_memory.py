"""Nothing of a base weight's size is made while ComfyUI's model is trained."""

import os

import pytest
import torch

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH names no ComfyUI", allow_module_level=True)

import importlib.util
from pathlib import Path

from sd_atelier.lib.config import TrainableConfig
from sd_atelier.lib.frozen import attached
from sd_atelier.lib.trainables.lora import Lora
from sd_atelier.nodes.host import ComfyHost
from torch.utils._python_dispatch import TorchDispatchMode

spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)


class Made(TorchDispatchMode):
    """The sizes of the memory that operators make inside, by operator, each made once."""

    def __init__(self, known):
        super().__init__()
        self.known, self.sizes = known, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for tensor in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.sizes.setdefault(tensor.untyped_storage().nbytes(), str(func))
        return outputs


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_step_makes_nothing_of_a_weights_size(family, checkpointing):
    with torch.inference_mode():
        model = tiny_models.model(family)
        host = ComfyHost(model)
    trainable = Lora(TrainableConfig(rank=2, alpha=2.0, layers="all"), seed=3)
    trainable.prepare(host)
    # of a picture this small the activations are smaller than the weights of matrices
    x_t = torch.randn(1, tiny_models.CHANNELS[family], 4, 4)
    t = torch.tensor([0.5]) if host.alphas_cumprod is None else torch.tensor([500])
    conditioning = tiny_models.conditioning(family, batch=1)
    weights = [p for p in model.model.diffusion_model.parameters() if p.ndim > 1]
    known = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
    with (
        host.training(torch.float32, checkpointing),
        attached([host.parts["unet"]], host.weight_of, trainable.branch_of, host.used),
        Made(known) as made,
    ):
        host.denoiser(x_t, t, conditioning).square().mean().backward()
    largest = max(made.sizes)
    big = {p.untyped_storage().nbytes() for p in weights if p.untyped_storage().nbytes() > 32_768}
    assert big
    assert largest < max(big)
    assert not big & made.sizes.keys(), [made.sizes[size] for size in big & made.sizes.keys()]
