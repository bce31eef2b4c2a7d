"""Charts: they draw what the records hold, whatever the records hold, and change nothing around them."""

import copy
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image
from sd_atelier.lib import charts


def run_columns(num_rows):
    step = np.arange(1, num_rows + 1)
    loss = 0.1 + 0.05 * np.sin(step * 1.7)
    error = np.full(num_rows, 0.01)
    error[:1] = np.nan
    return {
        "step": step, "epoch": step // 10, "loss": loss, "loss_latest": loss, "loss_window": loss * 0.9,
        "loss_window_se": error, "n": step, "lr_unet": step * 1e-6, "lr_te": step * 1e-7, "grad_norm": loss,
    }  # fmt: skip


def loss_rows(num_rows, num_images=3, top=1000.0):
    rng = np.random.default_rng(0)
    t = rng.uniform(0, top, num_rows)
    image = np.array([f"toy/{i:03d}.png" for i in range(num_images)], dtype=object)[
        rng.integers(0, num_images, num_rows)
    ]
    return {"image": image, "t": t, "loss": rng.lognormal(-2, 0.5, num_rows)}


def probe_rows(num_steps, num_pairs):
    step = np.repeat(np.arange(num_steps) * 50, num_pairs)
    base = np.tile(0.1 + 0.01 * np.arange(num_pairs), num_steps)
    image = np.tile(np.arange(num_pairs) // 2, num_steps).astype(str).astype(object)
    return {"step": step, "image": image, "t": base, "loss": base * 0.9, "loss_base": base}


def drawn(path):
    """The picture as numbers; a chart that shows something has more than background in it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[0] > 200 and pixels.shape[1] > 600
    return pixels


def coloured(pixels, colour):
    """How many pixels have nearly this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(axis=2) < 12).sum())


@pytest.mark.parametrize("num_rows", [0, 1, 2, 300])
def test_loss_plot_draws_records_of_any_length(num_rows, tmp_path):
    charts.loss_plot(run_columns(num_rows), tmp_path / "x.png")
    pixels = drawn(tmp_path / "x.png")
    assert (coloured(pixels, charts.BLUE) > 20) == (num_rows > 0)


@pytest.mark.parametrize(("num_rows", "num_images"), [(0, 1), (1, 1), (2, 2), (400, 5), (400, 40)])
@pytest.mark.parametrize("top", [1000.0, 1.0])
def test_timestep_plot_draws_records_of_any_length(num_rows, num_images, top, tmp_path):
    charts.timestep_plot(loss_rows(num_rows, num_images, top), tmp_path / "x.png")
    pixels = drawn(tmp_path / "x.png")
    assert (coloured(pixels, charts.INK) > 400) == (num_rows > 0)


@pytest.mark.parametrize(("num_steps", "num_pairs"), [(0, 0), (1, 1), (1, 8), (3, 1), (10, 32)])
def test_probe_plot_draws_records_of_any_length(num_steps, num_pairs, tmp_path):
    charts.probe_plot(probe_rows(num_steps, num_pairs), tmp_path / "x.png")
    pixels = drawn(tmp_path / "x.png")
    assert (coloured(pixels, charts.GREEN) > 20) == (num_steps > 0)


@pytest.mark.parametrize(
    "rates",
    [[], [1e-4], [0.0] * 5, [0.0, 1e-4, 0.0], [1e-3 * 0.5**i for i in range(40)], [1e-300, 1.0]],
    ids=["none", "one", "zeros", "from zero", "wide", "widest"],
)
def test_schedule_plot_draws_every_schedule(rates, tmp_path):
    charts.schedule_plot(rates, [0, len(rates)], tmp_path / "x.png")
    pixels = drawn(tmp_path / "x.png")
    assert (coloured(pixels, charts.BLUE) > 20) == (len(rates) > 0)


def test_mark_outside_the_run_is_refused_by_number(tmp_path):
    with pytest.raises(ValueError, match="a mark must be a step from 0 to 3, got 4"):
        charts.schedule_plot([1e-4] * 3, [1, 4], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_records_with_values_that_are_not_finite_are_drawn(tmp_path):
    columns, rows = run_columns(50), loss_rows(50)
    for name in ("loss", "loss_latest", "loss_window"):
        columns[name][10:14] = [np.nan, np.inf, -np.inf, np.nan]
    rows["loss"][5:8] = [np.nan, np.inf, np.nan]
    probes = probe_rows(4, 6)
    probes["loss"][7] = np.nan
    charts.loss_plot(columns, tmp_path / "loss.png")
    charts.timestep_plot(rows, tmp_path / "t.png")
    charts.probe_plot(probes, tmp_path / "probe.png")
    assert coloured(drawn(tmp_path / "loss.png"), charts.BLUE) > 20
    assert coloured(drawn(tmp_path / "t.png"), charts.INK) > 400
    assert coloured(drawn(tmp_path / "probe.png"), charts.GREEN) > 20


def test_same_record_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        charts.timestep_plot(loss_rows(30_000, 30), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_hundred_times_the_rows_take_far_less_than_a_hundred_times_as_long(tmp_path):
    def seconds(num_rows):
        rows, columns = loss_rows(num_rows, 300), run_columns(num_rows)
        start = time.process_time()
        charts.timestep_plot(rows, tmp_path / "t.png")
        charts.loss_plot(columns, tmp_path / "loss.png")
        return time.process_time() - start

    seconds(100)  # what is loaded only once
    assert seconds(1_000_000) < 50 * seconds(10_000)


def test_drawing_changes_no_global_setting_and_never_loads_pyplot(tmp_path):
    import matplotlib

    before, backend = copy.deepcopy(dict(matplotlib.rcParams)), matplotlib.rcParams._get("backend")
    had_pyplot = "matplotlib.pyplot" in sys.modules
    charts.loss_plot(run_columns(10), tmp_path / "a.png")
    charts.schedule_plot([1e-3, 1e-6], [1], tmp_path / "b.png")
    assert dict(matplotlib.rcParams) == before and matplotlib.rcParams._get("backend") == backend
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


@pytest.mark.parametrize("name", ["$x^{$.png", "_hidden.png", "<b>&.png", "a" * 300 + ".png", "ü\u202e.png"])
def test_any_file_name_can_stand_in_a_legend(name, tmp_path):
    rows = loss_rows(40, 2)
    rows["image"] = np.where(rows["image"] == "toy/000.png", name, "plain.png")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        warnings.filterwarnings("error", message=".*legend.*")
        charts.timestep_plot(rows, tmp_path / "x.png")
    assert coloured(drawn(tmp_path / "x.png"), charts.ORANGE) > 20


def test_missing_matplotlib_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="charts need matplotlib, which is not installed"):
        charts.schedule_plot([1e-4], [], tmp_path / "x.png")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1e-4, "1e-4"), (5e-5, "5e-5"), (7.5e-7, "7.5e-7"), (0.5, "0.5"), (1.0, "1"), (0.05, "5e-2")],
)
def test_rates_are_written_as_the_schedule_grammar_writes_them(value, text):
    assert charts._rate_text(value) == text
