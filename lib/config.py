"""Configuration: one frozen dataclass tree, each setting declared once.

A field's declaration is its default, its check, its help text and its widget: `metadata` holds `help` and, where they
apply, `min`, `max` (inclusive), `choices` (a tuple, or the name of a registry), `families` (which model families the
setting concerns; absent means all), `advanced`, and `unit`. `from_dict` and `to_dict` go to and from JSON values.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from .registry import BY_NAME, nearest

C = TypeVar("C")


def setting(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with its check and its help. A callable default is called for each instance."""
    metadata["help"] = help
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ConceptConfig:
    """One folder of pictures and how often it is shown."""

    folder: str = setting("", "folder of pictures, searched recursively; captions lie beside them", kind="folder")
    repeats: int = setting(1, "how often each picture is shown in an epoch", min=1, max=10_000)
    weight: float = setting(1.0, "factor on the loss of these pictures", min=0.0, max=100.0)
    trigger: str = setting("", "word put in front of each caption unless it is already there")
    append: str = setting("", "words put behind each caption unless it already ends with them")
    regularization: bool = setting(
        False, "pictures of the class rather than the subject: their loss is multiplied by data.prior_weight"
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pictures are trained and how they and their captions are prepared."""

    concepts: tuple[ConceptConfig, ...] = setting((), "folders of pictures")
    resolution: int = setting(512, "side of the square whose area each bucket has at most", min=8, max=8192, unit="px")
    bucket_step: int = setting(
        64, "bucket sides are multiples of this, rounded up to the autoencoder's own step", min=1, max=512, unit="px"
    )
    bucket_min_px: int = setting(256, "shortest side of a bucket", min=8, max=8192, unit="px", advanced=True)
    bucket_max_px: int = setting(1024, "longest side of a bucket", min=8, max=16384, unit="px", advanced=True)
    bucket_upscale: bool = setting(True, "enlarge pictures that are smaller than their bucket", advanced=True)
    flip: bool = setting(False, "also train each picture mirrored; not for asymmetric subjects")
    alpha_mask: bool = setting(False, "use a picture's alpha channel as a mask on the loss")
    shuffle_tags: bool = setting(False, "shuffle the tags of a caption at each visit")
    keep_tags: int = setting(0, "the first tags that are neither shuffled nor dropped", min=0, max=1000)
    tag_dropout: float = setting(0.0, "chance that a tag is left out at a visit", min=0.0, max=1.0)
    caption_dropout: float = setting(0.0, "chance that the whole caption is left out at a visit", min=0.0, max=1.0)
    caption_from_name: bool = setting(False, "use the file name as caption where there is no caption file")
    max_token_chunks: int = setting(
        3, "longest caption in chunks of 75 tokens; longer ones are cut, and that is said", min=1, max=16, advanced=True
    )
    prior_weight: float = setting(1.0, "factor on the loss of regularization pictures", min=0.0, max=100.0)
    max_megapixels: float = setting(
        200.0, "larger pictures are left out and named", min=0.01, max=10_000.0, unit="MP", advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is minimised: noise, timesteps, target and loss."""

    prediction: str = setting(
        "model",
        "what the model predicts; model: asked of the loaded model",
        choices=("model", "epsilon", "v", "x0", "flow"),
    )
    zero_terminal_snr: bool = setting(
        False,
        "rescale the noise schedule to pure noise at the last step (Lin et al. 2023)",
        families=("sd1", "sd2", "sdxl"),
    )
    timesteps: str = setting(
        "uniform",
        "distribution of t in training; auto: distribution and shift that the model's family is trained with",
        choices=("auto", "uniform", "logit_normal", "mode"),
    )
    logit_mean: float = setting(0.0, "mean of the logit-normal distribution", min=-10.0, max=10.0, advanced=True)
    logit_std: float = setting(1.0, "deviation of the logit-normal distribution", min=0.01, max=10.0, advanced=True)
    mode_scale: float = setting(
        1.29,
        "mode distribution: above 0 more of the middle of t, below 0 more of both ends (Esser et al. 2024)",
        min=-1.0,
        max=1.75,
        advanced=True,
    )
    timestep_shift: float = setting(
        1.0,
        "above 1 more of the noisy end is trained; 3 is usual for SD3 at 1024 px, 1 is none",
        min=0.01,
        max=100.0,
        families=("sd3", "flux"),
    )
    shift_by_resolution: bool = setting(
        False,
        "also shift t by the size of the picture, as Flux does when it samples: larger pictures, more noise",
        families=("sd3", "flux"),
    )
    t_min: float = setting(
        0.0, "lowest t that is trained, as part of the whole; 0 is the clean picture", min=0.0, max=1.0
    )
    t_max: float = setting(1.0, "highest t that is trained, as part of the whole; 1 is pure noise", min=0.0, max=1.0)
    stratified: bool = setting(
        True, "each picture walks evenly through t in a seeded order, so that its mean loss is comparable sooner"
    )
    strata: int = setting(
        16, "parts of the range of t that a stratified walk visits once each", min=1, max=1000, advanced=True
    )
    weighting: str = setting(
        "none",
        "loss weight over t; min_snr and debiased are for diffusion, cosmap and sigma_squared for flow models",
        choices=("none", "min_snr", "debiased", "cosmap", "sigma_squared"),
    )
    min_snr_gamma: float = setting(5.0, "gamma of min-SNR", min=0.01, max=100.0, families=("sd1", "sd2", "sdxl"))
    loss: str = setting("mse", "distance of prediction and target", choices=("mse", "l1", "huber", "smooth_l1"))
    huber_delta: float = setting(
        0.1, "where huber and smooth_l1 turn from square to line", min=1e-4, max=100.0, advanced=True
    )
    huber_schedule: str = setting(
        "constant",
        "huber_delta over t; snr and exponential fall from 1 at the clean picture to huber_delta in pure noise",
        choices=("constant", "snr", "exponential"),
        advanced=True,
    )
    noise_offset: float = setting(0.0, "per-channel shift of the noise (0.05 to 0.1 is usual)", min=0.0, max=1.0)
    multires_iterations: int = setting(
        0,
        "noise of so many coarser and coarser resolutions is added to the noise (6 is usual); 0 is off",
        min=0,
        max=16,
    )
    multires_discount: float = setting(
        0.3, "strength of each resolution against the one before; higher means more low frequencies", min=0.0, max=1.0
    )
    guidance: float = setting(
        1.0,
        "guidance that a guidance-distilled model is told in training; 1 trains what sampling then scales",
        min=0.0,
        max=100.0,
        families=("flux",),
        advanced=True,
    )
    input_perturbation: float = setting(
        0.0, "extra noise on the input that the target does not contain (0.1 in Ning et al. 2023)", min=0.0, max=1.0
    )


@dataclass(frozen=True, kw_only=True)
class LayerRule:
    """A setting for the layers whose name matches a glob; the last matching rule counts."""

    layers: str = setting("*", "glob on layer names as kohya writes them, such as lora_unet_up_blocks_*")
    rank: int | None = setting(None, "rank of these layers; 0 leaves them out", min=0, max=1024)
    rate: str | None = setting(None, "learning-rate schedule of these layers", kind="schedule")


@dataclass(frozen=True, kw_only=True)
class TrainableConfig:
    """The adapter to train."""

    algorithm: str = setting("lora", "what is trained", choices="algorithms")
    rank: int = setting(16, "rank of the update; file size grows with it", min=1, max=1024)
    alpha: float = setting(16.0, "the update is scaled by alpha / rank", min=1e-3, max=4096.0)
    rank_stabilized: bool = setting(False, "scale by alpha / sqrt(rank) (Kalajdzievski 2023)", advanced=True)
    dropout: float = setting(
        0.0, "chance that an entry of the rank-r product is dropped in training", min=0.0, max=0.99
    )
    layers: str = setting(
        "kohya",
        "which layers; kohya: the Linear and 1x1 layers of the transformer blocks (192 in SD 1.5)",
        choices=("attention", "attention_mlp", "kohya", "all"),
    )
    conv_rank: int = setting(
        0, "rank on 3x3 convolutions (LoCon); 0 leaves them out unless layers is all", min=0, max=1024
    )
    conv_alpha: float = setting(1.0, "alpha of the 3x3 convolutions", min=1e-3, max=4096.0)
    text_encoder: bool = setting(False, "train the text encoder too")
    t5: bool = setting(
        False,
        "with the text encoders, train T5 too (large, and seldom worth it)",
        families=("sd3", "flux"),
        advanced=True,
    )
    rules: tuple[LayerRule, ...] = setting((), "rank and rate by glob on layer names", advanced=True)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates."""

    name: str = setting("adamw", "optimizer", choices="optimizers")
    beta1: float | None = setting(
        None, "decay of the first moment; empty: the optimizer's own (0.9)", min=0.0, max=0.99999, advanced=True
    )
    beta2: float | None = setting(
        None,
        "decay of the second moment; empty: the optimizer's own (0.999, lion 0.99)",
        min=0.0,
        max=0.99999999,
        advanced=True,
    )
    eps: float | None = setting(
        None,
        "added to the denominator; empty: the optimizer's own (1e-8, adafactor 1e-30)",
        min=0.0,
        max=1.0,
        advanced=True,
    )
    weight_decay: float = setting(0.01, "decoupled weight decay", min=0.0, max=1.0)
    clip_norm: float = setting(1.0, "gradients are scaled down to this norm; 0 leaves them", min=0.0, max=1e6)


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """Learning-rate schedules, in the one grammar."""

    schedule: str = setting("1e-4", "learning rate over the run, such as 0->1e-4:10%, 1e-4->0 cosine", kind="schedule")
    text_encoder: str = setting("", "schedule of the text encoders; empty means the same", kind="schedule")
    factor: float = setting(1.0, "factor on every schedule", min=0.0, max=1e6)
    stop_at_end: bool = setting(False, "stop where the schedule ends instead of refusing one that ends before the run")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length of the run, batches, precision and memory."""

    steps: int | None = setting(None, "optimizer updates; give steps or epochs", min=1, max=100_000_000)
    epochs: int | None = setting(None, "passes over the data; give steps or epochs", min=1, max=1_000_000)
    batch_size: int = setting(1, "pictures in a forward pass", min=1, max=4096)
    accumulate: int = setting(1, "forward passes per update", min=1, max=4096)
    compute_dtype: str = setting(
        "auto",
        "precision of the model's arithmetic; what is trained is always fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    block_checkpointing: bool = setting(
        False, "recompute blocks in the backward pass: less memory, about a third more time"
    )
    base_storage: str = setting(
        "model",
        "type that the frozen weights are kept in: bf16 halves fp32, float8 halves bf16, both at a loss of precision; "
        "only where this program loads the model itself, as the command line does",
        choices=("model", "bf16", "float8"),
        advanced=True,
    )
    cpu_blocks: int = setting(
        0,
        "blocks of the model that are kept in main memory and fetched when they are needed: less memory on the device, "
        "more time; only where this program loads the model itself, as the command line does",
        min=0,
        max=1000,
        advanced=True,
    )
    ema_decay: float = setting(
        0.0, "decay of the moving average of the weights that is saved; 0 is off", min=0.0, max=0.999999
    )
    seed: int = setting(0, "seed of everything random in the run", min=0, max=2**63 - 1)
    deterministic: bool = setting(
        False, "use only deterministic kernels, so that a resumed run is bit-identical on a GPU too"
    )
    max_nonfinite: int = setting(
        5, "stop after this many steps in a row without a finite gradient", min=1, max=10_000, advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """Checkpoints."""

    every_steps: int = setting(0, "checkpoint each so many steps; 0 is off", min=0, max=100_000_000)
    every_epochs: int = setting(0, "checkpoint each so many epochs; 0 is off", min=0, max=1_000_000)
    at_cycle_ends: bool = setting(False, "checkpoint at the end of each cycle of the schedule")
    keep_last: int = setting(
        0, "keep this many newest checkpoints, and the pinned ones; 0 keeps all", min=0, max=100_000
    )
    pins: tuple[int, ...] = setting((), "steps whose checkpoints are never removed")
    dtype: str = setting(
        "fp16", "precision of the published file; the training state is always fp32", choices=("fp32", "bf16", "fp16")
    )
    names: str = setting(
        "family",
        "layer names in the published file; family: those that most programs read, kohya: those that sd-scripts writes",
        choices=("family", "kohya"),
        families=("sd3",),
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """Loss records."""

    flush_every_steps: int = setting(10, "rows are written each so many steps", min=1, max=10_000, advanced=True)
    window_steps: int = setting(100, "steps in the running mean of the loss", min=2, max=100_000)
    probe_every_steps: int = setting(
        0, "controlled loss each so many steps, and at both ends; 0 is off", min=0, max=100_000_000
    )
    probe_images: int = setting(8, "pictures in the controlled loss", min=1, max=10_000)
    probe_timesteps: int = setting(4, "fixed timesteps in the controlled loss", min=1, max=100)


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Pictures made during the run, always at fixed seeds."""

    prompts: tuple[str, ...] = setting((), "prompts, one picture each")
    negative_prompt: str = setting("", "negative prompt")
    every_steps: int = setting(0, "previews each so many steps; 0 is off", min=0, max=100_000_000)
    at_cycle_ends: bool = setting(False, "previews at the end of each cycle of the schedule")
    steps: int = setting(20, "sampling steps", min=1, max=1000)
    guidance: float = setting(7.0, "classifier-free guidance scale", min=0.0, max=100.0)
    seed: int = setting(1, "seed of the first picture; the next has the next", min=0, max=2**63 - 1)
    width: int = setting(0, "width; 0 is the training resolution", min=0, max=16384, unit="px")
    height: int = setting(0, "height; 0 is the training resolution", min=0, max=16384, unit="px")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run."""

    name: str = setting("atelier", "name of the run and of its files")
    data: DataConfig = setting(DataConfig, "pictures and captions")
    objective: ObjectiveConfig = setting(ObjectiveConfig, "noise, target and loss")
    trainable: TrainableConfig = setting(TrainableConfig, "what is trained")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "optimizer")
    rate: RateConfig = setting(RateConfig, "learning rate")
    loop: LoopConfig = setting(LoopConfig, "length, batches, precision, memory")
    save: SaveConfig = setting(SaveConfig, "checkpoints")
    record: RecordConfig = setting(RecordConfig, "loss records")
    preview: PreviewConfig = setting(PreviewConfig, "previews")


def choices_of(field: dataclasses.Field) -> tuple[Any, ...] | None:
    """What a field may be, or None where it is free."""
    choices = field.metadata.get("choices")
    return BY_NAME[choices].names() if isinstance(choices, str) else choices


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON values (dict, list, str, int, float, bool, None)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return plain(config)


def from_dict(cls: type[C], values: Any, path: str = "") -> C:
    """A configuration from JSON values; what is absent has its default.

    Errors: `ValueError` naming the setting by its dotted path, what was got, and what it may be: unknown keys (with the
    nearest name), wrong types, values out of range.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'the configuration'} must be a table of settings, got {_shown(values)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    given = {}
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise ValueError(f'unknown setting "{where}"; {nearest(str(key), fields)}')
        given[key] = _convert(hints[key], fields[key], value, where)
    return cls(**given)


def merge(config: C, values: dict[str, Any]) -> C:
    """`config` with `values` (nested as in `from_dict`; lists replace) put in. Errors: as `from_dict`."""

    def over(base: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        out = dict(base)
        for key, value in new.items():
            nested = isinstance(value, dict) and isinstance(base.get(key), dict)
            out[key] = over(base[key], value) if nested else value
        return out

    return from_dict(type(config), over(to_dict(config), values))


def difference(old: Any, new: Any) -> list[str]:
    """The settings in which two configurations differ, one line each: `optimizer.name: adamw -> lion`."""
    a, b = _flat(to_dict(old)), _flat(to_dict(new))
    return [
        f"{k}: {_shown(a.get(k))} -> {_shown(b.get(k))}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)
    ]


def _flat(values: Any, path: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        items = [(f"{path}.{k}" if path else k, v) for k, v in values.items()]
    elif isinstance(values, list) and values:
        items = [(f"{path}[{i}]", v) for i, v in enumerate(values)]
    else:
        return {path: values}
    return {k: v for name, value in items for k, v in _flat(value, name).items()}


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _convert(kind: Any, field: dataclasses.Field, value: Any, where: str) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list, got {_shown(value)}")
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, field, v, f"{where}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)  # type: ignore[arg-type]
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is an int to Python, never to a user
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be {wanted}, got {_shown(value)}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} must be finite, got {value}")
    low, high = field.metadata.get("min"), field.metadata.get("max")
    if low is not None and value < low:
        raise ValueError(f"{where} must be at least {low}, got {_shown(value)}")
    if high is not None and value > high:
        raise ValueError(f"{where} must be at most {high}, got {_shown(value)}")
    choices = choices_of(field)
    if choices is not None and value not in choices:
        raise ValueError(f"{where} is {_shown(value)}; {nearest(str(value), choices)}")
    return value


def checked(config: C) -> C:
    """`config` after every check of `from_dict`, for one that was built in code. Errors: as `from_dict`."""
    return from_dict(type(config), to_dict(config))
