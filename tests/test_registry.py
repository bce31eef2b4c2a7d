"""Laws of registries: files are found, names are unique, a wrong name is answered with the nearest."""

from __future__ import annotations

import pytest
from sd_atelier.lib import registry
from sd_atelier.lib.registry import Registry, nearest


@pytest.mark.parametrize("name", sorted(registry.BY_NAME))
def test_every_registry_finds_its_entries_by_itself(name: str) -> None:
    found = registry.BY_NAME[name]
    assert found.names()
    assert all(found.get(entry) is not None for entry in found.names())


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r'unknown algorithm "lorra"; did you mean "lora"\? choices: .*lora'):
        registry.ALGORITHMS.get("lorra")


def test_a_name_is_given_once() -> None:
    entries = Registry("thing", "trainables")
    entries.register("a")(int)
    entries.register("a")(int)  # a module that is executed again is the same entry
    with pytest.raises(ValueError, match='thing "a" is registered twice'):
        entries.register("a")(str)


def test_nothing_near_is_not_guessed() -> None:
    assert nearest("zzzz", ["adamw", "lion"]) == "choices: adamw, lion"
