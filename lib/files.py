"""Durable files: a file is there whole, under its name, or not at all.

Each write goes to a temporary name in the same folder, is flushed to the disk, read back where that matters, renamed,
and made durable by flushing the folder. Whatever fails, only the temporary file is removed. Packages that write such
files either write in place or never flush, so a kill or a power loss can cost what they called saved.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

RENAME_PATIENCE_SECONDS = 5.0
MAX_NAME_BYTES = 120
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # a run folder from elsewhere may hold links to anything

# Every call that can fail because of the disk goes through one of these, so that tests can make each of them fail.
_open = os.open
_write = os.write
_close = os.close
_replace = os.replace
_sleep = time.sleep

_PART = re.compile(r"\.atelier-(\d+)-[0-9a-f]+\.part")
_parts_in_flight: set[str] = set()
_BINARY = getattr(os, "O_BINARY", 0)
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

# As the format names them. Those that torch 2.1 has.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class DiskFullError(OSError):
    """There is no room. Every file is what it was or the whole new one; the write can be tried again."""

    def __init__(self, folder: Path, needed_bytes: int | None = None) -> None:
        needed = "" if needed_bytes is None else f"{needed_bytes / 1e6:.1f} MB are needed, "
        super().__init__(
            errno.ENOSPC,
            f"the disk is full: {needed}{free_bytes(folder) / 1e6:.1f} MB are free; make room there, then go on",
            str(folder),
        )


class FileLockedError(PermissionError):
    """Another program held the file for the whole of `RENAME_PATIENCE_SECONDS`."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            errno.EACCES,
            "another program holds this file, or it may not be replaced; close that program or write elsewhere",
            str(path),
        )


def write_bytes(path: Path | str, data: bytes, *, verify: bool = False) -> str:
    """Write a file durably and return its SHA-256. `verify` reads it back from the disk before it gets its name.

    Errors: `DiskFullError`; `FileLockedError` when the name could not be taken in 5 s; `OSError`. After each of them
    the file that had the name is as it was (after a failed flush of the folder it may be the new one, whole).
    """
    return write_chunks(Path(path), [data], verify)


def append_bytes(path: Path | str, data: bytes, at: int) -> None:
    """Make a file hold `data` from byte `at` to its end, durably; the file is made where it is missing.

    Errors: `DiskFullError`; `OSError`, also where the file is a link: nothing is cut through one. What stood before
    `at` is as it was, and the same call can be tried again.
    """
    path = Path(path)
    try:
        descriptor = _open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW | _BINARY, 0o666)
        try:
            os.ftruncate(descriptor, at)
            os.lseek(descriptor, at, os.SEEK_SET)
            _write_all(descriptor, data)
            _fsync(descriptor)
        finally:
            _close(descriptor)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(path.parent) from error
        raise
    if at == 0:
        flush_folder(path.parent)


def json_bytes(value: Any) -> bytes:
    """JSON as `write_json` writes it: sorted keys, indented, LF, UTF-8."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def write_json(path: Path | str, value: Any, *, verify: bool = False) -> str:
    """Write JSON durably, keys sorted. Returns and raises as `write_bytes`."""
    return write_bytes(path, json_bytes(value), verify=verify)


def write_image(path: Path | str, image: Image.Image, **options: Any) -> str:
    """Write a picture durably; the suffix says the format, `options` are Pillow's.

    Returns and raises as `write_bytes`; also `ValueError` for an unknown suffix.
    """
    image_format = Image.registered_extensions().get(Path(path).suffix.lower())
    if image_format is None:
        raise ValueError(f'the name of a picture must end in .png, .jpg or .webp, got "{Path(path).name}"')
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return write_bytes(path, buffer.getvalue())


def write_safetensors(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, verify: bool = True
) -> str:
    """Write a safetensors file durably, one tensor at a time, so that no second copy of them all is in memory.

    The bytes depend on names, values and metadata only, never on their order. Returns and raises as `write_bytes`.
    Errors also: `ValueError` for metadata that is not text and for a dtype that the format lacks.
    """
    return write_chunks(Path(path), _safetensors_chunks(tensors, metadata or {}), verify)


def read_safetensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU) and metadata of a safetensors file, in memory of their own: the file need not stay.

    Errors: `ValueError` when it is not such a file; `OSError`.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            # get_tensor gives a view of the mapped file, and Windows neither renames nor deletes a file that is mapped
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or it is cut off: {error}") from error


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def make_folder(path: Path | str) -> None:
    """Make a folder and those above it where they are missing, durably."""
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable, on systems where a folder can be flushed."""
    if os.name == "nt":
        return
    try:
        descriptor = _open(folder, os.O_RDONLY)
        try:
            _fsync(descriptor)
        finally:
            _close(descriptor)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(folder) from error
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise


