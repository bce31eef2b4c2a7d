"""The owner of a folder: one program at a time writes in it.

The lock is the operating system's, on an open file: it ends with the process that holds it, however that ends, so it is
never stale and nothing has to be taken over. What the file says only names the holder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .files import NO_FOLLOW

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_NAME = ".owner"
_MAX_RECORD_BYTES = 4096
_LOCKED_BYTE = 1 << 20  # Windows keeps others from reading what is locked; the record stands before it
_HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class FolderInUseError(ValueError):
    """Another program, or another run of this one, owns the folder."""


@contextmanager
def owner_of(folder: Path | str) -> Iterator[None]:
    """Own a folder while the block runs. Threads and processes exclude each other alike.

    Errors: `FolderInUseError` naming the holder; `ValueError` on a file system without locks; `OSError`.
    """
    path = Path(folder) / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW | getattr(os, "O_BINARY", 0), 0o666)
    try:
        if not _lock(descriptor, path):
            raise FolderInUseError(f"{folder} is in use by {_shown(_read(descriptor))}; stop that run, or wait for it")
        left = _read(descriptor)
        if left and left.get("machine") != _machine() and left.get("host") != platform.node():
            # not all network file systems lock between machines, so the record has to be believed
            raise FolderInUseError(
                f"{folder} is in use by {_shown(left)}, another machine; if that program has ended, delete {path}"
            )
        _record(descriptor, {"pid": os.getpid(), "host": platform.node(), "machine": _machine(), "since": _now()})
        try:
            yield
        finally:
            # the lock counts, not the record: a full disk must not hide what happened inside
            with contextlib.suppress(OSError):
                _record(descriptor, {})
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise ValueError(
            f"{path.parent} cannot be locked ({error.strerror}), so two programs could write in it; use another disk"
        ) from error
    return True


def _read(descriptor: int) -> dict[str, Any]:
    """What the holder wrote; empty where it has not, or not yet."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        record = json.loads(os.read(descriptor, _MAX_RECORD_BYTES))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _record(descriptor: int, record: dict[str, Any]) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(record).encode())


def _shown(record: dict[str, Any]) -> str:
    if not record:
        return "another program"
    return f"process {record.get('pid')} on {record.get('host')} since {record.get('since')}"


def _machine() -> str:
    """Names this boot of this machine: containers on it have host names of their own but share its locks."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else platform.node()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
