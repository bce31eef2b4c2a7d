"""The report of a run: one HTML file that needs nothing else, and the charts in it as PNG files beside it.

The page has no script and forbids any, loads nothing, and holds other people's text (names, captions, metadata) only
escaped, so that opening the report of a stranger's run does nothing but show it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open

from . import charts, files
from .comparison import PictureLoss, by_picture
from .config import RunConfig, to_dict
from .records import RATE, read_losses, read_probe, read_run
from .run_folder import RunFolder
from .strip.growing import STEM
from .verdicts import flags, verdicts

MAX_PICTURES = 300  # rows of the table; thousands would be read by nobody
MAX_STRIP_BYTES = 6_000_000

Columns = Mapping[str, NDArray]


def write_report(run_folder: Path | str) -> Path:
    """Draw the charts of a run into its folder `report` and write `report.html`, the path of which is returned.

    Errors: `ValueError` when the folder is no run or its records were changed, or without matplotlib; `OSError`.
    """
    run = RunFolder.open(run_folder)
    losses, steps = read_losses(run.path / "loss.csv"), read_run(run.path / "run.csv")
    probes = read_probe(run.path / "probe.csv")
    drawn = run.path / "report"
    files.make_folder(drawn)
    charts.loss_plot(steps, drawn / "loss.png")
    charts.timestep_plot(losses, drawn / "timesteps.png")
    charts.probe_plot(probes, drawn / "probe.png")
    pictures = by_picture(losses["image"], losses["t"], losses["loss"])
    name = str(run.description["name"])
    body = [
        f"<header><h1>{_text(name)}</h1>{_facts(_about(run, steps, pictures))}</header>",
        _section("What it came to", "".join(f"<p>{_text(str(verdict))}</p>" for verdict in verdicts(probes, pictures))),
        _strip(run.path / "strip.png") or _strip(run.path / f"{STEM}.png"),
        # charts have their title in them
        _section("", _figure(drawn / "probe.png", "Controlled loss by step")),
        _section("", _figure(drawn / "loss.png", "Loss in training by step")),
        _section("", _figure(drawn / "timesteps.png", "Loss by timestep")),
        _section("Pictures", _pictures(pictures)),
        _section("Checkpoints", _checkpoints(run, steps)),
        _section("Settings", _settings(run.config)),
    ]
    path = run.path / "report.html"
    files.write_bytes(path, _page(name, "\n".join(body)).encode("utf-8", "backslashreplace"))
    return path


def _about(run: RunFolder, steps: Columns, pictures: list[PictureLoss]) -> dict[str, str]:
    config, lineage = run.config, run.description.get("lineage") or {}
    networks = run.checkpoints.networks()
    metadata = _metadata(networks[max(networks)]) if networks else {}
    done = int(steps["step"][-1]) + 1 if steps["step"].size else 0
    planned = config.loop.steps or (f"{config.loop.epochs} epochs" if config.loop.epochs else "")
    trainable = config.trainable
    about = {
        "Base model": metadata.get("ss_sd_model_name", ""),
        "Network": f"{trainable.algorithm}, rank {trainable.rank}, alpha {trainable.alpha:g}, {trainable.layers} layers"
        + (", text encoder too" if trainable.text_encoder else ""),
        "Steps": f"{done:,}" + (f" of {planned:,}" if isinstance(planned, int) else f" ({planned})" if planned else ""),
        "Learning rate": config.rate.schedule,
        "Optimizer": config.optimizer.name,
        "Pictures": f"{len(pictures):,}",
        "Started": str(run.description.get("created", "")).replace("T", " ").replace("+00:00", " UTC"),
        "Goes on from": f"{lineage.get('name')} at step {lineage.get('step')}" if lineage else "",
    }
    return {name: text for name, text in about.items() if text}


def _metadata(path: Path) -> dict[str, str]:
    """What a network says of itself; nothing where it cannot be read, which the list of checkpoints shows."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def _pictures(pictures: list[PictureLoss]) -> str:
    head = ("picture", "rows", "mean loss", "latest", "relative", "")
    rows = [
        (p.image, f"{p.num_rows:,}", _number(p.mean), _number(p.latest), _relative(p), ", ".join(flags(p)))
        for p in pictures[:MAX_PICTURES]
    ]
    left_out = f" The {MAX_PICTURES} highest of {len(pictures):,} are shown." if len(pictures) > MAX_PICTURES else ""
    note = (
        "Relative is the mean of each loss divided by the mean loss of all pictures in the same twentieth of the "
        f"range of t, with its standard error: 1 is like the others.{left_out}"
    )
    return f"<p class=note>{_text(note)}</p>{_table(head, rows)}" if rows else "<p class=note>no losses recorded</p>"


