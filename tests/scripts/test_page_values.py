"""Between the page's form and the settings of a run."""

import pytest
from sd_atelier.lib.config import LayerRule, RunConfig, checked, merge
from sd_atelier.lib.forms import values_to_config
from sd_atelier.scripts.webui import page_values
from sd_atelier.scripts.webui.curves import curve


def test_what_the_form_holds_of_settings_gives_them_back():
    concepts = [{"folder": "a", "repeats": 3}, {"folder": "b", "trigger": "x"}]
    config = merge(RunConfig(), {"data": {"concepts": concepts}, "preview": {"prompts": ["one", "two"]}})
    config = merge(config, {"trainable": {"rules": [{"layers": "*up*", "rank": 4}]}, "loop": {"steps": 5}})
    again = values_to_config(page_values.flat(config))
    assert again == checked(config) and isinstance(again.trainable.rules[0], LayerRule)


def test_settings_that_this_host_has_not_are_not_in_the_form():
    paths = {widget["path"] for group in page_values.groups() for widget in group["widgets"]}
    assert "loop.cpu_blocks" not in paths and "loop.steps" in paths


FIELDS = {"prompt": "a toy", "negative_prompt": "blue", "steps": 12, "cfg_scale": 5.5, "seed": 42, "width": 640}
FIELDS |= {"height": 512, "sampler_name": "Euler", "scheduler": "Karras", "enable_hr": True, "hr_scale": 1.5}


def test_previews_as_txt2img_have_all_of_its_fields():
    config, further = page_values.as_txt2img(RunConfig(), FIELDS)
    preview = config.preview
    assert (preview.prompts, preview.negative_prompt, preview.steps) == (("a toy",), "blue", 12)
    assert (preview.guidance, preview.seed, preview.width, preview.height) == (5.5, 42, 640, 512)
    assert further == {"sampler_name": "Euler", "scheduler": "Karras", "enable_hr": True, "hr_scale": 1.5}


def test_a_random_seed_becomes_the_fixed_one_and_no_second_pass_leaves_nothing_of_it():
    config = merge(RunConfig(), {"preview": {"seed": 9}})
    config, further = page_values.as_txt2img(config, {**FIELDS, "seed": -1, "enable_hr": False})
    assert config.preview.seed == 9 and further == {"sampler_name": "Euler", "scheduler": "Karras"}


def test_an_empty_prompt_of_txt2img_is_said():
    with pytest.raises(ValueError, match="prompt is empty"):
        page_values.as_txt2img(RunConfig(), {**FIELDS, "prompt": " "})


def test_a_form_that_is_being_filled_in_is_read_as_far_as_it_can_be():
    given = {"trainable.rank": 4, "loop.steps": "", "optimizer.name": "nonsense", "data.concepts[0].folder": "x"}
    config = page_values.loose_config({"values": given})
    assert config.trainable.rank == 4 and config.optimizer.name == RunConfig().optimizer.name


@pytest.mark.parametrize(
    "name, value", [("seeds", "1 x"), ("strengths", "strong"), ("steps", "many"), ("width", 1e400)]
)
def test_a_wrong_number_for_a_strip_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        page_values.strip_request({"source": "a", "prompts": "a", name: value}).rows()


def test_a_strip_has_a_row_for_each_prompt_seed_and_strength():
    request = page_values.strip_request({"prompts": "a\n\n b ", "seeds": "1, 2", "strengths": "0.5 1"})
    assert len(request.rows()) == 8 and {row.strength for row in request.rows()} == {0.5, 1.0}
    with pytest.raises(ValueError, match="same noise"):
        page_values.strip_request({"prompts": "a", "seeds": "-1"}).rows()


def test_the_curve_has_both_sides_of_each_edge():
    drawn = curve("1e-3:50, 1e-4", 100, None, False, 25)
    rates = dict(drawn["points"])
    assert rates[49] == 1e-3 and rates[50] == 1e-4 and rates[99] == 1e-4
    # a checkpoint shows the rate of the update that made it
    assert drawn["checkpoints"] == [(25, 1e-3), (50, 1e-3), (75, 1e-4), (100, 1e-4)]


@pytest.mark.parametrize("text, column", [("1e-3 fast", 6), ("1e-3:50", 1), ("", 1)])
def test_a_fault_of_a_schedule_has_its_column(text, column):
    fault = curve(text, 100, None, False, 0)
    assert fault["column"] == column and fault["error"] and "points" not in fault


def test_a_long_run_is_drawn_from_few_points():
    drawn = curve("0->1e-4:10%, 1e-4->0 cosine", 10_000_000, None, False, 1)
    assert len(drawn["points"]) < 500 and len(drawn["checkpoints"]) <= 13
