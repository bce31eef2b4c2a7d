"""Losses against torch and their closed forms; masks; offset and perturbation."""

from __future__ import annotations

import math

import pytest
import torch
from sd_atelier.lib.config import ObjectiveConfig, choices_of
from sd_atelier.lib.noise import NoiseSchedule
from sd_atelier.lib.objective import LOSSES, loss_per_sample, noised, offset_noise, perturbed_noise
from torch.nn import functional


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def closed_form(kind: str, error: float, delta: float) -> float:
    root = math.sqrt(error**2 + delta**2) - delta
    return {"mse": error**2, "l1": abs(error), "huber": 2 * delta * root, "smooth_l1": 2 * root}[kind]


def test_every_loss_of_the_configuration_is_there():
    field = ObjectiveConfig.__dataclass_fields__["loss"]
    assert choices_of(field) == LOSSES


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_is_the_mean_of_its_closed_form(kind):
    prediction, target = random(3, 2, 3, 4), random(3, 2, 3, 4, seed=1)
    loss = loss_per_sample(prediction, target, kind, 0.3)
    for b in range(3):
        errors = (prediction[b] - target[b]).flatten().tolist()
        expected = sum(closed_form(kind, e, 0.3) for e in errors) / len(errors)
        assert loss[b].item() == pytest.approx(expected, rel=1e-12)


def test_mse_and_l1_equal_torch():
    prediction, target = random(3, 2, 3, 4), random(3, 2, 3, 4, seed=1)
    for kind, reference in (("mse", functional.mse_loss), ("l1", functional.l1_loss)):
        expected = reference(prediction, target, reduction="none").flatten(1).mean(1)
        torch.testing.assert_close(loss_per_sample(prediction, target, kind), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_huber_losses_tend_to_twice_those_of_torch_at_both_ends(kind):
    reference = {
        "huber": lambda e: functional.huber_loss(e, 0 * e, reduction="none", delta=0.1),
        "smooth_l1": lambda e: functional.smooth_l1_loss(e, 0 * e, reduction="none", beta=0.1),
    }[kind]
    for size, tolerance in ((1e-4, 1e-5), (1e4, 1e-4)):
        error = torch.full((1, 1, 1, 1), size, dtype=torch.float64)
        got = loss_per_sample(error, 0 * error, kind, 0.1)
        torch.testing.assert_close(got, 2 * reference(error).flatten(), rtol=tolerance, atol=0)


def test_huber_is_mse_where_the_error_is_small_and_flattens_outliers():
    small, large = torch.full((1, 1, 2, 2), 1e-3), torch.full((1, 1, 2, 2), 30.0)
    zero = torch.zeros(1, 1, 2, 2)
    torch.testing.assert_close(
        loss_per_sample(small, zero, "huber"), loss_per_sample(small, zero, "mse"), rtol=1e-4, atol=0
    )
    assert loss_per_sample(large, zero, "huber").item() == pytest.approx(2 * 0.1 * 30, rel=1e-2)


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_are_right_and_finite_at_zero_error(kind):
    prediction = random(2, 2, 3, 3).requires_grad_()
    target = random(2, 2, 3, 3, seed=1)
    mask = random(2, 1, 3, 3, seed=2).sigmoid()
    assert torch.autograd.gradcheck(lambda p: loss_per_sample(p, target, kind, 0.2, mask), prediction)
    loss_per_sample(prediction, prediction.detach(), kind).sum().backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


@pytest.mark.parametrize("kind", LOSSES)
def test_a_mask_of_ones_changes_nothing(kind):
    prediction, target = random(3, 2, 3, 4), random(3, 2, 3, 4, seed=1)
    masked = loss_per_sample(prediction, target, kind, 0.1, torch.ones(3, 1, 3, 4))
    torch.testing.assert_close(masked, loss_per_sample(prediction, target, kind, 0.1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_binary_mask_is_the_loss_of_the_part_that_it_keeps(kind):
    prediction, target = random(2, 3, 4, 6), random(2, 3, 4, 6, seed=1)
    mask = torch.zeros(2, 1, 4, 6)
    mask[..., 2:] = 1
    got = loss_per_sample(prediction, target, kind, 0.1, mask)
    expected = loss_per_sample(prediction[..., 2:], target[..., 2:], kind, 0.1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_a_soft_mask_is_a_weighted_mean():
    error = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3).expand(1, 4, 1, 3)
    mask = torch.tensor([0.5, 0.0, 0.25]).view(1, 1, 1, 3)
    loss = loss_per_sample(error, torch.zeros_like(error), "mse", 0.1, mask)
    assert loss.item() == pytest.approx((0.5 * 1 + 0.25 * 9) / 0.75)


@pytest.mark.parametrize("kind", LOSSES)
def test_an_empty_mask_is_no_loss_and_no_gradient_rather_than_nan(kind):
    prediction = random(2, 2, 3, 3).requires_grad_()
    mask = torch.ones(2, 1, 3, 3)
    mask[0] = 0
    loss = loss_per_sample(prediction, random(2, 2, 3, 3, seed=1), kind, 0.1, mask)
    assert loss[0].item() == 0
    assert loss[1].item() > 0
    loss.sum().backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad[0], torch.zeros_like(prediction[0]))
    assert prediction.grad.isfinite().all()


def test_half_precision_predictions_are_compared_in_float32():
    prediction = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)
    loss = loss_per_sample(prediction, torch.zeros(1, 4, 8, 8, dtype=torch.float16), "mse")
    assert loss.dtype == torch.float32
    assert loss.item() == 90_000


def test_an_unknown_loss_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match='unknown loss "hubert"; did you mean "huber"'):
        loss_per_sample(random(1, 1, 1, 1), random(1, 1, 1, 1), "hubert")


