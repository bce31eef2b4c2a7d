"""The loss of a batch on a host that predicts what it is told: draws, settings, and that perfection costs nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sd_atelier.lib import draws
from sd_atelier.lib.config import ObjectiveConfig, choices_of
from sd_atelier.lib.diffusion_loss import DiffusionLoss, Drawn
from sd_atelier.lib.noise import NoiseSchedule, rescale_zero_terminal_snr
from sd_atelier.lib.objective import LOSSES, multires_noise, multires_sizes
from sd_atelier.lib.timesteps import resolution_shift, shifted

ALPHAS_CUMPROD = NoiseSchedule.scaled_linear().alphas.square()  # type: ignore[union-attr]
SHAPE = (4, 6, 8)
SIZES = [(640, 480, 8, 0, 64, 48), (640, 480, 8, 0, 64, 48), (300, 200, 0, 2, 64, 48), (64, 48, 0, 0, 64, 48)]
NAMES, VISITS = ["cat.png", "dog.png", "cat.png", "a/é.jpg"], [0, 0, 1, 7]
RANDOM_SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "offset": {"noise_offset": 0.1},
    "perturbation": {"input_perturbation": 0.2},
    "multires": {"multires_iterations": 6, "multires_discount": 0.5},
    "all": {"noise_offset": 0.1, "input_perturbation": 0.2, "multires_iterations": 3},
    "unstratified": {"stratified": False},
}


class FakeHost:
    """What the loss asks of a host. `answer` is the prediction, made of (x_t, t); `seen` keeps each question."""

    device = torch.device("cpu")

    def __init__(self, prediction: str = "epsilon", family: str = "") -> None:
        self.prediction = prediction
        self.family = family or ("sd3" if prediction == "flow" else "sd1")
        self.alphas_cumprod = None if prediction == "flow" else ALPHAS_CUMPROD
        self.answer = lambda x_t, t: torch.zeros_like(x_t)
        self.seen: list[SimpleNamespace] = []

    def denoiser(self, x_t: torch.Tensor, t: torch.Tensor, conditioning: dict[str, torch.Tensor]) -> torch.Tensor:
        self.seen.append(SimpleNamespace(x_t=x_t, t=t, conditioning=conditioning))
        return self.answer(x_t, t)


def made(host: FakeHost | None = None, seed: int = 3, **settings: Any) -> DiffusionLoss:
    return DiffusionLoss(host or FakeHost(), ObjectiveConfig(**settings), seed)  # type: ignore[arg-type]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parts(drawn: Drawn) -> list[torch.Tensor]:
    return [x for x in (drawn.noise, drawn.t, drawn.shift, drawn.extra) if x is not None]


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
@pytest.mark.parametrize("settings", RANDOM_SETTINGS.values(), ids=list(RANDOM_SETTINGS))
def test_what_is_drawn_for_a_sample_does_not_depend_on_its_batch_or_its_order(prediction, settings):
    loss = made(FakeHost(prediction), **settings)
    together = parts(loss.draw(NAMES, VISITS, SHAPE))
    for i in reversed(range(len(NAMES))):
        alone = parts(loss.draw([NAMES[i]], [VISITS[i]], SHAPE))
        assert len(alone) == len(together)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("settings", RANDOM_SETTINGS.values(), ids=list(RANDOM_SETTINGS))
def test_no_draw_reads_or_moves_the_global_random_state(settings):
    loss = made(**settings)
    before = torch.get_rng_state()
    first = loss.draw(NAMES, VISITS, SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip(parts(first), parts(loss.draw(NAMES, VISITS, SHAPE)), strict=True))


@pytest.mark.parametrize("settings", RANDOM_SETTINGS.values(), ids=list(RANDOM_SETTINGS))
def test_seed_name_and_visit_each_change_every_draw(settings):
    first = parts(made(**settings).draw(["a"], [0], SHAPE))
    for other in (
        made(seed=4, **settings).draw(["a"], [0], SHAPE),
        made(**settings).draw(["b"], [0], SHAPE),
        made(**settings).draw(["a"], [1], SHAPE),
    ):
        assert all(not torch.equal(a, b) for a, b in zip(first, parts(other), strict=True))


def test_draws_are_those_of_their_purpose():
    drawn = made(noise_offset=0.1, input_perturbation=0.2).draw(NAMES, VISITS, SHAPE)
    assert drawn.shift is not None and drawn.extra is not None
    for i, (name, visit) in enumerate(zip(NAMES, VISITS, strict=True)):
        assert torch.equal(drawn.noise[i], draws.noise(3, name, visit, SHAPE))
        assert torch.equal(drawn.shift[i], draws.noise(3, name, visit, (4, 1, 1), "offset"))
        assert torch.equal(drawn.extra[i], draws.noise(3, name, visit, SHAPE, "perturbation"))


def test_what_is_not_asked_for_is_not_drawn():
    drawn = made().draw(NAMES, VISITS, SHAPE)
    assert drawn.shift is None and drawn.extra is None
    assert drawn.noise.shape == (4, *SHAPE)


def test_multires_noise_is_made_of_the_draws_of_each_level():
    drawn = made(multires_iterations=4, multires_discount=0.5).draw(NAMES, VISITS, SHAPE)
    for i, (name, visit) in enumerate(zip(NAMES, VISITS, strict=True)):
        uniform = draws.uniform_stream(3, name, visit, "multires")
        sizes = multires_sizes(6, 8, [2 + 2 * uniform() for _ in range(4)])
        levels = [draws.noise(3, name, visit, (1, 4, *s), f"multires {k}") for k, s in enumerate(sizes)]
        expected = multires_noise(draws.noise(3, name, visit, SHAPE).unsqueeze(0), levels, 0.5)[0]
        assert torch.equal(drawn.noise[i], expected)
    torch.testing.assert_close(drawn.noise.flatten(1).std(1), torch.ones(4), rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
def test_the_visits_of_a_block_walk_once_through_every_stratum_of_t(prediction):
    t = made(FakeHost(prediction), strata=8).draw(["a"] * 16, list(range(16)), SHAPE).t
    time = t if prediction == "flow" else t / 1000
    for block in (time[:8], time[8:]):
        assert torch.equal((block * 8).floor().sort().values, torch.arange(8.0))


def test_t_is_shifted_by_the_size_of_the_picture_in_tokens():
    plain = made(FakeHost("flow")).draw(NAMES, VISITS, SHAPE).t
    for shape, num_tokens in (((4, 6, 8), 12), ((16, 128, 128), 4096), ((16, 65, 97), 32 * 48)):
        t = made(FakeHost("flow"), shift_by_resolution=True).draw(NAMES, VISITS, shape).t
        torch.testing.assert_close(t, shifted(plain, resolution_shift(num_tokens)), rtol=1e-5, atol=0)


def test_auto_timesteps_are_those_of_the_family_of_the_host():
    flux = made(FakeHost("flow", "flux"), timesteps="auto").draw(NAMES, VISITS, SHAPE)
    named = made(FakeHost("flow", "sd3"), timesteps="logit_normal", shift_by_resolution=True)
    assert torch.equal(flux.t, named.draw(NAMES, VISITS, SHAPE).t)
    assert torch.equal(
        made(timesteps="auto").draw(NAMES, VISITS, SHAPE).t, made(timesteps="uniform").draw(NAMES, VISITS, SHAPE).t
    )


def perfect(prediction: str, x_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    if prediction == "flow":
        return noise - x_0
    alpha, sigma = (f[t].sqrt().view(-1, 1, 1, 1) for f in (ALPHAS_CUMPROD, 1 - ALPHAS_CUMPROD))
    return {"epsilon": noise, "x0": x_0, "v": alpha * noise - sigma * x_0}[prediction]


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0", "flow"])
@pytest.mark.parametrize("settings", RANDOM_SETTINGS.values(), ids=list(RANDOM_SETTINGS))
def test_a_perfect_prediction_has_no_loss_and_a_wrong_one_has(settings, prediction, kind):
    host = FakeHost(prediction)
    loss = made(host, loss=kind, **settings)
    drawn, x_0 = loss.draw(NAMES, VISITS, SHAPE), random(4, *SHAPE)
    noise = drawn.noise if drawn.shift is None else drawn.noise + 0.1 * drawn.shift
    host.answer = lambda x_t, t: perfect(prediction, x_0, noise, t)
    assert loss(x_0, drawn, {}, SIZES).abs().max() < 1e-6
    host.answer = lambda x_t, t: perfect(prediction, x_0, noise, t) + 0.5
    assert loss(x_0, drawn, {}, SIZES).min() > 0.05


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
def test_the_denoiser_sees_the_noised_latents_the_t_and_the_conditioning(prediction):
    host = FakeHost(prediction)
    loss = made(host, noise_offset=0.1, input_perturbation=0.2, guidance=3.5)
    drawn, x_0, conditioning = loss.draw(NAMES, VISITS, SHAPE), random(4, *SHAPE), {"text": random(4, 1, 1)}
    loss(x_0, drawn, conditioning, SIZES)
    (seen,) = host.seen
    assert seen.t is drawn.t and seen.conditioning["text"] is conditioning["text"] and conditioning.keys() == {"text"}
    assert seen.conditioning["sizes"].tolist() == [list(map(float, sizes)) for sizes in SIZES]
    assert seen.conditioning["guidance"].tolist() == [3.5] * 4
    assert drawn.shift is not None and drawn.extra is not None
    noise = drawn.noise + 0.1 * drawn.shift + 0.2 * drawn.extra
    alpha, sigma = 1 - drawn.t, drawn.t
    if prediction == "epsilon":
        alpha, sigma = ALPHAS_CUMPROD[drawn.t].sqrt(), (1 - ALPHAS_CUMPROD[drawn.t]).sqrt()
    expected = alpha.view(-1, 1, 1, 1) * x_0 + sigma.view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(seen.x_t, expected, rtol=1e-5, atol=1e-6)


def test_the_mask_leaves_out_what_it_covers():
    host = FakeHost()
    loss = made(host)
    drawn, x_0 = loss.draw(NAMES, VISITS, SHAPE), random(4, *SHAPE)
    mask = torch.ones(4, 1, *SHAPE[1:])
    mask[..., 3:] = 0
    host.answer = lambda x_t, t: torch.where(mask > 0, drawn.noise, 99.0)
    assert torch.equal(loss(x_0, drawn, {}, SIZES, mask), torch.zeros(4))
    assert loss(x_0, drawn, {}, SIZES).min() > 1


@pytest.mark.parametrize("schedule", ["snr", "exponential"])
def test_the_huber_schedule_bends_the_loss_by_the_t_of_each_sample(schedule):
    host = FakeHost("flow")
    drawn, x_0 = made(host).draw(["a"], [0], SHAPE), random(1, *SHAPE)
    host.answer = lambda x_t, t: drawn.noise - x_0 + 2.0

    def at(u: float, **settings: Any) -> float:
        loss = made(host, loss="huber", **settings)
        return loss(x_0, Drawn(drawn.noise, torch.tensor([u])), {}, SIZES[:1]).item()

    constant = at(0.5, huber_delta=0.1)
    assert at(1 - 1e-6, huber_delta=0.1, huber_schedule=schedule) == pytest.approx(constant, rel=1e-4)
    assert at(1e-6, huber_delta=0.1, huber_schedule=schedule) == pytest.approx(at(0.5, huber_delta=1.0), rel=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0", "flow"])
@pytest.mark.parametrize("weighting", choices_of(ObjectiveConfig.__dataclass_fields__["weighting"]))  # type: ignore
def test_every_weighting_weighs_t_or_is_refused_before_the_run(weighting, prediction):
    fits = {"none": True, "cosmap": prediction == "flow", "sigma_squared": prediction == "flow"}
    if not fits.get(weighting, prediction != "flow"):
        with pytest.raises(
            ValueError, match=f'objective.weighting "{weighting}" is for .*got "{prediction}"; use "none"'
        ):
            made(FakeHost(prediction), weighting=weighting)
        return
    loss = made(FakeHost(prediction), weighting=weighting)
    weights = loss.weight(loss.draw(NAMES, VISITS, SHAPE).t)
    assert weights.shape == (4,) and weights.dtype == torch.float32
    assert (len(weights.unique()) == 1) == (weighting == "none")


def test_the_prediction_of_the_settings_replaces_that_of_the_model():
    host = FakeHost("epsilon")
    loss = made(host, prediction="v")
    assert (made(host).prediction, loss.prediction) == ("epsilon", "v")
    drawn, x_0 = loss.draw(NAMES, VISITS, SHAPE), random(4, *SHAPE)
    host.answer = lambda x_t, t: perfect("v", x_0, drawn.noise, t)
    assert loss(x_0, drawn, {}, SIZES).abs().max() < 1e-6


def test_zero_terminal_snr_ends_in_pure_noise():
    host = FakeHost("v")
    loss = made(host, zero_terminal_snr=True)
    drawn, x_0 = Drawn(random(1, *SHAPE, seed=1), torch.tensor([999])), random(1, *SHAPE)
    host.answer = lambda x_t, t: -x_0  # v where alpha is 0
    assert loss(x_0, drawn, {}, SIZES[:1]).item() == 0
    assert torch.equal(host.seen[0].x_t, drawn.noise)
    assert loss.schedule.alphas is not None
    assert torch.equal(loss.schedule.alphas.square()[-1], rescale_zero_terminal_snr(ALPHAS_CUMPROD)[-1])


@pytest.mark.parametrize(
    ("prediction", "settings", "said"),
    [
        ("epsilon", {"zero_terminal_snr": True}, "objective.zero_terminal_snr needs v or x0 prediction, got epsilon"),
        ("epsilon", {"prediction": "flow"}, 'objective.prediction "flow" does not fit a diffusion schedule'),
        ("flow", {"prediction": "epsilon"}, 'objective.prediction "epsilon" does not fit a flow schedule'),
        ("epsilon", {"t_min": 0.6, "t_max": 0.4}, "objective.t_min must be below objective.t_max"),
        ("v", {"timestep_shift": 3.0}, "objective.timestep_shift is for flow models"),
        ("v", {"shift_by_resolution": True}, "objective.shift_by_resolution is for flow models"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused_before_the_run(prediction, settings, said):
    with pytest.raises(ValueError, match=said):
        made(FakeHost(prediction), **settings)


def test_auto_timesteps_are_refused_for_a_family_without_defaults():
    with pytest.raises(ValueError, match='has no defaults for the model family "unheard"'):
        made(FakeHost("flow", "unheard"), timesteps="auto")
