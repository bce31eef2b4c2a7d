"""What a model predicts is read from its own model_sampling; here from stand-ins with ComfyUI's names of classes."""

from types import SimpleNamespace

import pytest
import torch
from sd_atelier.nodes.prediction import prediction_of, raw_prediction, sigma_of

SIGMAS = torch.linspace(-3, 2.7, 1000).exp()


class Schedule:
    sigmas = SIGMAS
    noise_scale = 1.0

    def timestep(self, sigma):
        return (sigma.log()[:, None] - self.sigmas.log()).abs().argmin(1)

    def calculate_denoised(self, sigma, model_output, model_input):
        return model_input - sigma * model_output


def sampling(*names):
    """An object whose classes have these names, the most derived first."""
    bases = Schedule
    for name in reversed(names):
        bases = type(name, (bases,), {})
    return bases()


@pytest.mark.parametrize(
    "names, prediction",
    [
        (("ModelSampling", "ModelSamplingDiscrete", "EPS"), "epsilon"),
        (("ModelSampling", "ModelSamplingDiscrete", "V_PREDICTION", "EPS"), "v"),
        (("ModelSampling", "ModelSamplingDiscrete", "X0", "EPS"), "x0"),
        (("ModelSampling", "ModelSamplingDiscreteFlow", "CONST"), "flow"),
    ],
)
def test_the_most_derived_parametrisation_counts(names, prediction):
    got, alphas_cumprod = prediction_of(sampling(*names))
    assert got == prediction
    if prediction == "flow":
        assert alphas_cumprod is None
    else:
        assert alphas_cumprod.dtype == torch.float32
        assert torch.allclose(1 / (SIGMAS.double() ** 2 + 1), alphas_cumprod.double(), rtol=1e-6)


@pytest.mark.parametrize(
    "names",
    [
        ("ModelSampling", "ModelSamplingContinuousEDM", "EDM", "V_PREDICTION", "EPS"),
        ("ModelSampling", "ModelSamplingContinuousEDM", "V_PREDICTION", "EPS"),
        ("ModelSampling", "StableCascadeSampling", "ModelSamplingDiscrete", "EPS"),
        ("ModelSampling", "ModelSamplingDiscrete", "IMG_TO_IMG", "X0", "EPS"),
        ("ModelSampling", "IMG_TO_IMG_FLOW", "CONST"),
        ("ModelSampling", "COSMOS_RFLOW"),
        ("ModelSampling", "V_PREDICTION_DDPM"),
    ],
)
def test_what_cannot_be_trained_is_refused(names):
    with pytest.raises(ValueError, match="this model"):
        prediction_of(sampling(*names))


def test_an_unknown_parametrisation_is_refused_by_name():
    with pytest.raises(ValueError, match="Novelty"):
        prediction_of(sampling("Novelty"))


def test_timesteps_that_are_not_the_numbers_of_the_noise_levels_are_refused():
    distilled = sampling("ModelSamplingDiscreteDistilled", "ModelSamplingDiscrete", "EPS")
    distilled.timestep = lambda sigma: sigma * 0 + 19
    with pytest.raises(ValueError, match="1000 noise levels"):
        prediction_of(distilled)


def test_scaled_noise_is_refused():
    scaled = sampling("ModelSampling", "CONST")
    scaled.noise_scale = 8.0
    with pytest.raises(ValueError, match=r"8\.0"):
        prediction_of(scaled)


def test_sigma_is_that_of_the_timestep_and_u_itself_in_flow():
    t = torch.tensor([0, 999])
    assert torch.equal(sigma_of(SimpleNamespace(sigmas=SIGMAS), t), SIGMAS[t])
    u = torch.tensor([0.25])
    assert torch.equal(sigma_of(SimpleNamespace(sigmas=SIGMAS), u), u)


def test_the_raw_prediction_is_had_and_everything_is_put_back():
    model_sampling = sampling("ModelSampling", "EPS")
    output, x = torch.ones(2), torch.zeros(2)
    with pytest.raises(KeyError), raw_prediction(model_sampling):
        assert model_sampling.calculate_denoised(3.0, output, x) is output
        raise KeyError
    assert "calculate_denoised" not in vars(model_sampling)
    assert model_sampling.calculate_denoised(3.0, output, x)[0] == -3
