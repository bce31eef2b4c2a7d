"""`atelier data`: what is wrong with a data set, its tags, edits of its captions that can be undone, its pictures."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ...config import ConceptConfig, DataConfig, from_dict
from ...data import caption_files, duplicates
from ...data.findings import caption_findings, duplicate_findings, tag_counts
from ...data.scan import Problem, Scan, scan, verify
from ...data.tag_edits import EDITS, TagFilter, edit, in_turn
from ...data.tag_rules import tag_rules
from ...data.tagger import Tagger, TaggingConfig, tag_pictures
from ...files import sha256_of
from ..pipeline import choose_device
from ..progress import StopRequest, Terminal, counting
from . import data_pictures

MAX_SHOWN = 20  # findings of one kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `atelier data`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of pictures and captions")
        sub.add_argument("--rules", type=Path, help="a file that extends the table of tag rules")
        sub.set_defaults(run_action=run)
        return sub

    check = action("check", _check, "say what is wrong with a data set")
    check.add_argument("--tokenizer", type=Path, help="CLIP tokenizer folder: captions over 75 tokens are then named")
    check.add_argument("--all", action="store_true", help="every finding, and notes too")
    tags = action("tags", _tags, "count the tags of a data set")
    tags.add_argument("--least", type=int, default=1, metavar="N", help="only tags of at least so many captions")
    action("dedupe", _dedupe, "name the pictures that show the same; none is removed")
    kinds = "\n".join(f"{name}: {kind.help}" for name, kind in EDITS.items())
    edits = action("edit", _edit, "edit captions; shows what would change unless --apply is given")
    edits.formatter_class = argparse.RawDescriptionHelpFormatter
    edits.epilog = f"edits:\n{kinds}"
    edits.add_argument("edits", nargs="+", metavar="EDIT[=WORDS]", help="edits, one after the other; see below")
    for name, text in (("all", "all of these tags"), ("any", "any of these"), ("none", "none of these")):
        edits.add_argument(f"--{name}", default="", metavar="TAGS", help=f"only captions with {text}")
    edits.add_argument("--apply", action="store_true", help="write the changes; `atelier data undo` takes them back")
    action("undo", _undo, "take the newest edit back, byte for byte")
    _add_tag(action("tag", _tag, "caption pictures by a tagger; shows what would change unless --apply is given"))
    data_pictures.add_buckets(
        action("buckets", data_pictures.buckets, "say which bucket each picture gets, and how much of it is cut away")
    )
    data_pictures.add_prepare(
        action("prepare", data_pictures.prepare, "prepare pictures into a new folder; a second call goes on")
    )


def _add_tag(tag: argparse.ArgumentParser) -> None:
    tag.add_argument("--model", type=Path, required=True, metavar="DIR", help="holds model.onnx and selected_tags.csv")
    tag.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    tag.add_argument("--batch-size", type=int, default=8, metavar="N")
    tag.add_argument("--general", type=float, default=0.35, metavar="P", help="least probability of a general tag")
    tag.add_argument("--character", type=float, default=0.85, metavar="P", help="least probability of a character")
    tag.add_argument("--existing", default="skip", help="captions that are there: skip, append or replace")
    tag.add_argument("--order", default="score", help="score or csv")
    tag.add_argument("--exclude", default="", metavar="TAGS", help="tags that are never taken")
    tag.add_argument("--underscores", action="store_true", help="keep the underscores of tags")
    tag.add_argument("--escape", action="store_true", help="\\( for (, as prompts of the WebUI need it")
    tag.add_argument("--apply", action="store_true", help="write the captions; `atelier data undo` takes them back")


def run(args: argparse.Namespace) -> int:
    """Do it. Returns 0, 1 where `check` finds an error, 3 where it was stopped. Errors: `ValueError` in a sentence."""
    return args.run_action(args)


def _scan(folder: Path) -> Scan:
    return scan(DataConfig(concepts=(ConceptConfig(folder=str(folder)),)))


def _check(args: argparse.Namespace) -> int:
    found = _scan(args.folder)
    rules = tag_rules(args.rules)
    num_tokens = _counter(args.tokenizer) if args.tokenizer else None
    groups = _groups(found)
    problems = [
        *found.problems,
        *verify(found.samples, DataConfig().max_megapixels),
        *caption_findings(found.samples, rules, num_tokens),
        *duplicate_findings(groups),
    ]
    problems = list({(str(p), p.severity): p for p in problems}.values())
    counts = Counter(p.severity for p in problems)
    for severity, title in (("error", "left out"), ("warning", "may not be as meant"), ("note", "to know")):
        shown = [p for p in problems if p.severity == severity]
        if not shown or (severity == "note" and not args.all):
            continue
        print(f"{title} ({len(shown)}):")
        for problem in shown if args.all else shown[:MAX_SHOWN]:
            print(f"  {problem}")
        if len(shown) > MAX_SHOWN and not args.all:
            print(f"  and {len(shown) - MAX_SHOWN} more; --all shows them")
    num_left_out = len({p.path for p in problems if p.severity == "error"})
    print(
        f"{len(found.samples)} pictures, {num_left_out} left out, {counts['warning']} warnings, {counts['note']} notes"
        + ("" if num_tokens else "; tokens not counted (--tokenizer)")
    )
    return 1 if counts["error"] else 0


def _counter(folder: Path) -> Callable[[str], int]:
    from transformers import CLIPTokenizer

    if not (folder / "vocab.json").is_file():
        raise ValueError(f'--tokenizer "{folder}" holds no vocab.json; name a folder of a CLIP tokenizer')
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return lambda caption: len(tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def _groups(found: Scan) -> list[duplicates.Duplicates]:
    paths = [sample.path for sample in found.samples]
    return duplicates.find(duplicates.hashes(paths), {path: sha256_of(path) for path in paths})


def _tags(args: argparse.Namespace) -> int:
    for count in tag_counts(sample.caption for sample in _scan(args.folder).samples):
        if count.num_captions >= args.least:
            print(f"{count.num_captions:6d}  {count.tag}")
    return 0


def _dedupe(args: argparse.Namespace) -> int:
    problems: list[Problem] = duplicate_findings(_groups(_scan(args.folder)))
    for problem in problems:
        print(problem)
    print(f"{len(problems)} groups of pictures that show the same")
    return 0


def _edit(args: argparse.Namespace) -> int:
    rules = tag_rules(args.rules)
    parts = [text.partition("=") for text in args.edits]
    edits = [edit(name.strip(), words, rules) for name, _, words in parts]
    chosen = TagFilter(all=_words(args.all), any=_words(args.any), none=_words(args.none))
    pictures = [sample.path for sample in _scan(args.folder).samples]
    changes = caption_files.plan(pictures, in_turn(edits), chosen.matches)
    for change in changes:
        print(change.diff())
    if args.apply and changes:
        caption_files.apply(changes, args.folder, " ".join(args.edits))
        print(f"{len(changes)} captions changed; take it back with: atelier data undo {args.folder}")
    else:
        print(f"{len(changes)} captions would change" + ("; --apply writes them" if changes else ""))
    return 0


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _undo(args: argparse.Namespace) -> int:
    title, num = caption_files.undo(args.folder)
    print(f'took back "{title}": {num} captions')
    return 0


def _tag(args: argparse.Namespace) -> int:
    config = from_dict(
        TaggingConfig,
        {
            "general_threshold": args.general,
            "character_threshold": args.character,
            "existing": args.existing,
            "order": args.order,
            "exclude": args.exclude,
            "spaces": not args.underscores,
            "escape": args.escape,
        },
    )
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    tagger = Tagger(args.model, str(choose_device(args.device)))
    pictures = [sample.path for sample in _scan(args.folder).samples]
    terminal = Terminal()
    stop = StopRequest(terminal)
    with stop.listening():
        tagging = tag_pictures(
            pictures,
            tagger,
            config,
            batch_size=args.batch_size,
            on_progress=counting(terminal, "tagged"),
            stopped=lambda: stop.requested,
        )
    for problem in tagging.problems:
        print(f"{problem}; it gets no tags")
    changes = caption_files.plan_words(tagging.words(), config.existing)
    for change in changes:
        print(change.diff())
    if args.apply and changes:
        caption_files.apply(changes, args.folder, f"tag by {args.model.name}")
        print(f"{len(changes)} captions written; take it back with: atelier data undo {args.folder}")
    else:
        print(f"{len(changes)} captions would change" + ("; --apply writes them" if changes else ""))
    return 3 if tagging.stopped else 0
