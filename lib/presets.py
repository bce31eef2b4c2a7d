"""Presets: where to begin, for each model family, by the memory there is and by what is to be learned.

A preset is a recipe for about fifteen pictures. The memory decides how a step is computed (batch or accumulation,
checkpointing, and for the large models the resolution), and the purpose what is learned (how long, at which rank). Each
number that is not the program's default says where it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import config as settings_of
from .config import RunConfig, merge, to_dict
from .registry import nearest

PURPOSES = ("character", "style", "concept")
NUM_PICTURES = 15  # what the number of steps is meant for

# A card sold as 8 GB shows a little less than 8 GiB.
_TOLERANCE = 0.9


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe. `values` and `storage` are nested as `config.merge` takes them.

    `storage` is what to add where the program owns the model that it trains on, as the command line does: how the base
    weights are kept. Other hosts keep the model their own way.
    """

    family: str
    memory: str  # "8 GB": of the device
    purpose: str
    values: Mapping[str, Any]
    storage: Mapping[str, Any]
    sources: Mapping[str, str]  # dotted setting -> where its value comes from

    @property
    def name(self) -> str:
        """As a user chooses it: "sdxl, 12 GB, character"."""
        return f"{self.family}, {self.memory}, {self.purpose}"

    def apply(self, config: RunConfig, storage: bool = False) -> RunConfig:
        """`config` with this recipe in it; data, names and prompts stay as they are."""
        config = merge(config, dict(self.values))
        return merge(config, dict(self.storage)) if storage else config


# The sources, by the names that they are cited under.
_KOHYA = "kohya-ss/sd-scripts, docs/{}"
_DIFFUSERS = "huggingface/diffusers, examples/dreambooth/{}"
_SIMPLETUNER = "bghira/SimpleTuner, {}"
_TOOLKIT = "ostris/ai-toolkit, config/examples/{}"
_ONETRAINER = "Nerogar/OneTrainer, training_presets/{}"

Value = tuple[Any, str]  # a value and its source

# What a recipe decides and leaves at the program's default, unless it is named below. It is set all the same, so that
# one preset replaces another whole.
_DEFAULTS = {
    "data": ("resolution", "bucket_max_px"),
    "objective": ("timesteps", "weighting", "min_snr_gamma", "noise_offset", "guidance"),
    "trainable": ("algorithm", "layers", "conv_rank", "text_encoder"),
    "optimizer": ("name", "clip_norm"),
    "rate": ("text_encoder", "factor"),
    "loop": ("epochs", "compute_dtype", "block_checkpointing", "ema_decay"),
    "preview": ("guidance",),
}

# Dotted setting -> value and source.
_COMMON: dict[str, Value] = {
    "data.caption_dropout": (0.05, _TOOLKIT.format("train_lora_flux_24gb.yaml: caption_dropout_rate")),
}
_DIFFUSION: dict[str, Value] = {
    # Hang et al. 2023
    "objective.weighting": ("min_snr", _KOHYA.format("train_network_advanced.md: --min_snr_gamma, N=5")),
    "trainable.rank": (16, _KOHYA.format("train_network.md: --network_dim=16")),
    "trainable.alpha": (8.0, _KOHYA.format("train_network.md: --network_alpha, about half of network_dim")),
    "rate.peak": (1e-4, _KOHYA.format("train_network.md: --learning_rate=1e-4")),
}
_FLOW: dict[str, Value] = {
    "data.resolution": (1024, _TOOLKIT.format("train_lora_sd35_large_24gb.yaml: resolution")),
    "data.bucket_max_px": (2048, "twice the resolution, so that wide pictures keep their shape"),
    "objective.timesteps": ("auto", "lib/timesteps.py, FAMILY_DEFAULTS"),
    "trainable.rank": (16, _TOOLKIT.format("train_lora_flux_24gb.yaml and train_lora_sd35_large_24gb.yaml: linear")),
    "trainable.alpha": (16.0, _TOOLKIT.format("train_lora_flux_24gb.yaml and ..sd35_large..: linear_alpha")),
    "rate.peak": (1e-4, _TOOLKIT.format("train_lora_flux_24gb.yaml and train_lora_sd35_large_24gb.yaml: lr")),
    "loop.block_checkpointing": (True, _TOOLKIT.format("train_lora_flux_24gb.yaml: gradient_checkpointing")),
    "preview.guidance": (4.0, _TOOLKIT.format("train_lora_flux_24gb.yaml and ..sd35_large..: guidance_scale")),
}

