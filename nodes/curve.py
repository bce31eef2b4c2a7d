"""The curve of a learning-rate schedule as points, for a browser that draws it while it is typed."""

from __future__ import annotations

from typing import Any

from ..lib.lr_schedule import ResolvedSchedule, parse
from ..lib.lr_schedule.parser import ScheduleError

MAX_POINTS = 400


def points(schedule: ResolvedSchedule, factor: float = 1.0) -> list[list[float]]:
    """[step, rate] along the run: both ends of every piece, and between them as many as there is room for."""
    last = schedule.num_steps
    pieces = [piece for piece in schedule.pieces if piece.first < last]
    room = max(0, MAX_POINTS - 2 * len(pieces)) // max(1, len(pieces))
    found: list[list[float]] = []
    for piece in pieces[: MAX_POINTS // 2]:
        end = min(piece.end, last)
        bends = piece.start != piece.stop
        steps = {piece.first, end} | (_between(piece.first, end, room) if bends else set())
        found += [[step, factor * piece.rate(step)] for step in sorted(steps)]
    return found


def _between(first: int, end: int, num: int) -> set[int]:
    return {first + round((end - first) * i / (num + 1)) for i in range(1, num + 1)}


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """What POST /atelier/schedule answers, see the package. Errors: `ValueError` for a question that is none."""
    steps, per_epoch = asked.get("steps", 1000), asked.get("steps_per_epoch")
    factor, stop_at_end = asked.get("factor", 1.0), asked.get("stop_at_end", False)
    texts = {name: asked.get(name, "") for name in ("schedule", "text_encoder")}
    for name, value, kind in (
        *((name, text, str) for name, text in texts.items()),
        ("steps", steps, int),
        ("steps_per_epoch", per_epoch if per_epoch is not None else 1, int),
        ("factor", factor, (int, float)),
        ("stop_at_end", stop_at_end, bool),
    ):
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{name} is {str(value)[:40]!r}, which is of the wrong kind")
    found: dict[str, Any] = {}
    for name, text in texts.items():
        if name == "text_encoder" and not text.strip():
            continue
        try:
            resolved = parse(text).resolve(steps, per_epoch or max(1, steps // 10), stop_at_end)
        except ValueError as error:
            column = error.column if isinstance(error, ScheduleError) else None
            return {"error": {"message": str(error), "column": column, "setting": name}}
        curve = points(resolved, factor)
        about = {
            "points": curve,
            "highest": max(rate for _, rate in curve),
            "cycle_ends": list(resolved.cycle_ends),
            "num_steps": resolved.num_steps,
            "notes": list(resolved.notes),
        }
        found = about if name == "schedule" else found | {"text_encoder": about}
    return found
