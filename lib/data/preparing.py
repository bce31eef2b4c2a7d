"""Preparing a data set: every picture of a folder through a list of steps into a new folder, captions copied along.

Originals are only read. Each file is written whole or not at all, and a record says what each was made from: a second
call makes only what is missing or whose original has changed. What somebody changed in the new folder meanwhile, or
put there, stays, and that is said.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ..config import ConceptConfig, DataConfig
from ..files import append_bytes, make_folder, remove_leftovers, safe_name, sha256_of, write_bytes
from ..owner import owner_of
from . import duplicates
from .headers import PictureError, named_faults, printable
from .image_steps import Dedupe, calls_models, steps_to_values, take, with_alpha
from .pictures import decode
from .pieces import Piece, Step, Tools
from .pool import in_order, room_for
from .sample import Sample
from .scan import Problem, scan

RECORD = ".atelier-prepared.jsonl"
_FORMAT = 1


@dataclass(frozen=True)
class Prepared:
    """What became of one original. Names are relative to the folders, with `/`."""

    source: str
    outputs: Mapping[str, tuple[int, int]]  # name -> (width, height)
    notes: tuple[str, ...]
    made: bool  # False: it was there already
    left_out: str = ""  # why nothing is made of it


@dataclass(frozen=True)
class Preparation:
    """What `prepare` did, or, as a dry run, would do."""

    pictures: tuple[Prepared, ...]
    problems: tuple[Problem, ...]  # of the originals, as a scan finds them
    stopped: bool  # before all were done; call it again to go on

    @property
    def num_made(self) -> int:
        """Pictures that were written."""
        return sum(len(p.outputs) for p in self.pictures if p.made)

    @property
    def num_kept(self) -> int:
        """Pictures that were there already."""
        return sum(len(p.outputs) for p in self.pictures if not p.made)


def prepare(
    folder: Path,
    out: Path,
    steps: Sequence[Step],
    tools: Tools | None = None,
    *,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    max_megapixels: float = 200.0,
) -> Preparation:
    """Prepare the pictures of `folder` into `out`, as PNG in sRGB, with their captions as UTF-8.

    Pictures are worked on in threads, and written in their order; where a step calls a model all of it is done in
    the calling thread. A dry run does the same work and writes nothing. `on_progress(done, total)` follows each
    picture; before each, `stopped()` is asked, and what is done by then is kept. A picture that cannot be used is left
    out and named.
    Errors: `ValueError` for wrong settings, and where `out` is in `folder` or around it, is not empty, or was prepared
    from another folder or by other steps; `FolderInUseError`; `DiskFullError`: call it again to go on.
    """
    tools = tools or Tools()
    folder, out = Path(folder).absolute(), Path(out).absolute()
    header = {
        "format": _FORMAT,
        "source": printable(folder),
        "steps": steps_to_values(steps),
        "tools": list(tools.names),
    }
    inside, outside = out.resolve(), folder.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise ValueError(f"{printable(out)} and the pictures' folder {printable(folder)} must not lie in each other")
    found = scan(DataConfig(concepts=(ConceptConfig(folder=str(folder)),), max_megapixels=max_megapixels))
    record = _Record.opened(out, header)
    if not dry_run:
        make_folder(out)
    with nullcontext() if dry_run else owner_of(out):
        if not dry_run:
            remove_leftovers(out)
            record = _Record.opened(out, header)  # another program may have written until now
            record.begin()
        dedupe = any(isinstance(step, Dedupe) for step in steps)
        contents = {sample.path: sha256_of(sample.path) for sample in found.samples} if dedupe else {}
        same = _same(found.samples, contents) if dedupe else {}
        names = _Names(record.entries, found.samples)
        work = _Work(out, steps, tools, record, names, contents, same, max_megapixels, dry_run)
        done: list[Prepared] = []
        with closing(_each(work.made, found.samples, calls_models(steps, tools))) as results:
            for sample in found.samples:
                if stopped():
                    break
                made = next(results)
                done.append(made if isinstance(made, Prepared) else work.written(_relative(sample), made))
                if on_progress:
                    on_progress(len(done), len(found.samples))
        return Preparation(tuple(done), found.problems, len(done) < len(found.samples))


def _each(
    made: Callable[[Sample], Prepared | _Made], samples: Sequence[Sample], in_this_thread: bool
) -> Generator[Prepared | _Made, None, None]:
    return (made(sample) for sample in samples) if in_this_thread else in_order(made, samples)


@dataclass(frozen=True)
class _Made:
    """What the steps made of one original, encoded and not written yet."""

    picture: str  # SHA-256 of the original
    caption: str
    pieces: tuple[tuple[str, str, tuple[int, int], bytes], ...]  # suffix, caption, (width, height), PNG
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Work:
    """Everything that the preparation of one picture depends on."""

    out: Path
    steps: Sequence[Step]
    tools: Tools
    record: _Record
    names: _Names
    contents: Mapping[Path, str]  # SHA-256 of originals, where it is known
    same: Mapping[Path, str]  # originals to leave out, and why
    max_megapixels: float
    dry_run: bool

    def made(self, sample: Sample) -> Prepared | _Made:
        """What is to be written of one picture, or why nothing is. Changes nothing, so that many threads may."""
        source = _relative(sample)
        if sample.path in self.same:
            return Prepared(source, {}, (), False, self.same[sample.path])
        picture_sha = self.contents.get(sample.path) or sha256_of(sample.path)
        before = self.record.entries.get(source)
        if before and before["picture"] == picture_sha and before["caption"] == sample.caption:
            outputs = before["outputs"]
            if all((self.out / name).is_file() for name in outputs):
                return _prepared(source, outputs, before["notes"], False)
        with room_for(sample.size):
            try:
                with named_faults(sample.path):
                    image, alpha, notes = decode(sample.path, self.max_megapixels)
            except PictureError as error:
                return Prepared(source, {}, (), False, error.reason)
            pieces = take(Piece(with_alpha(image, alpha), sample.caption, notes=tuple(notes)), self.steps, self.tools)
            said = tuple(dict.fromkeys(note for piece in pieces for note in piece.notes))
            encoded = tuple((p.suffix, p.caption, p.image.size, _png(p.image)) for p in pieces)
            return _Made(picture_sha, sample.caption, encoded, said)

    def written(self, source: str, made: _Made) -> Prepared:
        """Write it, and record it when all of it is there."""
        before = self.record.entries.get(source)
        outputs, said = self._write(source, made, before["outputs"] if before else {})
        if not self.dry_run:
            self.record.add(
                {
                    "source": source,
                    "picture": made.picture,
                    "caption": made.caption,
                    "outputs": outputs,
                    "notes": said,
                }
            )
        return _prepared(source, outputs, said, True)

    def _write(self, source: str, made: _Made, olds: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        outputs: dict[str, Any] = {}
        said = list(made.notes)
        for suffix, caption, size, png in made.pieces:
            name = self.names.of(source, suffix)
            old = olds.get(name, {})
            files = [(name, png, old.get("sha256"))]
            if caption:
                files.append((_txt(name), caption.encode(), old.get("caption")))
            for file, data, recorded in files:
                if not _may_write(self.out / file, data, recorded):
                    said.append(f"has {file} in the new folder, not made by this or changed since; it stays")
                elif not self.dry_run:
                    make_folder((self.out / file).parent)
                    write_bytes(self.out / file, data)
            shas = [_sha(data) for _, data, _ in files]
            outputs[name] = {"size": list(size), "sha256": shas[0], "caption": shas[1] if caption else None}
        for name, old in ({} if self.dry_run else olds).items():
            if name not in outputs:
                _remove(self.out / name, old["sha256"])
            if name not in outputs or not outputs[name]["caption"]:
                _remove(self.out / _txt(name), old["caption"])
        return outputs, said


def _prepared(source: str, outputs: Mapping[str, Any], notes: Sequence[str], made: bool) -> Prepared:
    sizes = {name: (new["size"][0], new["size"][1]) for name, new in outputs.items()}
    return Prepared(source, sizes, tuple(notes), made, "" if sizes else "no step left anything of it")


@dataclass
class _Record:
    """What each file of the new folder was made from: one line of JSON for each original, the newest counts."""

    path: Path
    header: dict[str, Any]
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_bytes: int = 0

    @classmethod
    def opened(cls, out: Path, header: dict[str, Any]) -> _Record:
        record = cls(out / RECORD, header)
        if not out.exists():
            return record
        if not record.path.exists():
            others = [printable(p.name) for p in out.iterdir() if not p.name.startswith(".")]
            if others:
                raise ValueError(f"{printable(out)} holds other files ({others[0]} ...); name a new folder")
            return record
        data = record.path.read_bytes()
        whole = data.rfind(b"\n") + 1  # a line that was cut off never counted
        try:
            lines = [json.loads(line) for line in data[:whole].splitlines()]
            for entry in lines[1:]:
                _check(entry)
                record.entries[entry["source"]] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{printable(record.path)} is damaged; name a new folder: {error}") from error
        if lines and lines[0] != header:
            differs = next(k for k in header if not isinstance(lines[0], dict) or lines[0].get(k) != header[k])
            raise ValueError(
                f"{printable(out)} was prepared from other {differs}; name a new folder, or prepare as before to go on"
            )
        for entry in record.entries.values():
            for name in entry["outputs"]:
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or {"\\", ":"} & set(name):
                    raise ValueError(f"{printable(record.path)} names {printable(name)}, which is not in the folder")
        record.num_bytes = whole
        return record

    def begin(self) -> None:
        if not self.num_bytes:
            self._write(self.header)

    def add(self, entry: dict[str, Any]) -> None:
        self.entries[entry["source"]] = entry
        self._write(entry)

    def _write(self, value: dict[str, Any]) -> None:
        line = (json.dumps(value, sort_keys=True) + "\n").encode()
        append_bytes(self.path, line, self.num_bytes)
        self.num_bytes += len(line)


def _check(entry: Any) -> None:
    """Refuse a line of a record that is not as it was written. Errors: `ValueError`, `KeyError`, `TypeError`."""
    kinds = {"source": str, "picture": str, "caption": str, "notes": list, "outputs": dict}
    right = all(isinstance(entry[key], kind) for key, kind in kinds.items())
    for output in entry["outputs"].values() if right else ():
        width, height = output["size"]
        right &= type(width) is type(height) is int and isinstance(output["sha256"], str)
        right &= output["caption"] is None or isinstance(output["caption"], str)
    if not right:
        raise ValueError("a line is not as it was written")


class _Names:
    """Names for what is made: those of a record stay, and no two are equal on a system that ignores case."""

    def __init__(self, entries: Mapping[str, Mapping[str, Any]], samples: Iterable[Sample]) -> None:
        self._owner: dict[str, str] = {}
        self._stems: dict[str, str] = {}
        for source, entry in entries.items():
            self._owner |= {name.casefold(): source for name in entry["outputs"]}
        for source in map(_relative, samples):
            path = PurePosixPath(source)
            parts = [safe_name(part, "folder") for part in path.parts[:-1]]
            stem = "/".join([*parts, safe_name(path.stem, "picture")])
            free, number = stem, 1
            while self._owner.get(f"{free}.png".casefold(), source) != source:
                number += 1
                free = f"{stem}~{number}"
            self._owner[f"{free}.png".casefold()] = source
            self._stems[source] = free

    def of(self, source: str, suffix: str) -> str:
        """The name of a piece; each suffix is asked for once in a call."""
        stem = f"{self._stems[source]}{suffix}"
        name, number = f"{stem}.png", 1
        while self._owner.get(name.casefold(), source) != source:
            number += 1
            name = f"{stem}~{number}.png"
        self._owner[name.casefold()] = source
        return name


def _same(samples: Sequence[Sample], contents: Mapping[Path, str]) -> dict[Path, str]:
    """Pictures to leave out because another shows the same, and the sentence that says so."""
    by_path = {sample.path: sample for sample in samples}
    left: dict[Path, str] = {}
    for group in duplicates.find(duplicates.hashes(by_path), contents):
        # of equally large ones one that has a caption
        best = max(group.paths, key=lambda p: (by_path[p].size[0] * by_path[p].size[1], by_path[p].caption != ""))
        how = "is the same file as" if group.equal else "shows nearly the same as"
        left |= {path: f"{how} {printable(best.name)}" for path in group.paths if path != best}
    return left


def _relative(sample: Sample) -> str:
    return sample.name.partition("/")[2]


def _txt(name: str) -> str:
    return name[: -len(".png")] + ".txt"


def _png(image: Image.Image) -> bytes:
    image = image.copy()
    image.info = {}  # Pillow would write the original's profile and transparent colour, which no longer hold
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _may_write(path: Path, data: bytes, recorded_sha: str | None) -> bool:
    """Whether a file may be written: it is not there, or still as it was made, or already what it is to be."""
    if not path.exists():
        return True
    return sha256_of(path) in (recorded_sha, _sha(data))


def _remove(path: Path, recorded_sha: str | None) -> None:
    if recorded_sha is not None and path.is_file() and sha256_of(path) == recorded_sha:
        path.unlink()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
