"""The table of tag rules is sound, and says what it should of real captions."""

from __future__ import annotations

import json

import pytest
from sd_atelier.lib.data.tag_rules import TABLE, contradictory, plain, subsumed, tag_rules

RULES = tag_rules()


def test_the_table_names_its_sources_and_every_tag_is_spelled_plainly():
    table = json.loads(TABLE.read_text("utf-8"))
    assert "wiki" in table["source"]
    tags = [t for name in ("gaze", "several_people", "one_person", "not_features") for t in table[name]]
    tags += [t for group in table["contradictions"] for t in group] + [t for ts in table["joins"].values() for t in ts]
    assert all(plain(tag) == tag for tag in tags)


@pytest.mark.parametrize(
    ("tags", "gone"),
    [
        (["hair ornament", "star hair ornament"], {"hair ornament": "star hair ornament"}),
        (["White_Shirt", "shirt"], {"shirt": "White_Shirt"}),
        (["very long hair", "long hair"], {"long hair": "very long hair"}),
        (["2girls", "multiple girls"], {"multiple girls": "2girls"}),
        (["short hair", "very short hair"], {}),
        (["dress", "sundress"], {}),
        (["smile", "1girl"], {}),
        (["hat", "hat"], {"hat": "hat"}),
    ],
)
def test_a_tag_is_said_by_a_longer_one_that_ends_with_it_or_that_the_table_names(tags, gone):
    assert subsumed(tags, RULES) == gone


@pytest.mark.parametrize(
    ("tags", "groups"),
    [
        (["open mouth", "closed_mouth", "hat"], [("open mouth", "closed mouth")]),
        (["long hair", "very long hair"], []),
        (["long hair", "short hair"], [("short hair", "long hair")]),
        (["indoors", "night"], []),
        (["solo", "2girls"], [("solo", "2girls")]),
    ],
)
def test_of_contradicting_tags_one_can_be_true(tags, groups):
    assert contradictory(tags, RULES) == groups


def test_features_of_a_character_are_told_from_what_it_does():
    features = ["blue hair", "red eyes", "twintails", "cat ears", "Long_Hair", "mole under eye"]
    others = ["closed eyes", "wet hair", "smile", "school uniform", "outdoors", "holding sword", "hair ornament"]
    assert all(RULES.is_feature(tag) for tag in features)
    assert not any(RULES.is_feature(tag) for tag in others)


def test_a_users_file_extends_the_table_and_its_faults_are_named(tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"gaze": ["staring"], "implied": {"tricorn hat": ["hat"]}}), "utf-8")
    rules = tag_rules(own)
    assert "staring" in rules.gaze and "looking at viewer" in rules.gaze
    assert subsumed(["hat", "tricorn hat"], rules) == {"hat": "tricorn hat"}
    for text, said in (
        ('{"gazes": []}', "unknown gazes; known: "),
        ('{"gaze": {}}', "must be written as in"),
        ("[", "cannot"),
    ):
        bad = tmp_path / f"{len(text)}.json"
        bad.write_text(text)
        with pytest.raises(ValueError, match=said):
            tag_rules(bad)


@pytest.mark.parametrize("tag", ["heterochromia", "Eyepatch", "hair_over_one_eye", "single glove", "english text"])
def test_what_is_on_one_side_is_asymmetric(tag):
    assert tag_rules().is_asymmetric(tag)


@pytest.mark.parametrize("tag", ["blue eyes", "long hair", "smile", "bright background", "singlet", "context"])
def test_what_is_the_same_in_a_mirror_is_not_asymmetric(tag):
    assert not tag_rules().is_asymmetric(tag)
