"""Pictures to latents: files hashed and decoded ahead in threads, encoded bucket by bucket, put into shards.

Only as many pictures are in memory as there are threads, and one batch.
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
from typing import Any

import torch
import torch.nn.functional as F

from .. import files
from ..host import Autoencoder
from . import pictures
from .sample import Sample
from .shards import Shards

# Raise it when pictures.load prepares a picture differently: latents of before are then no longer used.
PREPARATION = 1

# A picture of more than this many pixels is decoded while no other such is, so that threads do not multiply it.
LARGE_PIXELS = 16_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample and what its latents are known by."""

    sample: Sample
    content: str  # start of the SHA-256
    keys: tuple[str, ...]  # of the picture as it is and, where built so, mirrored


Group = list[tuple[Entry, pictures.Picture]]  # pictures of one bucket


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


def entries_of(
    samples: Sequence[Sample], made_by: list[Any], flip: bool, reasons: dict[str, str], stopped: Callable[[], bool]
) -> dict[str, Entry]:
    """What each sample's latents are known by. Files that cannot be read get a reason instead."""
    entries: dict[str, Entry] = {}
    with closing(_ahead(files.sha256_of, ((s, s.path) for s in samples))) as hashed:
        for sample, future in hashed:
            if stopped():
                break
            try:
                content = future.result()
            except OSError as error:
                reasons[sample.name] = f"cannot be read: {error.strerror}"
                continue
            assert sample.name not in entries, f"two samples are called {sample.name}"
            keys = []
            for mirrored in (False, True) if flip else (False,):
                text = json.dumps([*made_by, content, *sample.bucket, mirrored])
                keys.append(hashlib.sha256(text.encode()).hexdigest()[:32])
            entries[sample.name] = Entry(sample, content[:16], tuple(keys))
    return entries


def loaded(
    batches: list[list[Entry]], alpha_mask: bool, max_megapixels: float, reasons: dict[str, str]
) -> Generator[Group, None, None]:
    """For each batch those of its pictures that can be read. The others get a reason."""
    large = threading.Lock()

    def load(entry: Entry) -> pictures.Picture:
        s = entry.sample
        with large if s.size[0] * s.size[1] > LARGE_PIXELS else nullcontext():
            return pictures.load(s.path, s.bucket, alpha_mask, max_megapixels)

    with closing(_ahead(load, ((entry, entry) for batch in batches for entry in batch))) as decoded:
        for batch in batches:
            group: Group = []
            for entry, future in islice(decoded, len(batch)):
                try:
                    group.append((entry, future.result()))
                except pictures.PictureError as error:
                    reasons.update(dict.fromkeys(entry.keys, error.reason))
            yield group


def encode_group(
    group: Group,
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
                reasons[key] = "has latents that are not finite; run the autoencoder in fp32 or bf16"
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
