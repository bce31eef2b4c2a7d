"""Laws of what a network says of itself: texts only, known by its file's stem, and small enough to be read in whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sd_atelier.lib.config import ConceptConfig, DataConfig, ObjectiveConfig, RunConfig
from sd_atelier.lib.data.sample import Sample
from sd_atelier.lib.network_keys import family_of
from sd_atelier.lib.network_metadata import MAX_TAGS_PER_FOLDER, checkpoint_metadata, network_metadata
from sd_atelier.lib.registry import SPELLINGS


def sample(name: str, caption: str, concept: int = 0, repeats: int = 1) -> Sample:
    path = Path("pictures") / name
    return Sample(
        name=name, path=path, caption=caption, size=(64, 64), bucket=(64, 64), repeats=repeats, concept=concept
    )


def made(
    config: RunConfig, samples: list[Sample], family: str = "sd1", prediction: str = "epsilon", variant: str = ""
) -> dict[str, str]:
    return network_metadata(
        config,
        samples,
        family=family,
        prediction=prediction,
        model_info={"name": "base", "sha256": "ab" * 32, "clip_skip": "2", "variant": variant},
        network={"ss_network_dim": "4"},
        num_steps=10,
        created="2026-01-02T03:04:05+00:00",
    )


CONFIG = RunConfig(
    name="toys",
    data=DataConfig(
        concepts=(
            ConceptConfig(folder="a/cats", trigger="sks", repeats=3),
            ConceptConfig(folder="b/reg", regularization=True),
        )
    ),
)
SAMPLES = [
    sample("cats/0.png", "sks, red, hat", 0, 3),
    sample("cats/1.png", "sks, red", 0, 3),
    sample("reg/0.png", "cat", 1),
]


def test_every_value_is_a_text() -> None:
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in made(CONFIG, SAMPLES).items())


def test_tags_are_counted_by_folder_as_readers_expect() -> None:
    metadata = made(CONFIG, SAMPLES)
    assert json.loads(metadata["ss_tag_frequency"]) == {"3_cats": {"sks": 2, "red": 2, "hat": 1}, "1_reg": {"cat": 1}}
    assert json.loads(metadata["ss_dataset_dirs"])["3_cats"] == {"n_repeats": 3, "img_count": 2}
    assert (metadata["ss_num_train_images"], metadata["ss_num_reg_images"]) == ("6", "1")
    assert metadata["modelspec.trigger_phrase"] == "sks"


@pytest.mark.parametrize(
    ("family", "version", "v2"),
    [
        ("sd1", "sd_v1", "False"),
        ("sd2", "sd_v2", "True"),
        ("sdxl", "sdxl_base_v1-0", "False"),
        ("sd3", "sd3", "False"),
        ("flux", "flux1", "False"),
    ],
)
def test_the_base_is_named_as_the_hosts_read_it(family: str, version: str, v2: str) -> None:
    metadata = made(CONFIG, SAMPLES, family)
    assert (metadata["ss_base_model_version"], metadata["ss_v2"]) == (version, v2)
    assert metadata["ss_clip_skip"] == "2" and metadata["ss_sd_model_hash"] == "ab" * 5


# "original" is any other model
@pytest.mark.parametrize("family", sorted(set(SPELLINGS.names()) - {"original"}))
def test_the_family_is_told_from_what_a_network_says_of_itself_alone(family: str) -> None:
    assert family_of([], made(CONFIG, SAMPLES, family))[0] == family


@pytest.mark.parametrize(
    ("family", "prediction", "variant", "architecture"),
    [
        ("sd1", "epsilon", "", "stable-diffusion-v1/lora"),
        ("sd2", "epsilon", "", "stable-diffusion-v2-512/lora"),
        ("sd2", "v", "", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", "v", "", "stable-diffusion-xl-v1-base/lora"),
        ("sd3", "flow", "5-large", "stable-diffusion-3-5-large/lora"),
        ("flux", "flow", "dev", "flux-1-dev/lora"),
        ("flux", "flow", "", "flux-1/lora"),
    ],
)
def test_the_architecture_has_the_words_of_the_specification(family, prediction, variant, architecture) -> None:
    metadata = made(CONFIG, SAMPLES, family, prediction, variant)
    assert metadata["modelspec.architecture"] == architecture
    assert metadata.get("modelspec.prediction_type") == (None if prediction == "flow" else prediction)


def flow(family: str = "flux", **objective) -> dict[str, str]:
    config = RunConfig(data=CONFIG.data, objective=ObjectiveConfig(**objective))
    return made(config, SAMPLES, family, "flow")


def test_timesteps_of_flow_models_are_told_in_the_words_of_sd_scripts() -> None:
    def told(**objective) -> tuple[str, str, str]:
        metadata = flow(**objective)
        names = ("ss_timestep_sampling", "ss_weighting_scheme", "ss_discrete_flow_shift")
        return tuple(metadata[name] for name in names)  # type: ignore[return-value]

    assert told() == ("uniform", "none", "1.0")
    assert told(timesteps="logit_normal") == ("sigmoid", "none", "1.0")
    assert told(timesteps="logit_normal", timestep_shift=3.0) == ("shift", "none", "3.0")
    assert told(timesteps="auto") == ("flux_shift", "none", "1.0")
    assert told(timesteps="mode", weighting="cosmap") == ("sigma", "cosmap", "1.0")
    assert told(timesteps="mode") == ("sigma", "mode", "1.0")
    assert told(timesteps="auto", family="sd3") == ("shift", "logit_normal", "3.0")
    assert flow(guidance=3.5)["ss_guidance_scale"] == "3.5"
    assert "ss_guidance_scale" not in flow(family="sd3")
    assert "ss_timestep_sampling" not in made(CONFIG, SAMPLES, "sdxl")


def test_the_huber_loss_is_told() -> None:
    metadata = flow(loss="huber", huber_schedule="snr", huber_delta=0.25)
    keys = ("ss_loss_type", "ss_huber_schedule", "ss_huber_c")
    assert [metadata[key] for key in keys] == ["huber", "snr", "0.25"]


def test_settings_that_are_off_are_none() -> None:
    off = made(CONFIG, SAMPLES)
    keys = ("ss_noise_offset", "ss_min_snr_gamma", "ss_ip_noise_gamma", "ss_multires_noise_iterations")
    assert [off[key] for key in keys] == ["None"] * 4
    objective = ObjectiveConfig(noise_offset=0.1, weighting="min_snr", input_perturbation=0.2, multires_iterations=6)
    on = made(RunConfig(data=CONFIG.data, objective=objective), SAMPLES)
    assert [on[key] for key in keys] == ["0.1", "5.0", "0.2", "6"]


def test_a_checkpoint_is_known_by_its_files_stem() -> None:
    metadata = checkpoint_metadata(made(CONFIG, SAMPLES), "toys-000800", 800, 3)
    assert metadata["ss_output_name"] == "toys-000800"
    assert (metadata["ss_steps"], metadata["ss_epoch"]) == ("800", "3")


def test_the_header_stays_small_however_many_tags_there_are() -> None:
    samples = [sample(f"cats/{i}.png", ", ".join(f"tag {i} {j}" for j in range(50))) for i in range(400)]
    metadata = made(CONFIG, samples)
    assert len(json.loads(metadata["ss_tag_frequency"])["1_cats"]) == MAX_TAGS_PER_FOLDER
    assert len(json.dumps(metadata)) < 2**20
