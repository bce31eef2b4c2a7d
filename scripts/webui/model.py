"""What the page says of the loaded checkpoint, without loading one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from .loaded import loaded_checkpoint
from .text import WebuiText

_KEPT: dict[str, Any] = {}


def loaded_now() -> dict[str, Any] | None:
    """Name, family and prediction of the loaded checkpoint, or `refusal` where it cannot be trained.

    None where none is loaded.
    """
    from modules import sd_models

    model = sd_models.model_data.sd_model
    if model is None:
        _KEPT.clear()
        return None
    info = getattr(model, "sd_checkpoint_info", None)
    if info is None:  # it is still being made
        return None
    # a page asks once a second
    kept = _KEPT.get("model")
    if kept is None or kept() is not model or _KEPT.get("name") != info.name_for_extra:
        described: dict[str, Any] = {"name": info.name_for_extra, "family": None, "prediction": None, "refusal": ""}
        try:
            loaded = loaded_checkpoint()
            described |= {"family": loaded.family, "prediction": loaded.prediction}
        except ValueError as error:
            # a setting may be the reason, and be changed at any moment
            return {**described, "refusal": str(error)}
        # not the model itself: what is unloaded has to leave memory
        _KEPT.update(model=weakref.ref(model), name=info.name_for_extra, described=described)
    return _KEPT["described"]


def token_counter() -> Callable[[str], int] | None:
    """Counts the tokens of a caption as the loaded checkpoint's first text encoder does; None where none is loaded."""
    model = loaded_now()
    return None if model is None or model["refusal"] else WebuiText(loaded_checkpoint(), 1).num_tokens


def memory_mb() -> float | None:
    """Memory of the device that is trained on; None where it is not known."""
    import torch
    from modules import devices

    device = torch.device(devices.device)
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory / 2**20
