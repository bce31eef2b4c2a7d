"""The loss scaler: exact scaling, growth and back-off as in torch's own, resumable state."""

from __future__ import annotations

import json
import random

import pytest
import torch
from sd_atelier.lib.loss_scaler import GROWTH_EVERY_STEPS, LossScaler


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, 5, generator=generator)) for _ in range(2)]


def gradients(scaler: LossScaler) -> list[torch.Tensor]:
    params = parameters()
    scaler.scale(sum(p.pow(3).sum() for p in params)).backward()  # type: ignore[arg-type]
    scaler.unscale(params)
    return [p.grad for p in params]  # type: ignore[misc]


def test_scaling_and_unscaling_leave_gradients_bit_identical():
    for plain, scaled in zip(gradients(LossScaler(False)), gradients(LossScaler(True)), strict=True):
        assert torch.equal(plain, scaled)


def test_gradients_that_underflow_in_fp16_survive_when_scaled():
    def grad(scaler: LossScaler) -> torch.Tensor:
        p = torch.nn.Parameter(torch.ones(1))
        scaler.scale((p.half() * 1e-4).float().sum() * 1e-4).backward()
        scaler.unscale([p])
        assert p.grad is not None
        return p.grad

    assert grad(LossScaler(False)).item() == 0
    assert grad(LossScaler(True)).item() == pytest.approx(1e-8, rel=1e-2)


def test_disabled_is_the_identity():
    scaler, loss = LossScaler(False), torch.tensor(2.5)
    assert scaler.scale(loss) is loss
    before = scaler.state()
    scaler.update(True)
    assert scaler.state() == before


def test_parameters_without_gradient_are_left_alone():
    p = torch.nn.Parameter(torch.ones(2))
    LossScaler(True).unscale([p])
    assert p.grad is None


def test_the_scale_doubles_after_a_run_of_finite_steps_and_halves_at_once():
    scaler, one = LossScaler(True), torch.ones(())
    start = scaler.scale(one).item()
    for _ in range(GROWTH_EVERY_STEPS - 1):
        scaler.update(False)
    assert scaler.scale(one).item() == start
    scaler.update(False)
    assert scaler.scale(one).item() == 2 * start
    scaler.update(True)
    assert scaler.scale(one).item() == start
    for _ in range(GROWTH_EVERY_STEPS - 1):
        scaler.update(False)
    scaler.update(True)
    assert scaler.scale(one).item() == start / 2


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="this torch scales losses on CUDA alone")
def test_the_scale_moves_as_torch_moves_its_own():
    ours, scale, tracker = LossScaler(True), torch.tensor(2.0**16), torch.tensor(0, dtype=torch.int32)
    rng = random.Random(0)
    for _ in range(12_000):
        found = rng.random() < 1 / 3000
        ours.update(found)
        torch._amp_update_scale_(scale, tracker, torch.tensor(float(found)), 2.0, 0.5, GROWTH_EVERY_STEPS)
        assert ours.state()["scale"] == scale.item()


def test_state_goes_through_json_and_goes_on_where_it_was():
    first, second = LossScaler(True), LossScaler(True)
    first.update(True)
    for _ in range(GROWTH_EVERY_STEPS - 1):
        first.update(False)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    first.update(False)
    second.update(False)
    assert second.state() == first.state()


def test_a_state_that_lacks_something_is_refused_by_name():
    with pytest.raises(ValueError, match="lacks num_finite"):
        LossScaler(True).restore({"scale": 2.0})
