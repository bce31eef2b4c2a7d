"""Between the page's form and the settings of a run: what the page is built from, and what was typed into it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...lib.config import RunConfig, from_dict, merge, to_dict
from ...lib.data.buckets import LATENT_STEP
from ...lib.data.scan import counts, scan
from ...lib.forms import form, values_to_config
from ...lib.run_folder import RunFolder
from .folders import picture_folder
from .model import loaded_now
from .strip import StripRequest

# this host keeps the model its own way
_NOT_HERE = ("loop.base_storage", "loop.cpu_blocks")
# of txt2img -> the settings of previews that say the same
_OF_PREVIEW = {"steps": "steps", "cfg_scale": "guidance", "width": "width", "height": "height"}
# what further fields of txt2img may be given; anything else of it is not part of a preview
FURTHER = (
    "sampler_name",
    "scheduler",
    "styles",
    "enable_hr",
    "hr_scale",
    "hr_upscaler",
    "hr_second_pass_steps",
    "hr_resize_x",
    "hr_resize_y",
    "denoising_strength",
)
PIXELS_PER_LATENT = 8


def groups() -> list[dict[str, Any]]:
    """The form's groups and widgets as JSON values, in order."""
    found = []
    for group in form(RunConfig):
        widgets = [asdict(w) for w in group.widgets if w.path not in _NOT_HERE]
        found.append({**asdict(group), "widgets": widgets})
    return found


def flat(config: RunConfig) -> dict[str, Any]:
    """Every setting by the path of its widget; rows of lists are numbered: `data.concepts[0].folder`."""
    return dict(_flat(to_dict(config), ""))


def config_of(values: dict[str, Any]) -> tuple[RunConfig, dict[str, Any] | None]:
    """The settings of a run from {"values": {path: value}, "txt2img": {...} or null}, its folders checked and absolute;
    and the further fields of txt2img for previews. Errors: `ValueError`."""
    given = values.get("values")
    if not isinstance(given, dict):
        raise ValueError('values must be a table of settings, such as {"loop.steps": 800}')
    config = values_to_config(given)
    concepts = tuple(
        {**to_dict(concept), "folder": str(picture_folder(concept.folder, f"data.concepts[{i}].folder"))}
        for i, concept in enumerate(config.data.concepts)
    )
    config = merge(config, {"data": {"concepts": list(concepts)}})
    fields = values.get("txt2img")
    return (config, None) if fields is None else as_txt2img(config, fields)


def as_txt2img(config: RunConfig, fields: dict[str, Any]) -> tuple[RunConfig, dict[str, Any]]:
    """`config` with previews like the fields of txt2img, and the fields that the settings do not hold.

    A seed of -1 stands for another picture each time, which shows nothing of the training: the previews' own seed
    stays. Errors: `ValueError`.
    """
    if not isinstance(fields, dict):
        raise ValueError("txt2img must be a table of its fields")
    prompt = str(fields.get("prompt") or "").strip()
    if not prompt:
        raise ValueError('previews are to be made "as txt2img", and its prompt is empty; write one there')
    preview: dict[str, Any] = {
        "prompts": [prompt],
        "negative_prompt": str(fields.get("negative_prompt") or ""),
    }
    for name, ours in _OF_PREVIEW.items():
        if fields.get(name) is not None:
            value = fields[name]
            preview[ours] = int(value) if ours != "guidance" and float(value).is_integer() else value
    seed = fields.get("seed")
    if isinstance(seed, (int, float)) and seed >= 0:
        preview["seed"] = int(seed)
    further = {name: fields[name] for name in FURTHER if fields.get(name) not in (None, "", [])}
    if not further.get("enable_hr"):
        further = {
            n: v for n, v in further.items() if not n.startswith("hr_") and n not in ("enable_hr", "denoising_strength")
        }
    for name in ("hr_second_pass_steps", "hr_resize_x", "hr_resize_y"):
        if name in further:
            further[name] = int(further[name])
    return merge(config, {"preview": preview}), further


