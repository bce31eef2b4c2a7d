"""The same work on many pictures, in threads, with the results in order and little of it in memory at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_LARGE_PX = 40_000_000
_one_large = Lock()


def in_order(
    work: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int = 1
) -> Generator[_Result, None, None]:
    """`work` of each item, in the order of the items.

    As many threads as the machine has cores, at most 8; besides what they work on, `ahead` results a thread may wait.
    What `work` raises is raised at its place. Whoever stops early waits for what is under way and for nothing else.
    """
    num_threads = min(8, os.cpu_count() or 1)
    running: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="pictures") as pool:
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) >= (1 + ahead) * num_threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def room_for(size: tuple[int, int]) -> AbstractContextManager[object]:
    """To be held while a picture of (width, height) pixels is decoded: of large ones, one at a time.

    Decoding takes up to ten bytes a pixel, so several large ones at once could take all memory.
    """
    return _one_large if size[0] * size[1] > _LARGE_PX else nullcontext()
