"""Presets as the page offers them: those of the pack for the loaded family, and those that the user saved as files."""

from __future__ import annotations

import json
from typing import Any

from ...lib import presets
from ...lib.config import RunConfig, difference, from_dict, merge, to_dict
from ...lib.files import safe_name, write_json
from .folders import presets_folder

FORMAT = 1
# what belongs to one run and to no preset
_OF_THE_RUN = {"name": None, "data": ("concepts",), "preview": ("prompts", "negative_prompt")}


def names(family: str) -> list[dict[str, str]]:
    """`name` and `kind` ("pack" or "user") of each preset that can be chosen, and which one is `default`."""
    of_pack = [p.name for p in presets.names(family)] if family in presets.families() else []
    own = sorted(path.stem for path in presets_folder().glob("*.json"))
    return [{"name": n, "kind": "pack"} for n in of_pack] + [{"name": n, "kind": "user"} for n in own]


def default_name(family: str, memory_mb: float) -> str | None:
    """The pack's preset for this device; None for a family without one."""
    return presets.default(family, memory_mb).name if family in presets.families() else None


def applied(name: str, kind: str, config: RunConfig) -> RunConfig:
    """`config` with a preset in it: data, names and prompts stay. Errors: `ValueError`."""
    if kind == "pack":
        parts = [part.strip() for part in name.split(",")]
        if len(parts) != 3:
            raise ValueError(f'there is no preset "{name}"; refresh the list')
        return presets.preset(*parts).apply(config)
    return merge(config, _without_run(_read(name)))


def what_changes(name: str, kind: str, config: RunConfig) -> list[str]:
    """What the preset would change, one line each: `trainable.rank: 16 -> 8`."""
    return difference(config, applied(name, kind, config))


def save(name: str, config: RunConfig) -> str:
    """Save the settings as a preset of the user, over one of the same name; the name that it has."""
    stem = safe_name(name.strip(), "preset")
    values = {"format": FORMAT, "settings": _without_run(to_dict(config))}
    write_json(presets_folder() / f"{stem}.json", values)
    return stem


def remove(name: str) -> None:
    """Remove a preset of the user. Errors: `ValueError` where there is none."""
    path = presets_folder() / f"{safe_name(name, 'preset')}.json"
    if not path.is_file():
        raise ValueError(f'there is no preset "{name}"')
    path.unlink()


def _read(name: str) -> dict[str, Any]:
    path = presets_folder() / f"{safe_name(name, 'preset')}.json"
    if not path.is_file():
        raise ValueError(f'there is no preset "{name}"; refresh the list')
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("settings"), dict):
        raise ValueError(f"{path} is not a preset that this version can read")
    from_dict(RunConfig, values["settings"])
    return values["settings"]


def _without_run(values: dict[str, Any]) -> dict[str, Any]:
    out = dict(values)
    for section, own in _OF_THE_RUN.items():
        if own is None:
            out.pop(section, None)
        elif isinstance(out.get(section), dict):
            out[section] = {name: value for name, value in out[section].items() if name not in own}
    return out
