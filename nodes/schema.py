"""Settings -> widgets of ComfyUI, and what they hold -> settings. A setting's default, range, help and choices are
those of its declaration in lib/config.py; nothing is said twice.

An input is named after its setting: `trainable.rank` is `rank`; where that would be ambiguous, after its group too:
`save.every_steps` is `save_every_steps`. A setting that may be left empty is a number here too, since ComfyUI has no
empty one: the number below its range (0 or -1) means empty.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from ..lib.config import RunConfig
from ..lib.forms import Widget, form, values_to_config

# Keywords that a supported ComfyUI may not know yet, with the version that brought them. They only make things nicer.
NEWER = {
    "advanced": "0.10",
    "search_aliases": "0.11",
    "essentials_category": "0.15",
    "has_intermediate_output": "0.19",
}
_GROUPED = ("save", "preview", "record", "probe")  # groups whose settings are named after their group too


def supported(kind: Any, *args: Any, **keywords: Any) -> Any:
    """`kind(*args, **keywords)` without those of `NEWER` that this ComfyUI does not take."""
    known = inspect.signature(kind).parameters
    return kind(*args, **{k: v for k, v in keywords.items() if k in known or k not in NEWER})


def schema(node_id: str, display_name: str, description: str, **keywords: Any) -> Any:
    """The schema of one of our nodes."""
    from comfy_api.latest import io

    return supported(
        io.Schema,
        node_id=node_id,
        display_name=display_name,
        description=description,
        **{"category": "Atelier", **keywords},
    )


def socket(io_type: str) -> Any:
    """A socket of our own, such as ATELIER_RUN, or one of core's that has no class in every version."""
    from comfy_api.latest import io

    return io.Custom(io_type)


def input_name(path: str) -> str:
    """The name of the input of a setting."""
    group, _, name = path.rpartition(".")
    group = group.removesuffix("[]").rpartition(".")[2]
    return f"{group}_{name}" if group in _GROUPED and not name.startswith(group) else name


def settings_of(group: str) -> list[str]:
    """The paths of all settings of a group, such as "objective"."""
    return [widget.path for widget in _widgets().values() if widget.path.rpartition(".")[0] == group]


def inputs(paths: Iterable[str], **changes: Mapping[str, Any]) -> list[Any]:
    """An input for each setting. `changes`: input name -> keywords in place of those of the declaration."""
    widgets = _widgets()
    return [_input(widgets[path], changes.get(input_name(path), {})) for path in paths]


def inputs_of(cls: type, names: Iterable[str] | None = None, **changes: Mapping[str, Any]) -> list[Any]:
    """An input for each setting of a configuration class of its own, or for those named; as `inputs`."""
    widgets = [widget for group in form(cls) for widget in group.widgets]
    return [_input(w, changes.get(w.path, {})) for w in widgets if names is None or w.path in names]


def values(paths: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> value of the inputs that were given, as `forms.values_to_config` takes them; empty ones are left out."""
    widgets, found = _widgets(), {}
    for path in paths:
        name = input_name(path)
        if name in given and not (widgets[path].optional and given[name] == _empty(widgets[path])):
            found[path] = given[name]
    return found


def nested(values_by_path: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path as a tree, checked as a whole configuration is. Errors: `ValueError` naming the setting."""
    values_to_config(dict(values_by_path))
    widgets = _widgets()
    tree: dict[str, Any] = {}
    for path, value in values_by_path.items():
        *groups, name = path.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = _lines(value) if widgets[path].kind == "list" and isinstance(value, str) else value
    return tree


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _widgets() -> dict[str, Widget]:
    return {widget.path: widget for group in form(RunConfig) for widget in group.widgets}


def _empty(widget: Widget) -> Any:
    """What an input holds that means: left empty."""
    if widget.kind in ("integer", "number", "slider"):
        return 0 if (widget.min or 0) >= 1 else -1
    return ""


def _input(widget: Widget, changes: Mapping[str, Any]) -> Any:
    from comfy_api.latest import io

    help = widget.help
    if widget.optional and widget.kind in ("integer", "number", "slider"):
        help = (
            help.replace("empty:", f"{_empty(widget)}:") if "empty:" in help else f"{help}; {_empty(widget)}: not set"
        )
    if widget.families:
        help += f" ({', '.join(widget.families)} only)"
    about: dict[str, Any] = {
        "display_name": widget.label,
        "tooltip": help,
        "default": widget.default,
        "advanced": True if widget.advanced else None,
    }
    if widget.optional:
        about["default"] = _empty(widget)
    kind: Any
    if widget.kind == "checkbox":
        kind = io.Boolean.Input
    elif widget.kind == "dropdown":
        kind = io.Combo.Input
        about["options"] = list(widget.choices or ())
    elif widget.kind in ("integer", "number", "slider"):
        low = _empty(widget) if widget.optional else widget.min
        about |= {"min": low, "max": widget.max}
        whole = widget.step == 1
        kind = io.Int.Input if whole else io.Float.Input
        if whole:
            # ComfyUI would draw a new one for each run, and each run would be another
            about |= {"control_after_generate": False} if widget.path == "loop.seed" else {}
        else:
            # a learning rate's factor or an epsilon has more digits than ComfyUI's own rounding keeps
            about |= {"step": widget.step or _step(widget), "round": False}
    else:
        kind = io.String.Input
        about["multiline"] = widget.kind == "list"
        if widget.kind == "list":
            about["default"] = "\n".join(map(str, widget.default))
    return supported(kind, input_name(widget.path), **{**about, **changes})


def _step(widget: Widget) -> float:
    """What one click on an arrow changes: a hundredth of what the default is about."""
    default = widget.default or 1.0
    return 10.0 ** max(-8, min(0, len(str(int(abs(default)))) - 3)) if abs(default) >= 0.01 else abs(default)
