"""Option nodes: captions, learning rate, optimizer, objective, network. None of them is needed; presets stand in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..lib.config import LayerRule, from_dict
from ..lib.lr_schedule import parse
from . import graph
from .schema import inputs, nested, schema, settings_of, socket, values
from .sockets import DATASET, OPTIONS, SCHEDULE, Dataset

_CAPTIONS = ["data.shuffle_tags", "data.keep_tags", "data.tag_dropout", "data.caption_dropout"]
_WORDS = ["data.concepts[].trigger", "data.concepts[].append"]
# steps of runs short and long: a schedule that fits none of them fits no run
_LENGTHS = (1000, 10_000, 100_000, 100)
_EPOCHS = re.compile(r"\d\s*ep", re.IGNORECASE)
_RULE = re.compile(r"\s*(?P<layers>\S+)(?P<settings>.*)")
_OF_RULE = re.compile(r"\s*,?\s*(rank|rate)\s*=\s*(.+?)(?=\s*,?\s*\b(?:rank|rate)\s*=|\s*$)")


class Captions(io.ComfyNode):
    """How the captions of a data set are changed at each visit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierCaptions",
            "Captions",
            "Changes the captions of a data set while it is trained: trigger word, words behind, shuffled tags, "
            "dropout. The files stay as they are.",
            inputs=[
                socket(DATASET).Input("dataset", tooltip="the data set whose captions are changed"),
                *inputs(_WORDS, trigger={"tooltip": _tip("trigger")}, append={"tooltip": _tip("append")}),
                *inputs(_CAPTIONS),
            ],
            outputs=[socket(DATASET).Output("dataset_out", display_name="dataset", tooltip="the data set, changed")],
            search_aliases=["trigger word", "shuffle tags", "caption dropout"],
        )

    @classmethod
    def execute(cls, dataset: Dataset, trigger: str, append: str, **given: Any) -> io.NodeOutput:
        changed = values(_CAPTIONS, given)
        nested(changed)
        dataset = dataset.with_settings(**{path.removeprefix("data."): value for path, value in changed.items()})
        return io.NodeOutput(dataset.with_words(trigger, append))


class Schedule(io.ComfyNode):
    """A learning-rate schedule, drawn while it is typed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierSchedule",
            "LR Schedule",
            "The learning rate over the run as one string, such as 0->1e-4:10%, 1e-4->0 cosine. Ends are steps, "
            "+lengths, epochs (3ep) or percent; N x ( ... ) repeats; curves: linear, cosine, exp, rex, poly(n).",
            inputs=[
                *inputs(
                    settings_of("rate"),
                    schedule={"multiline": True},  # a field of one line tells what is typed only when it is done
                    factor={"advanced": True},
                    stop_at_end={"advanced": True},
                ),
                io.Int.Input(
                    "steps",
                    display_name="Steps drawn",
                    default=1000,
                    min=1,
                    max=100_000_000,
                    tooltip="length of the run that the curve is drawn for; the run itself is as long as Train LoRA "
                    "says",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[socket(SCHEDULE).Output("schedule_out", display_name="schedule", tooltip="for Train LoRA")],
            search_aliases=["learning rate", "scheduler", "cosine", "warmup"],
        )

    @classmethod
    def validate_inputs(cls, schedule: str | None) -> bool | str:
        node = str(cls.hidden.unique_id)
        lengths = [inputs.get("steps") for inputs in graph.users(node, "AtelierTrain", "schedule")]
        stop_at_end = bool(graph.own_inputs(node).get("stop_at_end"))
        known = [num for num in lengths if isinstance(num, int) and num > 0]
        return fault_of_schedule(schedule, known, stop_at_end) or True

    @classmethod
    def execute(cls, steps: int, **given: Any) -> io.NodeOutput:
        for name in ("schedule", "text_encoder"):
            if given.get(name, "").strip():
                parse(given[name])
        return io.NodeOutput(nested(values(settings_of("rate"), given)))


class Optimizer(io.ComfyNode):
    """How gradients become updates."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _options_schema("AtelierOptimizer", "Optimizer", "optimizer", ["adamw", "prodigy", "lion", "adafactor"])

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(nested(values(settings_of("optimizer"), given)))


