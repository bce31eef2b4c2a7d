"""Distributions of t against numeric integration and histograms; loss weights against their papers."""

from __future__ import annotations

import math

import pytest
import torch
from sd_atelier.lib.config import ObjectiveConfig
from sd_atelier.lib.noise import NoiseSchedule, rescale_zero_terminal_snr
from sd_atelier.lib.timesteps import Timesteps, debiased_weight, min_snr_weight, weight

SCHEDULE = NoiseSchedule.scaled_linear()
RANGES = [(0.0, 1.0), (0.2, 0.7), (0.0, 0.05), (0.93, 1.0)]


def even(num: int) -> torch.Tensor:
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


def timesteps(flow: bool = True, **settings) -> Timesteps:
    return Timesteps.from_config(ObjectiveConfig(**settings), flow)


def logit_normal_share(mean: float, std: float, low: float, high: float, num: int = 20_001) -> float:
    """Simpson's rule on the density of the logit-normal distribution; t = 0 and t = 1 have none."""
    t = torch.linspace(low, high, num, dtype=torch.float64)
    inside = t.clamp(1e-300, 1 - 1e-16)
    z = ((inside / (1 - inside)).log() - mean) / std
    density = torch.exp(-z * z / 2) / (std * math.sqrt(2 * math.pi) * inside * (1 - inside))
    density = torch.where((t > 0) & (t < 1), density, torch.zeros_like(t))
    factors = torch.full((num,), 2.0, dtype=torch.float64)
    factors[1::2] = 4
    factors[0] = factors[-1] = 1
    return ((density * factors).sum() * (high - low) / (num - 1) / 3).item()


def test_uniform_diffusion_gives_each_step_the_same_chance():
    t = timesteps(flow=False).inverse_cdf(even(5000))
    assert t.dtype == torch.int64
    assert torch.equal(torch.bincount(t, minlength=1000), torch.full((1000,), 5))


def test_uniform_diffusion_in_a_range_gives_each_step_of_it_the_same_chance():
    t = timesteps(flow=False, t_min=0.29, t_max=0.57).inverse_cdf(even(2800))
    counts = torch.bincount(t, minlength=1000)
    assert torch.equal(counts[290:570], torch.full((280,), 10))
    assert counts.sum() == 2800


def test_a_range_narrower_than_a_step_is_that_step():
    t = timesteps(flow=False, t_min=0.5001, t_max=0.5004).inverse_cdf(even(7))
    assert torch.equal(t, torch.full((7,), 500))


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
@pytest.mark.parametrize("flow", [False, True])
def test_t_stays_in_its_range_to_the_last_float(distribution, flow, low, high):
    u = torch.cat([torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64), even(997)])
    t = timesteps(flow, timesteps=distribution, t_min=low, t_max=high).inverse_cdf(u)
    if flow:
        assert t.dtype == torch.float32
        assert (t > 0).all() and (t < 1).all()
        assert t.min() >= low - 1e-7 and t.max() <= high
    else:
        assert t.min() >= round(1000 * low) and t.max() <= round(1000 * high) - 1


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 0.5), (0.8, 1.7)])
def test_logit_normal_is_the_distribution_cut_and_renormalised(mean, std, low, high):
    drawn = timesteps(timesteps="logit_normal", logit_mean=mean, logit_std=std, t_min=low, t_max=high)
    whole = logit_normal_share(mean, std, low, high)
    for u in (0.01, 0.3, 0.5, 0.9, 0.999):
        t = drawn.inverse_cdf(torch.tensor([u], dtype=torch.float64)).item()
        assert logit_normal_share(mean, std, low, t) / whole == pytest.approx(u, abs=2e-5)


def test_logit_normal_histogram_of_even_shares_has_the_density():
    t = timesteps(timesteps="logit_normal").inverse_cdf(even(20_000))
    for low in (0.0, 0.1, 0.5, 0.9):
        share = ((t >= low) & (t < low + 0.1)).double().mean().item()
        assert share == pytest.approx(logit_normal_share(0.0, 1.0, low, low + 0.1), abs=1e-3)


def test_logit_normal_is_even_about_its_median():
    drawn = timesteps(timesteps="logit_normal")
    u = even(101)
    torch.testing.assert_close(drawn.inverse_cdf(u), 1 - drawn.inverse_cdf(1 - u), rtol=1e-6, atol=1e-6)


def test_logit_normal_far_in_its_upper_tail_keeps_its_digits():
    settings = {"timesteps": "logit_normal", "logit_std": 0.5}
    upper = timesteps(**settings, logit_mean=-6.0, t_min=0.5).inverse_cdf(even(9))
    lower = timesteps(**settings, logit_mean=6.0, t_max=0.5).inverse_cdf(even(9))
    torch.testing.assert_close(upper, 1 - lower.flip(0), rtol=1e-6, atol=1e-6)
    assert (upper[1:] > upper[:-1]).all()


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_strata_of_u_are_strata_of_t(distribution):
    drawn = timesteps(timesteps=distribution)
    edges = drawn.inverse_cdf(torch.linspace(0, 1, 17, dtype=torch.float64)[1:-1])
    generator = torch.Generator().manual_seed(0)
    u = (torch.randperm(16, generator=generator) + torch.rand(16, generator=generator, dtype=torch.float64)) / 16
    t = drawn.inverse_cdf(u)
    assert torch.equal(torch.bucketize(t, edges, right=True).sort().values, torch.arange(16))


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match=r"t_min must be below objective.t_max, got 0.5 and 0.5"):
        timesteps(t_min=0.5, t_max=0.5)


