"""Everything random of a sample: a pure function of (seed, name, visit, purpose).

No draw reads or moves a global random state, and no draw knows the batch that it lands in, the thread, the device or
the draws before it. So a run goes on in another host, or with another batch size, with the same noise and the same t
for each visit of each picture.

The key of a draw is made of SHA-256 over these bytes, in this order:

    seed                8 bytes, little-endian, unsigned
    visit               8 bytes, little-endian, unsigned
    length of purpose   4 bytes, little-endian, unsigned
    purpose             UTF-8
    name                UTF-8, to the end (surrogates, which stand for undecodable bytes of a file name, pass)

The first 8 bytes of the digest, little-endian, without the highest bit, are the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def key(seed: int, name: str, visit: int, purpose: str) -> int:
    """The 63-bit key of one draw, in [0, 2^63). seed and visit in [0, 2^64)."""
    purpose_bytes = purpose.encode("utf-8")
    digest = hashlib.sha256(
        seed.to_bytes(8, "little")
        + visit.to_bytes(8, "little")
        + len(purpose_bytes).to_bytes(4, "little")
        + purpose_bytes
        + name.encode("utf-8", "surrogatepass")
    ).digest()
    return int.from_bytes(digest[:8], "little") & (2**63 - 1)


def uniform_stream(seed: int, name: str, visit: int, purpose: str) -> Callable[[], float]:
    """A function whose n-th call gives the n-th of a fixed sequence of uniform numbers in [0, 1).

    Number n is the top 53 bits of the first 8 bytes of SHA-256(key, n), both 8 bytes little-endian.
    """
    prefix = key(seed, name, visit, purpose).to_bytes(8, "little")
    count = 0

    def uniform() -> float:
        nonlocal count
        digest = hashlib.sha256(prefix + count.to_bytes(8, "little")).digest()
        count += 1
        return (int.from_bytes(digest[:8], "little") >> 11) * 2.0**-53

    return uniform


def permutation(length: int, seed: int, name: str, visit: int, purpose: str) -> np.ndarray:
    """A permutation of 0..length-1, int64: the order of `length` 64-bit numbers squeezed from SHAKE-256(key).

    Hashed rather than drawn from a library, because the libraries' permutations change between versions.
    """
    digest = hashlib.shake_256(key(seed, name, visit, purpose).to_bytes(8, "little")).digest(8 * length)
    return np.argsort(np.frombuffer(digest, dtype="<u8"), kind="stable")


def coin(seed: int, name: str, visit: int, purpose: str) -> bool:
    """A fair coin."""
    return key(seed, name, visit, purpose) < 2**62


def noise(seed: int, name: str, visit: int, shape: Sequence[int], purpose: str = "noise") -> Tensor:
    """Standard normal noise of this shape, float32, on the CPU.

    The CPU generator of torch reads the low 32 bits of its seed, so among 100,000 draws about one pair is equal.
    """
    generator = torch.Generator("cpu").manual_seed(key(seed, name, visit, purpose))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def position(seed: int, name: str, visit: int, strata: int, stratified: bool) -> float:
    """Where in the distribution of t this visit lies: u in (0, 1), to be turned into t by the inverse CDF.

    Stratified: each `strata` visits in a row form a block, and a block visits each of the equal parts
    (k / strata, (k + 1) / strata) once, in an order of its own for each picture and block. Otherwise u is uniform.
    """
    if stratified:
        block, place = divmod(visit, strata)
        stratum = int(permutation(strata, seed, name, block, "strata")[place])
    else:
        stratum, strata = 0, 1
    # 32 bits, off the edges by half a unit: the sum and the quotient then never round into the next stratum
    jitter = ((key(seed, name, visit, "position") >> 31) + 0.5) * 2.0**-32
    return (stratum + jitter) / strata
