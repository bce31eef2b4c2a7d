"""Which tensors exactly: a hash of every bit of them.

A fingerprint (`fingerprint.py`) tells base models apart and forgives rounding; this forgives nothing, for keys of
things that depend on every bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK_BYTES = 1 << 24  # on their way to the CPU at a time


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256, in hex, of (name, tensor) pairs in their order: names, dtypes, shapes and values, on any device."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode("utf-8", "surrogatepass"))
        flat = tensor.detach().contiguous().reshape(-1)
        if flat.numel():
            for chunk in flat.view(torch.uint8).split(_CHUNK_BYTES):
                digest.update(chunk.cpu().numpy().data)
    return digest.hexdigest()
