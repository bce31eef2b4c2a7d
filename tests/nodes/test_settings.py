"""What the widgets of the train node, the option nodes and a preset come to."""

import pytest
from sd_atelier.lib.config import ConceptConfig, RunConfig, merge
from sd_atelier.lib.preparation import check_settings
from sd_atelier.nodes.settings import AUTO, config_from, continued, preset_for
from sd_atelier.nodes.sockets import Dataset, combined

DATASET = Dataset(concepts=(ConceptConfig(folder="toys", trigger="sks"),))
# what the widgets hold when nobody touched them
UNTOUCHED = {
    "name": "toy", "steps": 0, "epochs": 0, "resolution": 0, "batch_size": 0, "save_every_steps": -1,
    "preview_every_steps": -1, "preview_prompts": "", "seed": 0, "block_checkpointing": "as the preset",
    "accumulate": 0, "record_probe_every_steps": -1, "preview_guidance": -1.0,
}  # fmt: skip


def config(options=(), dataset=DATASET, family="sdxl", **widgets):
    preset = preset_for(family, AUTO, 12 * 1024, "character")
    return config_from(preset, dataset, {**UNTOUCHED, **widgets}, options)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3", "flux"])
def test_untouched_widgets_leave_everything_to_the_preset(family):
    preset = preset_for(family, AUTO, 12 * 1024, "character")
    expected = merge(
        preset.apply(RunConfig()), {"name": "toy", "data": {"concepts": [{"folder": "toys", "trigger": "sks"}]}}
    )
    assert check_settings(config(family=family)) == expected


def test_a_widget_replaces_one_setting_and_an_option_node_its_group():
    found = config(
        [{"trainable": {"rank": 4}}, None, {"rate": {"schedule": "1e-5"}}],
        batch_size=3,
        seed=7,
        preview_prompts="a\n\n b ",
    )
    assert (found.trainable.rank, found.rate.schedule, found.loop.batch_size, found.loop.seed) == (4, "1e-5", 3, 7)
    assert found.preview.prompts == ("a", "b")


def test_intervals_follow_the_length_of_the_run():
    found = config(steps=80)
    assert (found.loop.steps, found.save.every_steps, found.preview.every_steps) == (80, 10, 10)
    assert config(steps=80, save_every_steps=3).save.every_steps == 3
    assert config(epochs=5).loop.epochs == 5
    assert config(epochs=5).loop.steps is None
    with pytest.raises(ValueError, match="steps or epochs"):
        config(steps=3, epochs=5)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 50])
def test_a_preset_fits_runs_of_every_length(steps):
    from sd_atelier.lib.lr_schedule import parse

    found = config(steps=steps)
    parse(found.rate.schedule).resolve(steps)


@pytest.mark.parametrize("resolution", [64, 512, 1536])
def test_a_resolution_has_buckets(resolution):
    from sd_atelier.lib.data.buckets import bucket_sizes

    data = config(resolution=resolution, bucket_step=32).data
    assert bucket_sizes(data.resolution, data.bucket_step, data.bucket_min_px, data.bucket_max_px)


def test_a_run_that_goes_on_takes_over_what_changes_no_number():
    own = config(seed=1)
    now = config(
        seed=2, save_every_steps=7, preview_prompts="new", dataset=Dataset(concepts=(ConceptConfig(folder="moved"),))
    )
    found = merge(own, continued(own, now))
    assert (found.loop.seed, found.save.every_steps, found.preview.prompts) == (1, 7, ("new",))
    assert found.data.concepts == (ConceptConfig(folder="moved", trigger="sks"),)


def test_a_run_never_names_the_folder_that_is_read():
    own = config(dataset=Dataset(concepts=(ConceptConfig(folder="/secret"), ConceptConfig(folder="/other"))))
    with pytest.raises(ValueError, match="this run has 2 data sets and the graph 1"):
        continued(own, config())


def test_data_sets_are_combined_unless_they_contradict():
    flipped = DATASET.with_settings(flip=True)
    assert combined([flipped, flipped]).concepts == DATASET.concepts * 2
    assert combined([flipped, flipped]).settings == {"flip": True}
    with pytest.raises(ValueError, match=r"data\.flip"):
        combined([flipped, DATASET.with_settings(flip=False)])


def test_words_are_put_to_every_concept_and_empty_ones_to_none():
    both = combined([DATASET, Dataset(concepts=(ConceptConfig(folder="b", trigger="other"),))])
    assert [c.trigger for c in both.with_words("", "grain").concepts] == ["sks", "other"]
    assert [c.append for c in both.with_words("", "grain").concepts] == ["grain", "grain"]
    assert [c.trigger for c in both.with_words("one", "").concepts] == ["one", "one"]
