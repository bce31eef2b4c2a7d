"""Noise schedules and prediction types: closed forms, round trips, and diffusers as the oracle."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from sd_atelier.lib.noise import PREDICTIONS, NoiseSchedule, check_prediction, rescale_zero_terminal_snr

DIFFUSION = NoiseSchedule.from_alphas_cumprod(
    (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
)
FLOW = NoiseSchedule.flow()
CASES = {
    "diffusion": (DIFFUSION, torch.tensor([0, 1, 250, 731, 999])),
    "flow": (FLOW, torch.tensor([1e-3, 0.2, 0.5, 0.77, 0.999], dtype=torch.float64)),
}


def pictures(num: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(num, 4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore


def test_scaled_linear_is_its_closed_form():
    schedule = NoiseSchedule.scaled_linear()
    product = 1.0
    for t in range(1000):
        product *= 1 - (0.00085**0.5 + t / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2
        alpha, sigma = schedule.alpha(torch.tensor([t])).item(), schedule.sigma(torch.tensor([t])).item()
        assert alpha == pytest.approx(math.sqrt(product), rel=1e-7)
        # alphas_cumprod is float32, and near 1 that leaves 1 - alphas_cumprod few digits
        assert sigma == pytest.approx(math.sqrt(1 - product), rel=1e-7 + 2**-25 / (1 - product))
    assert schedule.alpha(torch.tensor([3])).dtype == torch.float32


def test_flow_is_a_straight_line():
    u = torch.tensor([0.1, 0.4, 0.9])
    assert torch.equal(FLOW.alpha(u), 1 - u)
    assert torch.equal(FLOW.sigma(u), u)
    torch.testing.assert_close(FLOW.snr(u), ((1 - u) / u) ** 2)


@pytest.mark.parametrize("case", CASES)
def test_add_noise_mixes_signal_and_noise_by_alpha_and_sigma(case):
    schedule, t = CASES[case]
    x_0, noise = pictures()
    x_t = schedule.add_noise(x_0, noise, t)
    for b in range(len(t)):
        alpha, sigma = schedule.alpha(t)[b], schedule.sigma(t)[b]
        torch.testing.assert_close(x_t[b], alpha * x_0[b] + sigma * noise[b], rtol=1e-14, atol=1e-14)


def test_targets_are_their_definitions():
    schedule, t = CASES["diffusion"]
    x_0, noise = pictures()
    alpha, sigma = schedule.alpha(t).view(-1, 1, 1, 1), schedule.sigma(t).view(-1, 1, 1, 1)
    assert torch.equal(schedule.target("epsilon", x_0, noise, t), noise)
    assert torch.equal(schedule.target("x0", x_0, noise, t), x_0)
    assert torch.equal(schedule.target("v", x_0, noise, t), alpha * noise - sigma * x_0)
    assert torch.equal(schedule.target("flow", x_0, noise, t), noise - x_0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("source", "goal"), list(itertools.product(PREDICTIONS, PREDICTIONS)))
def test_every_conversion_of_a_target_is_the_other_target(case, source, goal):
    schedule, t = CASES[case]
    x_0, noise = pictures()
    x_t = schedule.add_noise(x_0, noise, t)
    convert = getattr(schedule, f"to_{goal}")
    got = convert(schedule.target(source, x_0, noise, t), x_t, t, source)
    torch.testing.assert_close(got, schedule.target(goal, x_0, noise, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("source", "goal"), list(itertools.product(PREDICTIONS, PREDICTIONS)))
def test_every_conversion_round_trips_for_an_imperfect_prediction(case, source, goal):
    schedule, t = CASES[case]
    prediction, x_t = pictures(seed=1)
    there = getattr(schedule, f"to_{goal}")(prediction, x_t, t, source)
    back = getattr(schedule, f"to_{source}")(there, x_t, t, goal)
    torch.testing.assert_close(back, prediction, rtol=1e-9, atol=1e-9)


def test_conversions_are_singular_only_where_the_picture_or_the_noise_is_absent():
    schedule = NoiseSchedule.from_alphas_cumprod(torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64))
    x_t, prediction = pictures(1)
    last = torch.tensor([2])
    for source in ("v", "x0", "flow"):
        for goal in PREDICTIONS:
            assert getattr(schedule, f"to_{goal}")(prediction, x_t, last, source).isfinite().all()
    assert not schedule.to_x0(prediction, x_t, last, "epsilon").isfinite().any()
    clean = torch.zeros(1, dtype=torch.float64)
    assert not FLOW.to_epsilon(prediction, x_t, clean, "x0").isfinite().any()


def test_zero_terminal_snr_keeps_the_first_step_and_ends_in_pure_noise():
    for dtype in (torch.float32, torch.float64):
        before = DIFFUSION.alphas.square().to(dtype)
        after = rescale_zero_terminal_snr(before)
        assert after.dtype == dtype
        assert after[-1] == 0
        assert after[0].item() == pytest.approx(before[0].item(), rel=1e-15)
        assert (after[1:] < after[:-1]).all()
        schedule = NoiseSchedule.from_alphas_cumprod(after)
        assert schedule.zero_terminal_snr
        assert schedule.snr(torch.tensor([999])).item() == 0
        assert schedule.sigma(torch.tensor([999])).item() == 1


def test_zero_terminal_snr_is_linear_on_the_roots():
    root = DIFFUSION.alphas
    after = rescale_zero_terminal_snr(root.square()).sqrt()
    expected = [(r - root[-1].item()) * root[0].item() / (root[0].item() - root[-1].item()) for r in root.tolist()]
    torch.testing.assert_close(after, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15)


def test_epsilon_with_zero_terminal_snr_is_refused_and_the_others_are_not():
    schedule = NoiseSchedule.from_alphas_cumprod(rescale_zero_terminal_snr(DIFFUSION.alphas.square()))
    with pytest.raises(ValueError, match="zero_terminal_snr needs v or x0 prediction, got epsilon"):
        check_prediction("epsilon", schedule)
    check_prediction("v", schedule)
    check_prediction("x0", schedule)
    check_prediction("epsilon", DIFFUSION)


def test_predictions_that_do_not_fit_the_schedule_are_refused():
    check_prediction("flow", FLOW)
    with pytest.raises(ValueError, match="does not fit a flow schedule"):
        check_prediction("epsilon", FLOW)
    with pytest.raises(ValueError, match="does not fit a diffusion schedule"):
        check_prediction("flow", DIFFUSION)
    with pytest.raises(ValueError, match=r'"epsilom".*did you mean "epsilon"'):
        check_prediction("epsilom", DIFFUSION)
    with pytest.raises(ValueError, match="unknown prediction type"):
        DIFFUSION.target("velocity", *pictures(), torch.tensor([1]))
    with pytest.raises(ValueError, match="unknown prediction type"):
        DIFFUSION.to_x0(*pictures(), torch.tensor([1]), "velocity")


@pytest.mark.parametrize(
    "values", [[[0.9, 0.5]], [0.9], [0.5, 0.9], [0.9, 0.9], [1.0, 0.5], [0.9, -0.1], [0.9, float("nan")]]
)
def test_tables_that_are_no_noise_schedule_are_refused(values):
    with pytest.raises(ValueError, match="alphas_cumprod must"):
        NoiseSchedule.from_alphas_cumprod(torch.tensor(values))


def test_to_keeps_the_tables():
    moved = DIFFUSION.to("cpu")
    assert torch.equal(moved.alphas, DIFFUSION.alphas)
    assert torch.equal(moved.sigmas, DIFFUSION.sigmas)
    assert FLOW.to("cpu").is_flow


def ddpm(prediction_type: str = "epsilon", **settings):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle here")
    return diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type, **settings
    )


def test_add_noise_and_v_equal_diffusers_bit_for_bit():
    scheduler = ddpm("v_prediction")
    schedule = NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)
    x_0, noise = (x.float() for x in pictures())
    t = torch.tensor([0, 17, 500, 998, 999])
    assert torch.equal(schedule.add_noise(x_0, noise, t), scheduler.add_noise(x_0, noise, t))
    assert torch.equal(schedule.target("v", x_0, noise, t), scheduler.get_velocity(x_0, noise, t))


def test_scaled_linear_equals_diffusers():
    torch.testing.assert_close(NoiseSchedule.scaled_linear().alphas, ddpm().alphas_cumprod.sqrt(), rtol=1e-5, atol=0)


def test_snr_equals_diffusers():
    scheduler = ddpm()
    from diffusers.training_utils import compute_snr

    t = torch.arange(1000)
    schedule = NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)
    torch.testing.assert_close(schedule.snr(t), compute_snr(scheduler, t), rtol=1e-6, atol=0)


def test_zero_terminal_snr_equals_diffusers():
    expected = ddpm(rescale_betas_zero_snr=True).alphas_cumprod
    got = rescale_zero_terminal_snr(ddpm().alphas_cumprod)
    torch.testing.assert_close(got[:-1], expected[:-1], rtol=2e-3, atol=1e-7)
    # diffusers then puts 2^-24 in the place of 0
    assert expected[-1] <= 2**-24
    assert got[-1] == 0


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_x0_from_a_prediction_equals_the_sampler_of_diffusers(kind):
    scheduler = ddpm(kind, clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    schedule = NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)
    prediction, x_t = pictures(1, seed=3)
    ours = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}[kind]
    for t in (1, 400, 999):
        expected = scheduler.step(prediction, t, x_t).pred_original_sample
        got = schedule.to_x0(prediction, x_t, torch.tensor([t]), ours)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
