"""Losses against torch and their closed forms; masks; offset and perturbation."""

from __future__ import annotations

import math

import pytest
import torch
from sd_atelier.lib.config import ObjectiveConfig, choices_of
from sd_atelier.lib.noise import NoiseSchedule
from sd_atelier.lib.objective import (
    HUBER_SCHEDULES,
    LOSSES,
    loss_per_sample,
    multires_noise,
    multires_sizes,
    noised,
    offset_noise,
    perturbed_noise,
    scheduled_delta,
)
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


SCHEDULE = NoiseSchedule.from_alphas_cumprod(NoiseSchedule.scaled_linear().alphas.double().square())


def test_every_huber_schedule_of_the_configuration_is_there():
    assert choices_of(ObjectiveConfig.__dataclass_fields__["huber_schedule"]) == HUBER_SCHEDULES


def test_huber_schedules_are_their_closed_forms_in_diffusion():
    t = torch.tensor([0, 1, 300, 999])
    assert scheduled_delta(t, SCHEDULE, 0.1, "constant") == 0.1
    snr, exponential = (scheduled_delta(t, SCHEDULE, 0.1, kind) for kind in ("snr", "exponential"))
    assert isinstance(snr, torch.Tensor) and isinstance(exponential, torch.Tensor)
    for i, step in enumerate(t.tolist()):
        alphas_cumprod = SCHEDULE.alpha(t)[i].item() ** 2
        sigma = math.sqrt((1 - alphas_cumprod) / alphas_cumprod)
        assert snr[i].item() == pytest.approx(0.9 / (1 + sigma) ** 2 + 0.1, rel=1e-12)
        assert exponential[i].item() == pytest.approx(math.exp(math.log(0.1) * step / 1000), rel=1e-6)


@pytest.mark.parametrize("kind", ["snr", "exponential"])
def test_huber_schedules_fall_from_1_to_delta_in_flow_and_at_zero_terminal_snr(kind):
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    zero_terminal = NoiseSchedule.from_alphas_cumprod(torch.linspace(1, 0, 1001, dtype=torch.float64)[1:])
    for schedule, t in ((NoiseSchedule.flow(), u), (zero_terminal, torch.arange(1000))):
        delta = scheduled_delta(t, schedule, 0.1, kind)
        assert isinstance(delta, torch.Tensor)
        assert (delta[1:] < delta[:-1]).all()
        assert delta[0].item() == pytest.approx(1, abs=0.07)
        assert delta[-1].item() == pytest.approx(0.1, rel=3e-3)


def test_an_unknown_huber_schedule_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match='unknown huber schedule "snd"; did you mean "snr"'):
        scheduled_delta(torch.tensor([0]), SCHEDULE, 0.1, "snd")


@pytest.mark.parametrize("kind", LOSSES)
def test_a_delta_for_each_sample_is_the_loss_of_each_at_its_own(kind):
    prediction, target, deltas = random(3, 2, 3, 4), random(3, 2, 3, 4, seed=1), [0.01, 0.5, 3.0]
    mask = random(3, 1, 3, 4, seed=2).sigmoid()
    got = loss_per_sample(prediction, target, kind, torch.tensor(deltas, dtype=torch.float64), mask)
    for b, delta in enumerate(deltas):
        one = loss_per_sample(prediction[b : b + 1], target[b : b + 1], kind, delta, mask[b : b + 1])
        assert got[b].item() == pytest.approx(one.item(), rel=1e-14)


def test_multires_sizes_are_the_powers_of_their_ratios_down_to_1():
    assert multires_sizes(64, 48, [2, 2, 2, 2]) == [(64, 48), (32, 24), (16, 12), (8, 6)]
    assert multires_sizes(64, 48, [3.9, 2.5, 3.0, 2.0]) == [(64, 48), (25, 19), (7, 5), (8, 6)]
    assert multires_sizes(64, 3, [2] * 10) == [(64, 3), (32, 1)]
    assert multires_sizes(1, 1, [2] * 10) == [(1, 1)]
    assert multires_sizes(64, 64, []) == []


def levels_of(noise: torch.Tensor, ratios: list[float], seed: int = 10) -> list[torch.Tensor]:
    sizes = multires_sizes(noise.shape[2], noise.shape[3], ratios)
    return [random(*noise.shape[:2], *size, seed=seed + i) for i, size in enumerate(sizes)]


def test_multires_noise_is_the_sum_of_its_enlarged_levels_at_unit_deviation():
    noise = random(1, 1, 1, 4)
    whole, half = random(1, 1, 1, 4, seed=1), random(1, 1, 1, 2, seed=2)
    a, b = half.flatten().tolist()
    # bilinear: the centres of the four pixels lie a quarter of a coarse pixel on either side of its centres
    enlarged = torch.tensor([a, 0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b, b], dtype=torch.float64).view(1, 1, 1, 4)
    total = noise + whole + 0.3 * enlarged
    torch.testing.assert_close(multires_noise(noise, [whole, half], 0.3), total / total.std(), rtol=1e-12, atol=0)


def test_multires_noise_has_unit_deviation_and_more_low_frequencies_in_every_sample():
    noise = random(8, 4, 32, 32).float()
    mixed = multires_noise(noise, levels_of(noise, [2.0] * 6), 0.8)
    assert mixed.dtype == torch.float32 and mixed.shape == noise.shape
    torch.testing.assert_close(mixed.flatten(1).std(1), torch.ones(8), rtol=1e-5, atol=0)

    def low(x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, 8).square().flatten(1).mean(1)

    assert (low(mixed) > 3 * low(noise)).all()


def test_multires_noise_of_a_sample_does_not_depend_on_its_batch():
    noise = random(3, 4, 8, 8)
    noise[0] *= 5
    levels = levels_of(noise, [2.0, 3.0, 2.0])
    together = multires_noise(noise, levels, 0.5)
    for b in range(3):
        alone = multires_noise(noise[b : b + 1], [level[b : b + 1] for level in levels], 0.5)
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-12, atol=0)


def test_multires_noise_without_discounted_levels_is_the_noise_at_unit_deviation():
    noise = random(2, 4, 8, 8)
    levels = levels_of(noise, [2.0, 2.0])
    alone = multires_noise(noise, levels[:1], 0.0)
    torch.testing.assert_close(multires_noise(noise, levels, 0.0), alone, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        alone, (noise + levels[0]) / (noise + levels[0]).flatten(1).std(1).view(-1, 1, 1, 1), rtol=1e-12, atol=0
    )
