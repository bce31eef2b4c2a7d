"""Forms: settings turned into neutral widget specs, and what was typed into them turned back into settings.

Every user interface is built from these specs, so a setting that is declared once in the configuration has the same
range, help and default everywhere. A path is dotted (`trainable.rank`); a list of tables is a repeated group, whose
widgets have paths such as `data.concepts[].folder` and whose values are named `data.concepts[0].folder`.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .config import RunConfig, choices_of, from_dict

KINDS = ("checkbox", "dropdown", "folder", "integer", "list", "number", "schedule", "slider", "text")

# Words that a sentence-cased field name would misspell.
_WORDS = {"ema": "EMA", "snr": "SNR"}
_KEY = re.compile(r"[^.\[\]]+|\[\d+\]")
_PATH = re.compile(r"[^.\[\]]+(\[\d{1,9}\])?(\.[^.\[\]]+(\[\d{1,9}\])?)*")


@dataclass(frozen=True, kw_only=True)
class Widget:
    """One setting as a user meets it. `kind` is one of `KINDS`."""

    path: str  # dotted; the key of its value in `values_to_config`
    label: str
    kind: str
    default: Any  # None only where `optional`
    help: str
    min: float | None = None  # inclusive; of the items where kind is list
    max: float | None = None
    step: float | None = None  # of a slider or an integer
    choices: tuple[Any, ...] | None = None
    item: str = ""  # what a list holds: text or integer
    optional: bool = False  # may be left empty, which means None
    families: tuple[str, ...] | None = None  # model families it concerns; None is all
    advanced: bool = False
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Widgets that belong together; `repeated` means a list of rows, each of which has all these widgets."""

    path: str  # "" is the top of the tree
    label: str
    help: str
    widgets: tuple[Widget, ...]
    repeated: bool = False
    advanced: bool = False


def form(cls: type = RunConfig) -> tuple[Group, ...]:
    """The settings of a configuration class as groups, in the order of their declaration."""
    return tuple(_groups(cls, "", "Run", (cls.__doc__ or "").strip(), repeated=False, advanced=False))


def visible(widgets: Iterable[Widget], family: str) -> tuple[Widget, ...]:
    """The widgets that concern a model family. A setting for "sd" concerns its numbered versions, sd1 and sd2."""
    return tuple(w for w in widgets if w.families is None or any(_covers(name, family) for name in w.families))


def values_to_config(values: dict[str, Any], cls: type = RunConfig) -> Any:
    """The configuration that values by path describe; what is absent has its default.

    Forgives what widgets do to values: 16.0 for a whole number, an empty text for an optional setting, lines or commas
    for a list. Errors: `ValueError` naming the setting, as `config.from_dict`; also where two values contradict.
    """
    widgets = {w.path: w for g in form(cls) for w in g.widgets}
    tree: dict[str | int, Any] = {}
    for path, value in values.items():
        widget = widgets.get(re.sub(r"\[\d+\]", "[]", path))
        _put(tree, path, _forgiven(widget, value) if widget else value)
    return from_dict(cls, _with_lists(tree))


def _groups(cls: type, path: str, label: str, help: str, *, repeated: bool, advanced: bool) -> Iterable[Group]:
    hints = typing.get_type_hints(cls)
    inner, widgets = [], []
    for field in dataclasses.fields(cls):
        where = f"{path}.{field.name}" if path else field.name
        kind, optional = _without_none(hints[field.name])
        is_tuple = typing.get_origin(kind) is tuple
        item = typing.get_args(kind)[0] if is_tuple else kind
        if dataclasses.is_dataclass(item):
            about = {"help": field.metadata["help"], "advanced": bool(field.metadata.get("advanced", False))}
            where += "[]" if is_tuple else ""
            inner += _groups(typing.cast(type, item), where, _label(field.name), repeated=is_tuple, **about)
        else:
            widgets.append(_widget(field, where, item, is_tuple, optional))
    if widgets:
        yield Group(path=path, label=label, help=help, widgets=tuple(widgets), repeated=repeated, advanced=advanced)
    yield from inner


