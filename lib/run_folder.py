"""The run folder: where one run keeps everything, the same in every host.

.atelier-run, .owner                      marker and lock
run.json                                  settings, base model, data, versions, lineage, with its own SHA-256
loss.csv, run.csv, probe.csv              the records
checkpoints/, state/                      see `checkpoints`
previews/
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from . import files
from .checkpoints import MARKER, Checkpoints, TrainState
from .config import RunConfig, difference, from_dict, to_dict
from .fingerprint import compare_fingerprints
from .manifest import DamagedError, check_json, read_manifest, write_manifest
from .owner import owner_of
from .records import copy_records

FORMAT = 1
SUBFOLDERS = ("checkpoints", "state", "previews")

# Settings without effect on what is computed. Where a folder of pictures lies is one: their contents are compared.
_FREE = re.compile(
    r"(save\.(every_steps|every_epochs|at_cycle_ends|keep_last|pins(\[\d+\])?)"
    r"|preview\..*|loop\.(cpu_blocks|block_checkpointing)|record\.flush_every_steps|data\.concepts\[\d+\]\.folder): .*",
    re.DOTALL,
)
_MAX_SHOWN = 20


class ResumeRefused(ValueError):
    """The run would not go on as it began. `differences` has a line for each reason."""

    def __init__(self, folder: Path, lines: list[str]) -> None:
        self.differences = lines
        shown = lines[:_MAX_SHOWN] + ([f"and {len(lines) - _MAX_SHOWN} more"] if len(lines) > _MAX_SHOWN else [])
        super().__init__(
            f"{folder} cannot go on, because this changed:\n  "
            + "\n  ".join(shown)
            + "\nPut it back, or fork the run at a step to go on with what changed."
        )


class RunFolder:
    """One run on the disk. Made by `create`, `open` or `fork`; written only inside `owner()`."""

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.description = description  # run.json
        self.checkpoints = Checkpoints(path, description["name"])
        self._owned = False

    @classmethod
    def create(
        cls,
        parent: Path | str,
        name: str,
        config: RunConfig,
        *,
        versions: Mapping[str, str],
        base: Mapping[str, Any],
        data_manifest: Mapping[str, Any],
        lineage: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """A new folder `parent/name`, with -2 and so on behind it where that name has content already.

        `versions`: package -> version. `base`: `fingerprint` of the base model. `data_manifest`: picture -> whatever
        changes when it does (JSON values). The folder's name is made safe and begins the names of its networks.
        """
        path = _new_folder(Path(parent), files.safe_name(name, "run"))
        return cls._describe(path, config, versions, base, data_manifest, lineage)

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """The run at `path`. Errors: `ValueError` when it is none, or when run.json is damaged."""
        path = Path(path).absolute()
        if not (path / MARKER).is_file():
            raise ValueError(f"{path} is not a run folder (it has no {MARKER})")
        try:
            return cls(path, read_manifest(path / "run.json", FORMAT))
        except DamagedError as error:
            raise DamagedError(f"{error}; without it the run cannot go on. Its checkpoints are in {path}") from error

    @classmethod
    def fork(
        cls,
        source: RunFolder,
        step: int,
        parent: Path | str,
        name: str,
        config: RunConfig,
        *,
        versions: Mapping[str, str],
        base: Mapping[str, Any],
        data_manifest: Mapping[str, Any],
        values: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """A new run that goes on from a checkpoint of `source` with other settings.

        It has that checkpoint under its own name, with `values` in place of those of its state, and the rows of the
        records up to it: charts go on without a gap, means start warm, and the source may be deleted. `lineage` in
        run.json says where they come from. It becomes a run only when all of that is there. Errors: as
        `Checkpoints.load`; the source is never changed.
        """
        source.checkpoints.load(step)
        path = _new_folder(Path(parent), files.safe_name(name, "run"))
        state = source.checkpoints.copy_to(Checkpoints(path, path.name), step, values)
        copy_records(source.path, path, state.records)
        lineage = {"run": source.id, "name": source.description["name"], "path": str(source.path), "step": step}
        return cls._describe(path, config, versions, base, data_manifest, lineage)

    @classmethod
    def _describe(
        cls,
        path: Path,
        config: RunConfig,
        versions: Mapping[str, str],
        base: Mapping[str, Any],
        data_manifest: Mapping[str, Any],
        lineage: Mapping[str, Any] | None,
    ) -> RunFolder:
        description = {
            "format": FORMAT,
            "id": secrets.token_hex(8),
            "name": path.name,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "config": to_dict(config),
            "versions": dict(versions),
            "base": dict(base),
            "data": dict(data_manifest),
            "lineage": None if lineage is None else dict(lineage),
        }
        check_json(description, "run.json")
        write_manifest(path / "run.json", description)
        return cls(path, description)

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits, unlike those of any other run."""
        return self.description["id"]

    @property
    def created(self) -> str:
        """When the run was begun, ISO 8601 in UTC: information, never an order."""
        return self.description["created"]

    @property
    def config(self) -> RunConfig:
        """The settings as the run has them. Errors: `ValueError` for settings that this version does not know."""
        return from_dict(RunConfig, self.description["config"])

    @property
    def previews(self) -> Path:
        """The folder of preview pictures."""
        return self.path / "previews"

    @contextmanager
    def owner(self) -> Iterator[None]:
        """Own the folder while the block runs, and clear away what killed writers left. Errors: `FolderInUseError`."""
        with owner_of(self.path):
            for folder in (self.path, *(self.path / name for name in SUBFOLDERS)):
                if folder.is_dir():
                    files.remove_leftovers(folder)
            self._owned = True
            try:
                yield
            finally:
                self._owned = False

    def resume(
        self,
        config: RunConfig,
        *,
        versions: Mapping[str, str],
        base: Mapping[str, Any],
        data_manifest: Mapping[str, Any],
    ) -> list[str]:
        """Check that the run would go on as it began, and note settings that may change; what to tell the user.

        Those are the ones without effect on what is computed: `save.*` but the dtype, `preview.*`,
        `record.flush_every_steps`, `loop.cpu_blocks`, `loop.block_checkpointing`, and where the pictures' folders lie.
        The number of steps is not: schedules depend on it. Errors: `ResumeRefused`.
        """
        assert self._owned, "a run goes on inside owner()"
        lines = differences(self.description, config, base, data_manifest)
        if lines:
            raise ResumeRefused(self.path, lines)
        notes = [f"setting changed: {line}" for line in difference(self.config, config)]
        was, now = self.description["versions"], dict(versions)
        notes += [
            f"{name} was {was.get(name, 'absent')} and is {now.get(name, 'absent')}: the last bits may differ"
            for name in sorted(was.keys() | now.keys())
            if was.get(name) != now.get(name)
        ]
        description = {**self.description, "config": to_dict(config), "versions": now}
        if description != self.description:
            write_manifest(self.path / "run.json", description)
            self.description = description
        return notes

    def save(
        self,
        state: TrainState,
        weights: Mapping[str, Tensor],
        metadata: Callable[[str], Mapping[str, str]],
        *,
        keep_last: int = 0,
        pins: Collection[int] = (),
    ) -> Path:
        """As `Checkpoints.save`."""
        assert self._owned, "a run is written inside owner()"
        return self.checkpoints.save(state, weights, metadata, keep_last=keep_last, pins=pins)

    def load(self, step: int | None = None) -> tuple[TrainState, dict[str, Tensor], list[str]]:
        """As `Checkpoints.load`."""
        return self.checkpoints.load(step)

    def steps(self) -> list[int]:
        """As `Checkpoints.steps`."""
        return self.checkpoints.steps()


