"""`atelier inspect`: what a network file is, and which of a model's layers it matches."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...inspection import Inspection, ModelMatch, inspect_file, match_model, tag_frequencies
from ...network_keys import Layer

NUM_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a LoRA or another network, .safetensors")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a diffusers model: which of its layers match")
    parser.add_argument("--layers", action="store_true", help="every layer rather than a summary by block")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def run(args: argparse.Namespace) -> int:
    """Print what the file is. Errors: `ValueError` for a file or a model folder that cannot be read."""
    found = inspect_file(args.file)
    match = match_model(found.layers, args.model) if args.model else None
    if args.json:
        print(json.dumps(_plain(found, match), indent=2))
    else:
        print("\n".join(_clean(line) for line in _lines(found, match, args.layers)))
    return 0


def _plain(found: Inspection, match: ModelMatch | None) -> dict[str, Any]:
    layers = [{**dataclasses.asdict(x), "part": x.part, "block": x.block} for x in found.layers]
    for layer in layers:
        if layer["alpha"] is not None and not math.isfinite(layer["alpha"]):
            layer["alpha"] = str(layer["alpha"])  # JSON has no nan
    values = {**dataclasses.asdict(found), "path": str(found.path), "layers": layers}
    return values | ({"model": dataclasses.asdict(match)} if match else {})


def _lines(found: Inspection, match: ModelMatch | None, every_layer: bool) -> Iterable[str]:
    dtypes = ", ".join(f"{name} ({_count(num, 'tensor')})" for name, num in sorted(found.dtypes.items()))
    yield f"{found.path.name}: {_title(found)}"
    if found.family:
        yield f"  made for    {found.family} (by {found.family_reason})"
    yield f"  size        {found.num_bytes / 1e6:.2f} MB, {found.num_params:,} parameters, {dtypes or 'no tensors'}"
    if found.nonfinite:
        yield f"  BROKEN      nan or inf in {_count(len(found.nonfinite), 'tensor')}: {_some(found.nonfinite)}"
    else:
        yield "  values      all finite"
    silent = sum(layer.no_effect for layer in found.layers)
    if silent:
        yield f"  no effect   {silent} of {_count(len(found.layers), 'layer')} (a factor is zero)"
    if found.other_keys:
        yield f"  unknown     keys that belong to no layer: {_some(found.other_keys)}"
    if found.layers:
        yield ""
        yield from _table(_rows_of_layers(found.layers) if every_layer else _rows_of_blocks(found.layers))
    if match:
        yield ""
        yield from _match_lines(found, match)
    yield from _metadata_lines(found.metadata)


def _title(found: Inspection) -> str:
    if found.kind == "network":
        return f"{found.algorithm}, {_count(len(found.layers), 'layer')}"
    words = {
        "embedding": "an embedding (textual inversion), not a network",
        "model": "the weights of a model, not a network",
        "unknown": "safetensors, but no network that is known here",
    }
    return words[found.kind]


def _rows_of_blocks(layers: Iterable[Layer]) -> Iterable[tuple[str, ...]]:
    yield "part", "block", "layers", "rank", "alpha", "parameters"
    blocks: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        blocks.setdefault((layer.part, layer.block), []).append(layer)
    for (part, block), own in sorted(blocks.items(), key=lambda item: (item[0][0], _natural(item[0][1]))):
        ranks, alphas = ({getattr(x, name) for x in own} for name in ("rank", "alpha"))
        params = sum(x.num_params for x in own)
        yield part or "-", block or "-", str(len(own)), _numbers(ranks), _numbers(alphas), f"{params:,}"


def _rows_of_layers(layers: Iterable[Layer]) -> Iterable[tuple[str, ...]]:
    yield "layer", "rank", "alpha", "weight", "parameters"
    for x in layers:
        kernel = "x".join(map(str, x.kernel))
        weight = f"{x.num_out} x {x.num_in}" if x.num_out else "-"
        weight += f" ({kernel})" if kernel else ""
        yield x.name, _numbers({x.rank}), _numbers({x.alpha}), weight, f"{x.num_params:,}"


def _match_lines(found: Inspection, match: ModelMatch) -> Iterable[str]:
    parts = ", ".join(f"{part} {num}" for part, num in match.num_model_layers.items())
    yield f"matches {len(match.matched)} of its {len(found.layers)} layers in this model (matrices there: {parts})"
    for title, names in (("of another size", match.wrong_size), ("not in this model", match.unmatched)):
        if names:
            yield f"  {title} ({len(names)}):"
            yield from (f"    {name}" for name in names)


def _metadata_lines(metadata: dict[str, str]) -> Iterable[str]:
    tags = tag_frequencies(metadata, NUM_SHOWN)
    shown = {k: v for k, v in metadata.items() if v and not (k == "ss_tag_frequency" and tags)}
    if not metadata:
        yield from ("", "no metadata")
    if tags:
        yield from ("", "tags           " + ", ".join(f"{tag} {num}" for tag, num in tags))
    if shown:
        yield from ("", "metadata")
        width = max(map(len, shown))
        yield from (
            f"  {k:{min(width, 36)}}  {v if len(v) <= 300 else v[:297] + '...'}" for k, v in sorted(shown.items())
        )


def _table(rows: Iterable[tuple[str, ...]]) -> Iterable[str]:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (c.rjust(w) if c[:1].isdigit() or rows[0][i] == "parameters" else c.ljust(w)
                 for i, (c, w) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        yield "  " + "  ".join(cells).rstrip()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _numbers(values: set[Any]) -> str:
    known = sorted(v for v in values if v is not None)
    return ", ".join([*(f"{v:g}" for v in known), *(["-"] if None in values else [])])


def _natural(name: str) -> list[Any]:
    """down_blocks_2 before down_blocks_10."""
    front, _, number = name.rpartition("_")
    return [front, int(number)] if number.isdigit() else [name, -1]


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _clean(line: str) -> str:
    """Without control characters: metadata is somebody else's text, and a terminal obeys some of them."""
    return "".join(c if c.isprintable() else " " for c in line)
