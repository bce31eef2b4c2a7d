"""Latents of the data set: encoded once, kept on disk by content, read one entry at a time.

An entry is known by what it is made of (the bytes of the file, the autoencoder, how the picture is prepared), never
by its name: renamed pictures and other runs find it, a changed picture or another autoencoder does not. Memory holds
a few pictures, one shard's worth of latents, and some hundred bytes for each sample.

Latents (C, h, w) float32, scaled as the denoiser sees them; masks (1, h, w) float32 in [0, 1], 1 = trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..host import Autoencoder
from . import encode
from .encode import Entry
from .sample import Sample
from .scan import Problem
from .shards import Shards


class _Store(Protocol):
    def facts(self, key: str) -> dict[str, Any]: ...
    def read(self, key: str) -> dict[str, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class LatentEntry:
    """A picture that was encoded elsewhere. `sample.bucket` is its size in pixels, `sample.size` the original's."""

    sample: Sample
    latents: Tensor  # (C, h, w)
    flipped: Tensor | None = None  # the mirrored picture's latents, (C, h, w); not the latents mirrored
    mask: Tensor | None = None  # (1, h, w)
    resized: tuple[int, int] | None = None  # pixels, before the crop; the bucket's where None
    crop: tuple[int, int] = (0, 0)  # left, top


