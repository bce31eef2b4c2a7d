"""What captions and pictures of a data set say against themselves, beyond what keeps them from being read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .captions import split_tags
from .duplicates import Duplicates
from .headers import printable
from .sample import Sample
from .scan import Problem
from .tag_rules import TagRules, contradictory, plain, subsumed

MAX_TOKENS = 75


@dataclass(frozen=True)
class TagCount:
    """How many captions carry a tag."""

    tag: str
    num_captions: int


def tag_counts(captions: Iterable[str]) -> list[TagCount]:
    """Every tag, the most frequent first, in the spelling that is used most."""
    counts: Counter[str] = Counter()
    spellings: dict[str, Counter[str]] = {}
    for caption in captions:
        tags = split_tags(caption)
        counts.update({plain(tag) for tag in tags})
        for tag in tags:
            spellings.setdefault(plain(tag), Counter())[tag] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [TagCount(spellings[name].most_common(1)[0][0], num) for name, num in ordered]


def caption_findings(
    samples: Sequence[Sample], rules: TagRules, num_tokens: Callable[[str], int] | None = None
) -> list[Problem]:
    """What a look at each caption finds. `num_tokens` counts tokens as the model does; without it nothing is said.

    Warnings: tags that contradict each other, or that another tag says already; more than 75 tokens. Notes: several
    people, gaze, a blurred background: they are learned with the subject unless the caption names them, as it does.
    """
    problems: list[Problem] = []
    for sample in samples:
        tags = split_tags(sample.caption)
        names = [plain(tag) for tag in tags]

        def say(text: str, severity: str, path: Path = sample.path) -> None:
            problems.append(Problem(path, text, severity))

        for group in contradictory(tags, rules):
            say(f"has tags that contradict each other: {_list(group)}", "warning")
        for tag, longer in subsumed(tags, rules).items():
            if plain(tag) == plain(longer):
                say(f'has "{printable(tag)}" twice', "warning")
            else:
                say(f'has "{printable(tag)}", which "{printable(longer)}" says already', "warning")
        if num_tokens is not None and num_tokens(sample.caption) > MAX_TOKENS:
            count = num_tokens(sample.caption)
            say(f"has a caption of {count} tokens; what comes after the first {MAX_TOKENS} counts less", "warning")
        for kind, what in (
            (rules.several_people, "shows two or more people"),
            (rules.gaze, "says where the subject looks"),
            (rules.blurred_background, "has a blurred background"),
        ):
            there = [name for name in dict.fromkeys(names) if name in kind]
            if there:
                say(f"{what}: {_list(there)}", "note")
    return problems


def duplicate_findings(groups: Iterable[Duplicates]) -> list[Problem]:
    """A warning for each group of pictures that show the same."""
    found = []
    for group in groups:
        others = _list([printable(path.name) for path in group.paths[1:]])
        text = f"is the same file as {others}" if group.equal else f"shows nearly the same as {others}"
        found.append(Problem(group.paths[0], text, "warning"))
    return found


def _list(words: Sequence[str]) -> str:
    shown = ", ".join(words[:6])
    return shown + (f" and {len(words) - 6} more" if len(words) > 6 else "")