def remove_leftovers(folder: Path | str) -> list[str]:
    """Remove the temporary files that writers which no longer run left in a folder; their names, sorted."""
    removed = []
    for path in sorted(Path(folder).iterdir()):
        match = _PART.fullmatch(path.name)
        if match is None or path.name in _parts_in_flight or path.is_symlink() or not path.is_file():
            continue
        pid = int(match[1])
        if pid == os.getpid() or not process_runs(pid):
            with contextlib.suppress(PermissionError):  # held by a program that looks at it: gone the next time
                path.unlink(missing_ok=True)
                removed.append(path.name)
    return removed


def process_runs(pid: int) -> bool:
    """Whether a process of this machine has that number."""
    if sys.platform == "win32":
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p
        handle = kernel.OpenProcess(0x1000, False, ctypes.c_ulong(pid))  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return ctypes.get_last_error() == 5  # ERROR_ACCESS_DENIED: it is there, but not ours
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
        kernel.CloseHandle(ctypes.c_void_p(handle))
        return code.value == 259  # STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def free_bytes(folder: Path | str) -> int:
    """Bytes that this user can still write in a folder, or where it would be made."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


_FORBIDDEN = set('<>:"/\\|?*')
# These make a name look other than it is: direction marks, line and paragraph separators.
_INVISIBLE = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ufeff")
_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {p + d for p in ("COM", "LPT") for d in "0123456789¹²³"}


def safe_name(text: str, fallback: str) -> str:
    """A file name, without folders, that every system takes; `fallback` where nothing of `text` is left.

    Letters of every script stay. Replaced by `_`: control characters, slashes and what Windows forbids. Names that
    Windows reserves get a `_` in front, and at most 120 bytes of UTF-8 remain.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(
        "_" if c in _FORBIDDEN or c in _INVISIBLE or unicodedata.category(c) in ("Cc", "Cs") else c for c in text
    )
    text = _cut(text)
    if text.split(".")[0].rstrip(" ").upper() in _RESERVED:
        text = _cut("_" + text)
    return text if text.strip("._ ") else fallback


def _cut(text: str) -> str:
    return text.strip(". ").encode()[:MAX_NAME_BYTES].decode(errors="ignore").rstrip(". ")


def _fsync(descriptor: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync there does not empty the drive's own cache
    else:
        os.fsync(descriptor)


def _write_all(descriptor: int, data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[_write(descriptor, view) :]  # the system may take less than all of it


def write_chunks(path: Path | str, chunks: Iterable[Any], verify: bool = False) -> str:
    """Write what `chunks` gives, one after the other, durably. Returns and raises as `write_bytes`."""
    path = Path(path)
    digest = hashlib.sha256()
    # independent of the final name, which may already be as long as the file system allows
    part = path.with_name(f".atelier-{os.getpid()}-{secrets.token_hex(6)}.part")
    _parts_in_flight.add(part.name)
    try:
        descriptor = _open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        try:
            for chunk in chunks:
                digest.update(chunk)
                _write_all(descriptor, chunk)
            _fsync(descriptor)
            if verify and hasattr(os, "posix_fadvise"):  # or the check would read memory instead of the disk
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            _close(descriptor)
        if verify and sha256_of(part) != digest.hexdigest():
            raise OSError(errno.EIO, "the disk gives back other bytes than were written; use another disk", str(path))
        _rename(part, path)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(path.parent) from error
        raise
    finally:
        # one that cannot be removed now must not hide why the write failed; `remove_leftovers` finds it later
        with contextlib.suppress(OSError):
            part.unlink()
        _parts_in_flight.discard(part.name)
    flush_folder(path.parent)
    return digest.hexdigest()


def _rename(part: Path, path: Path) -> None:
    # On Windows, and on shares of a Windows machine, a virus scanner or a viewer blocks the rename for a moment.
    waited, pause = 0.0, 0.01
    while True:
        try:
            return _replace(part, path)
        except PermissionError as error:
            if waited >= RENAME_PATIENCE_SECONDS:
                raise FileLockedError(path) from error
        _sleep(pause)
        waited, pause = waited + pause, min(2 * pause, 0.5)


def _safetensors_chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[Any]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata of a safetensors file must be text, got {key!r}: {value!r}")
    # Wide dtypes first: readers view each tensor in place, which needs its start aligned to its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise ValueError(f'tensor "{name}" has dtype {tensor.dtype}, which safetensors files cannot hold')
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        if tensors[name].numel():
            yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
