"""What holds for every test. Set before anything imports torch: one thread, no network, no screen.

Sums over several threads differ in their last bits from machine to machine, and tiny tensors are faster on one.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


# it trains whole demos: begun last, it would go on alone for minutes where several workers share the tests by file
LONGEST_FILE = "test_planted_failures.py"


def pytest_configure(config):
    """Files are given out in the order below, not those with the most tests first."""
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """The longest file first; every worker must have the same order."""
    items.sort(key=lambda item: item.path.name != LONGEST_FILE)


class FailingDisk:
    """Makes calls to the disk fail: the call number `at` and, where `lasting`, every later call of the same kind."""

    def __init__(self, monkeypatch):
        from sd_atelier.lib import files

        self.calls = []
        self.disarm()
        monkeypatch.setattr(files, "_sleep", lambda seconds: None)
        for name in ("_open", "_write", "_fsync", "_replace", "_close"):
            monkeypatch.setattr(files, name, self._wrapped(name, getattr(files, name)))

    def arm(self, at, code, *, lasting):
        self.calls, self.failed = [], None
        self._at, self._code, self._lasting = at, code, lasting

    def disarm(self):
        self.arm(-1, 0, lasting=False)

    def _wrapped(self, name, call):
        def wrapper(*args):
            number = len(self.calls)
            self.calls.append(name)
            if name == "_close":
                call(*args)
            if number == self._at or (self._lasting and name == self.failed):
                self.failed = name
                raise OSError(self._code, os.strerror(self._code))
            return None if name == "_close" else call(*args)

        return wrapper


@pytest.fixture
def failing_disk(monkeypatch):
    return FailingDisk(monkeypatch)