def test_a_range_out_of_reach_of_the_distribution_is_refused():
    with pytest.raises(ValueError, match=r"nothing between objective.t_min 0.0 and objective.t_max 0.1"):
        timesteps(timesteps="logit_normal", logit_mean=10.0, logit_std=0.1, t_max=0.1)


def test_min_snr_is_its_paper():
    for snr in (1e-3, 0.7, 4.9, 5.0, 5.1, 900.0):
        one = torch.tensor([snr], dtype=torch.float64)
        assert min_snr_weight(one, 5.0, "epsilon").item() == pytest.approx(min(snr, 5) / snr, rel=1e-14)
        assert min_snr_weight(one, 5.0, "v").item() == pytest.approx(min(snr, 5) / (snr + 1), rel=1e-14)
        assert min_snr_weight(one, 5.0, "x0").item() == pytest.approx(min(snr, 5), rel=1e-14)


def test_min_snr_weighs_the_same_x0_error_the_same_in_every_prediction():
    schedule = NoiseSchedule.from_alphas_cumprod(SCHEDULE.alphas.double().square())
    generator = torch.Generator().manual_seed(0)
    x_0, noise, error = (torch.randn(5, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([3, 100, 400, 700, 990])
    x_t, snr = schedule.add_noise(x_0, noise, t), schedule.snr(t)
    weighted = {}
    for kind in ("epsilon", "v", "x0"):
        wrong = getattr(schedule, f"to_{kind}")(x_0 + error, x_t, t, "x0")
        loss = (wrong - schedule.target(kind, x_0, noise, t)).square().flatten(1).mean(1)
        weighted[kind] = loss * min_snr_weight(snr, 5.0, kind)
    torch.testing.assert_close(weighted["epsilon"], weighted["x0"], rtol=1e-9, atol=0)
    torch.testing.assert_close(weighted["v"], weighted["x0"], rtol=1e-9, atol=0)


def test_debiased_is_its_paper():
    for snr in (1e-3, 0.7, 5.0, 900.0):
        one = torch.tensor([snr], dtype=torch.float64)
        assert debiased_weight(one, "epsilon").item() == pytest.approx(1 / math.sqrt(snr), rel=1e-14)
        assert debiased_weight(one, "v").item() == pytest.approx(1 / (snr + 1), rel=1e-14)
        # an x0 error e is an epsilon error of alpha / sigma * e, so that 1 / sqrt(snr) becomes snr / sqrt(snr)
        assert debiased_weight(one, "x0").item() == pytest.approx(snr / math.sqrt(snr), rel=1e-14)


def test_min_snr_of_the_schedule_is_one_where_noise_rules_and_falls_towards_the_clean_end():
    t = torch.arange(1000)
    weights = weight(t, SCHEDULE, ObjectiveConfig(weighting="min_snr"), "epsilon")
    assert (weights[SCHEDULE.snr(t) <= 5] == 1).all()
    assert (weights[1:] >= weights[:-1]).all()
    assert weights[0].item() == pytest.approx(5 * 0.00085 / 0.99915, rel=1e-4)


@pytest.mark.parametrize("weighting", ["none", "min_snr", "debiased"])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_weights_are_finite_float32_also_in_pure_noise(weighting, prediction):
    schedule = NoiseSchedule.from_alphas_cumprod(rescale_zero_terminal_snr(SCHEDULE.alphas.square()))
    weights = weight(torch.arange(1000), schedule, ObjectiveConfig(weighting=weighting), prediction)
    assert weights.dtype == torch.float32
    assert weights.shape == (1000,)
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    assert (weights[:999] > 0).all()


def test_gamma_comes_from_the_configuration():
    t = torch.tensor([0])
    low = weight(t, SCHEDULE, ObjectiveConfig(weighting="min_snr", min_snr_gamma=1.0), "epsilon")
    high = weight(t, SCHEDULE, ObjectiveConfig(weighting="min_snr", min_snr_gamma=20.0), "epsilon")
    torch.testing.assert_close(high, 20 * low)


@pytest.mark.parametrize("weighting", ["min_snr", "debiased"])
def test_weights_by_snr_are_refused_for_flow(weighting):
    u = torch.tensor([0.5])
    with pytest.raises(ValueError, match=f'objective.weighting "{weighting}" is for epsilon, v and x0'):
        weight(u, NoiseSchedule.flow(), ObjectiveConfig(weighting=weighting), "flow")
    assert weight(u, NoiseSchedule.flow(), ObjectiveConfig(), "flow").item() == 1