def _widget(field: dataclasses.Field, path: str, item: type, is_tuple: bool, optional: bool) -> Widget:
    about = field.metadata
    default = field.default_factory() if callable(field.default_factory) else field.default
    choices = choices_of(field)
    low, high = about.get("min"), about.get("max")
    kind, step = about.get("kind"), None
    if kind is None:
        kind, step = _kind(item, default, choices, low, high)
    return Widget(
        path=path,
        label=_label(field.name, about.get("unit", "")),
        kind="list" if is_tuple else kind,
        default=default,
        help=about["help"],
        min=low,
        max=high,
        step=step,
        choices=choices,
        item=("integer" if item is int else "text") if is_tuple else "",
        optional=optional,
        families=about.get("families"),
        advanced=about.get("advanced", False),
        unit=about.get("unit", ""),
    )


def _kind(item: type, default: Any, choices: Any, low: Any, high: Any) -> tuple[str, float | None]:
    """Kind and step where the declaration names no kind."""
    if choices is not None:
        return "dropdown", None
    if item is bool:
        return "checkbox", None
    if item is str:
        return "text", None
    if low is None or high is None or default is None:
        return ("integer", 1) if item is int else ("number", None)
    if item is int:
        return ("slider" if high - low <= 100 else "integer"), 1
    # A slider in hundredths is honest only where both ends and the default are hundredths: 1e-8 or 0.9999 are not.
    hundredths = all(abs(v * 100 - round(v * 100)) < 1e-9 for v in (low, high, default))
    return ("slider", 0.01) if hundredths and high - low <= 1 else ("number", None)


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(k for k in typing.get_args(kind) if k is not type(None)), True
    return kind, False


def _label(name: str, unit: str = "") -> str:
    words = [_WORDS.get(w, w) for w in name.split("_")]
    if unit and len(words) > 1 and words[-1] == unit:  # the unit is shown beside the widget
        words.pop()
    text = " ".join(words)
    # t is a quantity with a small name
    return text if words[0] == "t" else text[0].upper() + text[1:]


def _covers(name: str, family: str) -> bool:
    return family == name or (family.startswith(name) and family[len(name) :].isdigit())


def _forgiven(widget: Widget, value: Any) -> Any:
    if widget.optional and isinstance(value, str) and not value.strip():
        return None
    if widget.kind == "list":
        if isinstance(value, str):
            parts = re.split(r"[\n,]" if widget.item == "integer" else r"\n", value)
            value = [p.strip() for p in parts if p.strip()]
            if widget.item == "integer":
                value = [int(p) if re.fullmatch(r"[+-]?\d{1,18}", p) else p for p in value]
        return [_whole(v) for v in value] if widget.item == "integer" and isinstance(value, (list, tuple)) else value
    # A slider of whole numbers has the step 1; widgets hand such values over as floats.
    return _whole(value) if widget.step == 1 else value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _put(tree: dict[str | int, Any], path: str, value: Any) -> None:
    """Set `a.b[0].c` in nested tables; the rows of a list are keys that are whole numbers."""
    if not _PATH.fullmatch(path):
        raise ValueError(f'"{path}" is not the path of a setting, such as trainable.rank or data.concepts[0].folder')
    *outer, last = (int(k[1:-1]) if k.startswith("[") else k for k in _KEY.findall(path))
    for key in outer:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            break
    if not isinstance(tree, dict) or last in tree:
        raise ValueError(f'"{path}" cannot be set together with the other values: one of them sets the whole of it')
    tree[last] = value


def _with_lists(value: Any, path: str = "") -> Any:
    """Tables whose keys are row numbers, turned into lists."""
    if not isinstance(value, dict):
        return value
    rows = sorted(k for k in value if isinstance(k, int))
    if not rows:
        return {k: _with_lists(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()}
    if rows != list(range(len(value))):
        raise ValueError(f"{path} must have rows from 0 on without a gap, got {', '.join(map(str, value))}")
    return [_with_lists(value[row], f"{path}[{row}]") for row in rows]
