"""Charts: learning rate, loss and probes drawn as PNG files.

matplotlib is imported late and through its object interface only: no pyplot, no backend chosen, no global setting
written, so that drawing changes nothing in the host that draws. The style is explicit on each artist.
Columns are those that `records` reads: dicts of column name -> array. Empty records give a chart that says so.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import files
from .comparison import bins_of, by_picture, owners, paired_interval, picture_means

Columns = Mapping[str, NDArray]

# Colours that stay apart for colour-blind eyes (Okabe and Ito 2008), without their yellow, too pale on white.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, SOFT, FAINT, GRID, PAPER = "#1F2933", "#52606D", "#B8C1CB", "#E4E8EC", "#FFFFFF"
_CYCLE = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
_MARKERS = ("o", "^")  # each colour twice, told apart by shape: twelve pictures
_FONT = {"family": "DejaVu Sans"}  # comes with matplotlib, so it is always there
_OTHER_SCRIPTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Yu Gothic", "Meiryo", "Microsoft YaHei", "SimHei", "Hiragino Sans",
    "PingFang SC", "WenQuanYi Micro Hei", "IPAexGothic",
)  # fmt: skip
_DPI = 120
_MAX_POINTS = 20_000  # more are not seen apart, only waited for


def schedule_plot(rates: Sequence[float], marks: Sequence[int], path: Path) -> None:
    """Learning rate against step. `rates[s]` is the rate of step s, s = 0..N-1.

    `marks` are steps done, 0..N, such as those of checkpoints or cycle ends; each is drawn and named with the rate of
    the last step before it, which is the one that made it. The axis is logarithmic where the rates span more than a
    factor of 100 and none is 0. Errors: `ValueError` for a mark outside 0..N.
    """
    rate = np.asarray(rates, dtype=np.float64)
    outside = [m for m in marks if not 0 <= m <= rate.size]
    if outside:
        raise ValueError(f"a mark must be a step from 0 to {rate.size}, got {outside[0]}")
    figure, axes = _figure(8.0, 3.4)
    if rate.size == 0:
        _say_empty(figure, axes, "no steps", path)
        return
    line = np.append(rate, rate[-1])  # the last step has a length too
    kept = _outline(line)
    axes.plot(kept, line[kept], color=BLUE, linewidth=1.8, solid_joinstyle="round")
    if rate.min() > 0 and rate.max() / rate.min() > 100:
        axes.set_yscale("log")
        axes.set_ylim(rate.min() / 1.5, rate.max() * 2)
    else:
        axes.set_ylim(bottom=0, top=rate.max() * 1.12 or 1.0)
        axes.fill_between(kept, line[kept], color=BLUE, alpha=0.08, linewidth=0)
    at = sorted({max(m - 1, 0) for m in marks})
    axes.plot(
        at, rate[at], linestyle="none", marker="o", markersize=5, color=PAPER, markeredgecolor=BLUE, clip_on=False
    )
    right = math.inf
    for x in reversed(at):
        if right - x >= 0.075 * rate.size:  # a text's width: closer ones would overlap
            value = _rate_text(rate[x])
            axes.annotate(value, (x, rate[x]), (4, 4), textcoords="offset points", color=INK, fontsize=7.5, **_FONT)
            right = x
    axes.set_xlim(0, rate.size * (1.05 if at else 1.0))
    _label(axes, "Learning rate", f"{rate.size:,} steps", "step")
    axes.yaxis.set_major_formatter(lambda value, _: _rate_text(value))
    _write(figure, path)


def loss_plot(columns: Columns, path: Path) -> None:
    """Loss against step from run.csv: each step's loss in grey, the mean of each picture's latest loss, the window's
    mean with its 95 % band (1.96 standard errors), and the learning rates in a strip below."""
    figure, axes, strip = _figure(8.0, 4.6, strip=True)
    step = np.asarray(columns["step"])
    if step.size == 0:
        _say_empty(figure, axes, "no steps recorded yet", path)
        return
    kept = _evenly(step.size)
    loss, latest = columns["loss"], columns["loss_latest"]
    window, error = columns["loss_window"], columns["loss_window_se"]
    alone = "o" if step.size == 1 else None
    axes.plot(step[kept], loss[kept], color=FAINT, linewidth=0.7, alpha=0.8, label="this step", marker=alone)
    low, high = window - 1.96 * error, window + 1.96 * error
    axes.fill_between(step[kept], low[kept], high[kept], color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(step[kept], window[kept], color=BLUE, linewidth=1.8, label="window mean, 95 % band", marker=alone)
    axes.plot(step[kept], latest[kept], color=ORANGE, linewidth=1.4, label="latest of each picture, mean", marker=alone)
    _robust_limits(axes, loss, np.concatenate([low, high, latest]))
    _label(axes, "Loss in training", "a step's loss follows its timesteps")
    _legend(axes)
    for colour, name in zip(_CYCLE, [c for c in columns if c == "lr" or c.startswith("lr_")], strict=False):
        strip.plot(step[kept], columns[name][kept], color=colour, linewidth=1.3, label=name.removeprefix("lr_"))
    strip.set_ylim(bottom=0)
    strip.yaxis.set_major_formatter(lambda value, _: _rate_text(value))
    strip.locator_params(axis="y", nbins=2)
    _label(strip, x="step", y="rate")
    if len(strip.lines) > 1:
        _legend(strip)
    axes.set_xlim(*_padded(step))
    _write(figure, path)


def timestep_plot(rows: Columns, path: Path) -> None:
    """Loss against t from loss.csv: a dot a row, one colour a picture, and the mean of each bin of t with its standard
    error. Of more than twelve pictures, those are coloured whose loss lies highest at the same t; the rest are grey."""
    figure, axes = _figure(8.0, 4.4)
    finite = np.isfinite(rows["loss"])
    image, t, loss = rows["image"][finite], rows["t"][finite], rows["loss"][finite]
    if t.size == 0:
        _say_empty(figure, axes, "no losses recorded yet", path)
        return
    pictures, owner = owners(image)
    named = sorted(p.image for p in by_picture(image, t, loss)[: len(_CYCLE) * len(_MARKERS)])
    codes = [pictures.index(name) for name in named]
    bins = bins_of(t, loss)
    # Drawn after the bins are computed from every row: only the dots are thinned out.
    some = np.sort(np.random.default_rng(0).permutation(t.size)[:_MAX_POINTS])
    size = float(np.clip(12_000 / some.size, 4, 24))
    rest = ~np.isin(owner[some], codes)
    if rest.any():
        label = f"{len(pictures) - len(named)} more pictures"
        axes.scatter(t[some][rest], loss[some][rest], s=size, color=FAINT, alpha=0.5, linewidths=0, label=label)
    for i, name in enumerate(named):
        own = some[owner[some] == codes[i]]
        colour, marker = _CYCLE[i % len(_CYCLE)], _MARKERS[i // len(_CYCLE)]
        axes.scatter(
            t[own], loss[own], s=size, color=colour, marker=marker, alpha=0.6, linewidths=0, label=_short(name)
        )
    full = bins.count > 0
    error = np.nan_to_num(bins.standard_error[full])
    axes.errorbar(
        bins.centre[full], bins.mean[full], error, color=INK, linewidth=1.6, marker="o", markersize=4, capsize=2,
        elinewidth=1.2, label="mean of a bin, standard error", zorder=5,
    )  # fmt: skip
    axes.set_xlim(bins.edges[0], bins.edges[-1])
    _robust_limits(axes, loss, bins.mean[full])
    chosen = f"; in colour the {len(named)} that lie highest at the same t" if rest.any() else ""
    thinned = f"; {some.size:,} of {t.size:,} rows drawn" if some.size < t.size else ""
    num_pictures = f"{len(pictures):,} picture{'s' * (len(pictures) > 1)}"
    _label(axes, "Loss against timestep", num_pictures + chosen + thinned, "t (0 is the clean picture)")
    _legend(axes, beside=True)
    _write(figure, path)


def probe_plot(rows: Columns, path: Path) -> None:
    """Controlled loss by step from probe.csv: the same pictures, noise and timesteps at each step, network on and off,
    and below the difference of the two with its paired 95 % interval over pictures."""
    figure, axes, strip = _figure(8.0, 4.6, strip=True, ratio=1.4)
    step, on, off = rows["step"], rows["loss"], rows["loss_base"]
    if step.size == 0:
        _say_empty(figure, axes, "no probes: set record.probe_every_steps", path)
        return
    at = np.unique(step)
    rows_at = [step == s for s in at]
    intervals = np.array([paired_interval(picture_means(rows["image"][r], on[r] - off[r])) for r in rows_at])
    axes.plot(
        at, [off[r].mean() for r in rows_at], color=SOFT, linewidth=1.6, linestyle=(0, (4, 3)), label="network off"
    )
    axes.plot(
        at, [on[r].mean() for r in rows_at], color=BLUE, linewidth=1.8, marker="o", markersize=4, label="network on"
    )
    num_pictures = len(set(rows["image"][rows_at[-1]]))
    _label(axes, "Controlled loss", f"{num_pictures} pictures at fixed timesteps, the same noise at each step")
    _legend(axes)
    mean, low, high = intervals.T
    bounded = np.isfinite(low) & np.isfinite(high)
    strip.axhline(0, color=SOFT, linewidth=1)
    strip.fill_between(at, low, high, where=bounded.tolist(), color=GREEN, alpha=0.2, linewidth=0)
    bars = np.where(bounded, [mean - low, high - mean], 0.0)
    strip.errorbar(at, mean, bars, color=GREEN, linewidth=1.6, marker="o", markersize=4, capsize=2, elinewidth=1.2)
    strip.locator_params(axis="y", nbins=4)
    _label(strip, x="step", y="on minus off, 95 %")
    axes.set_xlim(*_padded(at))
    _write(figure, path)


def _figure(width: float, height: float, *, strip: bool = False, ratio: float = 3.5) -> Any:
    """(figure, axes) or (figure, axes, strip): one plot, or one above a thinner one with the same x."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("charts need matplotlib, which is not installed: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    if not strip:
        axes = figure.add_subplot()
        _dress(axes)
        return figure, axes
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[ratio, 1])
    for axes in (above, below):
        _dress(axes)
    above.tick_params(labelbottom=False)
    return figure, above, below


