"""Edits do what they say, once: doing one again changes nothing, and what has nothing to change stays byte for byte."""

from __future__ import annotations

import random

import pytest
from sd_atelier.lib.data.tag_edits import EDITS, TagFilter, edit, in_turn
from sd_atelier.lib.data.tag_rules import tag_rules

RULES = tag_rules()
WORDS = {
    "remove": "hat, * shirt", "replace": "hat -> cap", "prepend": "zwx", "append": "a toy", "trigger": "zwx",
    "first": "solo, hat",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words", "before", "after"),
    [
        ("subsumed", "", "1girl, hair ornament, star hair ornament, smile", "1girl, star hair ornament, smile"),
        ("subsumed", "", "smile, hat, smile", "smile, hat"),
        ("join", "", "1girl, lollipop, holding, smile", "1girl, holding lollipop, smile"),
        ("join", "", "holding, red umbrella", "holding red umbrella"),
        ("join", "", "holding lollipop, holding, lollipop", "holding lollipop"),
        ("join", "", "holding, cup, book", "holding, cup, book"),
        ("remove", "hat, * shirt", "1girl, white shirt, Hat, smile", "1girl, smile"),
        ("replace", "hat -> cap", "1girl, hat", "1girl, cap"),
        ("replace", "hat ->", "1girl, hat", "1girl"),
        ("prepend", "zwx", "1girl", "zwx, 1girl"),
        ("append", "on grass", "1girl", "1girl, on grass"),
        ("trigger", "zwx", "1girl, blue hair, closed eyes, hat", "zwx, 1girl, closed eyes, hat"),
        ("first", "solo, hat", "1girl, hat, solo", "solo, hat, 1girl"),
        ("spaces", "", "long_hair, hat", "long hair, hat"),
    ],
)
def test_an_edit_does_what_it_says(name, words, before, after):
    assert edit(name, words, RULES)(before) == after


def captions(num: int) -> list[str]:
    rng = random.Random(3)
    tags = [
        "1girl", "solo", "hat", "red hat", "holding", "cup", "white shirt", "shirt", "blue hair", "long_hair", "",
        "very long hair", "smile.", "v1.5", "a (b) c", "zwx", "looking at viewer", "hat", "日本 語", "a toy",
    ]  # fmt: skip
    return ["", " , ,", "A sentence. Another, with a comma."] + [
        rng.choice([", ", ",", " , "]).join(rng.choices(tags, k=rng.randint(0, 9))) for _ in range(num)
    ]


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_done_again_changes_nothing(name):
    once = edit(name, WORDS.get(name, ""), RULES)
    changed = 0
    for caption in captions(400):
        after = once(caption)
        assert once(after) == after
        changed += after != caption
    assert changed > 20


def test_edits_come_in_turn():
    both = in_turn([edit("remove", "hat", RULES), edit("prepend", "zwx", RULES)])
    assert both("hat, 1girl") == "zwx, 1girl"


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("remov", "hat", 'unknown edit "remov"; did you mean "remove"'),
        ("remove", " ", "the edit remove needs tags, as in remove="),
        ("join", "x", 'the edit join takes no words, got "x"'),
        ("replace", "hat", 'the edit replace needs "old -> new", got "hat"'),
    ],
)
def test_edits_that_cannot_be_are_refused(name, words, said):
    with pytest.raises(ValueError, match=said):
        edit(name, words, RULES)


def test_a_filter_takes_all_any_none_and_counts():
    caption = "1girl, Long_Hair, hat"
    assert TagFilter(all=("long hair", "hat")).matches(caption)
    assert not TagFilter(all=("long hair", "cap")).matches(caption)
    assert TagFilter(any=("cap", "hat")).matches(caption) and not TagFilter(any=("cap",)).matches(caption)
    assert not TagFilter(none=("hat",)).matches(caption) and TagFilter(none=("cap",)).matches(caption)
    assert TagFilter(least=3, most=3).matches(caption) and not TagFilter(least=4).matches(caption)
    assert not TagFilter(most=2).matches(caption) and TagFilter().matches("")
