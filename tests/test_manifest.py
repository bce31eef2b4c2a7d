"""Manifests: every changed bit is found, and what JSON cannot hold is refused before it is lost."""

import errno
import os
import random

import pytest
from sd_atelier.lib import files
from sd_atelier.lib.manifest import DamagedError, check_json, read_manifest, write_manifest

VALUES = {"format": 1, "text": 'a "ü" \u2028 \udc80', "list": [1, 2.5e-7, None, True, [], {}], "inf": float("inf")}


def test_a_manifest_comes_back(tmp_path):
    write_manifest(tmp_path / "m.json", VALUES)
    assert read_manifest(tmp_path / "m.json", 1) == VALUES


def test_every_flipped_bit_and_every_cut_is_found(tmp_path):
    path = tmp_path / "m.json"
    write_manifest(path, VALUES)
    raw = path.read_bytes()
    for place in range(len(raw)):
        for bit in range(8):
            path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :])
            with pytest.raises(DamagedError, match=r"m\.json"):
                read_manifest(path, 1)
        path.write_bytes(raw[:place])
        with pytest.raises(DamagedError, match=r"m\.json"):
            read_manifest(path, 1)


def test_what_is_no_manifest_is_named(tmp_path):
    path = tmp_path / "m.json"
    generator = random.Random(0)
    others = [b"", b"null", b"[]", b"{}", b"1", b"[" * 100_000, b"\xff\xfe{", generator.randbytes(100)]
    for raw in others:
        path.write_bytes(raw)
        with pytest.raises(DamagedError, match=r"m\.json"):
            read_manifest(path, 1)
    with pytest.raises(DamagedError, match=r"n\.json is missing"):
        read_manifest(tmp_path / "n.json", 1)


def test_another_format_is_refused_as_such(tmp_path):
    write_manifest(tmp_path / "m.json", {**VALUES, "format": 2})
    with pytest.raises(DamagedError, match="has format 2; this version reads 1"):
        read_manifest(tmp_path / "m.json", 1)


def test_a_disk_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write_manifest(tmp_path / "m.json", VALUES)

    def broken(self):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(type(tmp_path), "read_bytes", broken)
    with pytest.raises(DamagedError, match=r"m\.json cannot be read: "):
        read_manifest(tmp_path / "m.json", 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {1: 2}}, "x.a must have texts as keys, got 1"),
        ({"a": [0, (1,)]}, r"x.a\[1\] must be a JSON value, got tuple"),
        ({"a": {"b": {3}}}, "x.a.b must be a JSON value, got set"),
        (b"x", "x must be a JSON value, got bytes"),
    ],
)
def test_values_that_json_would_change_are_refused_by_place(value, message):
    with pytest.raises(ValueError, match=message):
        check_json(value, "x")


def test_json_values_pass():
    check_json(VALUES, "x")
    assert files.json_bytes(VALUES)