def loose_config(values: dict[str, Any]) -> RunConfig:
    """The settings of {"values": ...}, a form that is being filled in: what cannot be read yet has its default."""
    given = values.get("values")
    config = RunConfig()
    for path, value in (given if isinstance(given, dict) else {}).items():
        with contextlib.suppress(ValueError):
            if "[" not in path:
                config = merge(config, _nested(path, _held(path, value)))
    return config


def _nested(path: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} of the path a.b."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def _held(path: str, value: Any) -> Any:
    """A value of a widget as the settings hold it. Errors: `ValueError`."""
    held: Any = to_dict(values_to_config({path: value}))
    for name in path.split("."):
        held = held[name]
    return held


def config_of_run(folder: Path) -> RunConfig:
    """The settings that a run has."""
    return from_dict(RunConfig, RunFolder.open(folder).description["config"])


def preflight(values: dict[str, Any]) -> dict[str, Any]:
    """What a run on these settings would meet: pictures, captions, buckets, steps. Nothing is loaded or encoded.

    Errors: `ValueError` naming the setting.
    """
    config, _ = config_of({**values, "txt2img": None})
    model = loaded_now()
    family = model["family"] if model else None
    found = scan(config.data, PIXELS_PER_LATENT * LATENT_STEP.get(family or "", 1))
    if not found.samples:
        raise ValueError("no picture was found that can be trained" + "".join(f"; {p}" for p in found.problems[:3]))
    loop = config.loop
    an_epoch = counts(found.samples, loop.batch_size, loop.accumulate, 1)
    num_steps = loop.steps if loop.steps is not None else an_epoch.by_buckets * (loop.epochs or 0)
    buckets: dict[tuple[int, int], int] = {}
    for sample in found.samples:
        buckets[sample.bucket] = buckets.get(sample.bucket, 0) + 1
    return {
        "num_pictures": len(found.samples),
        "num_without_caption": sum(not sample.caption.strip() for sample in found.samples),
        "buckets": [{"width": w, "height": h, "pictures": n} for (w, h), n in sorted(buckets.items())],
        "steps_per_epoch": an_epoch.by_buckets,
        "steps_by_formula": an_epoch.by_formula,
        "num_steps": num_steps,
        "epochs": round(num_steps / an_epoch.by_buckets, 2) if an_epoch.by_buckets else 0,
        "captions": [{"image": s.name, "caption": s.caption} for s in found.samples[:3]],
        "problems": [str(problem) for problem in found.problems],
        "family_known": family is not None,
    }


def strip_request(values: dict[str, Any]) -> StripRequest:
    """What the page asks a strip for. Errors: `ValueError`."""
    texts = {name: str(values.get(name) or "") for name in ("source", "negative_prompt", "sampler")}
    prompts = tuple(line.strip() for line in str(values.get("prompts") or "").splitlines() if line.strip())
    numbers = {}
    for name, default, kind in (
        ("every", 1, int),
        ("steps", 20, int),
        ("guidance", 7.0, float),
        ("width", 512, int),
        ("height", 512, int),
    ):
        value = values.get(name)
        numbers[name] = default if value in (None, "") else _number(name, value, kind)
    seeds = tuple(_numbers("seeds", values.get("seeds"), int)) or (1,)
    strengths = tuple(_numbers("strengths", values.get("strengths"), float)) or (1.0,)
    return StripRequest(**texts, prompts=prompts, seeds=seeds, strengths=strengths, **numbers)


def _numbers(name: str, text: Any, kind: type) -> list[Any]:
    parts = text if isinstance(text, list) else re.split(r"[,\s]+", str(text or ""))
    return [_number(name, part, kind) for part in parts if part != ""]


def _number(name: str, value: Any, kind: type) -> Any:
    try:
        number = kind(value)
    except (ValueError, TypeError, OverflowError):
        wanted = "whole numbers" if kind is int else "numbers"
        raise ValueError(f'{name} must be {wanted}, got "{value}"') from None
    if abs(number) > 2**63:
        raise ValueError(f"{name} is too large: {value}")
    return number


def _flat(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for k, v in value.items() for pair in _flat(v, f"{path}.{k}" if path else k)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [pair for i, v in enumerate(value) for pair in _flat(v, f"{path}[{i}]")]
    return [(path, value)]
