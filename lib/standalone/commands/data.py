"""`atelier data`: what is wrong with a data set, its tags, edits of its captions that can be undone, its pictures."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...config import ConceptConfig, DataConfig, from_dict
from ...data import caption_files
from ...data.findings import SEVERITIES, duplicate_findings, examine, summary, tag_counts
from ...data.headers import printable
from ...data.scan import Problem, folder_at, scan
from ...data.survey import survey
from ...data.tag_edits import EDITS, TagFilter, edit, in_turn
from ...data.tag_rules import tag_rules
from ...data.tagger import Tagger, TaggingConfig, tag_pictures
from ..pipeline import choose_device
from ..progress import StopRequest, Terminal, counting
from . import data_pictures


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
    check.add_argument("--all", action="store_true", help="every finding in a line of its own, instead of one page")
    check.add_argument("--flip", action="store_true", help="it is to be trained mirrored too, as with data.flip")
    _add_from_names(check)
    tags = action("tags", _tags, "count the tags of a data set")
    _add_from_names(tags)
    tags.add_argument("--least", type=int, default=1, metavar="N", help="only tags of at least so many captions")
    action("dedupe", _dedupe, "name the pictures that show the same; none is removed")
    kinds = "\n".join(f"{name}: {kind.help}" for name, kind in EDITS.items())
    edits = action("edit", _edit, "edit captions; shows what would change unless --apply is given")
    edits.formatter_class = argparse.RawDescriptionHelpFormatter
    edits.epilog = f"edits:\n{kinds}"
    edits.add_argument("edits", nargs="*", metavar="EDIT[=WORDS]", help="edits, one after the other; see below")
    for name, text in (("all", "all of these tags"), ("any", "any of these"), ("none", "none of these")):
        edits.add_argument(f"--{name}", default="", metavar="TAGS", help=f"only captions with {text}")
    _add_from_names(edits)
    edits.add_argument("--utf8", action="store_true", help="also write captions in other encodings as UTF-8")
    edits.add_argument("--apply", action="store_true", help="write the changes; `atelier data undo` takes them back")
    action("undo", _undo, "take the newest edit back, byte for byte")
    _add_tag(action("tag", _tag, "caption pictures by a tagger; shows what would change unless --apply is given"))
    data_pictures.add_buckets(
        action("buckets", data_pictures.buckets, "say which bucket each picture gets, and how much of it is cut away")
    )
    data_pictures.add_score(
        action("score", data_pictures.score, "say how pleasing each picture is, by an aesthetic predictor")
    )
    data_pictures.add_prepare(
        action("prepare", data_pictures.prepare, "prepare pictures into a new folder; a second call goes on")
    )


def _add_from_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from-names", action="store_true", help="file names are captions where there is no other")


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
    args.folder = Path(folder_at(str(args.folder), "FOLDER"))
    return args.run_action(args)


def _data(folder: Path, from_names: bool = False, flip: bool = False) -> DataConfig:
    return DataConfig(concepts=(ConceptConfig(folder=str(folder)),), caption_from_name=from_names, flip=flip)


def _check(args: argparse.Namespace) -> int:
    num_tokens = token_counter(args.tokenizer) if args.tokenizer else None
    data = _data(args.folder, args.from_names, flip=args.flip)
    terminal = Terminal()
    stop = StopRequest(terminal)
    with stop.listening():
        found = examine(
            data,
            tag_rules(args.rules),
            num_tokens,
            on_progress=counting(terminal, "looked at"),
            stopped=lambda: stop.requested,
        )
    lines = _every(found.problems) if args.all else summary(found.problems, args.folder)
    print("\n".join(lines) or "nothing is wrong with it")
    counts = Counter(problem.severity for problem in found.problems)
    print(
        f"{len(found.samples)} pictures, {len(found.left_out)} left out, {counts['warning']} warnings, "
        f"{counts['note']} notes"
        + ("" if num_tokens else "; tokens not counted (--tokenizer)")
        + ("; stopped before all were looked at" if found.stopped else "")
    )
    if found.stopped:
        return 3
    return 1 if counts["error"] else 0


def _every(problems: Sequence[Problem]) -> Iterator[str]:
    for severity, title in SEVERITIES.items():
        shown = [problem for problem in problems if problem.severity == severity]
        if shown:
            yield f"{title} ({len(shown)}):"
        for problem in shown:
            yield f"  {problem}"
            # the sentence about a folder names the first of its files
            yield from (f"    {printable(path)}" for path in problem.files if problem.path not in problem.files)


def token_counter(folder: Path) -> Callable[[str], int]:
    """Counts the tokens of a caption with the CLIP tokenizer in a folder. Errors: `ValueError` where there is none."""
    from transformers import CLIPTokenizer

    if not (folder / "vocab.json").is_file():
        raise ValueError(f'--tokenizer "{folder}" holds no vocab.json; name a folder of a CLIP tokenizer')
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return lambda caption: len(tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def _tags(args: argparse.Namespace) -> int:
    samples = scan(_data(args.folder, args.from_names)).samples
    for count in tag_counts(sample.caption for sample in samples):
        if count.num_captions >= args.least:
            print(f"{count.num_captions:6d}  {count.tag}")
    return 0


def _dedupe(args: argparse.Namespace) -> int:
    data = _data(args.folder)
    seen = survey(scan(data).samples, data.max_megapixels, on_progress=counting(Terminal(), "looked at"))
    problems = duplicate_findings(seen.duplicates)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} groups of pictures that show the same")
    return 0


def _edit(args: argparse.Namespace) -> int:
    rules = tag_rules(args.rules)
    parts = [text.partition("=") for text in args.edits]
    edits = [edit(name.strip(), words, rules) for name, _, words in parts]
    chosen = TagFilter(all=_words(args.all), any=_words(args.any), none=_words(args.none))
    pictures = [sample.path for sample in scan(_data(args.folder)).samples]
    if not (edits or args.from_names or args.utf8):
        raise ValueError(f"there is nothing to do; name an edit ({', '.join(EDITS)}), or --from-names or --utf8")
    changes = caption_files.plan(pictures, in_turn(edits), chosen.matches, from_name=args.from_names, as_utf8=args.utf8)
    for change in changes:
        print(change.diff())
    if args.apply and changes:
        caption_files.apply(changes, args.folder, " ".join(args.edits) or "captions as UTF-8")
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
    pictures = [sample.path for sample in scan(_data(args.folder)).samples]
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
