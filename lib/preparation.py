"""From a host and a configuration to a trainer: data, caches, network, optimizer, run folder.

`start` makes a run, `resume` goes on with one as it was, `fork` branches off from one of its checkpoints with changed
settings. Whatever can be wrong is found here, before step 0.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .checkpoints import TrainState
from .config import DataConfig, RunConfig, checked, merge
from .data.buckets import LATENT_STEP
from .data.cache import LatentCache
from .data.conditioner import Conditioner
from .data.findings import flip_findings
from .data.given import Given, GivenText
from .data.loader import Loader, Position
from .data.sample import Sample
from .data.scan import Problem, counts, scan
from .data.tag_rules import tag_rules
from .diffusion_loss import DiffusionLoss
from .ema import Ema
from .fingerprint import Rows, fingerprint
from .host import Host, KeepsWeights
from .keys.layers import canonical_layers
from .lr_schedule import ResolvedSchedule, parse
from .network_metadata import checkpoint_metadata, network_metadata
from .optimizers import Group, Optimizer, create
from .probe import Probe
from .recorder import Recorder
from .registry import ALGORITHMS
from .run_folder import RunFolder
from .trainables import Trainable
from .trainer import Trainer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Prepared:
    """A trainer that is ready, in a run folder that is owned, and what a user should know before step 0."""

    trainer: Trainer
    run: RunFolder
    notes: list[str]
    summary: str


Report = Callable[[str], None]


def check_settings(config: RunConfig) -> RunConfig:
    """`config` after every check that needs neither the model nor the data. Errors: `ValueError`."""
    config = checked(config)
    if not config.data.concepts:
        raise ValueError("data.concepts is empty; name at least one folder of pictures")
    if (config.loop.steps is None) == (config.loop.epochs is None):
        given = "neither" if config.loop.steps is None else "both"
        raise ValueError(f"give loop.steps or loop.epochs, got {given}")
    for text in (config.rate.schedule, config.rate.text_encoder, *(r.rate for r in config.trainable.rules)):
        if text:
            parse(text)
    return config


class StoppedError(RuntimeError):
    """The user stopped before step 0."""


@contextmanager
def _trains() -> Iterator[None]:
    """Tensors that are made inside can be trained, in programs too that run everything in inference mode."""
    with torch.inference_mode(False), torch.set_grad_enabled(True):
        yield


@contextmanager
def start(
    host: Host, config: RunConfig, parent: Path, report: Report = lambda text: None, given: Given | None = None
) -> Iterator[Prepared]:
    """A new run in a new folder below `parent`. `report` gets a sentence for each phase.

    `given` is a data set that the host has encoded already; data.concepts then only say which sample is whose.
    Errors: `ValueError` for settings, data or a model that do not fit together.
    """
    config = check_settings(config)
    with _trains(), _data(host, config, parent, report, given) as data:
        plan = _plan(host, config, data, 0, Position())
        run = RunFolder.create(parent, config.name, config, **_identity(host, data))
        with run.owner():
            trainer = _trainer(host, config, run, data, plan)
            yield Prepared(trainer, run, data.notes + _rate_notes(plan), _summary(trainer, data))


@contextmanager
def resume(
    host: Host,
    folder: Path,
    changes: dict[str, Any] | None = None,
    report: Report = lambda text: None,
    given: Given | None = None,
) -> Iterator[Prepared]:
    """Go on with a run from its newest whole checkpoint, bit for bit.

    `changes` are settings nested as in `config.from_dict`; only those without effect on what is computed pass.
    Errors: `ResumeRefused` with a line for each thing that changed.
    """
    run = RunFolder.open(folder)
    config = check_settings(merge(run.config, changes or {}))
    with _trains(), run.owner(), _data(host, config, run.path.parent, report, given) as data:
        notes = run.resume(config, **_identity(host, data))
        if run.checkpoints.has_any():
            state, _, damaged = run.load()
            notes += damaged
            trainer = _trainer(host, config, run, data, _plan(host, config, data, state.step, _position(state)))
            trainer.restore(state)
            report(
                f"goes on at step {state.step} with the weights, the {config.optimizer.name} state, the order of the "
                "pictures, their noise, the rate and the records as they were"
            )
        else:
            trainer = _trainer(host, config, run, data, _plan(host, config, data, 0, Position()))
            trainer.recorder.restore({})
            report("begins at step 0: the run ended before its first checkpoint")
        yield Prepared(trainer, run, data.notes + notes, _summary(trainer, data))


@contextmanager
def fork(
    host: Host,
    source: Path,
    step: int | None,
    changes: dict[str, Any],
    parent: Path,
    report: Report = lambda text: None,
    given: Given | None = None,
) -> Iterator[Prepared]:
    """A new run that goes on from a checkpoint of another (its newest if `step` is None), with changed settings.

    Optimizer state, moving average and data position come along; with another batch size the rest of the epoch is
    planned anew, with other data the next epoch starts. Errors: `ValueError`, also where the network would be another.
    """
    old = RunFolder.open(source)
    config = check_settings(merge(old.config, changes))
    if config.trainable != old.config.trainable or config.optimizer.name != old.config.optimizer.name:
        raise ValueError(
            "a fork keeps the network and the optimizer, since it takes over their state; trainable.* and "
            "optimizer.name cannot change"
        )
    state, _, notes = old.load(step)
    with _trains(), _data(host, config, parent, report, given) as data:
        position, loop = _position(state), old.config.loop
        if old.description["data"] == data.cache.manifest:
            position = data.loader.replan(
                position, batch_size=loop.batch_size, accumulate=loop.accumulate, seed=loop.seed
            )
        else:
            position = position.afresh()
            notes.append("the data set changed: an epoch starts with it")
        plan = _plan(host, config, data, state.step, position)
        run = RunFolder.fork(
            old,
            state.step,
            parent,
            config.name,
            config,
            **_identity(host, data),
            values={"position": position.to_dict()},
        )
        with run.owner():
            trainer = _trainer(host, config, run, data, plan)
            trainer.restore(run.load()[0])
            yield Prepared(trainer, run, data.notes + notes + _rate_notes(plan), _summary(trainer, data))


@contextmanager
def rehearsal(
    host: Host, config: RunConfig, parent: Path, report: Report = lambda text: None, given: Given | None = None
) -> Iterator[Prepared]:
    """A trainer as `start` makes it, to take some steps with: its run folder is a temporary one, and is removed."""
    config = check_settings(config)
    with _trains(), _data(host, config, parent, report, given) as data, TemporaryDirectory() as folder:
        plan = _plan(host, config, data, 0, Position())
        run = RunFolder.create(folder, config.name, config, **_identity(host, data))
        with run.owner():
            trainer = _trainer(host, config, run, data, plan)
            yield Prepared(trainer, run, data.notes + _rate_notes(plan), _summary(trainer, data))


def _keep_weights(host: Host, config: RunConfig) -> None:
    """Have the frozen weights kept as the settings ask. Errors: `ValueError` where the host cannot."""
    loop = config.loop
    if isinstance(host, KeepsWeights):
        host.keep(loop.base_storage, loop.cpu_blocks)
        return
    for name, value, left in (("base_storage", loop.base_storage, "model"), ("cpu_blocks", loop.cpu_blocks, 0)):
        if value != left:
            raise ValueError(
                f"loop.{name} is {value}, but {host.name} trains on the model that it has loaded for you, and its "
                f"weights stay as they are; set it to {left}. loop.block_checkpointing saves memory there"
            )


def base_of(host: Host) -> dict[str, Any]:
    """The fingerprint of the loaded model, by canonical layers, so that it is the same where a host splits them."""

    def pieces() -> Iterator[tuple[str, Rows]]:
        for name, layer in canonical_layers(host.family, host.parts).items():
            for member in layer.members:
                # one at a time: what a host gives may lie in a buffer that the next layer is loaded into
                weight, start = host.weight_of(member.module)[0], member.rows.start
                for piece in weight.chunk(2)[::-1] if member.swapped else (weight,):
                    yield name, Rows(piece, start, layer.num_out)
                    start += len(piece)

    return fingerprint(pieces())


def _identity(host: Host, data: _Data) -> dict[str, Any]:
    """What a run is made of besides its settings; the versions are information, and a change of them is said."""
    return {
        "versions": {
            "host": host.name,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "autoencoder": host.autoencoder.key,
            **{f"model {key}": value for key, value in host.model_info.items()},
        },
        "base": base_of(host),
        "data_manifest": data.cache.manifest,
    }


def _position(state: TrainState) -> Position:
    if "position" not in state.values:
        raise ValueError(f"the state of step {state.step} lacks the position in the data; it cannot be resumed")
    return Position.from_dict(state.values["position"])


@dataclass
class _Data:
    samples: list[Sample]
    cache: LatentCache
    conditioner: Conditioner
    loader: Loader
    notes: list[str]


@contextmanager
def _data(host: Host, config: RunConfig, parent: Path, report: Report, given: Given | None) -> Iterator[_Data]:
    _keep_weights(host, config)
    data, text_folder = config.data, parent / ".atelier-cache" / "text"
    if given is not None:
        cache, conditioner, problems = _given(host, config, given)
    else:
        cache, problems = _encoded(host, data, parent / ".atelier-cache" / "latents", report)
        conditioner = Conditioner(host.text, text_folder, host.device, config.trainable.text_encoder)
    samples = list(cache.samples)
    constant = not (data.shuffle_tags or data.tag_dropout)
    if not config.trainable.text_encoder and constant:
        report("encodes the captions")
        problems += conditioner.prepare([s.caption for s in samples], stop_requested=host.stop_requested)
    # the scan and the cache see some of the same things
    notes = list(dict.fromkeys(map(str, problems)))
    if given is None:
        notes += _long_captions(host, samples, data.max_token_chunks)
    loader = Loader(
        samples,
        cache,
        data,
        batch_size=config.loop.batch_size,
        accumulate=config.loop.accumulate,
        seed=config.loop.seed,
    )
    try:
        yield _Data(samples, cache, conditioner, loader, notes)
    finally:
        loader.close()


def _encoded(host: Host, data: DataConfig, folder: Path, report: Report) -> tuple[LatentCache, list[Problem]]:
    report("reads the data set")
    scanned = scan(data, host.autoencoder.scale_px * LATENT_STEP.get(host.family, 1))
    report(
        f"{len(scanned.samples)} pictures in {len({s.bucket for s in scanned.samples})} buckets; encodes what is new"
    )
    cache, problems = LatentCache.build(
        folder,
        scanned.samples,
        host.autoencoder,
        device=host.device,
        flip=data.flip,
        alpha_mask=data.alpha_mask,
        max_megapixels=data.max_megapixels,
        on_progress=lambda done, total: report(f"encoded {done} of {total}") if _tenth(done, total) else None,
        stop_requested=host.stop_requested,
    )
    if not cache.complete:
        raise StoppedError("stopped while the pictures were encoded; what is encoded is kept")
    mirrored = flip_findings(scanned.samples, tag_rules()) if data.flip else []
    return cache, [*scanned.problems, *mirrored, *problems]


def _given(host: Host, config: RunConfig, given: Given) -> tuple[LatentCache, Conditioner, list[Problem]]:
    """What the host has encoded. Errors: `ValueError` for settings that would need the pictures or the texts."""
    data, needs = config.data, "needs {}, and this data set was given as latents and conditionings"
    for name, wanted, what in (
        ("data.shuffle_tags", data.shuffle_tags, "the captions' text"),
        ("data.tag_dropout", data.tag_dropout > 0, "the captions' text"),
        ("data.flip", data.flip, "the pictures"),
        ("trainable.text_encoder", config.trainable.text_encoder, "the captions' text"),
    ):
        if wanted:
            raise ValueError(f"{name} {needs.format(what)}; turn it off, or train from a folder of pictures")
    text = GivenText(given, host.text)
    return LatentCache.from_latents(given.entries), Conditioner(text, None, host.device, False), []


def _tenth(done: int, total: int) -> bool:
    """Whether another tenth is done: often enough to see that it goes on, seldom enough to read."""
    return total >= 100 and done * 10 // total > (done - 1) * 10 // total


def _long_captions(host: Host, samples: list[Sample], max_chunks: int) -> list[str]:
    if host.family == "flux":
        return []  # its text is read by T5, which cuts nothing
    notes = []
    for caption in {s.caption: s for s in samples}.values():
        num_tokens = host.text.num_tokens(caption.caption)
        if num_tokens > 75 * max_chunks:
            notes.append(
                f"{caption.name}: the caption has {num_tokens} tokens and is cut after {75 * max_chunks}; "
                "shorten it or raise data.max_token_chunks"
            )
    return notes


@dataclass
class _Plan:
    """What is trained and how, before there is a folder for it: whatever is wrong with it costs no folder."""

    trainable: Trainable
    groups: dict[str, Group]
    rates: list[ResolvedSchedule]
    optimizer: Optimizer
    loss: DiffusionLoss
    probe: Probe | None
    num_steps: int


def _plan(host: Host, config: RunConfig, data: _Data, done: int, position: Position) -> _Plan:
    """The plan of a run that is at step `done` and at `position` in the data. Errors: `ValueError`."""
    data.loader.seek(position)
    # counted from here, since a branch may have other epochs behind it than ahead
    num_steps = config.loop.steps or done + data.loader.num_steps_until(config.loop.epochs or 0)
    trainable: Trainable = ALGORITHMS.get(config.trainable.algorithm)(config.trainable, config.loop.seed)  # type: ignore[operator]
    trainable.prepare(host)
    parameters = trainable.parameters()
    groups: dict[str, Group] = {}
    rates = []
    for name, (own_rate, names) in trainable.groups().items():
        of_part = config.rate.text_encoder if name.startswith("te") else ""
        schedule = parse(own_rate or of_part or config.rate.schedule)
        rates.append(schedule.resolve(num_steps, data.loader.num_steps_per_epoch, config.rate.stop_at_end))
        groups[name] = Group(params=[parameters[n] for n in names], names=names, lr=0.0)
    optimizer = create(config.optimizer.name, list(groups.values()), config.optimizer)
    num_steps = min(rate.num_steps for rate in rates)
    if done > num_steps:
        raise ValueError(f"the run is at step {done}, past its end at step {num_steps}; give more steps")
    for step in {s for rate in rates for piece in rate.pieces for s in (piece.first, piece.end - 1) if s < num_steps}:
        # an optimizer that wants one rate for all refuses here, not in the middle of the run
        optimizer.set_rates([rate.rate(step) for rate in rates])
    loss = DiffusionLoss(host, config.objective, config.loop.seed)
    record = config.record
    probe = None
    if record.probe_every_steps:
        probe = Probe(host, loss, data.samples, record.probe_images, record.probe_timesteps, config.loop.seed)
    return _Plan(trainable, groups, rates, optimizer, loss, probe, num_steps)


def _trainer(host: Host, config: RunConfig, run: RunFolder, data: _Data, plan: _Plan) -> Trainer:
    metadata = network_metadata(
        config,
        data.samples,
        family=host.family,
        prediction=plan.loss.prediction,
        model_info=host.model_info,
        network=plan.trainable.metadata(),
        num_steps=plan.num_steps,
        created=run.created,
    )
    ema = Ema(plan.trainable.parameters(), config.loop.ema_decay) if config.loop.ema_decay else None
    return Trainer(
        host=host,
        config=config,
        run=run,
        trainable=plan.trainable,
        loader=data.loader,
        cache=data.cache,
        conditioner=data.conditioner,
        loss=plan.loss,
        optimizer=plan.optimizer,
        group_names=list(plan.groups),
        rates=plan.rates,
        recorder=Recorder(run.path, config.record, config.loop.seed, list(plan.groups)),
        probe=plan.probe,
        metadata=lambda stem, step, epoch: checkpoint_metadata(metadata, stem, step, epoch),
        compute_dtype=DTYPES.get(config.loop.compute_dtype, host.compute_dtype),
        ema=ema,
    )


def _summary(trainer: Trainer, data: _Data) -> str:
    loop = trainer.config.loop
    given = ""
    if loop.epochs is not None:
        steps = counts(data.samples, loop.batch_size, loop.accumulate, loop.epochs)
        given = f" for {loop.epochs} epochs"
        if steps.by_formula != steps.by_buckets:
            given += f" ({steps.by_formula} if buckets could share batches)"
    num_values = sum(p.numel() for p in trainer.trainable.parameters().values())
    return (
        f"{len(data.samples)} pictures, {data.loader.num_steps_per_epoch} steps an epoch, "
        f"{trainer.num_steps} steps{given}; {len(trainer.trainable.layer_names())} layers, "
        f"{num_values / 1e6:.2f} million trained values"
    )


def _rate_notes(plan: _Plan) -> list[str]:
    notes = list(dict.fromkeys(note for rate in plan.rates for note in rate.notes))
    highest = max(max(piece.start, piece.stop) for rate in plan.rates for piece in rate.pieces)
    if plan.optimizer.one_rate and highest < 0.1:
        notes.append(
            f"{plan.optimizer.name} finds the step size by itself and the rate is a factor on it, usually 1; this "
            f"schedule's highest is {highest:g}, with which almost nothing may be trained"
        )
    return notes