def test_offset_moves_each_channel_as_a_whole():
    noise, shift = random(3, 4, 5, 6), random(3, 4, 1, 1, seed=1)
    moved = offset_noise(noise, shift, 0.1) - noise
    torch.testing.assert_close(moved, (0.1 * shift).expand_as(noise), rtol=1e-9, atol=1e-12)


def test_perturbation_widens_the_noise():
    noise, extra = random(1, 4, 100, 100), random(1, 4, 100, 100, seed=1)
    perturbed = perturbed_noise(noise, extra, 0.5)
    torch.testing.assert_close(perturbed, noise + 0.5 * extra)
    assert perturbed.std().item() == pytest.approx(math.sqrt(1.25), rel=0.02)


def test_offset_is_in_input_and_target_and_perturbation_in_the_input_alone():
    schedule = NoiseSchedule.scaled_linear()
    t = torch.tensor([10, 500, 990])
    x_0, noise, extra = (random(3, 4, 2, 2, seed=s) for s in range(3))
    shift = random(3, 4, 1, 1, seed=3)
    x_t, target_noise = noised(
        x_0, noise, t, schedule, noise_offset=0.1, shift=shift, input_perturbation=0.2, extra=extra
    )
    torch.testing.assert_close(target_noise, noise + 0.1 * shift)
    torch.testing.assert_close(x_t, schedule.add_noise(x_0, noise + 0.1 * shift + 0.2 * extra, t))


def test_without_offset_and_perturbation_the_noise_is_untouched():
    schedule = NoiseSchedule.scaled_linear()
    x_0, noise, t = random(2, 4, 2, 2), random(2, 4, 2, 2, seed=1), torch.tensor([1, 900])
    x_t, target_noise = noised(x_0, noise, t, schedule)
    assert target_noise is noise
    assert torch.equal(x_t, schedule.add_noise(x_0, noise, t))


def test_a_strength_without_its_random_numbers_is_a_broken_invariant():
    schedule, x = NoiseSchedule.scaled_linear(), random(1, 4, 2, 2)
    with pytest.raises(AssertionError, match="shift"):
        noised(x, x, torch.tensor([5]), schedule, noise_offset=0.1)
    with pytest.raises(AssertionError, match="extra"):
        noised(x, x, torch.tensor([5]), schedule, input_perturbation=0.1)