class Objective(io.ComfyNode):
    """What is minimised."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _options_schema(
            "AtelierObjective", "Objective", "objective", ["min snr", "noise offset", "timesteps", "loss"]
        )

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(nested(values(settings_of("objective"), given)))


class Lora(io.ComfyNode):
    """The network that is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        rules = io.String.Input(
            "rules",
            display_name="Rules",
            multiline=True,
            default="",
            optional=True,
            tooltip="rank and rate by layer, one rule a line, the last that matches counts: "
            "lora_unet_up_blocks_* rank=8 rate=1e-5. Rank 0 leaves layers out",
        )
        return _options_schema(
            "AtelierLora", "LoRA", "trainable", ["rank", "alpha", "locon", "network", "text encoder"], [rules]
        )

    @classmethod
    def validate_inputs(cls, rules: str | None = None) -> bool | str:
        try:
            rules_in(rules or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, rules: str = "", **given: Any) -> io.NodeOutput:
        options = nested(values(settings_of("trainable"), given))
        options.setdefault("trainable", {})["rules"] = rules_in(rules)
        return io.NodeOutput(options)


def fault_of_schedule(text: str | None, lengths: Sequence[int] = (), stop_at_end: bool = False) -> str:
    """What is wrong with a schedule for runs of these lengths, or where none is known for a run of any length.

    Empty where nothing is, or where another node gives it. The length of an epoch is not known yet: what depends on it,
    the train node finds before its first step.
    """
    if text is None:
        return ""
    if lengths and not _EPOCHS.search(text):
        for num_steps in lengths:
            try:
                parse(text).resolve(num_steps, None, stop_at_end)
            except ValueError as error:
                return str(error)
        return ""
    fault = ""
    for num_steps in _LENGTHS:
        try:
            parse(text).resolve(num_steps, max(1, num_steps // 10), stop_at_end=True)
        except ValueError as error:
            fault = fault or str(error)
        else:
            return ""
    return fault


def rules_in(text: str) -> list[dict[str, Any]]:
    """The rules of `trainable.rules`, one a line: GLOB rank=N rate=SCHEDULE. Errors: `ValueError` naming the line."""
    rules = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _RULE.fullmatch(line)
        assert match is not None
        found, rest = dict(_OF_RULE.findall(match["settings"])), _OF_RULE.sub("", match["settings"])
        if not found or rest.strip(" ,"):
            raise ValueError(f"rules, line {number}: write GLOB rank=8 rate=1e-5 (one or both), got {line.strip()!r}")
        rule: dict[str, Any] = {"layers": match["layers"]}
        if "rank" in found:
            if not found["rank"].isdecimal():
                raise ValueError(f"rules, line {number}: rank must be a whole number, got {found['rank']!r}")
            rule["rank"] = int(found["rank"])
        if "rate" in found:
            parse(found["rate"])
            rule["rate"] = found["rate"]
        from_dict(LayerRule, rule, f"rules, line {number}")
        rules.append(rule)
    return rules


def _options_schema(
    node_id: str, title: str, group: str, aliases: list[str], more: list[Any] | None = None
) -> io.Schema:
    from ..lib.config import RunConfig
    from ..lib.forms import form

    about = next(g for g in form(RunConfig) if g.path == group)
    return schema(
        node_id,
        title,
        f"{about.help[0].upper()}{about.help[1:]}: replaces what the preset says. Without this node the preset counts.",
        inputs=[*inputs(settings_of(group)), *(more or [])],
        outputs=[socket(OPTIONS).Output("options", display_name=title.lower(), tooltip=f"for {title} of Train LoRA")],
        search_aliases=aliases,
    )


def _tip(name: str) -> str:
    return {
        "trigger": "word put in front of each caption unless it is already there; empty: each folder keeps its own",
        "append": "words put behind each caption unless it ends with them; empty: each folder keeps its own",
    }[name]
