"""Forms: every setting has a widget, and what widgets give back is the configuration they describe."""

import dataclasses
import typing

import pytest
from sd_atelier.lib import forms
from sd_atelier.lib.config import RunConfig, from_dict, setting, to_dict


def leaves(cls, path=""):
    """Every setting of the tree with its declaration: (path, field)."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        where = f"{path}.{field.name}" if path else field.name
        is_tuple = typing.get_origin(kind) is tuple
        item = typing.get_args(kind)[0] if is_tuple else kind
        if dataclasses.is_dataclass(item):
            yield from leaves(item, where + ("[]" if is_tuple else ""))
        else:
            yield where, field


FIELDS = dict(leaves(RunConfig))
WIDGETS = {w.path: w for g in forms.form() for w in g.widgets}


def test_every_setting_has_exactly_one_widget():
    paths = [w.path for g in forms.form() for w in g.widgets]
    assert sorted(paths) == sorted(FIELDS)


@pytest.mark.parametrize("path", FIELDS)
def test_widget_repeats_the_declaration(path):
    widget, about = WIDGETS[path], FIELDS[path].metadata
    assert widget.kind in forms.KINDS
    assert len(widget.help) > 5 and widget.help == about["help"]
    assert widget.label and "_" not in widget.label
    assert (widget.min, widget.max) == (about.get("min"), about.get("max"))
    if widget.kind == "dropdown":
        assert widget.choices
    if widget.kind == "slider":
        assert widget.min is not None and widget.max is not None and widget.step
    if widget.kind == "list":
        assert widget.item in ("text", "integer")


@pytest.mark.parametrize("path", FIELDS)
def test_default_of_a_widget_is_a_valid_value(path):
    widget = WIDGETS[path]
    value = list(widget.default) if isinstance(widget.default, tuple) else widget.default
    config = forms.values_to_config({path.replace("[]", "[0]"): value})
    if "[]" not in path:
        assert config == RunConfig()
    assert (value is None) <= widget.optional


@pytest.mark.parametrize("path", FIELDS)
def test_value_of_a_slider_can_be_reached_by_its_steps(path):
    widget = WIDGETS[path]
    if widget.kind == "slider":
        for value in (widget.default, widget.max):
            steps = (value - widget.min) / widget.step
            assert abs(steps - round(steps)) < 1e-6


def test_values_by_path_equal_the_nested_configuration():
    values = {
        "name": "toy",
        "trainable.rank": 8.0,
        "data.concepts[1].folder": "b",
        "data.concepts[0].folder": "a",
        "data.concepts[0].repeats": 3,
        "save.pins": "100, 200",
        "preview.prompts": "a cat, sitting\n\n a dog ",
        "loop.steps": "",
        "loop.epochs": 4,
    }
    nested = {
        "name": "toy",
        "trainable": {"rank": 8},
        "data": {"concepts": [{"folder": "a", "repeats": 3}, {"folder": "b"}]},
        "save": {"pins": [100, 200]},
        "preview": {"prompts": ["a cat, sitting", "a dog"]},
        "loop": {"steps": None, "epochs": 4},
    }
    assert forms.values_to_config(values) == from_dict(RunConfig, nested)


def test_rows_may_come_as_one_list():
    rows = [{"folder": "a"}, {"folder": "b", "trigger": "zwx"}]
    config = forms.values_to_config({"data.concepts": rows})
    assert [c.folder for c in config.data.concepts] == ["a", "b"]
    assert to_dict(config)["data"]["concepts"][1]["trigger"] == "zwx"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trainable.rnk": 8}, 'unknown setting "trainable.rnk"; did you mean "rank"'),
        ({"trainable.rank": 0}, "trainable.rank must be at least 1, got 0"),
        ({"trainable.rank": 8.5}, "trainable.rank must be a whole number, got 8.5"),
        ({"save.pins": "1, two"}, r"save.pins\[1\] must be a whole number"),
        ({"data.concepts[1].folder": "b"}, "data.concepts must have rows from 0 on without a gap, got 1"),
        ({"data..x": 1}, "is not the path of a setting"),
        ({"": 1}, "is not the path of a setting"),
        ({"name": "a", "name.b": 1}, "cannot be set together"),
        ({"name": "a", "name[0].b": 1}, "cannot be set together"),
        ({"data.concepts[0]": 3, "data.concepts[0].folder": "a"}, "cannot be set together"),
        ({"data.concepts[0].folder[0]": "a"}, r"data.concepts\[0\].folder must be a text"),
    ],
)
def test_wrong_values_are_refused_by_name(values, said):
    with pytest.raises(ValueError, match=said):
        forms.values_to_config(values)


def test_setting_is_shown_to_the_families_it_concerns_and_only_to_them():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Tree:
        everyone: int = setting(1, "concerns all families")
        diffusion: int = setting(1, "concerns two families", families=("sd",))
        wide: int = setting(1, "concerns one family", families=("sdxl",))

    widgets = forms.form(Tree)[0].widgets

    def names(family):
        return [w.path for w in forms.visible(widgets, family)]

    assert names("sd1") == names("sd2") == ["everyone", "diffusion"]
    assert names("sdxl") == ["everyone", "wide"]
    assert names("flux") == ["everyone"]


def test_labels_read_as_words():
    assert WIDGETS["trainable.rank"].label == "Rank"
    assert WIDGETS["objective.t_min"].label == "t min"
    assert WIDGETS["objective.min_snr_gamma"].label == "Min SNR gamma"
    assert (WIDGETS["data.bucket_min_px"].label, WIDGETS["data.bucket_min_px"].unit) == ("Bucket min", "px")
    assert WIDGETS["rate.schedule"].kind == "schedule"
    assert WIDGETS["data.concepts[].folder"].kind == "folder"
