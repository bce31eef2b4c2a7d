"""Gradients of a LoRA on ComfyUI's models against an out-of-place reference in float64.

The reference is a copy of the model with the adapted weights in place, in which `x += y` makes a new tensor.
"""

import os

import pytest
import torch

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH names no ComfyUI", allow_module_level=True)

import importlib.util
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
from sd_atelier.lib.config import TrainableConfig
from sd_atelier.lib.frozen import attached
from sd_atelier.lib.trainables.lora import Lora
from sd_atelier.nodes.host import ComfyHost
from torch.overrides import TorchFunctionMode

spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)

# relative, of each tensor; float32 has about 1e-7, and these sum up more of it than the rest
TOLERANCE = {"lumina2": 3e-5, "wan": 3e-5}


def rope(x, freqs_cis):
    """Rotary embedding as a sum of two products."""
    pairs = x.to(freqs_cis.dtype).reshape(*x.shape[:-1], -1, 1, 2)
    return (freqs_cis[..., 0] * pairs[..., 0] + freqs_cis[..., 1] * pairs[..., 1]).reshape(x.shape).type_as(x)


class OutOfPlace(TorchFunctionMode):
    """`x += y` and its like make a new tensor, inside; the name is bound to it. What cannot be turned so is refused."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("add_", "sub_", "mul_", "div_"):
            func = getattr(torch.Tensor, name.removesuffix("_"))
        elif name == "__setitem__" or (name.endswith("_") and not name.endswith("__") and name != "requires_grad_"):
            assert not any(isinstance(a, torch.Tensor) and a.requires_grad for a in args), f"{name} writes in place"
        return func(*args, **(kwargs or {}))


def loaded(family, **options):
    """A MODEL and its host, made as in a node."""
    with torch.inference_mode():
        model = tiny_models.model(family, **options)
    return model, hosted(model)


def hosted(model):
    with torch.inference_mode():
        return ComfyHost(model)


def trainable_of(host):
    """A network with non-zero values on every layer."""
    trainable = Lora(TrainableConfig(rank=2, alpha=2.0, layers="all"), seed=3)
    trainable.prepare(host)
    generator = torch.Generator().manual_seed(4)
    for parameter in trainable.parameters().values():
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return trainable


def batch(family, host):
    generator = torch.Generator().manual_seed(5)
    x_t = torch.randn(2, tiny_models.CHANNELS[family], 8, 8, generator=generator)
    t = torch.tensor([0.3, 0.8]) if host.alphas_cumprod is None else torch.tensor([100, 800])
    target = torch.randn(x_t.shape, generator=generator)
    return x_t, t, tiny_models.conditioning(family), target


def ours(host, trainable, family, checkpointing=False):
    x_t, t, conditioning, target = batch(family, host)
    with (
        host.training(host.compute_dtype, checkpointing),
        attached([host.parts["unet"]], host.weight_of, trainable.branch_of, host.used),
    ):
        prediction = host.denoiser(x_t, t, conditioning)
        (prediction - target).square().mean().backward()
    return prediction.detach(), {name: p.grad.double() for name, p in trainable.parameters().items()}


def given_to(model, x_t, t, conditioning):
    """What ComfyUI's own steps give `apply_model`, for each sample of its own: x, sigma, conditions."""
    calls = []
    if model.latent_format.latent_dimensions == 3:
        x_t = x_t.unsqueeze(2)
    for i in range(len(t)):
        facts = {"pooled_output": conditioning["pooled"][i : i + 1]} if "pooled" in conditioning else {}
        sizes = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
        facts |= dict(zip(sizes, conditioning["sizes"][i].tolist(), strict=True))
        facts["guidance"] = conditioning["guidance"][i].item()
        pair = [conditioning["text"][i : i + 1], facts]
        x = x_t[i : i + 1]
        conds = {"positive": comfy.sampler_helpers.convert_cond([pair])}
        conds = comfy.samplers.process_conds(model, torch.zeros_like(x), conds, x.device, torch.zeros_like(x), None, 0)
        found = conds["positive"][0]["model_conds"]
        conds = {name: cond.process_cond(batch_size=1, area=None).cond for name, cond in found.items()}
        flow = t.is_floating_point()
        sigma = t[i : i + 1] if flow else model.model_sampling.sigma(t[i : i + 1])
        x = x if flow else x * (1 + sigma**2) ** 0.5
        calls.append((x, sigma, conds))
    return calls


def predicted(model, calls):
    """The prediction, worked back from the x_0 that the model gives."""
    each = [(x - model.apply_model(x, s, transformer_options={}, **conds)) / s for x, s, conds in calls]
    return torch.cat([one.squeeze(2) if one.ndim == 5 else one for one in each])


def refuse_unknown_reference(family):
    if family in TOLERANCE and not hasattr(comfy.model_management, "in_training"):
        pytest.skip("this ComfyUI has no differentiable form of this model to compare with")


