"""The settings of Train LoRA: its widgets, and the configuration that they, the option nodes and a preset come to.

A preset says what nothing else says. It is chosen by the model's family, by what is to be learned and by memory; the
option nodes replace it group by group, and the widgets of the train node setting by setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..lib import presets
from ..lib.config import RunConfig, merge, to_dict
from .schema import input_name, inputs, nested, supported, values
from .sockets import Dataset

AUTO, PRESET, ON, OFF = "auto", "as the preset", "on", "off"
CONTINUE, NEW, FORK = "continue", "new", "fork"
NUM_CHECKPOINTS = 8  # of a run whose length is given and whose intervals are not

# Settings that the train node shows, and what each widget holds that means: as the preset says.
_LENGTH = {"loop.steps": 0, "loop.epochs": 0}
_MAIN: dict[str, Any] = {
    "data.resolution": 0,
    "loop.batch_size": 0,
    "save.every_steps": -1,
    "preview.every_steps": -1,
}
_PLAIN = ["preview.prompts", "loop.seed"]
_ADVANCED: dict[str, Any] = {"loop.accumulate": 0, "record.probe_every_steps": -1, "preview.guidance": -1.0}
_ADVANCED_PLAIN = [
    "record.probe_images",
    "record.probe_timesteps",
    "preview.negative_prompt",
    "preview.steps",
    "preview.seed",
    "preview.width",
    "preview.height",
    "save.every_epochs",
    "save.at_cycle_ends",
    "save.keep_last",
    "save.dtype",
    "loop.compute_dtype",
    "loop.ema_decay",
    "loop.deterministic",
    "data.bucket_step",
    "data.max_token_chunks",
]
_INTERVALS = ("every_steps", "every_epochs", "at_cycle_ends", "keep_last")  # of save.*: what changes no number
_EVERY = ("save.every_steps", "preview.every_steps", "record.probe_every_steps")


def _memories() -> list[str]:
    classes = {memory for family in presets.families() for memory in presets.memories(family)}
    return [AUTO, *sorted(classes, key=_gigabytes)]


def _gigabytes(memory: str) -> int:
    return int(memory.split()[0])


def widgets() -> list[Any]:
    """The widgets of the train node."""
    from comfy_api.latest import io

    def of_preset(paths: Mapping[str, Any], **more: Any) -> list[Any]:
        changes, other = {}, "the other or the preset decides"
        for path, sentinel in paths.items():
            help = next(iter(inputs([path]))).tooltip.split("; 0: not set")[0]
            changes[input_name(path)] = {
                "default": sentinel,
                "min": sentinel,
                "tooltip": f"{help}; {sentinel:g}: {other if path in _LENGTH else PRESET + ' says'}",
                **more,
            }
        return inputs(paths, **changes)

    late = {"advanced": True}
    return [
        io.String.Input("name", display_name="Run name", default="my-lora", tooltip="name of the run and of its files"),
        io.Combo.Input(
            "purpose",
            display_name="Learn a",
            options=list(presets.PURPOSES),
            tooltip="what is to be learned; decides steps, rank and rate where nothing else says them",
        ),
        io.Combo.Input(
            "memory",
            display_name="Memory",
            options=_memories(),
            tooltip="memory of the card that the preset is for; auto: that of this machine",
        ),
        *of_preset(_LENGTH),
        *of_preset(_MAIN),
        *inputs(_PLAIN, preview_prompts={"placeholder": "one prompt a line, one picture each"}),
        io.Combo.Input(
            "resume",
            display_name="Queued again",
            options=[CONTINUE, NEW, FORK],
            tooltip="continue: a run of this name with the same settings and data goes on where it stopped, or gives "
            "its result at once; anything changed begins a new folder. new: always from step 0. fork: a new run from a "
            "checkpoint of the connected run, with what is set here",
        ),
        supported(
            io.Combo.Input,
            "block_checkpointing",
            display_name="Block checkpointing",
            options=[PRESET, ON, OFF],
            tooltip=inputs(["loop.block_checkpointing"])[0].tooltip,
            **late,
        ),
        *of_preset(_ADVANCED, **late),
        *inputs(_ADVANCED_PLAIN, **{input_name(path): late for path in _ADVANCED_PLAIN}),
    ]


def preset_for(family: str, memory: str, memory_mb: float, purpose: str) -> presets.Preset:
    """The preset of a family for a class of memory, or for a device with `memory_mb` MiB where that is "auto"."""
    return presets.default(family, memory_mb if memory == AUTO else _gigabytes(memory) * 1024.0, purpose)


def config_from(
    preset: presets.Preset,
    dataset: Dataset,
    given: Mapping[str, Any],
    options: Sequence[Mapping[str, Any] | None],
) -> RunConfig:
    """The configuration of a run. `given`: the widgets' values; `options`: what the option nodes give.

    Errors: `ValueError` naming the setting.
    """
    config = preset.apply(RunConfig())
    for option in options:
        config = merge(config, dict(option or {}))
    data: dict[str, Any] = {"concepts": [to_dict(concept) for concept in dataset.concepts], **dataset.settings}
    if dataset.given is not None:
        data.setdefault("caption_dropout", 0.0)
    config = merge(config, {"name": given["name"], "data": data})
    config = merge(config, nested(_chosen(config, given)))
    warm_up, _, rest = config.rate.schedule.partition(", ")
    if warm_up.endswith(":10%") and (config.loop.steps or 10) < 5 and config.rate == preset.apply(RunConfig()).rate:
        # a tenth of so few steps is none, which a schedule that somebody wrote is refused for
        config = merge(config, {"rate": {"schedule": rest}})
    return config


def _chosen(config: RunConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> value of what the widgets say."""
    of_preset = {**_LENGTH, **_MAIN, **_ADVANCED}
    paths = [path for path, sentinel in of_preset.items() if given.get(input_name(path), sentinel) != sentinel]
    chosen = values([*paths, *_PLAIN, *_ADVANCED_PLAIN], given)
    if given.get("block_checkpointing", PRESET) != PRESET:
        chosen["loop.block_checkpointing"] = given["block_checkpointing"] == ON
    steps, epochs = chosen.get("loop.steps"), chosen.get("loop.epochs")
    if steps and epochs:
        raise ValueError(f"give steps or epochs and leave the other at 0, got {steps} steps and {epochs} epochs")
    if epochs:
        chosen["loop.steps"] = None
    if steps:
        for path in _EVERY:
            chosen.setdefault(path, max(1, steps // NUM_CHECKPOINTS))
    resolution = chosen.get("data.resolution")
    if resolution:
        # half to twice the side, as far as whole steps go, so that every shape finds a bucket
        chosen["data.bucket_min_px"] = min(256, max(8, resolution // 2))
        chosen["data.bucket_max_px"] = 2 * resolution
    return chosen


def continued(config: RunConfig, wanted: RunConfig) -> dict[str, Any]:
    """What a run that goes on takes over from a graph: intervals, previews and where its pictures lie now.

    `config` is the run's. Everything that its numbers depend on stays the run's own, but never a path: a run folder may
    come from anywhere, and the graph's folders have been checked. Errors: `ValueError` for another number of data sets.
    """
    num_own, num_now = len(config.data.concepts), len(wanted.data.concepts)
    if num_own != num_now:
        raise ValueError(
            f"this run has {num_own} data set{'s' * (num_own > 1)} and the graph {num_now}; connect those that it was "
            "trained on"
        )
    concepts = [
        replace(concept, folder=now.folder)
        for concept, now in zip(config.data.concepts, wanted.data.concepts, strict=True)
    ]
    plain = to_dict(wanted)
    return {
        "save": {name: plain["save"][name] for name in _INTERVALS},
        "preview": plain["preview"],
        "data": {"concepts": [to_dict(concept) for concept in concepts]},
    }
