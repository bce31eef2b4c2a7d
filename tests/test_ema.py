"""Laws of the moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from sd_atelier.lib.ema import Ema


def weights() -> dict[str, torch.nn.Parameter]:
    """A matrix, a convolution in another memory format, a scalar."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"unet.a": (8, 60), "unet.conv": (4, 3, 3, 3), "te.s": ()}
    params = {key: torch.nn.Parameter(torch.randn(shape, generator=generator)) for key, shape in shapes.items()}
    params["unet.conv"].data = params["unet.conv"].data.to(memory_format=torch.channels_last)
    return params


def test_ema_is_its_recurrence_with_the_warm_up():
    params = {k: p.detach() for k, p in weights().items()}
    ema = Ema(params, 0.6)
    expected = {k: p.double() for k, p in params.items()}
    for n in range(20):
        params = {k: p + 0.1 for k, p in params.items()}
        ema.update(params)
        decay = min(0.6, (1 + n) / (10 + n))
        expected = {k: decay * e + (1 - decay) * params[k].double() for k, e in expected.items()}
    assert ema.num_updates == 20
    for key, value in ema.tensors().items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-5, msg=key)


def test_ema_starts_as_a_copy_and_leaves_the_weights_alone():
    params = weights()
    ema = Ema(params, 0.9)
    assert all(torch.equal(v, params[k]) for k, v in ema.tensors().items())
    moved = {k: p.detach() + 1 for k, p in params.items()}
    ema.update(moved)
    assert all(torch.equal(moved[k], params[k] + 1) for k in params)
    assert all(v.data_ptr() != params[k].data_ptr() for k, v in ema.tensors().items())


def test_ema_resumes_to_the_bit():
    params = {k: p.detach() for k, p in weights().items()}
    whole, first = Ema(params, 0.95), Ema(params, 0.95)
    steps = [{k: p * (1 + 0.1 * n) for k, p in params.items()} for n in range(10)]
    for n, moved in enumerate(steps):
        whole.update(moved)
        if n < 4:
            first.update(moved)
    second = Ema({k: torch.zeros_like(p) for k, p in params.items()}, 0.95)
    second.restore(load(save({k: v.contiguous() for k, v in first.tensors().items()})), first.num_updates)
    for moved in steps[4:]:
        second.update(moved)
    assert all(torch.equal(v, whole.tensors()[k]) for k, v in second.tensors().items())


def test_ema_refuses_what_does_not_fit_and_stays_as_it_was():
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    ema = Ema(params, 0.9)
    with pytest.raises(ValueError, match="the moving average lacks b"):
        ema.restore({"a": torch.zeros(2)}, 1)
    with pytest.raises(ValueError, match=r"has \(4,\) float32 for b, expected \(3,\) float32"):
        ema.restore({"a": torch.zeros(2), "b": torch.zeros(4)}, 1)
    assert ema.tensors()["a"].tolist() == [1, 1]
    assert ema.num_updates == 0
