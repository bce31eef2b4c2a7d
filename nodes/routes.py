"""HTTP routes: the list of runs, what a page may ask of one, the curve of a schedule, the gallery of a data set. The
package says the answers.

Whatever changes something is a POST with a JSON body from the server's own page.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from ..lib.data.thumbnails import MIME
from . import curve, gallery, paths
from .live import RUNS, WHAT

MAX_BODY_BYTES = 100_000


class Refused(Exception):
    """A request that is answered by an error: status and sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def same_origin(headers: Any, host: str) -> bool:
    """Whether a browser says that a page of this server asks; programs that are no browsers say nothing."""
    if headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("Origin")
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


def add_routes(routes: Any) -> None:
    """Add them to ComfyUI's route table."""
    from aiohttp import web

    def answering(handler: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        async def answered(request: Any) -> Any:
            try:
                answer = await handler(request)
                return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)
            except Refused as refusal:
                return web.json_response({"error": str(refusal)}, status=refusal.status)
            except (ValueError, OSError) as error:
                return web.json_response({"error": str(error)}, status=400)

        return answered

    async def runs(request: Any) -> Any:
        return {"live": [run.about() for run in RUNS.all()], "runs": paths.run_names()}

    async def one_run(request: Any) -> Any:
        return _found(request.match_info["run"]).history()

    async def ask(request: Any) -> Any:
        await _posted(request)
        run, what = _found(request.match_info["run"]), request.match_info["what"]
        if what not in WHAT:
            raise Refused(404, f"a run can be asked to {', '.join(WHAT)}; got {what[:40]!r}")
        if run.ended:
            raise Refused(409, f"that run has ended: {run.state}")
        return {"run": run.id, "state": run.ask(what)}

    async def schedule(request: Any) -> Any:
        asked = await _posted(request)
        # a schedule may be long; the loop of the server has other things to do meanwhile
        return await asyncio.get_running_loop().run_in_executor(None, curve.answer, asked)

    async def of_gallery(request: Any) -> Any:
        asked, what = await _posted(request), request.match_info["what"]
        if what not in gallery.ANSWERS:
            raise Refused(404, f"a gallery can be asked for {', '.join(gallery.ANSWERS)}; got {what[:40]!r}")
        return await asyncio.get_running_loop().run_in_executor(None, gallery.ANSWERS[what], asked)

    async def thumbnail(request: Any) -> Any:
        if not same_origin(request.headers, request.host):
            raise Refused(403, "only the server's own page may ask this")
        made = await asyncio.get_running_loop().run_in_executor(None, gallery.thumbnail, request.query)
        # the page puts the version of the file into the address
        headers = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
        return web.Response(body=made, content_type=MIME, headers=headers)

    routes.get("/atelier/gallery/thumbnail")(answering(thumbnail))
    routes.post("/atelier/gallery/{what}")(answering(of_gallery))
    routes.get("/atelier/runs")(answering(runs))
    routes.get("/atelier/runs/{run}")(answering(one_run))
    routes.post("/atelier/runs/{run}/{what}")(answering(ask))
    routes.post("/atelier/schedule")(answering(schedule))


def _found(name: str) -> Any:
    run = RUNS.find(name)
    if run is None:
        raise Refused(404, "there is no such run since the server began")
    return run


async def _posted(request: Any) -> dict[str, Any]:
    """The JSON object that a page of this server posted. Errors: `Refused`."""
    if request.content_type != "application/json":
        raise Refused(403, "send JSON with Content-Type: application/json")
    if not same_origin(request.headers, request.host):
        raise Refused(403, "only the server's own page may ask this")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise Refused(400, f"the request has more than {MAX_BODY_BYTES} bytes")
    try:
        body = json.loads(await request.text() or "{}")
    except ValueError:
        raise Refused(400, "the request is not JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "the request must be a JSON object")
    return body
