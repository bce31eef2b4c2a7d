"""A checkpoint of a run as a LoRA that txt2img offers: a copy under a friendly name, with its card.

The files that a run writes stay out of the LoRA menu. A copy says its new name of itself, which is the name that
prompts use, and nothing that is there is ever overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from ...lib.files import make_folder, read_safetensors, safe_name, write_image, write_json, write_safetensors
from ...lib.keys.published import adapters_in, published
from ...lib.run_folder import RunFolder


@dataclass(frozen=True)
class Published:
    """The copy, and what to put into a prompt to use it."""

    path: Path
    prompt: str  # "<lora:name:1> trigger words"
    trigger: str


def publish(
    run_folder: Path | str,
    step: int | None = None,
    name: str = "",
    *,
    folder: Path | None = None,
    preview: Path | None = None,
    weight: float = 1.0,
) -> Published:
    """Copy the network of a step (None: the newest) into the host's LoRA folder, and make its card.

    `name` is made safe and free: another number behind it where it is taken. `preview`: the card's picture; None: the
    first that the run made at that step, if there is one. Errors: `ValueError` naming the steps that there are.
    """
    run = RunFolder.open(run_folder)
    networks = run.checkpoints.networks()
    if not networks:
        raise ValueError(f"{run.path.name} has no checkpoint yet; save one, and use it then")
    chosen = max(networks) if step is None else step
    if chosen not in networks:
        raise ValueError(f"{run.path.name} has no checkpoint of step {step}; it has {', '.join(map(str, networks))}")
    target = folder or _lora_folder()
    make_folder(target)
    stem = _free_stem(target, safe_name(name or f"{run.path.name}-{chosen}", "lora"))
    tensors, metadata = read_safetensors(networks[chosen])
    if any(name.startswith("transformer.") for name in tensors):
        tensors = _with_kohyas_names(tensors)
    path = target / f"{stem}.safetensors"
    write_safetensors(path, tensors, {**metadata, "ss_output_name": stem})
    trigger = ", ".join(dict.fromkeys(c.trigger for c in run.config.data.concepts if c.trigger))
    about = f"{run.path.name}, step {chosen}"
    write_json(
        target / f"{stem}.json",
        {"description": about, "activation text": trigger, "preferred weight": weight, "notes": ""},
    )
    picture = preview or next(iter(sorted(run.previews.glob(f"{chosen:06d}-*.png"))), None)
    if picture is not None:
        with Image.open(picture) as image:
            write_image(target / f"{stem}.preview.png", image.convert("RGB"))
    return Published(path, f"<lora:{stem}:{weight:g}>" + (f" {trigger}" if trigger else ""), trigger)


def _with_kohyas_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network of Stable Diffusion 3 as the WebUI reads it whole.

    By the names of diffusers it finds only some of the layers, and a key of fewer than three parts, as alpha has, makes
    it refuse the file; so the scale is multiplied into up, and no alpha means that there is none to apply.
    """
    adapters, unknown = adapters_in("sd3", tensors)
    assert not unknown, f"the run's own file has the unknown {unknown[0]}"
    dtype = next(iter(tensors.values())).dtype
    scaled = {name: replace(a, up=a.up.float() * a.scale, scale=1.0) for name, a in adapters.items()}
    named = published("sd3", scaled, dtype, "kohya")
    return {name: tensor for name, tensor in named.items() if not name.endswith(".alpha")}


def refresh_menu() -> None:
    """Let the host list its LoRA files anew, so that the copy is known at once."""
    import sys

    networks = sys.modules.get("networks")
    if networks is not None and hasattr(networks, "list_available_networks"):
        networks.list_available_networks()


def _lora_folder() -> Path:
    from modules import shared

    return Path(shared.cmd_opts.lora_dir)


def _free_stem(folder: Path, stem: str) -> str:
    """`stem`, or with the lowest number behind it that makes it free, whatever the case of the letters.

    Prompts end a name at a colon or an angle bracket, and names that differ in case only are one on some disks.
    """
    taken = {path.name.split(".")[0].lower() for path in folder.rglob("*")}
    stem = stem.translate(str.maketrans("<>:.", "____"))
    number = 1
    free = stem
    while free.lower() in taken:
        number += 1
        free = f"{stem}-{number}"
    return free