def reference(base, trainable, family, host, differences=None):
    """Prediction and gradients of a copy in float64; `differences` are added to its weights, by name."""
    refuse_unknown_reference(family)
    x_t, t, conditioning, target = batch(family, host)
    # Wan itself computes some things in float32
    precision = torch.float32 if family == "wan" else torch.float64
    values = {name: p.detach().to(precision) for name, p in trainable.parameters().items()}
    with torch.no_grad():
        twin = tiny_models.model(family).model
        weights = dict(base.diffusion_model.named_parameters())
        own = {id(module): name for name, module in base.diffusion_model.named_modules()}
        places = {}
        for name, layer in trainable.layer_names().items():
            (member,) = layer
            places[name] = twin.diffusion_model.get_submodule(own[id(member.module)])
        plain = {}
        for prefix, module in twin.diffusion_model.named_modules():
            for key, parameter in list(module._parameters.items()):
                if parameter is not None:
                    del module._parameters[key]
                    name = f"{prefix}.{key}" if prefix else key
                    weight = weights[name]
                    weight = weight.dequantize() if hasattr(weight, "dequantize") else weight
                    plain[id(module), key] = weight.detach().to(precision) + (differences or {}).get(name, 0)
                    setattr(module, key, plain[id(module), key])
        twin.to(precision)
        for module in twin.diffusion_model.modules():
            if hasattr(module, "dtype"):
                module.dtype = precision
        names = list(values)
        calls = given_to(twin, x_t.to(precision), t.to(precision) if t.is_floating_point() else t, conditioning)

        def program(*given):
            by_name = dict(zip(names, given, strict=True))
            for name, module in places.items():
                down, up = by_name[f"{name}.lora_down.weight"], by_name[f"{name}.lora_up.weight"]
                # alpha is the rank, so the scale is 1
                delta = up.flatten(1) @ down.flatten(1)
                base_weight = plain[id(module), "weight"]
                module.weight = base_weight + delta.view(base_weight.shape)
            return predicted(twin, calls)

        leaves = [value.requires_grad_() for value in values.values()]
        with (
            mock.patch.object(comfy.model_management, "in_training", True, create=True),
            mock.patch("comfy.ldm.flux.math._apply_rope1", rope, create=True),
            mock.patch("comfy.ldm.flux.math.apply_rope1", rope),
            mock.patch(
                "comfy.ldm.flux.math.apply_rope", lambda q, k, freqs_cis: (rope(q, freqs_cis), rope(k, freqs_cis))
            ),
            torch.enable_grad(),
            OutOfPlace(),
        ):
            prediction = program(*leaves)
            loss = (prediction - target).square().mean()
        grads = torch.autograd.grad(loss, leaves)
    return prediction.detach(), dict(zip(names, grads, strict=True))


def assert_alike(got, expected, tolerance):
    assert got.keys() == expected.keys()
    worst = {name: ((got[name] - g).norm() / g.norm()).item() for name, g in expected.items()}
    name = max(worst, key=lambda n: worst[n])
    assert worst[name] < tolerance, (
        f"{name}: {worst[name]:.2e}, {sum(w > tolerance for w in worst.values())} of {len(worst)}"
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_gradients_equal_an_out_of_place_reference(family, checkpointing):
    model, host = loaded(family)
    trainable = trainable_of(host)
    expected, grads = reference(model.model, trainable, family, host)
    prediction, got = ours(host, trainable, family, checkpointing)
    assert (prediction - expected).norm() / expected.norm() < 1e-5
    assert_alike(got, grads, TOLERANCE.get(family, 1e-5))


@contextmanager
def offloading():
    """ComfyUI loads no layer that it can bring when it is needed, as where memory is short."""
    load = comfy.model_patcher.ModelPatcher.load

    def load_partly(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        return load(self, device_to, 1, force_patch_weights, False)

    with mock.patch.object(comfy.model_patcher.ModelPatcher, "load", load_partly):
        yield


@pytest.mark.parametrize("offloaded", [False, True])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_patches_on_the_model_are_trained_upon(family, offloaded):
    model, _ = loaded(family)
    generator = torch.Generator().manual_seed(6)
    names = [name for name, p in model.model.diffusion_model.named_parameters() if p.ndim > 1]
    # ComfyUI patches what its layers hold
    names = [name for name in names if name.endswith(".weight")][::3]
    weights = dict(model.model.diffusion_model.named_parameters())
    differences = {
        name: 0.3 * weights[name].detach().std().item() * torch.randn(weights[name].shape, generator=generator)
        for name in names
    }
    before = {name: weight.clone() for name, weight in weights.items()}
    with torch.inference_mode():
        model = model.clone()
        model.add_patches({f"diffusion_model.{name}": ("diff", (value,)) for name, value in differences.items()})
    host = hosted(model)
    trainable = trainable_of(host)
    expected, grads = reference(model.model, trainable, family, host, differences)
    with offloading() if offloaded else nullcontext():
        prediction, got = ours(host, trainable, family)
        patched = [m for m in model.model.modules() if getattr(m, "weight_function", None)]
        assert bool(patched) == offloaded
    assert (prediction - expected).norm() / expected.norm() < 1e-5
    assert_alike(got, grads, TOLERANCE.get(family, 1e-5))
    with torch.inference_mode():
        model.unpatch_model(tiny_models.CPU)
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.diffusion_model.named_parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float16, torch.bfloat16])
def test_weights_stored_in_fewer_bits_are_trained_upon(stored, family, checkpointing):
    model, host = loaded(family, dtype=stored, manual_cast=torch.float32)
    trainable = trainable_of(host)
    expected, grads = reference(model.model, trainable, family, host)
    prediction, got = ours(host, trainable, family, checkpointing)
    assert (prediction - expected).norm() / expected.norm() < 1e-5
    assert_alike(got, grads, TOLERANCE.get(family, 1e-5))


@pytest.mark.skipif(not hasattr(comfy.ops, "mixed_precision_ops"), reason="this ComfyUI has no quantised layers")
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_quantised_weights_are_trained_upon(family):
    with torch.inference_mode():
        model = tiny_models.quantised(family)
    host = hosted(model)
    trainable = trainable_of(host)
    expected, grads = reference(model.model, trainable, family, host)
    prediction, got = ours(host, trainable, family)
    assert (prediction - expected).norm() / expected.norm() < 1e-5
    assert_alike(got, grads, TOLERANCE.get(family, 1e-5))
