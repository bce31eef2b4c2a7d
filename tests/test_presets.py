"""Laws of the presets: each applies, fits its family, and says where its numbers come from."""

from __future__ import annotations

import json

import pytest
from sd_atelier.lib import presets
from sd_atelier.lib.config import RunConfig, checked, difference, merge, to_dict
from sd_atelier.lib.lr_schedule import parse
from sd_atelier.lib.registry import SPELLINGS
from sd_atelier.lib.timesteps import FAMILY_DEFAULTS, resolved

EVERY = [preset for family in presets.families() for preset in presets.names(family)]
every_preset = pytest.mark.parametrize("preset", EVERY, ids=lambda preset: preset.name)


def flat(values):
    return {f"{section}.{name}": value for section, table in values.items() for name, value in table.items()}


def field(config, path):
    section, name = path.split(".")
    return to_dict(config)[section][name]


def test_every_family_that_can_be_trained_has_presets():
    # "original" is any other model: nobody can say what suits it
    assert set(presets.families()) == set(SPELLINGS.names()) - {"original"}


def test_every_family_has_each_purpose_in_each_memory_class():
    for family in presets.families():
        found = {(preset.memory, preset.purpose) for preset in presets.names(family)}
        assert found == {(m, p) for m in presets.memories(family) for p in presets.PURPOSES}
        assert len(presets.memories(family)) >= 3


@every_preset
@pytest.mark.parametrize("storage", [False, True])
def test_every_value_is_a_setting_and_passes_its_check(preset, storage):
    config = preset.apply(RunConfig(), storage)
    assert checked(config) == config
    expected = flat(preset.values) | (flat(preset.storage) if storage else {})
    assert {path: field(config, path) for path in expected} == expected


@every_preset
def test_the_rate_is_defined_over_the_whole_run_and_ends_there(preset):
    config = preset.apply(RunConfig())
    schedule = parse(config.rate.schedule).resolve(config.loop.steps, 8, False)
    rates = [schedule.rate(step) for step in range(config.loop.steps)]
    assert schedule.num_steps == config.loop.steps
    assert rates[0] == 0.0 and 0 < rates[-1] < 1e-6
    assert max(rates) == pytest.approx(1e-4, rel=1e-3)


@every_preset
def test_the_objective_is_one_of_its_family(preset):
    objective = resolved(preset.apply(RunConfig()).objective, preset.family)
    flow = preset.family in ("sd3", "flux")
    assert (objective.weighting == "min_snr") == (not flow)
    assert objective.noise_offset == 0.0 or not flow
    for name, value in FAMILY_DEFAULTS[preset.family].items():
        assert getattr(objective, name) == value


@every_preset
def test_every_number_that_is_not_the_default_has_a_source(preset):
    before, after = RunConfig(), preset.apply(RunConfig(), storage=True)
    changed = {line.split(":")[0] for line in difference(before, after)}
    assert changed and changed <= set(preset.sources)
    assert all(len(preset.sources[path]) > 10 for path in changed)


@every_preset
def test_a_source_is_of_a_setting_that_the_preset_sets(preset):
    assert set(preset.sources) <= set(flat(preset.values) | flat(preset.storage))


@every_preset
def test_memory_changes_how_a_step_is_computed_not_how_many_pictures_are_seen(preset):
    other = presets.names(preset.family)
    seen = {
        p.values["loop"]["steps"] * p.values["loop"]["batch_size"] * p.values["loop"]["accumulate"]
        for p in other
        if p.purpose == preset.purpose
    }
    per_update = {p.values["loop"]["batch_size"] * p.values["loop"]["accumulate"] for p in other}
    assert len(seen) == len(per_update) == 1
    # each of about fifteen pictures between 60 and 200 times
    assert 60 <= seen.pop() / presets.NUM_PICTURES <= 200


@every_preset
def test_a_run_has_checkpoints_to_choose_from_and_each_is_measured_and_seen(preset):
    steps, every = preset.values["loop"]["steps"], preset.values["save"]["every_steps"]
    assert 6 <= steps // every <= 10
    assert preset.values["record"]["probe_every_steps"] == preset.values["preview"]["every_steps"] == every


@every_preset
def test_wide_pictures_have_room_in_the_buckets(preset):
    assert preset.values["data"]["bucket_max_px"] >= 1.5 * preset.values["data"]["resolution"]


@every_preset
def test_values_are_plain_so_that_an_interface_can_send_them(preset):
    assert json.loads(json.dumps(preset.values)) == preset.values
    assert json.loads(json.dumps(preset.storage)) == preset.storage


@every_preset
def test_a_preset_replaces_another_whole(preset):
    for other in presets.names(preset.family):
        assert preset.apply(other.apply(RunConfig())) == preset.apply(RunConfig())


def test_less_memory_never_asks_for_more():
    for family in presets.families():
        rows = [
            (p.values["data"]["resolution"] ** 2 * p.values["loop"]["batch_size"], p.values["trainable"]["rank"])
            for p in presets.names(family)
            if p.purpose == "character"
        ]
        assert rows == sorted(rows)


def test_what_is_set_otherwise_is_said_from_the_preset_to_the_settings():
    preset = presets.preset("sdxl", "12 GB", "character")
    config = preset.apply(merge(RunConfig(), {"name": "cat", "data": {"concepts": [{"folder": "cats"}]}}))
    assert presets.difference(config, preset) == []
    changed = merge(config, {"trainable": {"rank": 4}})
    assert presets.difference(changed, preset) == ["trainable.rank: 32 -> 4"]


@pytest.mark.parametrize(
    ("memory_mb", "memory"),
    [(0, "8 GB"), (8188, "8 GB"), (12282, "12 GB"), (16376, "12 GB"), (24564, "24 GB"), (81559, "24 GB")],
)
def test_the_default_is_the_largest_class_that_the_device_has(memory_mb, memory):
    preset = presets.default("sdxl", memory_mb)
    assert (preset.family, preset.memory, preset.purpose) == ("sdxl", memory, "character")


@every_preset
def test_a_preset_is_found_by_its_name_however_that_is_written(preset):
    assert presets.named(preset.name) == preset
    assert presets.named(f"{preset.family},{preset.memory.replace(' ', '').lower()},{preset.purpose}") == preset


def test_a_preset_can_be_named_in_part():
    assert presets.named("flux").name == "flux, 8 GB, character"
    assert presets.named("flux,24").name == "flux, 24 GB, character"
    with pytest.raises(ValueError, match="a preset is FAMILY,MEMORY,PURPOSE"):
        presets.named("flux,8GB,style,more")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match='unknown model family "sdx" of presets; did you mean "sdxl"'):
        presets.names("sdx")
    with pytest.raises(ValueError, match='unknown memory class of flux "9 GB"'):
        presets.preset("flux", "9 GB", "style")
    with pytest.raises(ValueError, match='unknown purpose "stile" of presets; did you mean "style"'):
        presets.preset("flux", "8 GB", "stile")
