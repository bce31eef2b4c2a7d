"""Distributions of t against numeric integration and histograms; loss weights against their papers."""

from __future__ import annotations

import math

import pytest
import torch
from sd_atelier.lib.config import ObjectiveConfig, choices_of, from_dict, to_dict
from sd_atelier.lib.noise import NoiseSchedule, rescale_zero_terminal_snr
from sd_atelier.lib.timesteps import (
    FAMILY_DEFAULTS,
    REFERENCE_TOKENS,
    Timesteps,
    cosmap_weight,
    debiased_weight,
    min_snr_weight,
    mode_quantile,
    mode_share,
    resolution_shift,
    resolved,
    shifted,
    sigma_squared_weight,
    weight,
)

SCHEDULE = NoiseSchedule.scaled_linear()
RANGES = [(0.0, 1.0), (0.2, 0.7), (0.0, 0.05), (0.93, 1.0)]
DISTRIBUTIONS = [name for name in choices_of(ObjectiveConfig.__dataclass_fields__["timesteps"]) or () if name != "auto"]
SHIFTS = [0.3, 1.0, 3.0, 25.0]


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
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
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


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_strata_of_u_are_strata_of_t(distribution):
    drawn = timesteps(timesteps=distribution)
    edges = drawn.inverse_cdf(torch.linspace(0, 1, 17, dtype=torch.float64)[1:-1])
    generator = torch.Generator().manual_seed(0)
    u = (torch.randperm(16, generator=generator) + torch.rand(16, generator=generator, dtype=torch.float64)) / 16
    t = drawn.inverse_cdf(u)
    assert torch.equal(torch.bucketize(t, edges, right=True).sort().values, torch.arange(16))


@pytest.mark.parametrize("shift", SHIFTS)
def test_shift_is_its_closed_form_and_its_inverse_is_the_shift_by_the_reciprocal(shift):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    moved = shifted(t, shift)
    assert (moved[1:] > moved[:-1]).all()
    for before, after in zip(t.tolist(), moved.tolist(), strict=True):
        assert after == pytest.approx(shift * before / (1 + (shift - 1) * before), rel=1e-14)
        assert shifted(before, shift) == pytest.approx(after, rel=1e-14)
        assert shifted(after, 1 / shift) == pytest.approx(before, rel=1e-12, abs=1e-14)
    torch.testing.assert_close(moved[1:-1].logit(), t[1:-1].logit() + math.log(shift), rtol=1e-12, atol=1e-12)