def _dress(axes: Any) -> None:
    """The style, all of it on the axes itself."""
    axes.set_facecolor(PAPER)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=FAINT, linewidth=0.8)
    axes.grid(True, axis="y", color=GRID, linewidth=0.8)
    axes.grid(False, axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=FAINT, labelcolor=SOFT, labelsize=8, length=3, width=0.8)
    axes.tick_params(which="minor", length=1.5)
    axes.ticklabel_format(useOffset=False)


def _label(axes: Any, title: str = "", note: str = "", x: str = "", y: str = "") -> None:
    if title:
        axes.figure.suptitle(title, x=0.008, ha="left", fontsize=11.5, fontweight="bold", color=INK, **_FONT)
        axes.set_title(note, loc="left", fontsize=8.5, color=SOFT, **_FONT)
    axes.set_xlabel(x, fontsize=8.5, color=SOFT, **_FONT)
    axes.set_ylabel(y, fontsize=8.5, color=SOFT, **_FONT)


def _legend(axes: Any, *, beside: bool = False) -> None:
    """Outside the data: beside it, or in one row above it."""
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if beside else {"loc": "lower right", "ncols": 3}
    if not beside:
        place |= {"bbox_to_anchor": (1.0, 1.0), "borderpad": 0, "borderaxespad": 0.4, "columnspacing": 1.4}
    legend = axes.legend(fontsize=8, frameon=False, labelcolor=SOFT, handlelength=1.6, **place)
    for text in legend.get_texts():
        # a file name may hold $, which would be read as mathematics
        text.set(fontfamily=_families(text.get_text()), parse_math=False)
    for handle in legend.legend_handles:
        if hasattr(handle, "set_sizes"):  # the dots of a scatter, too small to tell colours by
            handle.set_sizes([26])
            handle.set_alpha(1)