def differences(
    description: Mapping[str, Any], config: RunConfig, base: Mapping[str, Any], data_manifest: Mapping[str, Any]
) -> list[str]:
    """What makes a run other than run.json describes, a line each; empty when it would go on as it began."""
    settings = difference(from_dict(RunConfig, description["config"]), config)
    lines = [line for line in settings if not _FREE.fullmatch(line)]
    old = description["data"]
    for name in sorted(old.keys() | data_manifest.keys()):
        if name not in data_manifest:
            lines.append(f"data: {name} is missing")
        elif name not in old:
            lines.append(f"data: {name} is new")
        elif old[name] != data_manifest[name]:
            lines.append(f"data: {name} was changed")
    return lines + compare_fingerprints(description["base"], base)


def _new_folder(parent: Path, name: str) -> Path:
    """A folder that was empty or absent, marked as ours. The marker decides between two that want the same one."""
    files.make_folder(parent)
    for number in count(1):
        path = parent.absolute() / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            if path.is_symlink() or not path.is_dir() or any(path.iterdir()):
                continue
        try:
            os.close(os.open(path / MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            continue
        for subfolder in SUBFOLDERS:
            files.make_folder(path / subfolder)
        files.flush_folder(path)
        files.flush_folder(parent)
        return path
    raise AssertionError("numbers do not end")