_FAMILIES: dict[str, dict[str, Value]] = {
    "sd1": {
        **_DIFFUSION,
        "pictures_per_update": (2, "half of OneTrainer's 4 (SD1.5/#sd 1.5 LoRA.json), twice kohya's 1"),
    },
    "sd2": {
        **_DIFFUSION,
        "data.resolution": (768, _DIFFUSERS.format("README.md: 768 with the stable-diffusion-2 768x768 model")),
        "data.bucket_max_px": (1536, "twice the resolution, so that wide pictures keep their shape"),
        "pictures_per_update": (2, "half of OneTrainer's 4 (SD2.1/#sd 2.1 LoRA.json), twice kohya's 1"),
    },
    "sdxl": {
        **_DIFFUSION,
        "data.resolution": (1024, _KOHYA.format("train_SDXL-en.md: the default resolution of SDXL is 1024x1024")),
        "data.bucket_max_px": (2048, "twice the resolution, so that wide pictures keep their shape"),
        "objective.noise_offset": (0.0357, _KOHYA.format("train_network_advanced.md: --noise_offset, 0.0357 for SDXL")),
        "trainable.rank": (32, _KOHYA.format("sdxl_train_network.md: --network_dim=32")),
        "trainable.alpha": (16.0, _KOHYA.format("sdxl_train_network.md: --network_alpha=16")),
        "rate.peak": (1e-4, _KOHYA.format("sdxl_train_network.md: --learning_rate=1e-4")),
        "loop.block_checkpointing": (True, _KOHYA.format("sdxl_train_network.md: --gradient_checkpointing")),
        "pictures_per_update": (2, "half of the 4 of " + _DIFFUSERS.format("README_sdxl.md and of OneTrainer")),
    },
    "sd3": {
        **_FLOW,
        "optimizer.clip_norm": (0.1, _SIMPLETUNER.format("documentation/quickstart/SD3.md: stable configuration")),
        "pictures_per_update": (4, _DIFFUSERS.format("README_sd3.md: gradient_accumulation_steps=4")),
    },
    "flux": {
        **_FLOW,
        "data.resolution": (1024, _TOOLKIT.format("train_lora_flux_24gb.yaml: the largest of 512, 768, 1024")),
        "pictures_per_update": (2, _KOHYA.format("flux_train_network.md: 24 GB, batch size 2")),
    },
}

# Memory class -> batch size, and what else differs there.
_CHECKPOINTED: dict[str, Value] = {
    "loop.block_checkpointing": (
        True,
        _SIMPLETUNER.format("simpletuner/examples/sd1x-dreamshaper.peft-lora: gradient_checkpointing"),
    )
}
_ADAFACTOR: Value = ("adafactor", _KOHYA.format("train_SDXL-en.md and flux_train_network.md: less than 8-bit AdamW"))
_FLOAT8: Value = ("float8", _KOHYA.format("flux_train_network.md: --fp8_base"))
_FLUX_BLOCKS = _KOHYA.format("flux_train_network.md: --blocks_to_swap by GPU memory")
_QUANTIZED: Value = ("float8", _TOOLKIT.format("train_lora_sd35_large_24gb.yaml: quantize, 8 bit"))
_SMALL_FLUX: Value = (512, _SIMPLETUNER.format("documentation/quickstart/FLUX.md: 512px below 12 GB"))

