"""Attributes of the host's objects come back as they were, also after an error."""

import pytest
from sd_atelier.scripts.webui.patched import Overlay, patched


class Thing:
    size = 1

    def __init__(self):
        self.name = "a"


def test_what_an_object_had_comes_back_and_what_it_had_not_is_gone():
    thing = Thing()
    with pytest.raises(KeyError), patched(thing, name="b", size=2):
        assert (thing.name, thing.size, Thing.size) == ("b", 2, 1)
        raise KeyError
    assert vars(thing) == {"name": "a"} and thing.size == 1


def test_an_overlay_shows_its_values_and_changes_what_lies_below():
    thing = Thing()
    over = Overlay(thing, size=5)
    assert (over.size, over.name) == (5, "a")
    over.name = "c"
    assert (thing.name, thing.size) == ("c", 1)
    with pytest.raises(AttributeError):
        over.absent  # noqa: B018 - that it is asked for is the test