def test_the_shift_of_a_resolution_lies_on_the_line_through_its_two_ends():
    assert resolution_shift(256) == pytest.approx(math.exp(0.5), rel=1e-14)
    assert resolution_shift(REFERENCE_TOKENS) == pytest.approx(math.exp(1.15), rel=1e-14)
    assert resolution_shift((256 + 4096) // 2) == pytest.approx(math.exp((0.5 + 1.15) / 2), rel=1e-14)


def test_shift_and_shift_of_the_resolution_equal_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle here")
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    t = torch.linspace(0, 1, 50, dtype=torch.float64)[1:]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for num_tokens in (64, 256, 1024, 4000, 4096, 9216):
        mu = calculate_shift(num_tokens)
        assert math.log(resolution_shift(num_tokens)) == pytest.approx(mu, rel=1e-12)
        expected = scheduler.time_shift(mu, 1.0, t)
        torch.testing.assert_close(shifted(t, resolution_shift(num_tokens)), expected, rtol=1e-12, atol=0)
    static = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    grid = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    torch.testing.assert_close(shifted(grid, 3.0).float(), static.sigmas[:1000].float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("shift", SHIFTS)
def test_shifted_uniform_is_the_shifted_distribution_cut_and_renormalised(shift, low, high):
    def share(t: float) -> float:
        """The distribution function before the cut: the inverse of the shift."""
        return t / (shift - (shift - 1) * t)

    u = even(50)
    t = timesteps(timestep_shift=shift, t_min=low, t_max=high).inverse_cdf(u)
    for one, quantile in zip(u.tolist(), t.double().tolist(), strict=True):
        assert (share(quantile) - share(low)) / (share(high) - share(low)) == pytest.approx(one, abs=2e-5)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("shift", [0.3, 3.0])
def test_shifted_logit_normal_is_the_logit_normal_of_a_moved_mean(shift, low, high):
    settings = {"timesteps": "logit_normal", "logit_std": 0.8, "t_min": low, "t_max": high}
    moved = timesteps(timestep_shift=shift, logit_mean=-0.4, **settings).inverse_cdf(even(50))
    mean = timesteps(logit_mean=-0.4 + math.log(shift), **settings).inverse_cdf(even(50))
    torch.testing.assert_close(moved, mean, rtol=1e-6, atol=0)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_shifted_quantile_is_the_shift_of_the_quantile(distribution):
    u = even(200)
    plain = timesteps(timesteps=distribution).inverse_cdf(u).double()
    moved = timesteps(timesteps=distribution, timestep_shift=3.0).inverse_cdf(u).double()
    torch.testing.assert_close(moved, shifted(plain, 3.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("num_tokens", [64, 1024, 4096, 20_000])
def test_shift_by_resolution_multiplies_the_shift_of_the_settings(distribution, num_tokens):
    u = even(50)
    both = timesteps(timesteps=distribution, timestep_shift=1.5, shift_by_resolution=True)
    product = timesteps(timesteps=distribution, timestep_shift=1.5 * resolution_shift(num_tokens))
    torch.testing.assert_close(both.inverse_cdf(u, num_tokens), product.inverse_cdf(u), rtol=1e-6, atol=0)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_size_counts_only_where_the_shift_depends_on_it(distribution):
    u = even(50)
    fixed = timesteps(timesteps=distribution, timestep_shift=3.0)
    assert torch.equal(fixed.inverse_cdf(u, 64), fixed.inverse_cdf(u, 4096))
    sized = timesteps(timesteps=distribution, shift_by_resolution=True)
    assert (sized.inverse_cdf(u, 64) < sized.inverse_cdf(u, 4096)).all()
    assert torch.equal(sized.inverse_cdf(u), sized.inverse_cdf(u, REFERENCE_TOKENS))


@pytest.mark.parametrize("setting", [{"timestep_shift": 3.0}, {"shift_by_resolution": True}])
def test_a_shift_is_refused_for_diffusion(setting):
    with pytest.raises(ValueError, match=f"objective.{next(iter(setting))} is for flow models"):
        timesteps(flow=False, **setting)
    timesteps(flow=True, **setting)


def test_a_range_that_the_shift_moves_out_of_reach_is_refused_in_the_step_that_meets_it():
    drawn = timesteps(timesteps="logit_normal", logit_std=0.03, shift_by_resolution=True, t_min=0.6, t_max=0.9)
    assert drawn.inverse_cdf(even(3)).isfinite().all()
    with pytest.raises(ValueError, match=r"nothing between objective.t_min 0.6 .*shift of t adds 5\.5"):
        drawn.inverse_cdf(even(3), 30_000)


@pytest.mark.parametrize("scale", [-1.0, -0.5, 0.0, 0.81, 1.29, 1.75])
def test_mode_rises_from_0_to_1_and_its_share_is_its_inverse(scale):
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = mode_quantile(u, scale)
    assert (t[1:] > t[:-1]).all()
    assert t[0].item() == 0 and t[-1].item() == pytest.approx(1, abs=1e-15)
    for one in (0.0, 0.003, 0.3, 0.499, 0.5, 0.9, 1.0):
        assert mode_share(mode_quantile(one, scale), scale) == pytest.approx(one, abs=1e-7)
        assert mode_quantile(one, scale) == mode_quantile(torch.tensor(one, dtype=torch.float64), scale).item()


def test_mode_and_logit_normal_equal_the_draws_of_diffusers():
    pytest.importorskip("diffusers", reason="diffusers is the oracle here")
    from diffusers.training_utils import compute_density_for_timestep_sampling as density

    for scale in (-0.5, 0.0, 1.29):
        u = torch.rand(100, generator=torch.Generator().manual_seed(1))
        expected = density("mode", 100, mode_scale=scale, generator=torch.Generator().manual_seed(1))
        got = timesteps(timesteps="mode", mode_scale=scale).inverse_cdf(1 - u.double())
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    z = torch.normal(-0.3, 1.4, (100,), generator=torch.Generator().manual_seed(2))
    expected = density("logit_normal", 100, -0.3, 1.4, generator=torch.Generator().manual_seed(2))
    shares = torch.special.ndtr((z.double() + 0.3) / 1.4)
    got = timesteps(timesteps="logit_normal", logit_mean=-0.3, logit_std=1.4).inverse_cdf(shares)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_mode_in_a_range_is_the_mode_distribution_cut_and_renormalised(shift, low, high):
    whole = shifted(mode_quantile(even(1_000_000), 1.29), shift)
    inside = whole[(whole >= low) & (whole <= high)]
    u = even(20)
    t = timesteps(timesteps="mode", timestep_shift=shift, t_min=low, t_max=high).inverse_cdf(u)
    below = torch.searchsorted(inside, t.double()).double() / len(inside)
    torch.testing.assert_close(below, u, rtol=0, atol=3e-4)


def test_auto_is_the_line_of_the_family_and_leaves_the_rest():
    config = ObjectiveConfig(timesteps="auto", timestep_shift=7.0, shift_by_resolution=True, t_max=0.9, loss="l1")
    sd3 = resolved(config, "sd3")
    assert (sd3.timesteps, sd3.timestep_shift, sd3.shift_by_resolution) == ("logit_normal", 3.0, False)
    assert (sd3.t_max, sd3.loss) == (0.9, "l1")
    flux = resolved(config, "flux")
    assert (flux.timesteps, flux.timestep_shift, flux.shift_by_resolution) == ("logit_normal", 1.0, True)
    assert resolved(ObjectiveConfig(timesteps="auto"), "sd1") == ObjectiveConfig()


def test_what_is_not_auto_stays_as_it_is():
    for name in DISTRIBUTIONS:
        config = ObjectiveConfig(timesteps=name, timestep_shift=2.0)
        assert resolved(config, "unheard of") is config


@pytest.mark.parametrize("family", FAMILY_DEFAULTS)
def test_the_defaults_of_every_family_are_settings_that_its_models_take(family):
    config = resolved(ObjectiveConfig(timesteps="auto"), family)
    assert from_dict(ObjectiveConfig, to_dict(config)) == config
    t = Timesteps.from_config(config, flow=family in ("sd3", "flux")).inverse_cdf(even(9))
    assert (t[1:] > t[:-1]).all()


def test_auto_is_refused_for_a_family_without_defaults():
    with pytest.raises(ValueError, match=r'no defaults for the model family "sd4"; did you mean "sd'):
        resolved(ObjectiveConfig(timesteps="auto"), "sd4")


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


def test_cosmap_is_the_density_of_its_map_and_has_the_mean_1():
    u = even(10_000)
    assert cosmap_weight(u).mean().item() == pytest.approx(1, abs=1e-8)
    # Esser et al. map v to t = 1 - 1 / (tan(pi v / 2) + 1); the density of t is 1 / (dt / dv)
    v = even(999)
    slope = torch.autograd.functional.jacobian(lambda x: (1 - 1 / ((math.pi / 2 * x).tan() + 1)).sum(), v)
    torch.testing.assert_close(
        cosmap_weight(1 - 1 / ((math.pi / 2 * v).tan() + 1)), 1 / torch.as_tensor(slope), rtol=1e-9, atol=0
    )


def flow_batch() -> tuple[torch.Tensor, ...]:
    """x_0, noise, a prediction of the flow, and u, in float64."""
    generator = torch.Generator().manual_seed(0)
    tensors = (torch.randn(5, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    return *tensors, torch.tensor([0.01, 0.3, 0.5, 0.8, 0.99], dtype=torch.float64)


def test_sigma_squared_weighs_an_x0_error_the_same_at_every_t():
    schedule = NoiseSchedule.flow()
    x_0, noise, error, u = flow_batch()
    wrong = schedule.to_flow(x_0 + error, schedule.add_noise(x_0, noise, u), u, "x0")
    loss = (wrong - schedule.target("flow", x_0, noise, u)).square().flatten(1).mean(1)
    expected = error.square().flatten(1).mean(1)
    torch.testing.assert_close(loss * sigma_squared_weight(u), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("theirs", "ours"), [("none", "sigma_squared"), ("sigma_sqrt", "none"), ("cosmap", "cosmap")])
def test_flow_weights_equal_the_sd3_scripts_of_diffusers_which_weigh_the_x0_error(theirs, ours):
    pytest.importorskip("diffusers", reason="diffusers is the oracle here")
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    schedule = NoiseSchedule.flow()
    x_0, noise, prediction, u = flow_batch()
    x_0_prediction = schedule.add_noise(x_0, noise, u) - u.view(-1, 1, 1, 1) * prediction
    their_weight = compute_loss_weighting_for_sd3(theirs, u).double()
    expected = their_weight * (x_0_prediction - x_0).square().flatten(1).mean(1)
    if theirs == "cosmap":  # the paper weighs the flow error
        expected = expected / u.square()
    our_weight = weight(u, schedule, ObjectiveConfig(weighting=ours), "flow")
    loss = our_weight * (prediction - schedule.target("flow", x_0, noise, u)).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("weighting", ["none", "cosmap", "sigma_squared"])
def test_flow_weights_are_finite_float32_at_every_t_that_can_be_drawn(weighting):
    u = torch.cat([torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64), even(99)])
    t = timesteps(timestep_shift=0.01).inverse_cdf(u)
    weights = weight(t, NoiseSchedule.flow(), ObjectiveConfig(weighting=weighting), "flow")
    assert weights.dtype == torch.float32 and weights.shape == t.shape
    assert weights.isfinite().all() and (weights > 0).all()
    assert weights.max() <= 4 / math.pi + 1e-6


@pytest.mark.parametrize("weighting", ["cosmap", "sigma_squared"])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_weights_of_flow_are_refused_for_diffusion(weighting, prediction):
    with pytest.raises(ValueError, match=f'"{weighting}" is for flow prediction, got "{prediction}"; use "none"'):
        weight(torch.tensor([5]), SCHEDULE, ObjectiveConfig(weighting=weighting), prediction)


@pytest.mark.parametrize("weighting", ["min_snr", "debiased"])
def test_weights_by_snr_are_refused_for_flow(weighting):
    u = torch.tensor([0.5])
    with pytest.raises(ValueError, match=f'objective.weighting "{weighting}" is for epsilon, v and x0'):
        weight(u, NoiseSchedule.flow(), ObjectiveConfig(weighting=weighting), "flow")
    assert weight(u, NoiseSchedule.flow(), ObjectiveConfig(), "flow").item() == 1