_MEMORY: dict[str, dict[str, tuple[int, dict[str, Value]]]] = {
    "sd1": {"6 GB": (1, _CHECKPOINTED), "8 GB": (1, {}), "12 GB": (2, {})},
    "sd2": {"8 GB": (1, _CHECKPOINTED), "12 GB": (1, {}), "16 GB": (2, {})},
    "sdxl": {
        "8 GB": (
            1,
            {
                "trainable.rank": (8, _KOHYA.format("train_SDXL-en.md: dim 4 to 8 for 8 GB")),
                "trainable.alpha": (4.0, _KOHYA.format("sdxl_train_network.md: half of the rank")),
                "optimizer.name": _ADAFACTOR,
            },
        ),
        "12 GB": (1, {}),
        "24 GB": (2, {}),
    },
    "sd3": {
        "12 GB": (
            1,
            {
                "data.resolution": (512, _DIFFUSERS.format("README_sd3.md: LoRA at 512")),
                "loop.base_storage": _QUANTIZED,
            },
        ),
        "16 GB": (1, {"loop.base_storage": _QUANTIZED}),
        "24 GB": (2, {"loop.base_storage": _QUANTIZED}),
    },
    "flux": {
        "8 GB": (
            1,
            {
                "data.resolution": _SMALL_FLUX,
                "optimizer.name": _ADAFACTOR,
                "loop.base_storage": _FLOAT8,
                "loop.cpu_blocks": (28, _FLUX_BLOCKS),
            },
        ),
        "12 GB": (
            1,
            {
                "data.resolution": _SMALL_FLUX,
                "loop.base_storage": _FLOAT8,
                "loop.cpu_blocks": (16, _FLUX_BLOCKS),
            },
        ),
        "16 GB": (
            1,
            {
                "data.resolution": (768, _ONETRAINER.format("Flux Dev.1/#flux LoRA.json: resolution")),
                "loop.base_storage": _FLOAT8,
                "loop.cpu_blocks": (8, "half of what 12 GB need in " + _FLUX_BLOCKS),
            },
        ),
        "24 GB": (2, {"loop.base_storage": _FLOAT8}),
    },
}

# Pictures that are seen in the run, and what else differs.
_OF_PURPOSE: dict[str, dict[str, Value]] = {
    "character": {"pictures_seen": (1600, _KOHYA.format("train_db_README-ja.md: --max_train_steps=1600"))},
    "style": {
        "pictures_seen": (2000, _TOOLKIT.format("train_lora_flux_24gb.yaml: steps: 2000")),
        "data.caption_dropout": (0.1, _SIMPLETUNER.format("simpletuner/examples: caption_dropout_probability")),
    },
    "concept": {
        "pictures_seen": (1500, _DIFFUSERS.format("README.md: 500 steps for 5 pictures, so 1500 for 15")),
    },
}
# A style is in every part of a picture: it gets twice the rank, as in the example of a style for SD3.
_STYLE_RANK = "twice the family's, as the style in " + _DIFFUSERS.format("README_sd3.md: --rank=32")
_NUM_CHECKPOINTS = 8
_EIGHTHS = "an eighth of the run: " + _TOOLKIT.format("train_lora_flux_24gb.yaml: save_every 250 of 2000")
_SCHEDULE = "warm-up over a tenth of the run, then cosine; the peak: "


def families() -> tuple[str, ...]:
    """The model families there are presets for."""
    return tuple(_FAMILIES)


def memories(family: str) -> tuple[str, ...]:
    """The memory classes of a family, least first. Errors: `ValueError` for an unknown family."""
    return tuple(_of(_MEMORY, family, "model family"))


def names(family: str) -> list[Preset]:
    """Every preset of a family, by memory and then by purpose. Errors: `ValueError` for an unknown family."""
    return [preset(family, memory, purpose) for memory in memories(family) for purpose in PURPOSES]


