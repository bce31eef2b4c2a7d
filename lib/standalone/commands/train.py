"""`atelier train`: options or a TOML file, and what is common to the commands that train."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ... import presets
from ...config import RunConfig, from_dict, merge
from ...forms import form
from ...host import Host
from ...preparation import Prepared, check_settings, start
from ...report import write_report
from ...strip.growing import STEM
from ..host import StandaloneHost
from ..pipeline import choose_device, choose_dtype, load_pipeline
from ..progress import StopRequest, Terminal
from ..sources import Sources

# Options that have a name of their own; every other setting is reached by --set.
SHORT = {
    "name": "name",
    "steps": "loop.steps",
    "epochs": "loop.epochs",
    "batch_size": "loop.batch_size",
    "resolution": "data.resolution",
    "rate": "rate.schedule",
    "rank": "trainable.rank",
    "alpha": "trainable.alpha",
    "optimizer": "optimizer.name",
    "seed": "loop.seed",
    "dtype": "loop.compute_dtype",
    "save_every": "save.every_steps",
}


def add_model_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Which model, and where it runs."""
    parser.add_argument(
        "--model",
        type=Path,
        required=required,
        help="diffusers folder or .safetensors file of Stable Diffusion 1.x, 2.x, XL, 3, 3.5 or Flux",
    )
    parser.add_argument("--tokenizer", type=Path, help="CLIP tokenizer folder, for a single file")
    for name, what in (
        ("t5-tokenizer", "T5 tokenizer folder, for a single file of Stable Diffusion 3 or Flux"),
        ("clip-l", "first CLIP text encoder where the single file has none: a folder or a .safetensors file"),
        ("clip-g", "the same for the second CLIP of Stable Diffusion 3"),
        ("t5", "the same for T5"),
        ("vae", "autoencoder of a single file, where it has none or another is wanted: a folder or a file"),
        ("parts", "diffusers folder of the same family that lends what a single file lacks"),
    ):
        parser.add_argument(f"--{name}", type=Path, help=what)
    parser.add_argument("--no-t5", action="store_true", help="leave T5 out of Stable Diffusion 3")
    parser.add_argument(
        "--prediction",
        choices=("auto", "epsilon", "v"),
        default="auto",
        help="of a single file with a U-Net, which seldom says; auto: what it says, else epsilon",
    )
    parser.add_argument(
        "--clip-skip",
        type=int,
        default=1,
        help="1 takes the layer that the family was trained with; 2 the last but one, and so on",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--text-device", default="auto", help="where text is encoded; auto: as --device")


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings of the run."""
    helps = {widget.path: widget.help for group in form(RunConfig) for widget in group.widgets}
    for name, path in SHORT.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=name, metavar="VALUE", help=f"{helps[path]} ({path})".replace("%", "%%")
        )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SETTING=VALUE", help="any setting by its dotted name; repeatable"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `atelier train`."""
    parser.add_argument("config", nargs="?", type=Path, help="settings as TOML or JSON; options override them")
    add_model_arguments(parser)
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FOLDER[,trigger=WORD][,repeats=N][,weight=X][,regularization]",
        help="a folder of pictures; repeatable",
    )
    parser.add_argument(
        "--preset",
        metavar="FAMILY,MEMORY,PURPOSE",
        help="begin with a recipe, such as sdxl,12GB,character; settings from the file and from options override it",
    )
    add_setting_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder that run folders are made in")


def settings(args: argparse.Namespace) -> RunConfig:
    """The settings that file and options give together."""
    values = _read(args.config) if args.config else {}
    if args.data:
        values.setdefault("data", {})["concepts"] = [_concept(text) for text in args.data]
    put(values, given(args))
    if args.preset is None:
        return from_dict(RunConfig, values)
    recipe = presets.named(args.preset).apply(RunConfig(), storage=True)
    if values.get("loop", {}).get("epochs") is not None:
        recipe = merge(recipe, {"loop": {"steps": None}})
    return merge(recipe, values)