def _say_empty(figure: Any, axes: Any, text: str, path: Path) -> None:
    for other in figure.axes:
        other.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=SOFT, fontsize=11, **_FONT)
    _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    # without matplotlib's version in it the same record gives the same bytes
    figure.canvas.print_png(buffer, metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())


def _padded(step: NDArray) -> tuple[float, float]:
    low, high = float(step.min()), float(step.max())
    edge = 0.015 * (high - low) or 1.0
    return low - edge, high + edge


def _robust_limits(axes: Any, raw: NDArray, curves: NDArray) -> None:
    """Show 99 % of the raw values and every curve whole: single spikes would flatten everything else. From 0 on, unless
    everything lies far above it."""
    shown = curves[np.isfinite(curves)]
    raw = raw[np.isfinite(raw)]
    if raw.size:
        shown = np.append(shown, np.quantile(raw, [0.005, 0.99]))
    if shown.size and shown.max() > 0:
        low, high = float(shown.min()), float(shown.max())
        bottom = low - 0.15 * (high - low) if high / 2 < low < high else 0.0
        axes.set_ylim(bottom, high + 0.08 * (high - bottom))


def _outline(values: NDArray) -> NDArray:
    """Indices that draw the same line: a point is left out where both neighbours are equal to it, and beyond that only
    the lowest and highest of each stretch are kept."""
    inner = (values[1:-1] != values[:-2]) | (values[1:-1] != values[2:])
    kept = np.flatnonzero(np.concatenate([[True], inner, [True]])[: values.size])
    if kept.size <= _MAX_POINTS:
        return kept
    ends = [part[[np.argmin(values[part]), np.argmax(values[part])]] for part in np.array_split(kept, _MAX_POINTS // 4)]
    return np.unique(np.concatenate([kept[:1], *ends, kept[-1:]]))


def _evenly(size: int) -> NDArray:
    return np.unique(np.linspace(0, size - 1, min(size, _MAX_POINTS)).round().astype(np.intp))


def _rate_text(value: float) -> str:
    """1e-4 rather than 0.0001, as the schedule grammar writes it."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if abs(int(exponent)) > 1 else f"{value:.3g}"


def _short(name: str, most: int = 28) -> str:
    """The end of a file name is what tells files apart. matplotlib hides labels that start with an underscore."""
    name = "".join(c if c.isprintable() else "\ufffd" for c in name)
    name = name if len(name) <= most else "…" + name[1 - most :]
    return " " + name if name.startswith("_") else name


def _families(text: str) -> list[str]:
    """The font, and for file names in other scripts those that are installed here and have them."""
    if text.isascii():
        return [_FONT["family"]]
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [_FONT["family"], *(name for name in _OTHER_SCRIPTS if name in installed)]
