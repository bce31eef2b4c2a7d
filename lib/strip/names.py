"""Which checkpoints a strip shows, and their order: by step, never by letters or by date."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

FILE_SUFFIX = re.compile(r"\.(safetensors|ckpt|pt|pth|bin|png|jpg|jpeg|webp)$", re.IGNORECASE)
# A checkpoint that was written once more has -2 and so on behind its step of six digits.
STEP = re.compile(r"(?:^|(?<=[-_ ])|(?<=step)|(?<=epoch)|(?<=steps))(?:(\d{6,18})-\d{1,6}|(\d{1,18}))$", re.IGNORECASE)
# Below a folder of one checkpoint, where a trainer of full models puts the weights.
_INSIDE = ("transformer", "unet")
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors", "pytorch_lora_weights.safetensors")


def natural_step(name: str) -> int | None:
    """The step (or epoch) at the end of a checkpoint's name: x-000800, checkpoint-2400, epoch-10; None for last."""
    match = STEP.search(FILE_SUFFIX.sub("", name))
    return int(match[1] or match[2]) if match else None


def natural_order(names: Iterable[str]) -> list[str]:
    """Names by step; those without one, such as the finished network's, come last, by name."""

    def order(name: str) -> tuple[bool, int, str]:
        step = natural_step(name)
        return step is None, step or 0, name

    return sorted(names, key=order)


def split_label(label: str) -> tuple[str, str]:
    """The front of a label, which may be cut, and the step with what follows it, which may not. A short label without
    a step is all step, so that it is drawn in bold."""
    stem = FILE_SUFFIX.sub("", label)
    match = STEP.search(stem)
    if match:
        return stem[: match.start()], stem[match.start() :]
    return ("", label) if len(label) <= 24 else (label, "")


def checkpoint_files(source: Path | str) -> dict[str, Path]:
    """Label -> file of each checkpoint that a folder, a glob or a file names, in order.

    A folder gives its `.safetensors` files and its folders of one checkpoint each (`checkpoint-800/transformer/
    diffusion_pytorch_model.safetensors`), which are called by the folder's name. Two of one name are told apart by the
    folder above. Errors: `ValueError` when there is none.
    """
    source = str(source)
    paths = [Path(p) for p in glob.glob(source)] if glob.has_magic(source) else [Path(source)]
    found: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            inside = [*path.glob("*.safetensors"), *(p for p in path.iterdir() if p.is_dir())]
            found += [named for p in inside for named in _one(p)]
            if not found:
                found += _one(path)
        else:
            found += _one(path)
    if not found:
        raise ValueError(f'no checkpoint found at "{source}"; name a folder, a file or a glob of .safetensors files')
    counts: dict[str, int] = {}
    for label, _ in found:
        counts[label] = counts.get(label, 0) + 1
    labelled = {
        label if counts[label] == 1 else f"{path.parent.name}/{label}": path for label, path in dict(found).items()
    }
    if len(labelled) < len(found):
        labelled = {f"{path.parent.name}/{label}" if counts[label] > 1 else label: path for label, path in found}
    return {label: labelled[label] for label in natural_order(labelled)}


def _one(path: Path) -> list[tuple[str, Path]]:
    """The checkpoint that a file or a folder is, with its label; none if it is no checkpoint."""
    if path.is_file():
        return [(path.stem, path)] if path.suffix == ".safetensors" else []
    for folder in (path / inner for inner in (*_INSIDE, "")):
        for name in _WEIGHTS:
            if (folder / name).is_file():
                return [(path.name, folder / name)]
    return []


def selected(
    labels: Sequence[T], *, every: int = 1, steps: Sequence[int | None] | None = None, first: int = 0, last: int = 0
) -> list[T]:
    """Every `every`-th, counted from the last, of those whose step lies in [first, last]; 0 leaves a side open.

    `steps` are those of `labels`; a checkpoint without a step stays. Errors: `ValueError` when none is left.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if steps is None:
        steps = [natural_step(str(label)) for label in labels]
    inside = [
        label
        for label, step in zip(labels, steps, strict=True)
        if step is None or (step >= first and (not last or step <= last))
    ]
    chosen = inside[::-1][::every][::-1]
    if not chosen:
        raise ValueError(f"no checkpoint from step {first} to {last or 'the end'}; there are {len(labels)} in all")
    return chosen
