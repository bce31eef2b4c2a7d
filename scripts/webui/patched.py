"""Setting attributes of the host's objects for a while, and putting them back in every case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()


@contextmanager
def patched(target: Any, **values: Any) -> Iterator[None]:
    """Set attributes of a module, class or instance, inside. What the object itself did not have is removed again."""
    before = {name: vars(target).get(name, _ABSENT) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                delattr(target, name)
            else:
                setattr(target, name, value)


class Overlay:
    """An object seen through some values of our own; everything else is the object's."""

    def __init__(self, below: Any, **values: Any) -> None:
        self.__dict__["_below"], self.__dict__["_values"] = below, values

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__["_values"]
        return values[name] if name in values else getattr(self.__dict__["_below"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_below"], name, value)
