"""Durable files: whole or not at all, the same bytes for the same values, names that every system takes."""

import errno
import hashlib
import json
import os
import random
import stat
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from sd_atelier.lib import files

DTYPES = sorted(files._DTYPES, key=str)
CODES = (errno.ENOSPC, errno.EIO, errno.EACCES)


def parts(folder):
    return [p.name for p in folder.iterdir() if p.name.endswith(".part")]


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"x.{d}": (torch.rand(3, 5, generator=generator) * 100).to(d) for d in DTYPES}
    tensors["scalar"] = torch.tensor(2.5, dtype=torch.bfloat16)
    tensors["empty"] = torch.empty(0, 4)
    tensors["channels_last"] = torch.rand(2, 4, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    tensors["expanded"] = torch.rand(3, 1, generator=generator).expand(3, 4)
    tensors["trained"] = torch.nn.Parameter(torch.rand(3, generator=generator))
    with torch.inference_mode():
        tensors["inference"] = torch.rand(3, 2).T
    return tensors


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.detach().double(), b.double())


def test_a_written_file_holds_the_bytes_and_the_hash_is_theirs(tmp_path):
    data = os.urandom(3_000_001)
    digest = files.write_bytes(tmp_path / "a.bin", data, verify=True)
    assert (tmp_path / "a.bin").read_bytes() == data
    assert digest == hashlib.sha256(data).hexdigest() == files.sha256_of(tmp_path / "a.bin")
    assert parts(tmp_path) == []


def test_a_file_is_flushed_before_its_rename_and_the_folder_after(tmp_path, failing_disk):
    files.write_bytes(tmp_path / "a", b"x")
    assert failing_disk.calls == ["_open", "_write", "_fsync", "_close", "_replace", "_open", "_fsync", "_close"]


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("code", CODES)
def test_a_failure_at_any_call_leaves_the_old_file_or_the_whole_new_one(tmp_path, failing_disk, code, lasting):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": True})
    old = path.read_bytes()
    at, failed = 0, set()
    while True:
        failing_disk.arm(at, code, lasting=lasting)
        try:
            files.write_json(path, {"new": at}, verify=True)
            error = None
        except OSError as caught:
            error = caught
        if failing_disk.failed is None:
            break
        renamed = "_replace" in failing_disk.calls[:at]
        if error is None:
            # a rename that is refused once is tried again
            assert (failing_disk.failed, code, lasting) == ("_replace", errno.EACCES, False)
            renamed = True
        else:
            assert error.errno == code
            assert isinstance(error, files.DiskFullError) == (code == errno.ENOSPC)
        assert path.read_bytes() == (files.json_bytes({"new": at}) if renamed else old)
        assert parts(tmp_path) == []
        failed.add((failing_disk.failed, renamed))
        failing_disk.disarm()
        files.write_json(path, {"old": True})
        at += 1
    assert {name for name, _ in failed} == {"_open", "_write", "_fsync", "_replace", "_close"}


def test_short_writes_are_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_write", lambda descriptor, view: os.write(descriptor, view[:7]))
    files.write_bytes(tmp_path / "a", bytes(range(250)))
    assert (tmp_path / "a").read_bytes() == bytes(range(250))


