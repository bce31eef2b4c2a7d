"""What travels between our nodes: a data set, settings, a run. Plain values that ComfyUI may keep for long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..lib.config import ConceptConfig
from ..lib.data.given import Given

DATASET, SCHEDULE, OPTIONS, RUN = "ATELIER_DATASET", "ATELIER_SCHEDULE", "ATELIER_OPTIONS", "ATELIER_RUN"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Folders of pictures, or latents that came from the graph; and those settings of `data.*` that belong to them."""

    concepts: tuple[ConceptConfig, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)  # name within data.* -> value
    given: Given | None = None

    def with_settings(self, **settings: Any) -> Dataset:
        """This data set with settings of `data.*` put in."""
        return replace(self, settings={**self.settings, **settings})

    def with_words(self, trigger: str, append: str) -> Dataset:
        """This data set with a trigger word and an ending for every concept; where empty, each keeps its own."""
        changed = {name: text for name, text in (("trigger", trigger), ("append", append)) if text.strip()}
        if changed and self.given is not None:
            raise ValueError(
                "Captions: a data set of latents has no captions to put a trigger word into; write it into the texts "
                "before they are encoded"
            )
        return replace(self, concepts=tuple(replace(concept, **changed) for concept in self.concepts))


def combined(datasets: Sequence[Dataset]) -> Dataset:
    """One data set of several. Errors: `ValueError` where their settings contradict, or where latents meet folders."""
    settings: dict[str, Any] = {}
    for number, dataset in enumerate(datasets, start=1):
        for name, value in dataset.settings.items():
            if settings.setdefault(name, value) != value:
                raise ValueError(
                    f"Combine: data set {number} has data.{name} = {value} and one before it {settings[name]}; this "
                    "setting is one for all pictures, so give them the same, or set it after they are combined"
                )
    given = [dataset.given for dataset in datasets if dataset.given is not None]
    if given and len(given) < len(datasets):
        raise ValueError("Combine: latents cannot be combined with folders of pictures; encode both or neither")
    concepts = tuple(concept for dataset in datasets for concept in dataset.concepts)
    return Dataset(concepts=concepts, settings=settings, given=Given.joined(given) if given else None)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, and the checkpoint that is meant: None is its newest."""

    folder: Path
    step: int | None = None
