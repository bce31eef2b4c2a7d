"""The owner of a folder: one at a time, in one process or several, and nobody after a kill."""

import json
import os
import subprocess
import sys
import threading

import pytest
from sd_atelier.lib.files import NO_FOLLOW
from sd_atelier.lib.owner import LOCK_NAME, FolderInUseError, owner_of

HOLD = """
import sys
from sd_atelier.lib.owner import owner_of
with owner_of(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""

RACE = """
import sys
from sd_atelier.lib.owner import FolderInUseError, owner_of
print("ready", flush=True)
sys.stdin.readline()
try:
    with owner_of(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.readline()
except FolderInUseError:
    print("refused", flush=True)
"""


def started(code, folder):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_another_process_is_refused_by_name_until_the_owner_ends(tmp_path):
    child = started(HOLD, tmp_path)
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError, match=f"in use by process {child.pid} on .* since "), owner_of(tmp_path):
            pass
    finally:
        child.communicate("\n")
    with owner_of(tmp_path):
        pass


def test_a_killed_owner_is_no_owner(tmp_path):
    child = started(HOLD, tmp_path)
    assert child.stdout.readline() == "held\n"
    child.kill()
    child.communicate()
    assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == child.pid
    with owner_of(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_of_several_that_start_together_one_becomes_the_owner(tmp_path):
    children = [started(RACE, tmp_path) for _ in range(4)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    answers = sorted(child.stdout.readline() for child in children)
    for child in children:
        child.communicate("\n")
    assert answers == ["held\n", "refused\n", "refused\n", "refused\n"]


def test_a_thread_of_the_same_process_is_refused_too(tmp_path):
    errors = []

    def second():
        try:
            with owner_of(tmp_path):
                pass
        except FolderInUseError as error:
            errors.append(str(error))

    with owner_of(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(errors) == 1 and f"process {os.getpid()}" in errors[0]


def test_ownership_ends_with_an_error_inside(tmp_path):
    with pytest.raises(RuntimeError, match="inside"), owner_of(tmp_path):
        raise RuntimeError("inside")
    with owner_of(tmp_path):
        pass


def test_a_record_of_another_machine_is_believed_and_says_what_to_delete(tmp_path):
    record = {"pid": 1, "host": "elsewhere", "machine": "another boot", "since": "yesterday"}
    (tmp_path / LOCK_NAME).write_text(json.dumps(record))
    with pytest.raises(FolderInUseError, match=rf"process 1 on elsewhere .* delete .*{LOCK_NAME}"), owner_of(tmp_path):
        pass
    (tmp_path / LOCK_NAME).unlink()
    with owner_of(tmp_path):
        pass


def test_a_record_that_is_no_record_hinders_nobody(tmp_path):
    for content in (b"", b"{", b"[1]", b"\xff\xfe", b"null", b"x" * 10_000):
        (tmp_path / LOCK_NAME).write_bytes(content)
        with owner_of(tmp_path):
            pass


@pytest.mark.skipif(not NO_FOLLOW, reason="this system cannot refuse links")
def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_bytes(b"x")
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=LOCK_NAME), owner_of(tmp_path):
        pass
    assert (tmp_path / "precious").read_bytes() == b"x"


@pytest.mark.skipif(os.name == "nt", reason="made to fail through fcntl")
def test_a_disk_without_locks_is_refused_by_name(tmp_path, monkeypatch):
    import errno
    import fcntl

    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match="cannot be locked"), owner_of(tmp_path):
        pass
