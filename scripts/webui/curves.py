"""A learning-rate schedule as the page draws it: the curve, and its value at each checkpoint."""

from __future__ import annotations

from typing import Any

from ...lib.lr_schedule import ResolvedSchedule, ScheduleError, parse

NUM_POINTS = 240
MAX_SHOWN = 12


def curve(
    text: str, num_steps: int, steps_per_epoch: int | None, stop_at_end: bool, save_every: int, factor: float = 1.0
) -> dict[str, Any]:
    """JSON values: `points` (step, rate), `checkpoints` (step, rate), `notes`, or `error` with its `column`."""
    try:
        resolved = parse(text).resolve(num_steps, steps_per_epoch, stop_at_end)
    except ScheduleError as error:
        return {"error": _without_place(str(error)), "column": error.column}
    except ValueError as error:
        return {"error": str(error), "column": None}
    rate = [(step, factor * resolved.rate(step)) for step in _places(resolved)]
    saved = range(save_every, resolved.num_steps + 1, save_every) if save_every else range(0)
    chosen = list(saved)[:: max(1, -(-len(saved) // MAX_SHOWN))]
    return {
        "points": rate,
        "num_steps": resolved.num_steps,
        "checkpoints": [(step, factor * resolved.rate(step - 1)) for step in chosen],
        "cycle_ends": list(resolved.cycle_ends[:MAX_SHOWN]),
        "notes": list(resolved.notes),
    }


def _places(resolved: ResolvedSchedule) -> list[int]:
    """Steps to draw: even ones, and both sides of each edge between pieces."""
    last = resolved.num_steps - 1
    even = {round(i * last / (NUM_POINTS - 1)) for i in range(NUM_POINTS)}
    edges = {s for piece in resolved.pieces[:NUM_POINTS] for s in (piece.first - 1, piece.first) if 0 <= s <= last}
    return sorted(even | edges | {last})


def _without_place(message: str) -> str:
    # the page points at the place itself
    _, _, rest = message.partition("learning-rate schedule, ")
    return rest or message
