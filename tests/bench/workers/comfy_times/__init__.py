"""A node pack for `comfy_strip.py`, without nodes: when ComfyUI samples and decodes, to the millisecond.

GET /bench/times: of each sampling (its loop alone, without what comes before it) and each decoding since the last time
that they were asked for, its begin and end in seconds and the processor time that it took; and the processor time that
the server has taken in all.
"""

import functools
import time

import comfy.samplers
import comfy.sd
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
TIMES = {"sampling": [], "decoding": []}


def timed(kind, function):
    """The function, which notes when it began and ended."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        began, before = time.monotonic(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            TIMES[kind].append((began, time.monotonic(), time.process_time() - before))

    return wrapper


comfy.samplers.KSAMPLER.sample = timed("sampling", comfy.samplers.KSAMPLER.sample)
comfy.sd.VAE.decode = timed("decoding", comfy.sd.VAE.decode)


@PromptServer.instance.routes.get("/bench/times")
async def times(request):
    """What was noted, which is then forgotten."""
    found = {kind: list(entries) for kind, entries in TIMES.items()} | {"processor": time.process_time()}
    for entries in TIMES.values():
        entries.clear()
    return web.json_response(found)
