"""The demo: a tiny base model that comes with the pack, and the little world of drawings that it knows."""

from pathlib import Path

BASE = Path(__file__).parent / "base"  # a diffusers folder, made by `pretraining`
