"""`atelier data buckets`, `score` and `prepare`: the pictures of a data set before the first step."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from ...config import ConceptConfig, DataConfig, checked
from ...data import preparing
from ...data.aesthetic import AestheticScorer, best_first, score_pictures, score_table
from ...data.bucket_preview import bucket_counts, bucket_cut, bucket_preview
from ...data.findings import summary
from ...data.image_steps import steps_from
from ...data.pieces import Tools
from ...data.scan import Problem, scan
from ...data.segmentation import Segmenter
from ...data.tag_rules import tag_rules
from ...files import make_folder, safe_name, sha256_of, write_bytes, write_image
from ..pipeline import choose_device
from ..progress import StopRequest, Terminal, counting


def add_buckets(parser: argparse.ArgumentParser) -> None:
    """The arguments of `atelier data buckets`."""
    parser.add_argument("--resolution", type=int, default=512, metavar="PX", help="data.resolution; default 512")
    _add_sides(parser)
    parser.add_argument("--least", type=float, default=20, metavar="PERCENT", help="name pictures that lose so much")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write a preview of each of them into this folder")


def _add_sides(parser: argparse.ArgumentParser) -> None:
    default = DataConfig()
    for name, value in (("step", default.bucket_step), ("min", default.bucket_min_px), ("max", default.bucket_max_px)):
        setting = "step" if name == "step" else f"{name}_px"
        text = f"data.bucket_{setting} of the run; default {value}"
        parser.add_argument(f"--bucket-{name}", type=int, default=value, metavar="PX", help=text)


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """The arguments of `atelier data prepare`."""
    parser.add_argument("out", type=Path, metavar="OUT", help="the new folder")
    parser.add_argument("--dedupe", action="store_true", help="of pictures that show the same keep the largest")
    parser.add_argument("--background", metavar="TO", help="white or alpha: what becomes of the background")
    parser.add_argument("--segmenter", type=Path, metavar="FILE", help="a U2-Net or IS-Net as .onnx, for --background")
    parser.add_argument("--device", default="auto", help="where the segmenter runs: auto (default), cpu, cuda, ...")
    parser.add_argument("--split", action="store_true", help="cut long pictures into overlapping parts of the shape")
    parser.add_argument("--overlap", type=float, default=0.2, metavar="SHARE", help="of neighbouring parts")
    parser.add_argument("--split-threshold", type=float, default=0.5, metavar="RATIO")
    parser.add_argument("--crop", metavar="WxH", help="resize and crop to this size")
    parser.add_argument("--buckets", type=int, metavar="PX", help="resize and crop into the buckets of a resolution")
    _add_sides(parser)
    parser.add_argument("--focal", action="store_true", help="crop around the focal point instead of the middle")
    parser.add_argument("--unsharp", type=int, metavar="PERCENT", help="sharpen")
    parser.add_argument("--flip", action="store_true", help="add each picture mirrored")
    parser.add_argument("--copies", type=int, metavar="N", help="write each picture N times, as name_1, name_2, ...")
    parser.add_argument("--dry-run", action="store_true", help="do all the work, write nothing, say what would be made")


def add_score(parser: argparse.ArgumentParser) -> None:
    """The arguments of `atelier data score`."""
    text = "an .onnx file that gives a score for a picture, or a folder with image_encoder.onnx and predictor.onnx"
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help=text)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the columns image and score as CSV")


def score(args: argparse.Namespace) -> int:
    """The score of each picture, the best first. Returns 0, or 3 where it was stopped."""
    scorer = AestheticScorer(args.model, str(choose_device(args.device)))
    samples = scan(DataConfig(concepts=(ConceptConfig(folder=str(args.folder)),))).samples
    terminal = Terminal()
    stop = StopRequest(terminal)
    with stop.listening():
        found = score_pictures(
            [sample.path for sample in samples],
            scorer,
            on_progress=counting(terminal, "looked at"),
            stopped=lambda: stop.requested,
        )
    for problem in found.problems:
        print(f"{problem}; it gets no score")
    scores = {path.relative_to(args.folder).as_posix(): value for path, value in found.scores.items()}
    for name, value in best_first(scores):
        print(f"{value:8.3f}  {name}")
    if args.save:
        write_bytes(args.save, score_table(scores))
    return 3 if found.stopped else 0


def buckets(args: argparse.Namespace) -> int:
    """How many pictures each bucket has, and which lose much."""
    config = checked(
        DataConfig(
            concepts=(ConceptConfig(folder=str(args.folder)),),
            resolution=args.resolution,
            bucket_step=args.bucket_step,
            bucket_min_px=args.bucket_min,
            bucket_max_px=args.bucket_max,
        )
    )
    found = scan(config)
    for (width, height), num in bucket_counts(found.samples).items():
        print(f"{num:6d}  {width} x {height}")
    cuts = sorted((bucket_cut(sample) for sample in found.samples), key=lambda cut: -cut.lost)
    cuts = [cut for cut in cuts if cut.lost * 100 >= args.least]
    for cut in cuts:
        print(f"{cut.sample.name} loses {cut.lost:.0%} in {cut.sample.bucket[0]} x {cut.sample.bucket[1]}")
        if args.save:
            make_folder(args.save)
            name = safe_name(cut.sample.name.partition("/")[2], "picture")
            write_image(args.save / f"{name}.png", bucket_preview(cut.sample, config.max_megapixels).whole)
    print(f"{len(cuts)} of {len(found.samples)} pictures lose {args.least:g}% or more")
    return 0


def prepare(args: argparse.Namespace) -> int:
    """Prepare the pictures. Returns 0, or 3 where it was stopped."""
    segmenter = Segmenter(args.segmenter, str(choose_device(args.device))) if args.segmenter else None
    names = (f"{segmenter.model.path.name} {sha256_of(segmenter.model.path)}",) if segmenter else ()
    terminal = Terminal()
    stop = StopRequest(terminal)
    with stop.listening():
        result = preparing.prepare(
            args.folder,
            args.out,
            steps_from(_steps(args)),
            Tools(background_mask=segmenter, rules=tag_rules(args.rules), names=names),
            dry_run=args.dry_run,
            on_progress=counting(terminal, "looked at"),
            stopped=lambda: stop.requested,
        )
    said = [problem for problem in result.problems if problem.severity != "note"]
    for picture in result.pictures:
        source = args.folder / picture.source
        if picture.left_out:
            said.append(Problem(source, picture.left_out, "error", _heading(picture.left_out)))
        said += [Problem(source, note, "note", _heading(note)) for note in picture.notes]
        if args.dry_run and picture.made:
            print(f"{picture.source} -> {', '.join(f'{n} {w} x {h}' for n, (w, h) in picture.outputs.items())}")
    for line in summary({(str(p), p.severity): p for p in said}.values(), args.folder):
        print(line)
    made = "would be made" if args.dry_run else "made"
    print(f"{result.num_made} pictures {made}, {result.num_kept} were there" + (", stopped" if result.stopped else ""))
    return 3 if result.stopped else 0


def _heading(note: str) -> str:
    """What notes that differ in names and numbers have in common."""
    return re.sub(r"\d[\d.]*", "...", re.split(r": | \(| as ", note)[0])


def _steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The steps in the order in which they make sense: what is removed first, what depends on the final pixels last."""
    if args.crop and args.buckets:
        raise ValueError("--crop and --buckets are two ways to cut; take one")
    if args.focal and not (args.crop or args.buckets):
        raise ValueError("--focal says where to cut; it needs --crop or --buckets")
    if args.segmenter and not args.background:
        raise ValueError("--segmenter finds the background; say what becomes of it: --background white or alpha")
    width, height = _size(args.crop) if args.crop else (1, 1)
    steps: list[dict[str, Any]] = []
    if args.dedupe:
        steps.append({"step": "dedupe"})
    if args.background:
        steps.append({"step": "background", "to": args.background})
    if args.split:
        shape = {"width": width, "height": height}
        steps.append({"step": "split", "overlap": args.overlap, "threshold": args.split_threshold, **shape})
    if args.crop:
        steps.append({"step": "crop", "width": width, "height": height, "focal": args.focal})
    if args.buckets:
        sides = {"step_px": args.bucket_step, "min_px": args.bucket_min, "max_px": args.bucket_max}
        steps.append({"step": "bucket", "resolution": args.buckets, "focal": args.focal, **sides})
    if args.unsharp:
        steps.append({"step": "unsharp", "percent": args.unsharp})
    if args.flip:
        steps.append({"step": "flip"})
    if args.copies is not None:
        steps.append({"step": "copies", "num": args.copies})
    if not steps:
        raise ValueError("there is nothing to do; name a step, as in --crop 768x768 (see --help)")
    return steps


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.lower(), re.ASCII)
    if not match:
        raise ValueError(f'--crop must be WxH in pixels, as in 768x768, got "{text}"')
    return int(match[1]), int(match[2])