def test_a_disk_that_gives_back_other_bytes_is_found_before_the_rename(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(files, "_write", lambda descriptor, view: os.write(descriptor, bytes(len(view))))
    with pytest.raises(OSError, match="other bytes") as caught:
        files.write_bytes(tmp_path / "a", b"new", verify=True)
    assert caught.value.errno == errno.EIO
    assert (tmp_path / "a").read_bytes() == b"old"
    assert parts(tmp_path) == []


def test_a_locked_name_is_tried_for_five_seconds_and_then_named(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(files, "_sleep", slept.append)

    def locked(part, path):
        raise PermissionError(errno.EACCES, "locked")

    monkeypatch.setattr(files, "_replace", locked)
    with pytest.raises(files.FileLockedError, match=r"a\.json"):
        files.write_json(tmp_path / "a.json", {})
    assert 5 <= sum(slept) < 6
    assert parts(tmp_path) == []


def test_a_lock_that_goes_away_costs_nothing_but_time(tmp_path, monkeypatch):
    refusals = iter([True] * 5 + [False] * 5)

    def replace(part, path):
        if next(refusals):
            raise PermissionError(errno.EACCES, "locked")
        os.replace(part, path)

    monkeypatch.setattr(files, "_replace", replace)
    monkeypatch.setattr(files, "_sleep", lambda seconds: None)
    files.write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file modes")
def test_the_mode_follows_the_umask(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            files.write_bytes(tmp_path / "a", b"x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_json_is_sorted_ends_lines_with_lf_and_comes_back(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"ü": "日本 \udc80"}}
    files.write_json(tmp_path / "a.json", value)
    raw = (tmp_path / "a.json").read_bytes()
    assert json.loads(raw) == value
    assert b"\r" not in raw and raw.endswith(b"}\n")
    assert raw == files.json_bytes(dict(reversed(value.items())))


def test_safetensors_of_every_dtype_shape_and_layout_come_back_through_the_library(tmp_path):
    tensors = some_tensors()
    digest = files.write_safetensors(tmp_path / "a.safetensors", tensors, {"b": "日本", "a": "1"})
    assert digest == files.sha256_of(tmp_path / "a.safetensors")
    for loaded in (load_file(tmp_path / "a.safetensors"), files.read_safetensors(tmp_path / "a.safetensors")[0]):
        assert loaded.keys() == tensors.keys()
        assert all(same(tensors[name], loaded[name]) for name in tensors)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"b": "日本", "a": "1"}
    assert files.read_safetensors(tmp_path / "a.safetensors")[1] == {"b": "日本", "a": "1"}


def test_every_tensor_lies_at_a_multiple_of_its_element_size(tmp_path):
    tensors = some_tensors()
    files.write_safetensors(tmp_path / "a.safetensors", tensors, {"odd": "x" * 13})
    raw = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0, name


def test_the_order_of_tensors_and_metadata_changes_no_byte(tmp_path):
    tensors, metadata = some_tensors(), {str(i): str(i) for i in range(9)}
    digest = files.write_safetensors(tmp_path / "a", tensors, metadata)
    backwards = dict(reversed(tensors.items())), dict(reversed(metadata.items()))
    assert files.write_safetensors(tmp_path / "b", *backwards) == digest


def test_no_tensors_are_a_file_too(tmp_path):
    files.write_safetensors(tmp_path / "a", {})
    assert load_file(tmp_path / "a") == {}
    assert files.read_safetensors(tmp_path / "a") == ({}, {})


def test_what_the_format_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r'"x" has dtype torch.complex64'):
        files.write_safetensors(tmp_path / "a", {"x": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(ValueError, match=r"metadata .* must be text, got 'rank': 4"):
        files.write_safetensors(tmp_path / "a", {}, {"rank": 4})
    assert list(tmp_path.iterdir()) == []


def test_read_tensors_do_not_depend_on_the_file_any_more(tmp_path):
    files.write_safetensors(tmp_path / "a", {"x": torch.arange(1000.0)})
    tensors, _ = files.read_safetensors(tmp_path / "a")
    with open(tmp_path / "a", "r+b") as file:
        file.write(bytes((tmp_path / "a").stat().st_size))
    assert torch.equal(tensors["x"], torch.arange(1000.0))


def test_a_file_that_is_no_safetensors_file_is_named(tmp_path):
    for data in (b"", b"hello", bytes(100), b"\xff" * 100):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(ValueError, match="is not a safetensors file"):
            files.read_safetensors(tmp_path / "a")


def test_a_picture_comes_back_and_its_suffix_decides(tmp_path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    files.write_image(tmp_path / "a.PNG", image)
    with Image.open(tmp_path / "a.PNG") as loaded:
        assert loaded.format == "PNG"
        assert np.array_equal(np.asarray(loaded), np.asarray(image))
    with pytest.raises(ValueError, match=r'must end in .*, got "a\.txt"'):
        files.write_image(tmp_path / "a.txt", image)


def test_append_cuts_what_stood_behind_and_keeps_what_stood_before(tmp_path):
    files.append_bytes(tmp_path / "a", b"one,", 0)
    files.append_bytes(tmp_path / "a", b"two,torn", 4)
    files.append_bytes(tmp_path / "a", b"three", 8)
    assert (tmp_path / "a").read_bytes() == b"one,two,three"
    files.append_bytes(tmp_path / "a", b"", 3)
    assert (tmp_path / "a").read_bytes() == b"one"


@pytest.mark.skipif(not files.NO_FOLLOW, reason="this system cannot refuse links")
def test_nothing_is_cut_through_a_link(tmp_path):
    (tmp_path / "precious").write_bytes(b"x")
    (tmp_path / "loss.csv").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"loss\.csv"):
        files.append_bytes(tmp_path / "loss.csv", b"", 0)
    assert (tmp_path / "precious").read_bytes() == b"x"


def test_folders_are_made_with_those_above_them(tmp_path, failing_disk):
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert failing_disk.calls.count("_fsync") == (0 if os.name == "nt" else 3)
    files.make_folder(tmp_path / "a" / "b")


def test_leftovers_of_dead_writers_go_and_those_of_live_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    live = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        kept = [f".atelier-{live.pid}-0a.part", "mine.part", f".atelier-{dead.pid}-0a.part.png"]
        gone = sorted([f".atelier-{dead.pid}-0a.part", f".atelier-{os.getpid()}-0b.part"])
        for name in kept + gone:
            (tmp_path / name).write_bytes(b"x")
        assert files.remove_leftovers(tmp_path) == gone
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)
    finally:
        live.communicate(b"\n")
    assert not files.process_runs(dead.pid)
    assert files.process_runs(os.getpid())


def test_a_leftover_that_is_a_link_stays(tmp_path):
    (tmp_path / "precious").write_bytes(b"x")
    (tmp_path / ".atelier-999999999-0a.part").symlink_to(tmp_path / "precious")
    assert files.remove_leftovers(tmp_path) == []


def test_a_write_in_progress_is_no_leftover(tmp_path, monkeypatch):
    found = []

    def write(descriptor, view):
        found.append(files.remove_leftovers(tmp_path))
        return os.write(descriptor, view)

    monkeypatch.setattr(files, "_write", write)
    files.write_bytes(tmp_path / "a", b"x")
    assert found == [[]]
    assert (tmp_path / "a").read_bytes() == b"x"


def test_free_bytes_of_a_folder_that_is_not_made_yet(tmp_path):
    assert files.free_bytes(tmp_path / "a" / "b") == pytest.approx(files.free_bytes(tmp_path), rel=0.5)
    assert files.free_bytes(tmp_path) > 0


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cat", "cat"),
        ("写真 été 🐈‍⬛", "写真 été 🐈‍⬛"),
        ("e\u0301", "é"),
        ("a/b\\c:d", "a_b_c_d"),
        ("..", "fallback"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("\\\\server\\share", "__server_share"),
        ("C:\\x", "C__x"),
        (".hidden", "hidden"),
        ("trailing. . ", "trailing"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("Com1 .png", "_Com1 .png"),
        ("LPT¹", "_LPT¹"),
        ("console", "console"),
        ("a\0b\n\x7f", "a_b__"),
        ("\u202egnp.exe", "_gnp.exe"),
        ("a\udc80b", "a_b"),
        ("", "fallback"),
        ("///", "fallback"),
        ("CON" + " " * 130 + "x", "_CON"),
    ],
)
def test_names_are_made_safe(text, name):
    assert files.safe_name(text, "fallback") == name


def test_any_text_gives_one_name_inside_the_folder(tmp_path):
    generator = random.Random(0)
    pieces = [
        *'/\\:*?"<>|.. \0\n\t~$%&',
        "..",
        "../",
        "..\\",
        "con",
        "NUL.",
        "aux.txt",
        "COM1",
        "日本",
        "é",
        "e\u0301",
        "🐈",
        "\u202e",
        "\udcff",
        "\ufeff",
        "a" * 60,
        "-",
        "'",
    ]
    for _ in range(20_000):
        text = "".join(generator.choice(pieces) for _ in range(generator.randint(0, 8)))
        name = files.safe_name(text, "fallback")
        assert 0 < len(name.encode()) <= files.MAX_NAME_BYTES
        assert not any(c in '<>:"/\\|?*' or unicodedata.category(c) in ("Cc", "Cs") for c in name)
        assert name == name.strip(". ") and name not in (".", "..")
        assert name.split(".")[0].rstrip().upper() not in files._RESERVED
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert files.safe_name(name, "fallback") == name
        (tmp_path / name).touch()
