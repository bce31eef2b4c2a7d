"""Checkpoints: the network and everything that the next step depends on, each with its SHA-256.

Three files make one checkpoint of step 800, in this order:

    checkpoints/<name>-000800.safetensors    the network, as other programs read it
    state/000800.safetensors                 tensors of the training state
    state/000800.json                        the rest of it, with the sizes and SHA-256 of the other two, and its own

The last one commits: without it there is no checkpoint, and what it commits is never written again. A step that is
saved once more, or whose name another program holds, gets names that end in -2, and so on.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import files
from .manifest import DamagedError, check_json, damage_named, read_manifest, write_manifest

FORMAT = 1
MARKER = ".atelier-run"  # only a folder with this file in it ever loses a file
MIN_WHOLE = 2
_NUM_NAMES = 3
# What becomes of a manifest: committed; its files are being removed; put aside because the run went back before it.
_COMMITTED, _REMOVING, _ASIDE = ".json", ".removing", ".json.aside"


@dataclass(kw_only=True)
class TrainState:
    """What the next step depends on, apart from the settings and the records. Loaded tensors are on the CPU."""

    step: int  # optimizer updates done
    images_seen: int
    tensors: dict[str, Tensor] = field(
        default_factory=dict
    )  # "trainable.<name>", "optimizer.<name>.<key>", "ema.<name>"
    values: dict[str, Any] = field(default_factory=dict)  # JSON values: optimizer scalars, loader position, loss scale
    records: dict[str, int] = field(default_factory=dict)  # `Recorder.offsets()`


class NoCheckpointError(ValueError):
    """There is no checkpoint to go on from."""


@dataclass(frozen=True, order=True)
class _Point:
    """One checkpoint: its step, and which of the names that it may have."""

    step: int
    attempt: int = 1

    @property
    def stem(self) -> str:
        return f"{self.step:06d}" + (f"-{self.attempt}" if self.attempt > 1 else "")


class Checkpoints:
    """The checkpoints in one folder. Writing them needs the folder's ownership, reading does not."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def networks(self) -> dict[int, Path]:
        """Step -> the network's file, of every committed checkpoint, in step order. Contents are not checked."""
        return {point.step: self._network(point) for point in self._points(_COMMITTED)}

    def has_any(self) -> bool:
        """Whether a checkpoint was ever committed, be its state lost. A first save that was cut leaves one network."""
        return bool(self.networks()) or len(list((self.folder / "checkpoints").glob("*.safetensors"))) > 1

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are whole, in order. Reads every byte of them."""
        return sorted({point.step for point in self._points(_COMMITTED) if self._whole(point)})

    def save(
        self,
        state: TrainState,
        weights: Mapping[str, Tensor],
        metadata: Callable[[str], Mapping[str, str]],
        *,
        keep_last: int = 0,
        pins: Collection[int] = (),
    ) -> Path:
        """Save a checkpoint, each file read back from the disk; then remove what need not be kept. The network's file.

        `weights` are published as they are; `metadata` gives the file's metadata for its stem. With `keep_last` N > 0,
        the newest N stay, those at `pins`, and in any case the two newest that are whole. Later steps, from before the
        run went back to this one, are put aside (`.json.aside`): the records no longer reach to them.

        Errors: `ValueError` for a weight that is not finite and for state that JSON cannot hold, before anything is
        written; `files.DiskFullError` when less than twice the size is free, or when the room ends meanwhile;
        `OSError`. After each of them every earlier checkpoint is as it was, and saving can be tried again.
        """
        _check_finite(weights)
        check_json(state.values, "state.values")
        if keep_last and not self._may_remove():
            raise ValueError(
                f"save.keep_last removes files, which is never done through a link: make checkpoints and state in "
                f"{self.folder} real folders, or set save.keep_last to 0"
            )
        needed = 2 * sum(t.numel() * t.element_size() for t in (*weights.values(), *state.tensors.values()))
        if files.free_bytes(self.folder) < needed:
            raise files.DiskFullError(self.folder, needed)
        point = self._write(state, weights, metadata)
        for later in self._points(_COMMITTED):
            if later.step > point.step:
                self._path(later, _COMMITTED).replace(self._path(later, _ASIDE))
        if self._may_remove():
            self._retain(point, keep_last, pins)
        return self._network(point)

    def load(self, step: int | None = None) -> tuple[TrainState, dict[str, Tensor], list[str]]:
        """State and weights of the newest whole checkpoint, or of that at `step`; and a note for each one passed over.

        Errors: `NoCheckpointError`, saying what is wrong with each.
        """
        _, state, weights, _, notes = self._load(step)
        return state, weights, notes

    def copy_to(self, target: Checkpoints, step: int, values: Mapping[str, Any] | None = None) -> TrainState:
        """Save the checkpoint of `step` in another run, under that run's name; its state. Errors: as `load` and `save`.

        `values` replace those of the state. Metadata that is the file's stem becomes the new stem, since programs know
        a network by it.
        """
        point, state, weights, metadata, _ = self._load(step)
        state.values.update(values or {})
        old = self._network(point).stem
        target.save(state, weights, lambda stem: {k: stem if v == old else v for k, v in metadata.items()})
        return state

    def _network(self, point: _Point) -> Path:
        return self.folder / "checkpoints" / f"{self.name}-{point.stem}.safetensors"

    def _path(self, point: _Point, suffix: str) -> Path:
        return self.folder / "state" / f"{point.stem}{suffix}"

    def _points(self, *suffixes: str) -> list[_Point]:
        """Checkpoints with such a file in `state`, in order of step and attempt: never of time."""
        names = os.listdir(self.folder / "state")
        found = set()
        for suffix in suffixes:
            pattern = re.compile(r"(\d{6,18})(?:-(\d{1,6}))?" + re.escape(suffix), re.ASCII)
            points = [_Point(int(m[1]), int(m[2] or 1)) for name in names if (m := pattern.fullmatch(name))]
            found |= {p for p in points if p.stem + suffix in names}
        return sorted(found)

    def _write(
        self, state: TrainState, weights: Mapping[str, Tensor], metadata: Callable[[str], Mapping[str, str]]
    ) -> _Point:
        used = [p.attempt for p in self._points(_COMMITTED, _REMOVING, _ASIDE) if p.step == state.step]
        first = max(used, default=0) + 1
        last = first + _NUM_NAMES - 1
        for attempt in range(first, last + 1):
            try:
                return self._write_as(_Point(state.step, attempt), state, weights, metadata)
            except files.FileLockedError:
                if attempt == last:
                    raise
        raise AssertionError("the loop returns or raises")

    def _write_as(
        self,
        point: _Point,
        state: TrainState,
        weights: Mapping[str, Tensor],
        metadata: Callable[[str], Mapping[str, str]],
    ) -> _Point:
        network, tensors = self._network(point), self._path(point, ".safetensors")
        hashes = {
            "network": files.write_safetensors(network, weights, metadata(network.stem)),
            "tensors": files.write_safetensors(tensors, state.tensors),
        }
        sizes = {"network": network.stat().st_size, "tensors": tensors.stat().st_size}
        manifest = {
            "format": FORMAT,
            "step": state.step,
            "images_seen": state.images_seen,
            "values": state.values,
            "records": state.records,
            "files": {key: {"bytes": sizes[key], "sha256": hashes[key]} for key in hashes},
        }
        write_manifest(self._path(point, _COMMITTED), manifest)
        return point

    def _checked(self, point: _Point) -> dict[str, Any]:
        """The manifest, after every byte that it speaks of was compared with it. Errors: `DamagedError`."""
        path = self._path(point, _COMMITTED)
        manifest = read_manifest(path, FORMAT)
        if manifest["step"] != point.step:
            raise DamagedError(f"{path} is of step {manifest['step']}")
        for path, key in ((self._network(point), "network"), (self._path(point, ".safetensors"), "tensors")):
            wanted = manifest["files"][key]
            with damage_named(path):
                size = path.stat().st_size
                if size != wanted["bytes"]:
                    raise DamagedError(f"{path} has {size} bytes instead of {wanted['bytes']}")
                if files.sha256_of(path) != wanted["sha256"]:
                    raise DamagedError(f"{path} was changed since it was saved (its SHA-256 differs)")
        return manifest

    def _whole(self, point: _Point) -> bool:
        try:
            self._checked(point)
        except DamagedError:
            return False
        return True

    def _load(self, step: int | None) -> tuple[_Point, TrainState, dict[str, Tensor], dict[str, str], list[str]]:
        notes = []
        for point in reversed(self._points(_COMMITTED)):
            if step in (None, point.step):
                try:
                    return (point, *self._read(point), notes)
                except DamagedError as error:
                    notes.append(f"the checkpoint of step {point.step} cannot be used: {error}")
        which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        there = ", ".join(map(str, self.networks())) or "none"
        raise NoCheckpointError("; ".join([f"{self.folder} has {which} to go on from (there: {there})", *notes]))

    def _read(self, point: _Point) -> tuple[TrainState, dict[str, Tensor], dict[str, str]]:
        manifest = self._checked(point)
        path = self._path(point, ".safetensors")
        with damage_named(path):
            tensors, _ = files.read_safetensors(path)
            weights, metadata = files.read_safetensors(self._network(point))
        return _state(manifest, tensors), weights, metadata

    def _may_remove(self) -> bool:
        root = self.folder.resolve()
        return (root / MARKER).is_file() and all((root / f).resolve() == root / f for f in ("checkpoints", "state"))

    def _retain(self, newest: _Point, keep_last: int, pins: Collection[int]) -> None:
        for point in self._points(_REMOVING):
            self._finish_removing(point)
        points = self._points(_COMMITTED)[::-1]
        latest = {p.step: p for p in reversed(points)}
        kept = set(list(latest)[-keep_last:]) | set(pins)
        dropped = [p for p in points if p != latest[p.step] or p.step not in kept]
        if dropped:
            protected: dict[int, _Point] = {}
            for point in points:
                if (
                    len(protected) < MIN_WHOLE
                    and point.step not in protected
                    and (point == newest or self._whole(point))
                ):
                    protected[point.step] = point
            for point in reversed(dropped):
                if protected.get(point.step) != point:
                    self._remove(point)

    def _remove(self, point: _Point) -> None:
        # The manifest goes first and leaves a note, so that a crash in between neither leaves half a checkpoint nor
        # forgets the rest of it.
        with contextlib.suppress(PermissionError):  # held by a program that reads it: a later save removes it
            self._path(point, _COMMITTED).replace(self._path(point, _REMOVING))
            self._finish_removing(point)

    def _finish_removing(self, point: _Point) -> None:
        with contextlib.suppress(PermissionError):
            self._path(point, ".safetensors").unlink(missing_ok=True)
            self._network(point).unlink(missing_ok=True)
            self._path(point, _REMOVING).unlink(missing_ok=True)


def _state(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> TrainState:
    values = {key: manifest[key] for key in ("step", "images_seen", "values", "records")}
    return TrainState(tensors=tensors, **values)


def _check_finite(weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        value = weight.detach()
        if value.element_size() == 1 and value.is_floating_point():
            value = value.float()  # isfinite does not know float8
        if not torch.isfinite(value).all():  # sync: once per weight and checkpoint
            raise ValueError(
                f'weight "{name}" is not finite; such a checkpoint is never published: go on from an earlier one at a '
                "lower rate, or publish in fp32 (save.dtype) if it does not fit"
            )