def run(args: argparse.Namespace) -> int:
    """Train. Returns 0 when finished, 3 when stopped."""
    config = settings(args)
    return train(args, config, lambda host, say: start(host, config, args.output, say))


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Dotted setting -> value, of the options that were given."""
    settings = {
        path: _value(path, getattr(args, name)) for name, path in SHORT.items() if getattr(args, name) is not None
    }
    for text in args.set:
        path, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f'--set takes SETTING=VALUE, got "{text}"')
        settings[path.strip()] = _value(path.strip(), value.strip())
    return settings


def put(values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Put dotted settings into nested values."""
    for path, value in settings.items():
        *parents, leaf = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ValueError(f'unknown setting "{path}"')
        place[leaf] = value
    return values


def train(
    args: argparse.Namespace,
    config: RunConfig,
    prepare: Callable[[Host, Callable[[str], None]], AbstractContextManager[Prepared]],
) -> int:
    """Load the model, train what `prepare` makes of it, write the report; the exit code."""
    check_settings(config)  # before the model is loaded
    terminal = Terminal()
    stop = StopRequest(terminal)
    with stop.listening():
        host = load_host(args, config, config.loop.compute_dtype, terminal, stop)
        with prepare(host, terminal.say) as prepared:
            for note in prepared.notes:
                terminal.say(f"note: {note}")
            trainer = prepared.trainer
            terminal.say(prepared.summary)
            page = prepared.run.path / f"{STEM}.html"
            if trainer.config.preview.prompts:
                terminal.say(f"previews stand side by side in {page}, which a browser shows as it grows")
            outcome = trainer.train()
            for note in trainer.notes:
                terminal.say(f"note: {note}")
    report = write_report(prepared.run.path)
    latest = prepared.run.checkpoints.networks()[outcome.step]
    print(f"{outcome.reason} at step {outcome.step}")
    written = {"network": latest, "losses": prepared.run.path / "loss.csv", "report": report, "previews": page}
    for what, path in written.items():
        if path.is_file():
            print(f"{what + ':':10}{path}")
    if outcome.reason == "stopped":
        print(f"go on with: atelier resume {prepared.run.path} --model {args.model}")
        return 3
    return 0


def load_host(
    args: argparse.Namespace, config: RunConfig, dtype: str, terminal: Terminal, stop: StopRequest
) -> StandaloneHost:
    """The host that the model arguments ask for."""
    device = choose_device(args.device)
    text_device = device if args.text_device == "auto" else choose_device(args.text_device)
    if config.trainable.text_encoder and text_device != device:
        raise ValueError("a text encoder that is trained is where the model is; leave out --text-device")
    terminal.say(f"loads {args.model}")
    pipeline, info = load_pipeline(
        args.model, dtype=choose_dtype(dtype, device), prediction=args.prediction, sources=sources_of(args)
    )
    return StandaloneHost(
        pipeline,
        model_info=info,
        device=device,
        text_device=text_device,
        clip_skip=args.clip_skip,
        max_token_chunks=config.data.max_token_chunks,
        base_storage=config.loop.base_storage,
        cpu_blocks=config.loop.cpu_blocks,
        on_progress=terminal.show,
        stop_requested=lambda: stop.requested,
    )


def sources_of(args: argparse.Namespace) -> Sources:
    """Where the parts of the model lie that a single file lacks."""
    return Sources(
        parts=args.parts,
        tokenizer=args.tokenizer,
        t5_tokenizer=args.t5_tokenizer,
        clip_l=args.clip_l,
        clip_g=args.clip_g,
        t5=args.t5,
        vae=args.vae,
        without_t5=args.no_t5,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; give a TOML or JSON file with settings") from error
    if path.suffix == ".json":
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a table of settings")
        return values
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


def _concept(text: str) -> dict[str, Any]:
    folder, *options = text.split(",")
    concept: dict[str, Any] = {"folder": folder.strip()}
    for option in options:
        name, _, value = option.strip().partition("=")
        concept[name] = True if name == "regularization" and not value else _value(f"data.concepts.{name}", value)
    return concept


# Read as text although they look like numbers: a rate is a schedule.
_TEXTS = ("rate.schedule", "rate.text_encoder", "name", "data.concepts.trigger")


def _value(path: str, text: str) -> Any:
    """A setting's value from the command line: JSON where it is that, else the text itself."""
    if path in _TEXTS:
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