def _relative(picture: PictureLoss) -> str:
    error = picture.relative_error
    return _number(picture.relative) + (f" ± {error:.2f}" if math.isfinite(error) else "")


def _checkpoints(run: RunFolder, steps: Columns) -> str:
    rates = [c for c in steps if c.startswith(RATE)]
    place = {int(step): i for i, step in enumerate(steps["step"])}
    rows = []
    for step, path in run.checkpoints.networks().items():
        i = place.get(step - 1)  # the last step before it made it
        size = f"{path.stat().st_size / 1e6:.2f} MB" if path.is_file() else "missing"
        window = _number(float(steps["loss_window"][i])) if i is not None else ""
        rate = ", ".join(f"{c.removeprefix(RATE)} {steps[c][i]:.3g}" for c in rates) if i is not None else ""
        rows.append((f"{step:,}", path.name, size, rate, window))
    head = ("step", "file", "size", "rate", "window mean")
    return _table(head, rows) if rows else "<p class=note>none</p>"


def _settings(config: RunConfig) -> str:
    """Every setting by section; those that differ from their default are strong."""
    values, defaults = to_dict(config), to_dict(RunConfig())
    sections = [("run", {k: v for k, v in values.items() if not isinstance(v, dict)}, defaults)]
    sections += [(k, v, defaults[k]) for k, v in values.items() if isinstance(v, dict)]
    parts = []
    for title, own, default in sections:
        rows = [(_text(k), _setting(v, v != default[k])) for k, v in own.items()]
        cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
        parts.append(f"<div><h3>{_text(title)}</h3><table>{cells}</table></div>")
    note = "<p class=note>Settings that differ from their defaults are strong.</p>"
    return f"{note}<div class=columns>{''.join(parts)}</div>"


def _setting(value: Any, changed: bool) -> str:
    text = _text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return f"<strong>{text}</strong>" if changed else text


def _strip(path: Path) -> str:
    if not path.is_file():
        return ""
    if path.stat().st_size <= MAX_STRIP_BYTES:
        return _section("Strip", _figure(path, "Checkpoints side by side"))
    try:
        with Image.open(path) as image:
            image.thumbnail((2400, 2400))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=88)
    except (OSError, Image.DecompressionBombError):
        return _section("Strip", f"<p class=note>{path.name} cannot be shown here.</p>")
    return _section("Strip", _picture(buffer.getvalue(), "jpeg", "Checkpoints side by side, reduced"))


def _figure(path: Path, alt: str) -> str:
    return _picture(path.read_bytes(), "png", alt)


def _picture(data: bytes, kind: str, alt: str) -> str:
    return f'<img alt="{_text(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _section(title: str, inner: str) -> str:
    return f"<section>{f'<h2>{_text(title)}</h2>' if title else ''}{inner}</section>"


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in facts.items()) + "</dl>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    titles = "".join(f"<th>{_text(title)}</th>" for title in head)
    return f"<table class=wide><thead><tr>{titles}</tr></thead><tbody>{cells}</tbody></table>"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _text(value: str) -> str:
    """Any text as harmless HTML: escaped, without control characters, its direction kept to itself."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in value.replace("\n", " "))
    return html.escape(text, quote=True)


def _page(title: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #52606d; --line: #e1e6eb; --page: #f6f8fa; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --soft: #9aa7b4; --line: #323c46; --page: #14191f; --card: #1c232b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 32px 20px 64px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0 0 12px; font-size: 28px; line-height: 1.2; }
h2 { margin: 0 0 10px; font-size: 17px; }
h3 { margin: 14px 0 4px; font-size: 14px; color: var(--soft); }
section { margin-top: 20px; padding: 18px 20px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
p { margin: 0 0 8px; }
.note { color: var(--soft); font-size: 13px; }
dl { display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 0; }
dt { color: var(--soft); font-size: 12px; }
dd { margin: 0; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
.wide { width: 100%; }
th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; unicode-bidi: isolate; }
.columns { columns: 2 380px; column-gap: 32px; }
.columns > div { break-inside: avoid; }
"""
