"""Laws of the configuration: JSON round trips, every wrong value is named by its path, every field explains itself."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing

import pytest
from sd_atelier.lib.config import (
    ConceptConfig,
    DataConfig,
    LayerRule,
    RunConfig,
    TrainableConfig,
    checked,
    choices_of,
    difference,
    from_dict,
    merge,
    to_dict,
)


def fields(cls: type, path: str = "") -> list[tuple[str, dataclasses.Field, typing.Any]]:
    """Every leaf of the tree: dotted path, field, type (of the items, where it is a list; without None)."""
    hints = typing.get_type_hints(cls)
    leaves = []
    for f in dataclasses.fields(cls):
        kind, where = hints[f.name], f"{path}{f.name}"
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        if typing.get_origin(kind) is tuple:
            kind, where = typing.get_args(kind)[0], f"{where}[0]"
        leaves += fields(kind, f"{where}.") if dataclasses.is_dataclass(kind) else [(where, f, kind)]
    return leaves


LEAVES = fields(RunConfig)


def nested(path: str, value: object) -> dict:
    """`a.b[0].c` and a value as nested dicts and lists."""
    name, dot, rest = path.partition(".")
    inner = nested(rest, value) if dot else value
    return {name[:-3]: [inner]} if name.endswith("[0]") else {name: inner}


def test_the_default_configuration_survives_json() -> None:
    config = RunConfig()
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_a_full_configuration_survives_json() -> None:
    config = RunConfig(
        name="x",
        data=DataConfig(concepts=(ConceptConfig(folder="a", repeats=3, trigger="t"), ConceptConfig(folder="b"))),
        trainable=TrainableConfig(rules=(LayerRule(layers="*up*", rank=4, rate="1e-5"), LayerRule(rank=0))),
    )
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(("path", "field", "kind"), LEAVES, ids=[path for path, _, _ in LEAVES])
def test_every_setting_has_help_and_refuses_what_it_cannot_be(path: str, field: dataclasses.Field, kind: type) -> None:
    assert len(field.metadata["help"]) > 5
    wrong: list[object] = [{}, [[]], object()]
    wrong += [] if kind is bool else [True]
    wrong += [] if kind is str else ["text"]
    wrong += [1.5] if kind is int else []
    wrong += [math.nan, math.inf] if kind is float else []
    if "min" in field.metadata:
        wrong.append(kind(field.metadata["min"] - 1))
    if "max" in field.metadata:
        wrong.append(kind(field.metadata["max"] + 1) if kind is int else field.metadata["max"] * 2 + 1)
    if choices_of(field):
        wrong.append("no such choice")
    for value in wrong:
        with pytest.raises(ValueError) as caught:
            from_dict(RunConfig, nested(path, value))
        assert str(caught.value).startswith((path, f"{path}[", f'unknown setting "{path}')), str(caught.value)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r'unknown setting "trainable.rnk"; did you mean "rank"\?'):
        from_dict(RunConfig, {"trainable": {"rnk": 4}})


def test_a_list_item_is_named_by_its_place() -> None:
    with pytest.raises(ValueError, match=r"data\.concepts\[1\]\.repeats must be at least 1, got 0"):
        from_dict(RunConfig, {"data": {"concepts": [{"folder": "a"}, {"repeats": 0}]}})


def test_an_unknown_choice_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r'optimizer\.name is "adamv"; did you mean "adamw"\? choices: .*lion'):
        from_dict(RunConfig, {"optimizer": {"name": "adamv"}})


def test_a_whole_number_serves_as_a_number_and_not_the_other_way() -> None:
    assert from_dict(RunConfig, {"preview": {"guidance": 7}}).preview.guidance == 7.0
    with pytest.raises(ValueError, match="must be a whole number"):
        from_dict(RunConfig, {"trainable": {"rank": 4.0}})


def test_a_configuration_that_was_built_in_code_is_checked_too() -> None:
    with pytest.raises(ValueError, match=r"trainable\.rank must be at least 1, got 0"):
        checked(RunConfig(trainable=TrainableConfig(rank=0)))
    assert checked(RunConfig(name="x")) == RunConfig(name="x")


def test_merging_changes_what_is_given_and_nothing_else() -> None:
    config = merge(RunConfig(), {"loop": {"steps": 5}, "save": {"pins": [1, 2]}})
    assert sorted(difference(RunConfig(), config)) == [
        "loop.steps: None -> 5",
        "save.pins: [] -> None",
        "save.pins[0]: None -> 1",
        "save.pins[1]: None -> 2",
    ]
    assert merge(config, {}) == config
    with pytest.raises(ValueError, match="unknown setting"):
        merge(config, {"loop": {"stepz": 1}})


def test_what_is_no_table_is_refused() -> None:
    for values in ([], "text", None, 3):
        with pytest.raises(ValueError, match="must be a table"):
            from_dict(RunConfig, values)
        with pytest.raises(ValueError, match=r"^loop must be a table"):
            from_dict(RunConfig, {"loop": values})
