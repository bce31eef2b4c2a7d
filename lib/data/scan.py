"""The data set: the pictures in the folders of the concepts, with captions and buckets, and all that is wrong.

The scan reads headers only and keeps no pixels. What can be used is a `Sample`; what a user should know before the
first step is a `Problem`: an "error" is left out, a "warning" is used and may not be as meant, a "note" is
information. `verify` decodes every picture once, so that nothing is found out in the middle of a run.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..config import DataConfig
from .buckets import bucket_sizes, nearest_bucket
from .captions import CAPTION_SUFFIXES, find_caption, with_ending, with_trigger
from .headers import PictureError, extensions, printable, read_header
from .pictures import check, check_size
from .pool import in_order, room_for
from .sample import Sample

# Kinds of picture that people have and that cannot be read here; ".avif" counts where Pillow lacks it.
_OTHER_KINDS = {".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".raw", ".svg", ".tga"}


@dataclass(frozen=True)
class Problem:
    """Something to know about a file or folder before the first step."""

    path: Path
    text: str  # the rest of the sentence that begins with the path
    severity: str  # "error": left out; "warning": used, and may not be as meant; "note"
    kind: str = ""  # what stands over all problems of its sort; "" is the text up to its first parenthesis
    files: tuple[Path, ...] = ()  # what it is about, where that is not `path` itself

    @property
    def heading(self) -> str:
        """What stands over all problems of its sort."""
        return self.kind or self.text.partition(" (")[0]

    @property
    def about(self) -> tuple[Path, ...]:
        """Every file that it is about."""
        return self.files or (self.path,)

    def __str__(self) -> str:
        return f"{printable(self.path)} {self.text}"


@dataclass(frozen=True)
class Scan:
    """The pictures that can be used, in an order that depends on nothing but their names, and what was found."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class StepCounts:
    """Optimizer steps of a run: by the usual formula, and as the buckets really give them."""

    by_formula: int
    by_buckets: int


