"""What a curve is: the way from one rate to another.

A curve lives in a file of its own in this folder and registers itself; the grammar then knows its name. It is a frozen
dataclass whose fields are the numbers in its parentheses, `poly(2)`, so a curve without fields takes none.
"""

from __future__ import annotations

from typing import ClassVar


class Curve:
    """A formula. It is registered under lower-case letters and refuses unusable numbers with a `ValueError`."""

    # Whether rate() is `start` at progress 0 and goes to `stop` as progress goes to 1.
    continuous: ClassVar[bool] = True

    def check(self, start: float, stop: float) -> None:
        """Whether the formula can serve these rates, finite and >= 0. Errors: `ValueError` with the fix."""

    def rate(self, start: float, stop: float, progress: float) -> float:
        """The rate at `progress` in [0, 1], between `start` and `stop`.

        Both may be 0 even where `check` refuses that: the decay of a repeat can bring any rate down to 0.
        """
        raise NotImplementedError
