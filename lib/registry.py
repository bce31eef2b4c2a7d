"""Registries: name -> class or function, found by importing a folder, with one wording for an unknown name.

A registry belongs to one module of the core. If that module is a package, each file in it is imported on the
first look-up, so adding a file is all it takes to add an entry.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def nearest(name: str, choices: Iterable[str]) -> str:
    """The sentence part that helps after a wrong name: the nearest choice, if one is near, and all choices."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.6)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    return f"{hint}choices: {', '.join(choices) or 'none'}"


class Registry:
    """Entries of one kind. `noun` is what an entry is called in messages; `module` is relative to the core."""

    def __init__(self, noun: str, module: str) -> None:
        self.noun = noun
        self.module = module
        self._entries: dict[str, object] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: register an entry under `name`. Errors: `ValueError` when the name is taken by another entry."""

        def add(entry: T) -> T:
            taken = self._entries.get(name)
            if taken is not None and getattr(taken, "__qualname__", taken) != getattr(entry, "__qualname__", entry):
                raise ValueError(f'{self.noun} "{name}" is registered twice: {taken!r} and {entry!r}')
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> object:
        """The entry called `name`. Errors: `ValueError` with the nearest name and all choices."""
        self._discover()
        if name not in self._entries:
            raise ValueError(f'unknown {self.noun} "{name}"; {nearest(name, self._entries)}')
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        self._discover()
        return tuple(sorted(self._entries))

    def _discover(self) -> None:
        if self._discovered:
            return
        module = importlib.import_module("." + self.module, __package__)
        for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
            importlib.import_module("." + info.name, module.__name__)
        self._discovered = True


ALGORITHMS = Registry("algorithm", "trainables")
OPTIMIZERS = Registry("optimizer", "optimizers")
CURVES = Registry("curve", "lr_schedule")
SPELLINGS = Registry("model family", "keys")

# The names that a config field's `choices` may use instead of a tuple.
BY_NAME = {"algorithms": ALGORITHMS, "optimizers": OPTIMIZERS, "curves": CURVES}
