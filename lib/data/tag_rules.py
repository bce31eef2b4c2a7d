"""What is known about tags: which say less than others, which contradict, which belong together. The table is JSON.

`tag_rules.json` beside this file names its sources; a user's file of the same form extends it.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("tag_rules.json")
_LISTS = (
    "gaze",
    "blurred_background",
    "several_people",
    "one_person",
    "character_features",
    "not_features",
    "asymmetric",
    "kaomoji",
    "negations",
)


@dataclass(frozen=True)
class TagRules:
    """The table. Tags are in lower case with spaces."""

    gaze: tuple[str, ...]
    blurred_background: tuple[str, ...]
    several_people: tuple[str, ...]  # those with a comma are several tags that count together
    one_person: tuple[str, ...]
    character_features: tuple[str, ...]  # globs
    not_features: tuple[str, ...]
    asymmetric: tuple[str, ...]  # globs: what is on one side, or is wrong in a mirror
    kaomoji: tuple[str, ...]  # faces, whose underscores are no spaces
    negations: tuple[str, ...]  # words that make of a tag its opposite: no shoes
    contradictions: tuple[tuple[str, ...], ...]  # of each, at most one tag can be true
    contradictions_of_one: tuple[tuple[str, ...], ...]  # the same, where one person alone is shown
    implied: Mapping[str, tuple[str, ...]]  # tag -> tags that it says already
    joins: Mapping[str, tuple[str, ...]]  # verb -> what it may be joined with

    def is_feature(self, tag: str) -> bool:
        """Whether a tag says what a character looks like, rather than what it does, wears or where it is."""
        name = plain(tag)
        return name not in self.not_features and _any_of(self.character_features).match(name) is not None

    def people(self, names: Iterable[str]) -> list[str]:
        """Of plain tags those that say that a picture shows two or more people, in the order of the table."""
        there = set(names)
        groups = [entry.split(", ") for entry in self.several_people]
        found = [tag for group in groups if there.issuperset(group) for tag in group]
        return list(dict.fromkeys(found))

    def is_asymmetric(self, tag: str) -> bool:
        """Whether a tag says that a mirrored picture would show something else."""
        return _any_of(self.asymmetric).match(plain(tag)) is not None


@lru_cache(maxsize=16)
def _any_of(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)")


def plain(tag: str) -> str:
    """A tag as the table spells it: lower case, spaces, no escapes."""
    return " ".join(tag.replace("\\", "").replace("_", " ").lower().split())


@lru_cache(maxsize=4)
def tag_rules(extension: Path | None = None) -> TagRules:
    """The table, with a user's lists added to its own. Errors: `ValueError` naming what is wrong in the file."""
    table = _read(TABLE)
    if extension is not None:
        own = _read(extension)
        unknown = own.keys() - table.keys()
        if unknown:
            raise ValueError(f"{extension}: unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(table))}")
        for name, value in own.items():
            if isinstance(value, str):
                continue
            if type(value) is not type(table[name]):
                raise ValueError(f"{extension}: {name} must be written as in {TABLE.name}")
            table[name] = {**table[name], **value} if isinstance(value, dict) else [*table[name], *value]
    return TagRules(
        **{name: tuple(map(plain, table[name])) for name in _LISTS},
        contradictions=_groups(table["contradictions"]),
        contradictions_of_one=_groups(table["contradictions_of_one"]),
        implied={plain(tag): tuple(map(plain, tags)) for tag, tags in table["implied"].items()},
        joins={plain(verb): tuple(map(plain, tags)) for verb, tags in table["joins"].items()},
    )


def _groups(lists: list[list[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(map(plain, group)) for group in lists)


def _read(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a table of tag rules: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} must be written as {TABLE.name}: lists by name")
    return table


def subsumed(tags: Sequence[str], rules: TagRules) -> dict[str, str]:
    """Tag -> the tag of the same picture that says it already, and more.

    A tag is said by a longer one that ends with its words (`hair ornament` by `star hair ornament`) or that the table
    names, and by an equal one before it. A tag that the table holds to contradict the longer one is not said by it.
    """
    names = [plain(tag) for tag in tags]
    found: dict[str, str] = {}
    for i, name in enumerate(names):
        for j, other in enumerate(names):
            if i == j or tags[i] in found:
                continue
            longer = other.endswith(f" {name}") and not _contradict(name, other, rules)
            equal = other == name and j < i
            if longer or equal or name in rules.implied.get(other, ()):
                found[tags[i]] = tags[j]
    return found


def contradictory(tags: Iterable[str], rules: TagRules) -> list[tuple[str, ...]]:
    """Groups of tags of one picture of which at most one can be true.

    What holds for one person, such as the length of the hair, is not looked at where several are shown.
    """
    names = dict.fromkeys(map(plain, tags))
    groups = rules.contradictions if rules.people(names) else (*rules.contradictions_of_one, *rules.contradictions)
    found = []
    for group in groups:
        there = tuple(tag for tag in group if tag in names)
        # of two that the table orders, the stronger says the weaker: long hair and very long hair go together
        said = {weaker for tag in there for weaker in rules.implied.get(tag, ())}
        there = tuple(tag for tag in there if tag not in said)
        if len(there) > 1:
            found.append(there)
    denied = {name: bare for name in names if (bare := _denied(name, rules)) in names}
    return found + [(bare, name) for name, bare in denied.items() if bare is not None]


def _denied(name: str, rules: TagRules) -> str | None:
    """What a tag says is not there."""
    word, _, rest = name.partition(" ")
    return rest if rest and word in rules.negations else None


def _contradict(a: str, b: str, rules: TagRules) -> bool:
    groups = (*rules.contradictions, *rules.contradictions_of_one)
    return a == _denied(b, rules) or any(a in group and b in group for group in groups)