class LatentCache:
    """The latents of the samples that it was built from.

    `complete` is false after a stop: samples then have no latents that are no problem either.
    """

    def __init__(self, store: _Store, entries: dict[str, Entry], complete: bool = True) -> None:
        self._store = store
        self._entries = entries
        self.complete = complete

    @classmethod
    def build(
        cls,
        folder: Path,
        samples: Sequence[Sample],
        autoencoder: Autoencoder,
        *,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        flip: bool,
        alpha_mask: bool,
        max_megapixels: float,
        batch_size: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
        stop_requested: Callable[[], bool] | None = None,
    ) -> tuple[LatentCache, list[Problem]]:
        """Encode what `folder` does not hold yet. Returns the cache, and what a user should know.

        A problem of severity "error" is a picture that has no latents and must be left out.

        dtype is that of the pictures given to the autoencoder (float32 if None). With a batch size other than 1 the
        last bits of latents may depend on which pictures were encoded together. on_progress(done, total) counts the
        pictures to encode. An error, or a stop between two batches, keeps on disk what is encoded.
        Errors: `OSError` when the folder cannot be written, and whatever the autoencoder raises.
        """
        stopped = stop_requested or (lambda: False)
        dtype = dtype or torch.float32
        made_by = [encode.PREPARATION, autoencoder.key, str(dtype), alpha_mask]
        reasons: dict[str, str] = {}  # sample name or entry key -> why there are no latents
        entries = encode.entries_of(samples, made_by, flip, reasons, stopped)
        store = Shards(folder, "latents")
        damaged = store.find(key for entry in entries.values() for key in entry.keys)
        problems = [Problem(path, "is damaged; what it held is encoded again", "warning") for path in damaged]

        # equal pictures are encoded once; bucket by bucket, so that a batch can be filled
        missing = {e.keys: e for e in entries.values() if not all(key in store for key in e.keys)}
        buckets: dict[tuple[int, int], list[Entry]] = {}
        for entry in missing.values():
            buckets.setdefault(entry.sample.bucket, []).append(entry)
        batches = [b[i : i + batch_size] for b in buckets.values() for i in range(0, len(b), batch_size)]
        num_done = 0
        with store, closing(encode.loaded(batches, alpha_mask, max_megapixels, reasons)) as groups:
            for batch in batches:
                if stopped():
                    break
                if group := next(groups):
                    encode.encode_group(group, autoencoder, device, dtype, store, reasons)
                num_done += len(batch)
                if on_progress:
                    on_progress(num_done, len(missing))

        usable, complete = {}, True
        for sample in samples:
            entry = entries.get(sample.name)
            names = [sample.name] if entry is None else entry.keys
            reason = next((reasons[name] for name in names if name in reasons), None)
            if reason is not None:
                problems.append(Problem(sample.path, reason, "error"))
            elif entry is None or not all(key in store for key in entry.keys):
                complete = False
            else:
                problems += [Problem(sample.path, note, "note") for note in store.facts(entry.keys[0])["notes"]]
                usable[sample.name] = entry
        return cls(store, usable, complete), problems

    @classmethod
    def from_latents(cls, latent_entries: Iterable[LatentEntry]) -> LatentCache:
        """A cache in memory, for a host that hands over latents.

        Errors: `ValueError` when a tensor has the wrong shape, or when latents of one bucket differ in shape.
        """
        store = _Memory()
        entries: dict[str, Entry] = {}
        shapes: dict[tuple[int, int], tuple[int, ...]] = {}
        for given in latent_entries:
            name, shape = given.sample.name, tuple(given.latents.shape)
            if name in entries:
                raise ValueError(f"two samples are called {name}; names must be unique")
            expected = shapes.setdefault(given.sample.bucket, shape)
            if len(shape) != 3 or shape != expected:
                raise ValueError(f"{name}: latents must be (C, h, w) and alike in a bucket, {expected}; got {shape}")
            if given.flipped is not None and given.flipped.shape != shape:
                raise ValueError(f"{name}: flipped latents must be {shape}, got {tuple(given.flipped.shape)}")
            if given.mask is not None and given.mask.shape != (1, *shape[1:]):
                raise ValueError(f"{name}: the mask must be {(1, *shape[1:])}, got {tuple(given.mask.shape)}")
            entries[name] = store.add(given)
        return cls(store, entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def samples(self) -> list[Sample]:
        """The samples that have latents, in the order in which they were given."""
        return [entry.sample for entry in self._entries.values()]

    def get(self, name: str, flipped: bool = False) -> tuple[Tensor, Tensor | None]:
        """Latents (C, h, w) and mask (1, h, w) or None, of the picture or of the mirrored picture; not to be changed.

        Errors: `KeyError` for a name that is not here, `ValueError` for a mirrored picture where none was encoded.
        """
        keys = self._entries[name].keys
        if flipped and len(keys) == 1:
            raise ValueError(f"{name} has no latents of the mirrored picture; build the cache with flip")
        tensors = self._store.read(keys[flipped])
        return tensors["latents"], tensors.get("mask")

    def sizes(self, name: str, flipped: bool = False) -> tuple[int, int, int, int, int, int]:
        """Original width and height, crop left and top, bucket width and height, in pixels. Errors: `KeyError`."""
        entry = self._entries[name]
        facts = self._store.facts(entry.keys[0])
        (left, top), bucket = facts["crop"], entry.sample.bucket
        if flipped:
            left = facts["resized"][0] - bucket[0] - left
        return (*entry.sample.size, left, top, *bucket)

    @property
    def manifest(self) -> dict[str, dict[str, Any]]:
        """What the data set is, as JSON values by sample name: a run goes on only with an equal manifest."""
        return {
            name: {
                "content": e.content,
                "caption": _sha256(e.sample.caption)[:16],
                "repeats": e.sample.repeats,
                "weight": e.sample.weight,
                "bucket": list(e.sample.bucket),
            }
            for name, e in sorted(self._entries.items())
        }


def manifest_difference(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """What differs between two manifests, a line each, such as `cats/a.jpg: repeats 1 -> 2`; empty when equal."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            lines.append(f"{name}: added")
        elif name not in new:
            lines.append(f"{name}: removed")
        else:
            a, b = old[name], new[name]
            for fact in sorted(f for f in a.keys() | b.keys() if a.get(f) != b.get(f)):
                if fact in ("content", "caption"):
                    lines.append(f"{name}: {'picture' if fact == 'content' else 'caption'} changed")
                else:
                    lines.append(f"{name}: {fact} {a.get(fact)} -> {b.get(fact)}")
    return lines


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _Memory:
    """A store of latents in memory."""

    def __init__(self) -> None:
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def add(self, given: LatentEntry) -> Entry:
        sample = given.sample
        content = hashlib.sha256()
        keys = []
        for flipped, latents in enumerate((given.latents, given.flipped)):
            if latents is None:
                continue
            tensors = {"latents": latents.detach().to("cpu", torch.float32, copy=True)}
            if given.mask is not None:
                mask = given.mask.detach().to("cpu", torch.float32, copy=True)
                tensors["mask"] = mask.flip(2) if flipped else mask
            for tensor in tensors.values():
                content.update(tensor.contiguous().numpy().tobytes())
            key = f"{sample.name}/{flipped}"
            self._tensors[key] = tensors
            self._facts[key] = {"resized": list(given.resized or sample.bucket), "crop": list(given.crop)}
            keys.append(key)
        return Entry(sample, content.hexdigest()[:16], tuple(keys))

    def facts(self, key: str) -> dict[str, Any]:
        return self._facts[key]

    def read(self, key: str) -> dict[str, Tensor]:
        return self._tensors[key]
