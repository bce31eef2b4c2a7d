"""Edits of captions: pure functions from a caption to a caption, by name.

An edit takes the tags of a caption apart at commas; a caption that it does not change comes back byte for byte.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .captions import split_tags, with_ending, with_trigger
from .tag_rules import TagRules, plain, subsumed

Edit = Callable[[str], str]


@dataclass(frozen=True)
class _Kind:
    """An edit that users can name: what it does, whether it needs words, and how it is made."""

    help: str
    needs: str  # what its words are; "" where it takes none
    make: Callable[[str, TagRules], Edit]


def edit(name: str, words: str, rules: TagRules) -> Edit:
    """The edit called `name`, with its words. Errors: `ValueError` for an unknown name, and for missing words."""
    from ..registry import nearest

    if name not in EDITS:
        raise ValueError(f'unknown edit "{name}"; {nearest(name, EDITS)}')
    kind = EDITS[name]
    if kind.needs and not words.strip():
        raise ValueError(f"the edit {name} needs {kind.needs}, as in {name}=...")
    if not kind.needs and words.strip():
        raise ValueError(f'the edit {name} takes no words, got "{words[:40]}"')
    return kind.make(words, rules)


def _of_tags(change: Callable[[list[str]], list[str]]) -> Edit:
    def edited(caption: str) -> str:
        tags = split_tags(caption)
        changed = change(list(tags))
        return caption if changed == tags else ", ".join(changed)

    return edited


def merge_subsumed(rules: TagRules) -> Edit:
    """Leave out tags that another one says already (`tag_rules.subsumed`)."""

    def change(tags: list[str]) -> list[str]:
        said: set[int] = set()
        found = subsumed(tags, rules)
        seen: set[str] = set()
        for i, tag in enumerate(tags):
            # of equal tags the first stays
            if plain(tag) in seen or (tag in found and plain(found[tag]) != plain(tag)):
                said.add(i)
            seen.add(plain(tag))
        return [tag for i, tag in enumerate(tags) if i not in said]

    return _of_tags(change)


def join_verbs(rules: TagRules) -> Edit:
    """`lollipop, holding` becomes `holding lollipop`, at the place of the thing, where exactly one thing fits."""

    def change(tags: list[str]) -> list[str]:
        for verb, things in rules.joins.items():
            names = [plain(tag) for tag in tags]
            if verb not in names:
                continue
            joined = [name for name in names if name.startswith(f"{verb} ")]
            fitting = [i for i, name in enumerate(names) if any(name == t or name.endswith(f" {t}") for t in things)]
            fitting = [i for i in fitting if not names[i].startswith(f"{verb} ")]
            if joined:
                # the joined tag is there: the verb, and the thing that it holds, are said
                held = {name.removeprefix(f"{verb} ") for name in joined}
                tags = [tag for tag, name in zip(tags, names, strict=True) if name != verb and name not in held]
            elif len(fitting) == 1:
                tags[fitting[0]] = f"{verb} {tags[fitting[0]]}"
                tags = [tag for tag, name in zip(tags, names, strict=True) if name != verb]
        return tags

    return _of_tags(change)


def remove(words: str) -> Edit:
    """Leave out tags that are one of the words (globs), separated by commas."""
    globs = [plain(word) for word in words.split(",") if word.strip()]
    return _of_tags(lambda tags: [t for t in tags if not any(fnmatch.fnmatchcase(plain(t), g) for g in globs)])


def replace(words: str) -> Edit:
    """`old -> new`: each tag that is `old` becomes `new`; an empty `new` leaves it out."""
    old, arrow, new = (part.strip() for part in words.partition("->"))
    if not arrow or not old:
        raise ValueError(f'the edit replace needs "old -> new", got "{words[:60]}"')
    return _of_tags(lambda tags: [t for t in (new if plain(t) == plain(old) else t for t in tags) if t])


def trigger(words: str, rules: TagRules) -> Edit:
    """The trigger-word method: what the character looks like is left out, and the word stands in front."""

    def edited(caption: str) -> str:
        word = words.strip(" ,")
        kept = [t for t in split_tags(caption) if plain(t) == plain(word) or not rules.is_feature(t)]
        return with_trigger(", ".join(kept) if kept != split_tags(caption) else caption, word)

    return edited


def first(words: str) -> Edit:
    """Put these tags in front, in this order, where a caption has them."""
    wanted = [plain(word) for word in words.split(",") if word.strip()]

    def change(tags: list[str]) -> list[str]:
        front = [tag for word in wanted for tag in tags if plain(tag) == word]
        return front + [tag for tag in tags if plain(tag) not in wanted]

    return _of_tags(change)


def with_spaces() -> Edit:
    """Spaces for underscores, as prompts are written."""
    return _of_tags(lambda tags: [tag.replace("_", " ") for tag in tags])


EDITS: Mapping[str, _Kind] = {
    "subsumed": _Kind("leaves out tags that another tag says already", "", lambda w, r: merge_subsumed(r)),
    "join": _Kind("joins a verb with its thing: lollipop, holding", "", lambda w, r: join_verbs(r)),
    "remove": _Kind("leaves out tags; globs, separated by commas", "tags", lambda w, r: remove(w)),
    "replace": _Kind("old -> new", "old -> new", lambda w, r: replace(w)),
    "prepend": _Kind("puts words in front, once", "words", lambda w, r: lambda caption: with_trigger(caption, w)),
    "append": _Kind("puts words behind, once", "words", lambda w, r: lambda caption: with_ending(caption, w)),
    "trigger": _Kind("leaves out what the character looks like, and puts a trigger word in front", "a word", trigger),
    "first": _Kind("moves tags to the front, in this order", "tags", lambda w, r: first(w)),
    "spaces": _Kind(
        "spaces for underscores", "", lambda w, r: _of_tags(lambda tags: [t.replace("_", " ") for t in tags])
    ),
}


def in_turn(edits: Sequence[Edit]) -> Edit:
    """Several edits, one after the other."""

    def edited(caption: str) -> str:
        for one in edits:
            caption = one(caption)
        return caption

    return edited


@dataclass(frozen=True)
class TagFilter:
    """Which captions are meant: those with all, any and none of these tags, and with so many of them."""

    all: tuple[str, ...] = ()
    any: tuple[str, ...] = ()
    none: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None

    def matches(self, caption: str) -> bool:
        """Tags are compared in lower case; underscores and spaces are the same."""
        names = [plain(tag) for tag in split_tags(caption)]
        has = set(names)
        return (
            all(plain(t) in has for t in self.all)
            and (not self.any or any(plain(t) in has for t in self.any))
            and not any(plain(t) in has for t in self.none)
            and len(names) >= self.least
            and (self.most is None or len(names) <= self.most)
        )
