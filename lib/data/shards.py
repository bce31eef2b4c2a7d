"""Tensors on disk under keys, in a folder of safetensors shards that are never changed once written.

A shard's file name holds the SHA-256 of its bytes, so there is no index that could be lost or out of step: a shard is
used only when its bytes still have that hash, whatever a crash, a full disk or bit rot did to it, and several runs may
use one folder at once. Neither writing nor reading ever holds more than one shard's worth of tensors.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from .. import files

MAX_SHARD_BYTES = 32 * 2**20
MAX_SHARD_ENTRIES = 512
MAX_OPEN = 8


class Shards:
    """Entries: key -> tensors by name, and facts (JSON values). A context manager that writes what is pending at exit.

    `kind` starts the file names, so that several kinds may share a folder. Safe to read from several threads.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._kind = kind
        self._paths: list[Path] = []
        self._place: dict[str, int] = {}  # key -> index into _paths
        self._facts: dict[str, str] = {}  # key -> JSON, which is a fifth of the size of the values in memory
        self._pending: dict[str, dict[str, Tensor]] = {}
        # All that is pending lies in one block: small tensors that stay, among the large ones that come and go while
        # pictures are encoded, would leave holes in the heap that nothing fits into, gigabytes in all.
        self._buffer: Tensor | None = None
        self._used_bytes = 0
        self._open: OrderedDict[int, tuple[Any, dict[str, list[str]]]] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.flush()

    def __contains__(self, key: object) -> bool:
        return key in self._facts

    def find(self, keys: Iterable[str]) -> list[Path]:
        """Look for these keys in the folder. Returns the damaged shards, if some keys were then not found."""
        missing = set(keys) - self._facts.keys()
        damaged = []
        for path in sorted(self._folder.glob(f"{self._kind}-*.safetensors")):
            if not missing:
                break
            if path.name != self._file_name(files.sha256_of(path)):
                damaged.append(path)
                continue
            with safe_open(str(path), framework="pt") as shard:
                facts = json.loads(shard.metadata()["facts"])
            found = missing & facts.keys()
            if found:
                self._place.update(dict.fromkeys(found, len(self._paths)))
                self._facts.update({key: facts[key] for key in found})
                self._paths.append(path)
                missing -= found
        return damaged if missing else []

    def add(self, key: str, tensors: dict[str, Tensor], facts: dict[str, Any] | None = None) -> None:
        """Add an entry; on disk after the next `flush`. Tensors are copied. Errors: `OSError` from a full shard."""
        num_bytes = sum(_padded_bytes(t) for t in tensors.values())
        if self._used_bytes + num_bytes > MAX_SHARD_BYTES or len(self._pending) >= MAX_SHARD_ENTRIES:
            self.flush()
        if self._buffer is None:
            self._buffer = torch.empty(max(MAX_SHARD_BYTES, num_bytes), dtype=torch.uint8)
        self._pending[key] = {name: self._copied(tensor) for name, tensor in tensors.items()}
        self._facts[key] = json.dumps(facts or {})

    def flush(self) -> None:
        """Write what was added since the last time, durably. Errors: `OSError`; what is pending then stays pending."""
        if not self._pending:
            return
        tensors = {f"{key}/{name}": t for key, entry in self._pending.items() for name, t in entry.items()}
        # one metadata value: safetensors writes several in no particular order, and equal shards must have equal bytes
        facts = json.dumps({key: self._facts[key] for key in self._pending})
        data = safetensors.torch.save(tensors, {"facts": facts})
        path = self._folder / self._file_name(hashlib.sha256(data).hexdigest())
        files.make_folder(self._folder)
        files.write_bytes(path, data)
        with self._lock:
            self._place.update(dict.fromkeys(self._pending, len(self._paths)))
            self._paths.append(path)
            self._pending, self._buffer, self._used_bytes = {}, None, 0

    def facts(self, key: str) -> dict[str, Any]:
        """The facts given with an entry. Errors: `KeyError`."""
        return json.loads(self._facts[key])

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of an entry, copied. Errors: `KeyError`, `OSError`."""
        with self._lock:
            if key in self._pending:
                return {name: tensor.clone() for name, tensor in self._pending[key].items()}
            shard, names = self._opened(self._place[key])
            # a tensor of an open shard is a view of the mapped file; only a copy lets go of it
            return {name: shard.get_tensor(f"{key}/{name}").clone() for name in names[key]}

    def _copied(self, tensor: Tensor) -> Tensor:
        assert self._buffer is not None
        start, self._used_bytes = self._used_bytes, self._used_bytes + _padded_bytes(tensor)
        place = self._buffer[start : start + tensor.numel() * tensor.element_size()]
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())

    def _opened(self, index: int) -> tuple[Any, dict[str, list[str]]]:
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        shard = safe_open(str(self._paths[index]), framework="pt")
        names: dict[str, list[str]] = {}
        for full in shard.keys():  # noqa: SIM118
            key, _, name = full.rpartition("/")
            names.setdefault(key, []).append(name)
        self._open[index] = shard, names
        if len(self._open) > MAX_OPEN:
            _, (oldest, _) = self._open.popitem(last=False)
            oldest.__exit__(None, None, None)
        return shard, names

    def _file_name(self, digest: str) -> str:
        return f"{self._kind}-{digest[:32]}.safetensors"


def _padded_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, up to where one of any dtype may start."""
    return -(-tensor.numel() * tensor.element_size() // 16) * 16
