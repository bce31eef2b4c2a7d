"""Latents of the data set: encoded once, kept on disk by content, read one entry at a time.

An entry is known by what it is made of (the bytes of the file, the autoencoder, how the picture is prepared), never
by its name: renamed pictures and other runs find it, a changed picture or another autoencoder does not. Memory holds
a few pictures, one shard's worth of latents, and some hundred bytes for each sample.

Latents (C, h, w) float32, scaled as the denoiser sees them; masks (1, h, w) float32 in [0, 1], 1 = trained.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import files
from ..host import Autoencoder
from . import pictures
from .sample import Sample
from .shards import Shards

# Raise it when pictures.load prepares a picture differently: latents of before are then no longer used.
PREPARATION = 1

# A picture of more than this many pixels is decoded while no other such is, so that threads do not multiply it.
LARGE_PIXELS = 16_000_000

Problem = tuple[str, str]  # name of the sample, why it is left out


class _Store(Protocol):
    def facts(self, key: str) -> dict[str, Any]: ...
    def read(self, key: str) -> dict[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    sample: Sample
    content: str  # start of the SHA-256
    keys: tuple[str, ...]  # of the picture as it is and, where built so, mirrored


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

    `notes` are sentences for the user. `complete` is false after a stop: some samples then have no latents.
    """

    def __init__(self, store: _Store, entries: dict[str, _Entry], notes: list[str], complete: bool = True) -> None:
        self._store = store
        self._entries = entries
        self.notes = notes
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
        """Encode what `folder` does not hold yet. Returns the cache, and the samples that had to be left out.

        dtype is that of the pictures given to the autoencoder (float32 if None). With a batch size other than 1 the
        last bits of latents may depend on which pictures were encoded together. on_progress(done, total) counts the
        pictures to encode. An error, or a stop between two batches, keeps on disk what is encoded.
        Errors: `OSError` when the folder cannot be written, and whatever the autoencoder raises.
        """
        stopped = stop_requested or (lambda: False)
        dtype = dtype or torch.float32
        maker = [PREPARATION, autoencoder.key, str(dtype), alpha_mask]
        store = Shards(folder, "latents")
        reasons: dict[str, str] = {}  # sample name or entry key -> why there are no latents
        entries: dict[str, _Entry] = {}
        with closing(_ahead(files.sha256_of, ((s, s.path) for s in samples))) as hashed:
            for sample, future in hashed:
                if stopped():
                    break
                try:
                    content = future.result()
                except OSError as error:
                    reasons[sample.name] = f"cannot be read: {error.strerror or error}"
                    continue
                variants = [[*maker, content, *sample.bucket, m] for m in ((False, True) if flip else (False,))]
                keys = tuple(_sha256(json.dumps(v))[:32] for v in variants)
                entries[sample.name] = _Entry(sample, content[:16], keys)

        damaged = store.find(key for entry in entries.values() for key in entry.keys)
        notes = [f"{name} in {folder} is damaged; what it held is encoded again" for name in damaged]

        # equal pictures are encoded once; bucket by bucket, so that a batch can be filled
        missing = {e.keys: e for e in entries.values() if not all(key in store for key in e.keys)}
        buckets: dict[tuple[int, int], list[_Entry]] = {}
        for entry in missing.values():
            buckets.setdefault(entry.sample.bucket, []).append(entry)
        batches = [b[i : i + batch_size] for b in buckets.values() for i in range(0, len(b), batch_size)]
        large = threading.Lock()

        def load(entry: _Entry) -> pictures.Picture:
            s = entry.sample
            with large if s.size[0] * s.size[1] > LARGE_PIXELS else nullcontext():
                return pictures.load(s.path, s.bucket, alpha_mask, max_megapixels)

        num_done = 0
        with store, closing(_ahead(load, ((e, e) for batch in batches for e in batch))) as loaded:
            for batch in batches:
                if stopped():
                    break
                group: list[tuple[_Entry, pictures.Picture]] = []
                for entry, future in islice(loaded, len(batch)):
                    try:
                        group.append((entry, future.result()))
                    except pictures.PictureError as error:
                        reasons.update(dict.fromkeys(entry.keys, error.reason))
                if group:
                    _encode(group, autoencoder, device, dtype, store, reasons)
                num_done += len(batch)
                if on_progress:
                    on_progress(num_done, len(missing))
        return cls._of(samples, entries, store, notes, reasons)

    @classmethod
    def _of(
        cls,
        samples: Sequence[Sample],
        entries: dict[str, _Entry],
        store: Shards,
        notes: list[str],
        reasons: dict[str, str],
    ) -> tuple[LatentCache, list[Problem]]:
        problems, complete = [], True
        for sample in samples:
            entry = entries.get(sample.name)
            keys = [] if entry is None else list(entry.keys)
            reason = next((reasons[k] for k in [sample.name, *keys] if k in reasons), None)
            if reason is not None:
                problems.append((sample.name, reason))
                entries.pop(sample.name, None)
            elif entry is None or not all(key in store for key in keys):
                complete = False
                entries.pop(sample.name, None)
            else:
                notes += [f"{sample.name}: {note}" for note in store.facts(keys[0])["notes"]]
        return cls(store, entries, notes, complete), problems

    @classmethod
    def from_latents(cls, latent_entries: Iterable[LatentEntry]) -> LatentCache:
        """A cache in memory, for a host that hands over latents.

        Errors: `ValueError` when a tensor has the wrong shape, or when latents of one bucket differ in shape.
        """
        store = _Memory()
        entries: dict[str, _Entry] = {}
        shapes: dict[tuple[int, int], tuple[int, ...]] = {}
        for given in latent_entries:
            name, shape = given.sample.name, tuple(given.latents.shape)
            expected = shapes.setdefault(given.sample.bucket, shape)
            if len(shape) != 3 or shape != expected:
                raise ValueError(f"{name}: latents must be (C, h, w) and alike in a bucket, {expected}; got {shape}")
            if given.flipped is not None and given.flipped.shape != shape:
                raise ValueError(f"{name}: flipped latents must be {shape}, got {tuple(given.flipped.shape)}")
            if given.mask is not None and given.mask.shape != (1, *shape[1:]):
                raise ValueError(f"{name}: the mask must be {(1, *shape[1:])}, got {tuple(given.mask.shape)}")
            entries[name] = store.add(given)
        return cls(store, entries, [])

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

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


