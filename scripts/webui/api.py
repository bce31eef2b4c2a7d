"""Our routes on the host's own server, below /atelier/v1: what the page and other programs ask and change.

GET changes nothing. What changes something is a POST of JSON from the page's own origin. An error that a user can do
something about is answered as {"error": sentence}.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from ...lib.config import RunConfig
from ...lib.report import write_report
from . import catalogue, data_set, data_work, looking, page_values, publish, runs, saved_presets, strip
from .access import RefusedError, check_access, check_change
from .curves import curve
from .fields import Picture, jpeg, number, png, text, whole
from .folders import is_local, settings_file
from .model import loaded_now, memory_mb

ROOT = "/atelier/v1"
# a page may show a picture and do nothing with it
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=86400"}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"

Handler = Callable[[dict[str, Any]], Any]


def key() -> str:
    """What the page sends with each request: new at each start, and the same over *Reload UI*."""
    return runs.registry().wrapped.setdefault("key", secrets.token_urlsafe(24))


def add_routes(app: Any) -> None:
    """Put our routes on the host's server."""
    for name, handler in GET.items():
        app.add_route(f"{ROOT}/{name}", _endpoint(app, handler, changes=False), methods=["GET"])
    for name, handler in POST.items():
        app.add_route(f"{ROOT}/{name}", _endpoint(app, handler, changes=True), methods=["POST"])


def _status(values: dict[str, Any]) -> Any:
    live, model = runs.live_run(), loaded_now()
    return {
        "model": model,
        "memory_mb": memory_mb(),
        "local": is_local(),
        "runs_folder": str(runs.default_parent()),
        "settings_file": str(settings_file()),
        "live": live.id if live else None,
        "runs": [_of_run(run) for run in runs.all_runs()[-20:]],
        "strips": [{"id": s.id, "title": s.title, "live": s.is_live, "key": s.key} for s in strip.strips()],
    }


def _of_run(run: runs.Run) -> dict[str, Any]:
    status = run.status()
    folder = status["folder"]
    status["key"] = catalogue.key_of(Path(folder)) if folder else None
    status["has_previews"] = bool(run.config.preview.prompts)
    return status


def _form(values: dict[str, Any]) -> Any:
    return {"groups": page_values.groups(), "defaults": page_values.flat(RunConfig())}


def _start(values: dict[str, Any]) -> Any:
    config, fields = page_values.config_of(values)
    return _of_run(runs.start(config, txt2img=fields))


def _resume(values: dict[str, Any]) -> Any:
    return _of_run(runs.resume(catalogue.folder_of(text(values, "run"))))


def _branch(values: dict[str, Any]) -> Any:
    folder, step = catalogue.folder_of(text(values, "run")), values.get("step")
    config = page_values.config_of_run(folder)
    factor = number(values, "factor", 1.0)
    changes: dict[str, Any] = {"rate": {"factor": config.rate.factor * factor}}
    if values.get("steps"):
        changes["loop"] = {"steps": whole(values, "steps"), "epochs": None}
    if values.get("name"):
        changes["name"] = text(values, "name")
    return _of_run(runs.fork(folder, None if step is None else whole(values, "step"), changes))


def _asked(what: str) -> Handler:
    def ask(values: dict[str, Any]) -> Any:
        run = runs.find(text(values, "id")) if values.get("id") else runs.live_run()
        if run is None:
            raise ValueError("there is no such run in this program; resume it from the list of runs")
        if not run.is_live:
            raise ValueError(f"{run.title} has ended")
        getattr(run, what)()
        return _of_run(run)

    return ask


