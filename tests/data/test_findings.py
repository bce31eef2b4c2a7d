"""What stands in the captions is named, each fault once, and nothing that is right."""

from __future__ import annotations

from pathlib import Path

from sd_atelier.lib.data.duplicates import Duplicates
from sd_atelier.lib.data.findings import caption_findings, duplicate_findings, tag_counts
from sd_atelier.lib.data.sample import Sample
from sd_atelier.lib.data.tag_rules import tag_rules


def sample(caption: str, name: str = "a") -> Sample:
    return Sample(name=name, path=Path(f"{name}.png"), caption=caption, size=(8, 8), bucket=(8, 8))


def said(caption: str, num_tokens=None) -> list[tuple[str, str]]:
    return [(p.severity, p.text) for p in caption_findings([sample(caption)], tag_rules(), num_tokens)]


def test_each_fault_of_a_caption_is_named_once():
    assert said("1girl, hat, red hat, open mouth, closed mouth") == [
        ("warning", "has tags that contradict each other: open mouth, closed mouth"),
        ("warning", 'has "hat", which "red hat" says already'),
    ]
    assert said("2girls, looking at viewer, blurry background") == [
        ("note", "shows two or more people: 2girls"),
        ("note", "says where the subject looks: looking at viewer"),
        ("note", "has a blurred background: blurry background"),
    ]
    assert said("smile, 1girl, smile") == [("warning", 'has "smile" twice')]
    assert said("1girl, solo, red hat, outdoors") == said("") == []


def test_tokens_are_counted_by_the_tokenizer_or_not_at_all():
    long = ", ".join(f"word{i}" for i in range(40))
    assert said(long) == []
    ((severity, text),) = said(long, num_tokens=lambda caption: 2 * len(caption.split(",")))
    assert (severity, text[:30]) == ("warning", "has a caption of 80 tokens; wh")


def test_tags_are_counted_once_a_caption_in_their_usual_spelling():
    counts = tag_counts(["Long_Hair, hat, hat", "long hair", "long hair, cap", ""])
    assert [(c.tag, c.num_captions) for c in counts] == [("long hair", 3), ("cap", 1), ("hat", 1)]


def test_duplicates_are_named_by_their_first_picture():
    groups = [
        Duplicates((Path("a.png"), Path("b.png")), True), Duplicates((Path("c.png"), *map(Path, "defghijk")), False)
    ]  # fmt: skip
    equal, near = duplicate_findings(groups)
    assert str(equal) == "a.png is the same file as b.png"
    assert str(near) == "c.png shows nearly the same as d, e, f, g, h, i and 2 more"
