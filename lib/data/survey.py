"""One look at every pixel of a data set: what cannot be decoded, what is changed on the way, what shows the same.

Each picture is decoded once, in threads, and nothing of it is kept but its hashes, so that memory grows by some
hundred bytes a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..files import sha256_of
from .duplicates import LEAST_PX, Duplicates, find, perceptual_hash
from .headers import PictureError, named_faults
from .pictures import decode, on_white
from .pool import in_order, room_for
from .sample import Sample
from .scan import Problem


@dataclass(frozen=True)
class Survey:
    """What was found in the pictures, in their order."""

    problems: tuple[Problem, ...]  # an "error" for each that must be left out, a "note" for what is changed
    duplicates: tuple[Duplicates, ...]
    stopped: bool  # before all were looked at


def survey(
    samples: Iterable[Sample],
    max_megapixels: float,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Survey:
    """Look at every picture once. Before each `stopped()` is asked; `on_progress(done, total)` follows each.

    Both are called from the calling thread. A picture that several concepts have is looked at once.
    """
    sizes = {sample.path: sample.size for sample in samples}

    def look(path: Path) -> tuple[list[Problem], int, str]:
        try:
            with room_for(sizes[path]), named_faults(path):
                # a JPEG is read to its end also where it is decoded smaller
                image, _, notes = on_white(*decode(path, max_megapixels, LEAST_PX))
                return [Problem(path, note, "note") for note in notes], perceptual_hash(image), sha256_of(path)
        except PictureError as error:
            return [Problem(path, error.reason, "error", error.kind)], 0, ""

    problems: list[Problem] = []
    hash_of: dict[Path, int] = {}
    content_of: dict[Path, str] = {}
    done = 0
    with closing(in_order(look, sizes, ahead=3)) as results:
        for path in sizes:
            if stopped():
                break
            found, value, content = next(results)
            problems += found
            if value:
                hash_of[path] = value
            if content:
                content_of[path] = content
            done += 1
            if on_progress:
                on_progress(done, len(sizes))
    return Survey(tuple(problems), tuple(find(hash_of, content_of)), done < len(sizes))
