"""What captions and pictures of a data set say against themselves, beyond what keeps them from being read; one page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import DataConfig
from .captions import split_tags
from .duplicates import Duplicates
from .headers import printable
from .sample import Sample
from .scan import Problem, scan
from .survey import survey
from .tag_edits import join_verbs
from .tag_rules import TagRules, contradictory, plain, subsumed

MAX_TOKENS = 75
SEVERITIES = {"error": "left out", "warning": "may not be as meant", "note": "to know"}


@dataclass(frozen=True)
class TagCount:
    """How many captions carry a tag."""

    tag: str
    num_captions: int


@dataclass(frozen=True)
class Examination:
    """Everything that was found in a data set."""

    samples: tuple[Sample, ...]  # those whose headers and captions can be read
    problems: tuple[Problem, ...]
    stopped: bool  # before every picture was looked at
    duplicates: tuple[Duplicates, ...] = ()  # pictures that show the same; also among the problems

    @property
    def left_out(self) -> set[Path]:
        """Files that are not used."""
        return {path for problem in self.problems if problem.severity == "error" for path in problem.about}


def examine(
    data: DataConfig,
    rules: TagRules,
    num_tokens: Callable[[str], int] | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Examination:
    """Look at every file name, header, pixel and caption of a data set.

    `num_tokens` counts tokens as the model does; without it nothing is said of long captions. `on_progress` and
    `stopped` are those of `survey`. Errors: `ValueError` as `scan`.
    """
    found = scan(data)
    seen = survey(found.samples, data.max_megapixels, on_progress=on_progress, stopped=stopped)
    problems = [
        *found.problems,
        *seen.problems,
        *caption_findings(found.samples, rules, num_tokens),
        *(flip_findings(found.samples, rules) if data.flip else ()),
        *duplicate_findings(seen.duplicates),
    ]
    # the scan and the survey see some of the same things
    problems = {(str(p), p.severity): p for p in problems}.values()
    return Examination(found.samples, tuple(problems), seen.stopped, seen.duplicates)


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
    people, gaze, a blurred background: they are learned with the subject unless the caption names them, as it does;
    and a verb that stands apart from its thing.
    """
    problems: list[Problem] = []
    joined = join_verbs(rules)
    for sample in samples:
        tags = split_tags(sample.caption)
        names = [plain(tag) for tag in tags]

        def say(text: str, severity: str, kind: str = "", path: Path = sample.path) -> None:
            problems.append(Problem(path, text, severity, kind or text.partition(":")[0]))

        for group in contradictory(tags, rules):
            say(f"has tags that contradict each other: {_list(group)}", "warning")
        for tag, longer in subsumed(tags, rules).items():
            if plain(tag) == plain(longer):
                say(f'has "{printable(tag)}" twice', "warning", "has a tag twice")
            else:
                text = f'has "{printable(tag)}", which "{printable(longer)}" says already'
                say(text, "warning", "has a tag that another says already")
        count = num_tokens(sample.caption) if num_tokens is not None else 0
        if count > MAX_TOKENS:
            text = f"has a caption of {count} tokens; what comes after the first {MAX_TOKENS} counts less"
            say(text, "warning", f"has a caption of more than {MAX_TOKENS} tokens")
        if joined(sample.caption) != sample.caption:
            say(f"has a verb apart from its thing: {_list([n for n in names if n in rules.joins])}", "note")
        for what, there in (
            ("shows two or more people", rules.people(names)),
            ("says where the subject looks", [name for name in names if name in rules.gaze]),
            ("has a blurred background", [name for name in names if name in rules.blurred_background]),
        ):
            if there:
                say(f"{what}: {_list(list(dict.fromkeys(there)))}", "note")
    return problems


def flip_findings(samples: Iterable[Sample], rules: TagRules) -> list[Problem]:
    """A warning, if the captions of pictures that are also trained mirrored name what a mirror makes wrong."""
    wrong = {
        sample.path: tags
        for sample in samples
        if (tags := [tag for tag in split_tags(sample.caption) if rules.is_asymmetric(tag)])
    }
    if not wrong:
        return []
    kind = "is mirrored, and its caption names what is then wrong"
    named = _list([f"{printable(path.name)} ({printable(', '.join(tags))})" for path, tags in wrong.items()])
    text = f"holds pictures that are mirrored, and whose captions name what is then wrong: {named}"
    return [Problem(Path(os.path.commonpath([path.parent for path in wrong])), text, "warning", kind, tuple(wrong))]


def duplicate_findings(groups: Iterable[Duplicates]) -> list[Problem]:
    """A warning for each group of pictures that show the same."""
    found = []
    for group in groups:
        kind = "is the same file as" if group.equal else "shows nearly the same as"
        others = _list([printable(path.name) for path in group.paths[1:]])
        found.append(Problem(group.paths[0], f"{kind} {others}", "warning", f"{kind} another", group.paths))
    return found


def summary(problems: Iterable[Problem], root: Path, *, most_named: int = 5) -> list[str]:
    """All problems on one page: a line for each sort with how many there are and the first names, the worst first.

    Names are relative to `root`. `most_named` of 0 names everything.
    """
    lines: list[str] = []
    problems = list(problems)
    for severity, title in SEVERITIES.items():
        sorts: dict[str, list[Problem]] = {}
        for problem in problems:
            if problem.severity == severity:
                sorts.setdefault(problem.heading, []).append(problem)
        if sorts:
            lines.append(f"{title} ({sum(map(_num_about, sorts.values()))}):")
        for heading, alike in sorted(sorts.items(), key=lambda item: -_num_about(item[1])):
            num, names = _num_about(alike), [name for problem in alike for name in _named(problem, root)]
            if len(alike) <= 2 and all(problem.path in problem.about for problem in alike):
                lines += [f"  {_relative(problem.path, root)} {problem.text}" for problem in alike]
            else:
                shown = names[:most_named] if most_named else names
                more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
                lines.append(f"  {heading} ({num}): {', '.join(shown)}{more}")
    return lines


def _num_about(problems: Iterable[Problem]) -> int:
    return sum(len(problem.about) for problem in problems)


def _named(problem: Problem, root: Path) -> list[str]:
    names = [_relative(path, root) for path in problem.about]
    # those of a folder are separate; those of a picture go together
    return [" = ".join(names)] if problem.path in problem.files else names


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root) if path.is_relative_to(root) and path != root else path)


def _list(words: Sequence[str]) -> str:
    shown = ", ".join(words[:6])
    return shown + (f" and {len(words) - 6} more" if len(words) > 6 else "")