def scan(data: DataConfig, latent_step_px: int = 8) -> Scan:
    """Find the pictures of all concepts, read their headers and captions, and give each its bucket.

    Sub-folders are searched, links followed, hidden files and folders (`.name`) skipped. A sample's name is the last
    part of its concept's folder and its path in there, with `/`, in Unicode NFC so that it is the same on every
    system; what cannot be written as UTF-8 is escaped, and a name that is taken gets `~2`. Its path is as on disk.
    Within a concept the samples are sorted by name. Bucket sides are multiples of `data.bucket_step`, rounded up to a
    multiple of `latent_step_px`. Errors: `ValueError` naming the setting when a folder is not there or no picture at
    all can be used.
    """
    if not data.concepts:
        raise ValueError("data.concepts is empty; name at least one folder of pictures")
    step = -(-data.bucket_step // latent_step_px) * latent_step_px
    sizes = bucket_sizes(data.resolution, step, data.bucket_min_px, data.bucket_max_px)
    folders = [folder_at(c.folder, f"data.concepts[{i}].folder") for i, c in enumerate(data.concepts)]
    samples: list[Sample] = []
    problems: list[Problem] = []
    roots: set[str] = set()
    searched: dict[object, int] = {}
    equal_sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for index, (concept, folder) in enumerate(zip(data.concepts, folders, strict=True)):
        root = _free(_portable(os.path.basename(folder) or "root"), roots)
        found = sorted(
            (f"{root}/{_portable(name)}", path) for name, path in pictures_below(folder, index, searched, problems)
        )
        names: set[str] = set()
        bare: list[Path] = []
        for name, path in ((name, Path(path)) for name, path in found):
            try:
                header = read_header(path)
                check_size(path, header, data.max_megapixels)
                caption, source, note = find_caption(path, data.caption_from_name)
            except PictureError as error:
                problems.append(Problem(path, error.reason, "error", error.kind))
                continue
            except (OSError, ValueError) as error:
                kind = "has a caption that cannot be read"
                problems.append(Problem(path, f"{kind}: {printable(str(error))}", "error", kind))
                continue
            if note:
                problems.append(Problem(path.with_name(source), note, "warning", "is a caption in another encoding"))
            problems += [Problem(path, text, "note") for text in header.warnings]
            if not caption:
                bare.append(path)
            size = equal_sizes.setdefault(header.size, header.size)
            samples.append(
                Sample(
                    name=_free(name, names),
                    path=path,
                    caption=with_ending(with_trigger(caption, concept.trigger), concept.append),
                    size=size,
                    bucket=nearest_bucket(size, sizes, data.bucket_upscale, step),
                    repeats=concept.repeats,
                    weight=concept.weight * (data.prior_weight if concept.regularization else 1.0),
                    concept=index,
                )
            )
        if not names:
            text = f"(data.concepts[{index}].folder) holds no picture that can be used"
            problems.append(Problem(Path(folder), text, "warning"))
        elif bare:
            text = f"has {len(bare)} of {len(names)} pictures without a caption"
            problems.append(Problem(Path(folder), text, "note", "has no caption", tuple(bare)))
    if not samples:
        errors = [str(p) for p in problems if p.severity == "error"]
        left_out = f"; {len(errors)} errors, the first: {errors[0]}" if errors else ""
        raise ValueError(
            f"data.concepts: there is no picture that can be used ({' '.join(extensions())}) "
            f"in {', '.join(map(printable, folders))}{left_out}"
        )
    return Scan(tuple(samples), tuple(problems))


def verify(
    samples: Iterable[Sample], max_megapixels: float, on_progress: Callable[[int, int], None] | None = None
) -> tuple[Problem, ...]:
    """Decode every picture once, in threads; an "error" for each that must be left out, in the order of the samples.

    `on_progress(done, total)` is called from the calling thread after each picture.
    """
    sizes = {sample.path: sample.size for sample in samples}

    def faults(path: Path) -> list[str]:
        with room_for(sizes[path]):
            return check(path, max_megapixels)

    problems: list[Problem] = []
    with closing(in_order(faults, sizes)) as results:
        for done, (path, found) in enumerate(zip(sizes, results, strict=True), 1):
            problems += [Problem(path, text, "error") for text in found]
            if on_progress:
                on_progress(done, len(sizes))
    return tuple(problems)


def counts(samples: Iterable[Sample], batch_size: int, accumulate: int, epochs: int) -> StepCounts:
    """The steps of `epochs`, two ways.

    By the formula ceil(sum of repeats / (batch_size * accumulate)) * epochs; and as trained, where no batch holds
    pictures of two buckets and the last, short batch of each bucket is trained too.
    """
    shown: Counter[tuple[int, int]] = Counter()
    for sample in samples:
        shown[sample.bucket] += sample.repeats
    num_batches = sum(-(-n // batch_size) for n in shown.values())
    return StepCounts(
        by_formula=-(-sum(shown.values()) // (batch_size * accumulate)) * epochs,
        by_buckets=-(-num_batches // accumulate) * epochs,
    )


def folder_at(given: str, setting: str) -> str:
    """The absolute path of a concept's folder. Errors: `ValueError` naming the setting."""
    text = given.strip()
    # "Copy as path" puts quotes around it.
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    if not text:
        raise ValueError(f"{setting} is empty; name a folder of pictures")
    path = os.path.abspath(os.path.expanduser(text))
    try:
        os.stat(path)
    except FileNotFoundError:
        raise ValueError(f'{setting}: there is no folder "{printable(path)}"') from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f'{setting}: "{printable(path)}" cannot be opened: {why}') from None
    if not os.path.isdir(path):
        raise ValueError(f'{setting}: "{printable(path)}" is a file; name the folder of pictures')
    return path


def pictures_below(
    folder: str, concept: int, searched: dict[object, int], problems: list[Problem]
) -> Iterator[tuple[str, str]]:
    """(relative path with `/`, path) of each picture file in and below `folder`.

    `searched` holds the folders that were searched so far and for which concept; a second visit for the same concept,
    as by a link to a folder above, is left out, so that no picture counts twice and no loop is endless.
    """
    endings = frozenset(extensions())
    to_search = [("", folder)]
    while to_search:
        prefix, path = to_search.pop()
        try:
            status = os.stat(path)
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            problems.append(Problem(Path(path), f"cannot be searched: {error.strerror}", "error"))
            continue
        # Some network drives number nothing.
        identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
        before = searched.get(identity)
        if before == concept:
            problems.append(Problem(Path(path), "is a link to a folder that is searched anyway; it is skipped", "note"))
            continue
        if before is not None:
            text = (
                f"is searched for data.concepts[{before}] and data.concepts[{concept}], so its pictures count for both"
            )
            problems.append(Problem(Path(path), text, "warning"))
        searched[identity] = concept

        pictures: dict[str, list[str]] = defaultdict(list)
        captions: dict[str, list[str]] = defaultdict(list)
        others: list[str] = []
        below: list[tuple[str, str]] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            stem, ending = os.path.splitext(entry.name)
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError as error:
                problems.append(Problem(Path(entry.path), f"cannot be opened: {error.strerror}", "error"))
                continue
            if is_folder:
                below.append((f"{prefix}{entry.name}/", entry.path))
            elif ending.lower() in endings:
                if is_file:
                    pictures[stem].append(entry.name)
                    yield prefix + entry.name, entry.path
                else:
                    problems.append(Problem(Path(entry.path), "is a link to nothing or not a file", "error"))
            elif ending.lower() in CAPTION_SUFFIXES:
                captions[stem if ending in CAPTION_SUFFIXES else ""].append(entry.name)
            elif ending.lower() in _OTHER_KINDS:
                others.append(entry.name)
        to_search += reversed(below)
        _compare(Path(path), pictures, captions, others, problems)


def _compare(
    folder: Path,
    pictures: dict[str, list[str]],
    captions: dict[str, list[str]],
    others: list[str],
    problems: list[Problem],
) -> None:
    """What is to be said about the names in one folder: file names by stem."""
    same = [names for names in pictures.values() if len(names) > 1]
    several = [names for stem, names in captions.items() if stem in pictures and len(names) > 1]
    alone = [[name] for stem, names in captions.items() if stem not in pictures for name in names]
    for groups, text, severity in (
        (same, "has pictures of one name, each used, with one caption for both", "note"),
        (several, "has two captions for a picture, of which .txt counts", "warning"),
        (alone, "has caption files without a picture", "note"),
        ([[name] for name in others], "has pictures of a kind that cannot be read here", "warning"),
    ):
        if groups:
            named = ", ".join(" and ".join(names) for names in groups[:5])
            more = f" and {len(groups) - 5} more" if len(groups) > 5 else ""
            files = tuple(folder / name for names in groups for name in names)
            problems.append(Problem(folder, f"{text}: {printable(named)}{more}", severity, text, files))


def _portable(name: str) -> str:
    return unicodedata.normalize("NFC", printable(name))


def _free(name: str, taken: set[str]) -> str:
    """`name`, or with ~2, ~3, ... behind it the first that is not taken; it is taken then."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}~{number}"
    taken.add(free)
    return free
