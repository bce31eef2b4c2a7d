"""The cells of a strip by the host's own sampling, and what a picture of the host depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open

from ...lib.checksum import checksum
from ...lib.control import Control
from ...lib.files import sha256_of
from ...lib.host import SampleRequest
from ...lib.preparation import base_of
from ...lib.previews import random_state_kept
from ...lib.strip.render import Column, Paint
from .borrowed_names import named

_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^:>]+)")


class WebuiPainter:
    """Cells by the host's txt2img: with `<lora:...>` at a row's strength, or on the checkpoint of the column."""

    def __init__(self, sampler: str, control: Control) -> None:
        from modules import call_queue

        self._sampler, self._control = sampler, control
        self._problems: list[str] = []
        with call_queue.queue_lock:
            host = self._host()
            self._base = _base(host)
            # every bit of the U-Net: a fine-tuning may leave all values that the base is known by
            with host.held():
                exactly = checksum(sorted(host.parts["unet"].state_dict().items()))
            self.fingerprint = f"{self._base} {exactly} "
            self.settings: dict[str, Any] = {
                "host": host.name,
                "dtype": str(host.compute_dtype),
                "text": host.text.key,
                "autoencoder": host.autoencoder.key,
                "sampler": sampler,
                "options": _options(),
            }

    def named_in(self, request: SampleRequest) -> dict[str, Any]:
        """Embeddings, LoRAs and hypernetworks that the prompts name, by their content."""
        text = f"{request.prompt}\n{request.negative_prompt}"
        return {**_embeddings_in(text), **_networks_in(text)}

    @contextmanager
    def ready(self, column: Column) -> Iterator[Paint]:
        """The host's queue, and the network under a name or the checkpoint loaded. Errors: `ValueError` where another
        checkpoint was loaded meanwhile, or the file cannot be used; `OSError`."""
        from modules import call_queue, shared

        # loading networks and checkpoints draws random numbers too
        with call_queue.queue_lock, random_state_kept():
            host = self._host()
            if _base(host) != self._base:
                raise ValueError("another checkpoint was loaded meanwhile; load the first one and make the strip again")
            if _options() != self.settings["options"]:
                raise ValueError("a setting that changes pictures was changed meanwhile; make the strip again")
            shared.state.begin(job="atelier strip")
            try:
                if column.source is None:
                    yield lambda request, strength: self._painted(host, request)
                elif _is_checkpoint(column.source):
                    del host
                    with _loaded(column.source):
                        other = self._host()
                        yield lambda request, strength: self._painted(other, request)
                else:
                    with named(column.source) as name:

                        def paint(request: SampleRequest, strength: float) -> Image.Image:
                            prompt = f"{request.prompt} <lora:{name}:{strength:g}>"
                            return self._painted(host, dataclasses.replace(request, prompt=prompt))

                        yield paint
            finally:
                shared.state.end()
                shared.state.current_latent = None

    def _host(self) -> Any:
        from .host import WebuiHost

        fields = {"sampler_name": self._sampler} if self._sampler else None
        return WebuiHost(self._control, txt2img=fields, on_problem=self._problems.append)

    def _painted(self, host: Any, request: SampleRequest) -> Image.Image:
        self._problems.clear()
        with random_state_kept():
            image = host.sampler(request)
        if self._problems:  # such as nothing but NaN, of a network that fell apart: the others may be drawn
            raise ValueError(self._problems[-1])
        if image is None:
            self._control.stop()
            raise ValueError("interrupted")
        return image


def _base(host: Any) -> str:
    """Which checkpoint is loaded, whatever network the last picture has left in its weights."""
    with host.held():
        return hashlib.sha256(json.dumps(base_of(host), sort_keys=True).encode()).hexdigest()


def _options() -> dict[str, str]:
    """The host's settings that decide a picture: those that it writes into a picture's parameters."""
    from modules import shared

    labels = {name: label for name, label in shared.opts.data_labels.items() if getattr(label, "infotext", None)}
    labels.pop("sd_model_checkpoint", None)  # known by its weights
    return {name: repr(shared.opts.data.get(name, label.default)) for name, label in sorted(labels.items())}


def _embeddings_in(text: str) -> dict[str, str]:
    from modules import sd_hijack

    found = {}
    for name, embedding in sd_hijack.model_hijack.embedding_db.word_embeddings.items():
        if name.lower() in text.lower():
            vectors = embedding.vec if isinstance(embedding.vec, dict) else {"": embedding.vec}
            found[f"embedding {name}"] = checksum(sorted(vectors.items()))
    return found


def _networks_in(text: str) -> dict[str, str | None]:
    from modules import shared

    known = getattr(sys.modules.get("networks"), "available_network_aliases", {})
    loras = {name: entry.filename for name, entry in known.items()}
    files = {"lora": loras, "lyco": loras, "hypernet": shared.hypernetworks}
    found: dict[str, str | None] = {}
    for kind, name in _NETWORK.findall(text):
        file = files[kind].get(name)
        found[f"{kind} {name}"] = None if file is None else sha256_of(Path(file))
    return found


def _is_checkpoint(path: Path) -> bool:
    """Whether a file has a U-Net in it. Errors: `ValueError` for a file that is none; `OSError`."""
    try:
        with safe_open(str(path), "pt") as file:
            return any(name.startswith("model.diffusion_model.") for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a safetensors file, or it is cut off: {error}") from None


@contextmanager
def _loaded(path: Path) -> Iterator[None]:
    """A checkpoint in place of the loaded one, inside; what the user chose stays chosen. Errors: `ValueError`."""
    from modules import sd_models, shared

    own, chosen = sd_models.model_data.sd_model.sd_checkpoint_info, shared.opts.data.get("sd_model_checkpoint")
    listed, aliases = dict(sd_models.checkpoints_list), dict(sd_models.checkpoint_aliases)
    info = next((i for i in listed.values() if Path(i.filename).resolve() == path.resolve()), None)
    try:
        if info is None:
            info = sd_models.CheckpointInfo(str(path))
            info.register()
        # txt2img loads what is chosen before it samples
        shared.opts.data["sd_model_checkpoint"] = info.title
        try:
            sd_models.reload_model_weights(info=info)
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
            raise ValueError(f"{path.name} cannot be loaded as a checkpoint: {str(error)[:300]}") from None
        yield
    finally:
        for kept, before in ((sd_models.checkpoints_list, listed), (sd_models.checkpoint_aliases, aliases)):
            kept.clear()
            kept.update(before)
        shared.opts.data["sd_model_checkpoint"] = chosen
        sd_models.reload_model_weights(info=own)
