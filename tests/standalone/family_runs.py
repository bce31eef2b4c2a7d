"""Settings and hosts for runs on tiny models of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sd_atelier.lib.config import RunConfig, from_dict
from sd_atelier.lib.standalone.host import StandaloneHost
from sd_atelier.lib.standalone.pipeline import load_pipeline


def settings(folders: list[Path], steps: int, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "name": "run",
        "data": {
            "concepts": [{"folder": str(folder)} for folder in folders],
            "resolution": 64,
            "bucket_step": 32,
            "bucket_min_px": 32,
        },
        "trainable": {"rank": 16, "alpha": 16.0, "layers": "all"},
        "rate": {"schedule": "1e-2"},
        "loop": {"steps": steps, "batch_size": 4},
        "save": {"dtype": "fp32"},
        "record": {"probe_every_steps": steps, "probe_images": 15, "probe_timesteps": 2},
    }
    for group, own in changes.items():
        values[group] = {**values[group], **own}
    return from_dict(RunConfig, values)


def host_of(folder: Path, **options: Any) -> StandaloneHost:
    pipeline, info = load_pipeline(folder, dtype=torch.float32)
    return StandaloneHost(pipeline, model_info=info, device=torch.device("cpu"), **options)
