"""A data set that a host has encoded already: latents, and for each the conditioning of its caption.

Captions here are names of conditionings, nothing more: text is never encoded, so it is neither shuffled nor trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..host import Conditioning, TextEncoder
from .cache import LatentEntry


@dataclass(frozen=True)
class Given:
    """`conditionings` has one entry, (1, ...) tensors, for the caption of each sample."""

    entries: tuple[LatentEntry, ...]
    conditionings: dict[str, Conditioning]

    @classmethod
    def joined(cls, parts: Sequence[Given]) -> Given:
        """Several as one; the samples of part i belong to concept i. Errors: `ValueError` for names used twice."""
        entries = []
        for concept, part in enumerate(parts):
            entries += [replace(e, sample=replace(e.sample, concept=concept)) for e in part.entries]
        names = [entry.sample.name for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two samples are called {name}; give the data sets different names")
        return cls(tuple(entries), {k: v for part in parts for k, v in part.conditionings.items()})


class GivenText:
    """The text encoder of such a data set: looks conditionings up, and asks the host's own for the empty caption alone.

    Where the host has none, the empty caption is zeros, of the shape of the first conditioning.
    """

    def __init__(self, given: Given, empty: TextEncoder | None) -> None:
        self._given, self._empty = given.conditionings, empty

    @property
    def key(self) -> str:
        """A hash of every conditioning."""
        digest = hashlib.sha256()
        for caption, conditioning in sorted(self._given.items()):
            digest.update(f"{caption} {content_of(conditioning)} ".encode())
        return digest.hexdigest()

    def num_tokens(self, caption: str) -> int:
        """0: whoever encoded the text has seen to its length."""
        return 0

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """The conditionings of these names, all of one length. Errors: `ValueError` for a name that was not given."""
        found = [self._one(caption) for caption in captions]
        return {name: torch.cat([c[name] for c in found]) for name in found[0]}

    def _one(self, caption: str) -> Conditioning:
        if caption in self._given:
            return self._given[caption]
        if caption:
            raise ValueError(f'there is no conditioning for "{caption[:80]}": latents come with encoded captions only')
        if self._empty is not None:
            return self._empty.encode([""])
        return {name: torch.zeros_like(tensor) for name, tensor in next(iter(self._given.values())).items()}


class NoAutoencoder:
    """The autoencoder of such a data set where the host has none: it is known, and asked for nothing."""

    scale_px = 8
    key = "latents were given"

    def encode(self, pictures: Tensor) -> Tensor:
        """Errors: `ValueError`, always."""
        raise ValueError("pictures need a VAE; connect the one that belongs to the model")

    def decode(self, latents: Tensor) -> Tensor:
        """Errors: `ValueError`, always."""
        raise ValueError("previews need a VAE; connect the one that belongs to the model")


def content_of(conditioning: Conditioning) -> str:
    """SHA-256 of a conditioning's tensors, in hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(conditioning.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
