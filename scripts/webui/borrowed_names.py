"""Network files under names of the built-in LoRA extension for a while, so that a prompt can ask for them.

The files of a run stay out of the LoRA menu; a strip and the X/Y/Z plot name them all the same.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def name_for(path: Path) -> str:
    """The name that stands for a file in prompts: it tells two files of one stem apart, and a file that was changed."""
    about = f"{path.absolute()} {path.stat().st_mtime_ns}"
    return f"atelier-{hashlib.sha256(about.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


@contextmanager
def named(path: Path) -> Iterator[str]:
    """The file's name for prompts, known to the host inside; forgotten after it, its weights too.

    Errors: `ValueError` where the built-in LoRA extension is off, or the file is none that it reads.
    """
    name = lend(path)
    try:
        yield name
    finally:
        take_back(name)


def lend(path: Path) -> str:
    """Make the file known. Errors: as `named`."""
    networks = _networks()
    name = name_for(path)
    try:
        entry = networks.network.NetworkOnDisk(name, str(path))
        loaded = networks.load_network(name, entry)
    except (OSError, ValueError, RuntimeError, KeyError, AssertionError, SafetensorError) as error:
        raise ValueError(f"{path.name} cannot be used as a LoRA: {error}") from None
    if not loaded.modules:
        # the host would make the picture without it, and say so on the console only
        raise ValueError(f"{path.name} has no layer that the loaded checkpoint has; it was made for another family")
    networks.available_networks[name] = networks.available_network_aliases[name] = entry
    return name


def take_back(name: str) -> None:
    """Forget a name that was lent."""
    networks = _networks()
    for known in (networks.available_networks, networks.available_network_aliases, networks.networks_in_memory):
        known.pop(name, None)


def _networks() -> Any:
    networks = sys.modules.get("networks")
    if networks is None or not hasattr(networks, "available_network_aliases"):
        raise ValueError("the built-in LoRA extension is turned off; turn it on in Extensions")
    return networks