def _report(values: dict[str, Any]) -> Any:
    path = catalogue.folder_of(text(values, "run")) / "report.html"
    if not path.is_file():
        raise ValueError("this run has no report yet; POST to the same address writes it")
    headers = {**_HEADERS, "Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}
    return Response(path.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)


def _write_report(values: dict[str, Any]) -> Any:
    return {"file": str(write_report(catalogue.folder_of(text(values, "run"))))}


def _publish(values: dict[str, Any]) -> Any:
    folder, step = catalogue.folder_of(text(values, "run")), values.get("step")
    published = publish.publish(folder, None if step is None else whole(values, "step"), str(values.get("name") or ""))
    publish.refresh_menu()
    return {"file": published.path.name, "prompt": published.prompt, "trigger": published.trigger}


def _schedule(values: dict[str, Any]) -> Any:
    steps, per_epoch = whole(values, "steps"), values.get("steps_per_epoch")
    if steps < 1:
        raise ValueError("loop.steps must be at least 1 before the curve can be drawn")
    return curve(
        text(values, "schedule"),
        steps,
        int(per_epoch) if per_epoch else None,
        bool(values.get("stop_at_end")),
        max(0, int(values.get("save_every") or 0)),
        number(values, "factor", 1.0),
    )


def _presets(values: dict[str, Any]) -> Any:
    family = str(values.get("family") or "")
    return {"presets": saved_presets.names(family), "default": saved_presets.default_name(family, memory_mb() or 0)}


def _preset(values: dict[str, Any]) -> Any:
    """What a preset would change, and the values with it."""
    name, kind = text(values, "name"), text(values, "kind")
    config = page_values.loose_config(values)
    return {
        "changes": saved_presets.what_changes(name, kind, config),
        "values": page_values.flat(saved_presets.applied(name, kind, config)),
    }


def _save_preset(values: dict[str, Any]) -> Any:
    return {"name": saved_presets.save(text(values, "name"), page_values.loose_config(values))}


def _remove_preset(values: dict[str, Any]) -> Any:
    saved_presets.remove(text(values, "name"))
    return {}


def _runs(values: dict[str, Any]) -> Any:
    live = [run.folder for run in runs.all_runs() if run.is_live and run.folder is not None]
    return {"runs": catalogue.run_list(live)}


def _run_values(values: dict[str, Any]) -> Any:
    """The settings of a run, for the form."""
    return {"values": page_values.flat(page_values.config_of_run(catalogue.folder_of(text(values, "run"))))}


def _picture(values: dict[str, Any]) -> Any:
    path = catalogue.picture_file(text(values, "run"), text(values, "name"))
    return png(path) if not values.get("small") else jpeg(catalogue.thumbnail(path))


def _trained(values: dict[str, Any]) -> Any:
    return jpeg(catalogue.thumbnail(catalogue.trained_picture(text(values, "run"), text(values, "image"))))


def _make_strip(values: dict[str, Any]) -> Any:
    return strip.start(page_values.strip_request(values)).status()


def _stop_strip(values: dict[str, Any]) -> Any:
    found = strip.find(text(values, "id"))
    found.control.stop()
    return found.status()


def _strip_picture(values: dict[str, Any]) -> Any:
    found = strip.find(text(values, "id"))
    return png(found.page_file(text(values, "page")) if values.get("page") else found.cell_file(text(values, "cell")))


GET: dict[str, Handler] = {
    "status": _status,
    "form": _form,
    "runs": _runs,
    "run": lambda values: catalogue.details(text(values, "run")),
    "run_values": _run_values,
    "chart": lambda values: catalogue.chart(catalogue.folder_of(text(values, "run"))),
    "previews": lambda values: {"previews": catalogue.previews(catalogue.folder_of(text(values, "run")))},
    "picture": _picture,
    "trained": _trained,
    "report": _report,
    "presets": _presets,
    "strip": lambda values: strip.find(text(values, "id")).status(),
    "strip_picture": _strip_picture,
    "data_words": data_set.words,
    "data_thumbnail": data_set.thumbnail,
    "data_cut": data_set.cut,
    "data_job": data_work.status,
}
POST: dict[str, Handler] = {
    "start": _start,
    "resume": _resume,
    "branch": _branch,
    "stop": _asked("stop"),
    "save": _asked("save"),
    "sample": _asked("sample"),
    "pause": _asked("pause"),
    "go_on": _asked("go_on"),
    "check": lambda values: page_values.preflight(values),
    "schedule": _schedule,
    "preset": _preset,
    "save_preset": _save_preset,
    "remove_preset": _remove_preset,
    "publish": _publish,
    "report": _write_report,
    "strip": _make_strip,
    "stop_strip": _stop_strip,
    "data_open": data_set.open_folder,
    "data_page": data_set.page,
    "data_plan": data_set.plan,
    "data_apply": data_set.apply,
    "data_save": data_set.save,
    "data_undo": data_set.undo,
    "data_buckets": data_set.buckets,
    "data_check": data_work.check,
    "data_prepare": data_work.prepare,
    "data_caption": looking.caption,
    "data_score": looking.score,
    "data_stop": data_work.stop,
}


def _endpoint(app: Any, handler: Handler, changes: bool) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        from modules import shared

        try:
            has_login = bool(getattr(app, "auth", None))
            check_access(request.headers, key(), shared.cmd_opts, has_login)
            if changes:
                check_change(request.headers)
                values = _table(await request.body())
            else:
                values = dict(request.query_params)
            answer = await run_in_threadpool(handler, values)
        except RefusedError as error:
            headers = {"WWW-Authenticate": "Basic"} if error.status == 401 and shared.cmd_opts.api_auth else None
            return _json({"error": str(error)}, error.status, headers)
        except (ValueError, OSError) as error:
            return _json({"error": str(error)}, 422)
        if isinstance(answer, Picture):
            return Response(answer.data, media_type=answer.mime, headers=_HEADERS)
        return answer if isinstance(answer, Response) else _json(answer)

    return endpoint


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    written = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    # a file's name may hold what is no text
    data = written.encode("utf-8", "backslashreplace")
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})}
    return Response(data, status, headers, media_type="application/json")


def _plain(value: Any) -> Any:
    """JSON has no nan and no infinity: null stands for both."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body or b"{}", parse_constant=_no_number)
    except ValueError as error:
        raise ValueError(f"this is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError("send a JSON object")
    return values


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