def preset(family: str, memory: str, purpose: str) -> Preset:
    """One preset. Errors: `ValueError` naming what is unknown, with the choices."""
    batch_size, of_memory = _of(_of(_MEMORY, family, "model family"), memory, f"memory class of {family}")
    settings = {**_COMMON, **_FAMILIES[family], **of_memory, **_of(_OF_PURPOSE, purpose, "purpose")}
    num_seen, why_seen = settings.pop("pictures_seen")
    per_update, why_update = settings.pop("pictures_per_update")
    peak, why_peak = settings.pop("rate.peak")
    if purpose == "style" and "trainable.rank" not in of_memory:
        for name in ("trainable.rank", "trainable.alpha"):
            settings[name] = (2 * settings[name][0], _STYLE_RANK)
    num_steps = num_seen // per_update
    every = num_steps // _NUM_CHECKPOINTS
    shown = f"{peak:.0e}".replace("e-0", "e-")
    settings |= {
        "rate.schedule": (f"0->{shown}:10%, {shown}->0 cosine", _SCHEDULE + why_peak),
        "loop.steps": (num_steps, f"{num_seen} pictures seen, {per_update} an update; {why_seen}"),
        "loop.batch_size": (batch_size, why_update),
        "loop.accumulate": (per_update // batch_size, why_update),
        "save.every_steps": (every, _EIGHTHS),
        "record.probe_every_steps": (every, _EIGHTHS),
        "preview.every_steps": (every, _EIGHTHS),
    }
    storage = {name: settings.pop(name) for name in ("loop.base_storage", "loop.cpu_blocks") if name in settings}
    return Preset(
        family=family,
        memory=memory,
        purpose=purpose,
        values=_nested(_defaults() | _values(settings)),
        storage=_nested(_values(storage)),
        sources={name: source for name, (_, source) in (settings | storage).items()},
    )


def named(text: str) -> Preset:
    """The preset that a line such as "sdxl,12GB,character" or a preset's own name means.

    Without a purpose, a character; without a memory class, the smallest. Errors: `ValueError` as `preset`, and for a
    line that is none.
    """
    parts = [part.strip() for part in text.split(",")]
    if not 1 <= len(parts) <= 3:
        raise ValueError(f'a preset is FAMILY,MEMORY,PURPOSE such as sdxl,12GB,character; got "{text}"')
    family, memory, purpose = (*parts, "", "")[:3]
    number = memory.upper().removesuffix("GB").strip()
    return preset(family, f"{number} GB" if number else memories(family)[0], purpose or PURPOSES[0])


def default(family: str, memory_mb: float, purpose: str = "character") -> Preset:
    """The preset for a device with so much memory in MiB: the largest class that it has, else the smallest there is.

    Errors: `ValueError` for an unknown family.
    """
    fitting = [m for m in memories(family) if _gigabytes(m) * 1024 * _TOLERANCE <= memory_mb]
    return preset(family, fitting[-1] if fitting else memories(family)[0], purpose)


def difference(config: RunConfig, chosen: Preset, storage: bool = False) -> list[str]:
    """What `config` sets otherwise than the preset, one line each: `trainable.rank: 16 -> 8`."""
    return settings_of.difference(chosen.apply(config, storage), config)


def _gigabytes(memory: str) -> int:
    return int(memory.split()[0])


def _of(choices: dict[str, Any], name: str, what: str) -> Any:
    if name not in choices:
        raise ValueError(f'unknown {what} "{name}" of presets; {nearest(name, choices)}')
    return choices[name]


def _defaults() -> dict[str, Any]:
    plain = to_dict(RunConfig())
    return {f"{section}.{name}": plain[section][name] for section, names in _DEFAULTS.items() for name in names}


def _values(settings: dict[str, Value]) -> dict[str, Any]:
    return {path: value for path, (value, _) in settings.items()}


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path, value in settings.items():
        section, name = path.split(".")
        values.setdefault(section, {})[name] = value
    return values