def _ahead(work: Callable[[Any], Any], items: Iterable[tuple[Any, Any]]) -> Generator[tuple[Any, Future], None, None]:
    """For each (item, argument) in order: the item, and the future of work(argument), a few of which run ahead."""
    num_threads = min(4, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(num_threads)
    running: deque[tuple[Any, Future]] = deque()
    try:
        for item, argument in items:
            running.append((item, pool.submit(work, argument)))
            if len(running) > num_threads:
                yield running.popleft()
        while running:
            yield running.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _encode(
    group: list[tuple[_Entry, pictures.Picture]],
    autoencoder: Autoencoder,
    device: torch.device | str,
    dtype: torch.dtype,
    store: Shards,
    reasons: dict[str, str],
) -> None:
    """Encode pictures of one bucket, as they are and mirrored where asked, and add them to the store."""
    for flipped in range(len(group[0][0].keys)):
        wanted = [(e.keys[flipped], p) for e, p in group if e.keys[flipped] not in store]
        if not wanted:
            continue
        pixels = torch.stack([torch.from_numpy(p.pixels).permute(2, 0, 1) for _, p in wanted])
        x = pixels.to(device).float().div(127.5).sub(1).to(dtype)
        with torch.no_grad():
            latents = autoencoder.encode(x.flip(3) if flipped else x).float().cpu()
        size = tuple(side // autoencoder.scale_px for side in x.shape[2:])
        assert latents.shape[2:] == size, f"latents of {tuple(x.shape)} must be {size}, got {tuple(latents.shape)}"
        for (key, picture), one in zip(wanted, latents, strict=True):
            if not torch.isfinite(one).all():
                reasons[key] = "the autoencoder gave values that are not finite; run it in fp32 or bf16"
                continue
            tensors = {"latents": one}
            if picture.mask is not None:
                mask = F.interpolate(torch.from_numpy(picture.mask)[None, None], size, mode="area")[0]
                tensors["mask"] = mask.flip(2) if flipped else mask
            geometry = picture.geometry
            facts = {
                "resized": list(geometry.resized),
                "crop": [geometry.crop_left, geometry.crop_top],
                "notes": list(picture.notes),
            }
            store.add(key, tensors, facts)


class _Memory:
    """A store of latents in memory."""

    def __init__(self) -> None:
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def add(self, given: LatentEntry) -> _Entry:
        sample = given.sample
        content = hashlib.sha256()
        keys = []
        for flipped, latents in enumerate((given.latents, given.flipped)):
            if latents is None:
                continue
            tensors = {"latents": latents.detach().to("cpu", torch.float32)}
            if given.mask is not None:
                mask = given.mask.detach().to("cpu", torch.float32)
                tensors["mask"] = mask.flip(2) if flipped else mask
            for tensor in tensors.values():
                content.update(tensor.contiguous().numpy().tobytes())
            key = f"{sample.name}/{flipped}"
            self._tensors[key] = tensors
            self._facts[key] = {"resized": list(given.resized or sample.bucket), "crop": list(given.crop)}
            keys.append(key)
        return _Entry(sample, content.hexdigest()[:16], tuple(keys))

    def facts(self, key: str) -> dict[str, Any]:
        return self._facts[key]

    def read(self, key: str) -> dict[str, Tensor]:
        return self._tensors[key]
