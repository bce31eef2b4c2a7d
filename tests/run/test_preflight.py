"""Laws of the preflight: real steps that leave nothing behind, and the ladder walked until a run fits."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from sd_atelier.lib import preflight as module
from sd_atelier.lib.host import KeepsWeights
from sd_atelier.lib.preflight import NUM_STEPS, Forecast, Trial, preflight, rungs
from toy_host import ToyHost, bits
from toy_run import SQUARE, records, settings, start


class KeepingHost(ToyHost):
    """A toy host that owns its model, as far as a host can tell without changing it."""

    num_blocks = 6

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.kept, self.checkpointed = ("model", 0), False

    def keep(self, base_storage, cpu_blocks):
        self.kept = base_storage, cpu_blocks

    @contextmanager
    def training(self, compute_dtype, block_checkpointing):
        self.checkpointed = block_checkpointing
        with super().training(compute_dtype, block_checkpointing):
            yield

    def runs_out_unless(self, enough):
        def at(phase):
            if phase == "backward" and not enough():
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        self.at = at


def test_two_steps_change_nothing_of_the_host_and_leave_no_run(pictures, tmp_path):
    host = ToyHost()
    before = host.everything()
    random_state = torch.get_rng_state()
    forecast = preflight(host, settings(pictures), tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert host.everything() == before
    assert [path.name for path in tmp_path.iterdir()] == [".atelier-cache"]
    assert host.previews == [] and host.shown == []
    assert forecast.fits and forecast.num_steps == 12


def test_a_run_after_a_preflight_is_the_run_without_one(pictures, tmp_path):
    host = ToyHost()
    preflight(host, settings(pictures), tmp_path)
    after, _ = start(host, settings(pictures), tmp_path)
    alone, _ = start(ToyHost(), settings(pictures), tmp_path / "alone")
    assert records(after) == records(alone)


def test_the_steps_are_of_the_largest_bucket_and_whole_batches(pictures, tmp_path, monkeypatch):
    host, seen = ToyHost(), []
    denoise = host.denoiser
    monkeypatch.setattr(host, "denoiser", lambda x_t, t, cond: (seen.append(x_t.shape), denoise(x_t, t, cond))[1])
    preflight(host, settings(pictures), tmp_path)
    width, height = (px // 8 for px in SQUARE)
    # two batches a step, of which the largest is certain to be one
    assert len(seen) == 2 * NUM_STEPS
    assert all((2, 4, height, width) in seen[i : i + 2] for i in range(0, len(seen), 2))


@pytest.fixture
def measured(monkeypatch):
    """A peak of 500 MiB, on systems too where none can be measured."""
    monkeypatch.setattr(module, "reset_peak", lambda device: True)
    monkeypatch.setattr(module, "peak_mb", lambda device: 500.0)


def test_a_run_that_fits_as_asked_is_not_told_to_change(pictures, tmp_path, measured):
    forecast = preflight(ToyHost(), settings(pictures), tmp_path, budget_mb=1e9, price_per_hour=2.0)
    (trial,) = forecast.trials
    assert trial.changes == {} and trial.fits and trial.seconds_per_step > 0 and trial.peak_mb == 500
    assert forecast.advice() == []
    assert forecast.hours == pytest.approx(12 * trial.seconds_per_step / 3600)
    assert forecast.money == pytest.approx(2 * forecast.hours)


@pytest.mark.parametrize("seed", range(3))
def test_the_ladder_is_walked_until_memory_does_not_run_out(pictures, tmp_path, seed):
    conditions = [
        ({"block_checkpointing": True}, lambda host: host.checkpointed),
        ({"block_checkpointing": True, "base_storage": "bf16"}, lambda host: host.kept[0] != "model"),
        (
            {"block_checkpointing": True, "base_storage": "float8", "cpu_blocks": 3},
            lambda host: host.kept == ("float8", 3),
        ),
    ]
    changes, enough = conditions[seed]
    host = KeepingHost()
    host.runs_out_unless(lambda: enough(host))
    forecast = preflight(host, settings(pictures), tmp_path)
    assert forecast.trials[-1].changes == changes
    assert [trial.seconds_per_step for trial in forecast.trials[:-1]] == [None] * (len(forecast.trials) - 1)
    assert forecast.fits
    said = ", ".join(f"loop.{name}={str(value).lower()}" for name, value in changes.items())
    assert forecast.lines()[-1] == f"it fits with {said}"
    assert forecast.lines()[0] == "as set: out of memory"


def test_running_out_of_memory_leaves_the_host_as_it_was(pictures, tmp_path):
    host = KeepingHost()
    before = host.everything()
    host.runs_out_unless(lambda: False)
    forecast = preflight(host, settings(pictures), tmp_path)
    host.at = lambda phase: None
    assert host.everything() == before
    assert forecast.fits is False and forecast.hours is None and forecast.money is None
    assert len(forecast.trials) == len(list(rungs(host, settings(pictures)))) == 6
    assert forecast.advice()[0].startswith(
        "it does not fit; what is left to change: loop.batch_size=1 with loop.accumulate=4 takes the same updates"
    )


def test_other_errors_are_not_taken_for_running_out(pictures, tmp_path):
    host = KeepingHost()

    def at(phase):
        if phase == "backward":
            raise RuntimeError("shapes cannot be multiplied")

    host.at = at
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        preflight(host, settings(pictures), tmp_path)


def test_too_little_memory_is_found_without_running_out(pictures, tmp_path, measured):
    forecast = preflight(ToyHost(), settings(pictures), tmp_path, budget_mb=499.0)
    assert [trial.changes for trial in forecast.trials] == [{}, {"block_checkpointing": True}]
    assert forecast.fits is False and forecast.trials[-1].seconds_per_step > 0
    assert "which is more than there is" in forecast.lines()[0]


def test_what_cannot_be_measured_is_said_not_guessed(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "reset_peak", lambda device: False)
    monkeypatch.setattr(module, "available_mb", lambda device: None)
    forecast = preflight(ToyHost(), settings(pictures), tmp_path)
    (trial,) = forecast.trials
    assert trial.peak_mb is None and trial.fits is None and forecast.fits is None
    assert "memory not measured" in trial.text and "how much memory there is: not measured" in forecast.lines()


def test_the_ladder_goes_down_from_where_the_settings_are():
    host = KeepingHost(dtype=torch.bfloat16)
    assert isinstance(host, KeepsWeights) and not isinstance(ToyHost(), KeepsWeights)
    config = settings_of(block_checkpointing=True, base_storage="model", cpu_blocks=3)
    # a model in 16 bits gains nothing from bf16, and three blocks are in main memory already
    assert list(rungs(host, config)) == [{}, {"base_storage": "float8"}, {"base_storage": "float8", "cpu_blocks": 6}]
    assert list(rungs(ToyHost(), settings_of(block_checkpointing=True))) == [{}]


def settings_of(**loop):
    from sd_atelier.lib.config import RunConfig, merge

    return merge(RunConfig(), {"loop": loop})


@pytest.mark.parametrize(
    ("seconds", "steps", "said"),
    [(0.5, 120, "1.0 min"), (1.8, 2000, "1 h 00 min"), (9.99, 2000, "5 h 33 min")],
)
def test_the_length_of_a_run_is_said_in_hours_and_minutes(seconds, steps, said):
    trial = Trial(changes={}, peak_mb=1000.0, seconds_per_step=seconds, fits=True)
    forecast = Forecast(config=settings_of(), trials=[trial], num_steps=steps, budget_mb=2000.0, price_per_hour=3.0)
    cost = f"{seconds * steps / 1200:.2f}"
    assert f"{steps} steps of the largest bucket take {said}, {cost} at 3 an hour" in forecast.lines()[-1]


@pytest.mark.parametrize(("name", "value"), [("base_storage", "float8"), ("cpu_blocks", 2)])
def test_a_host_that_does_not_own_its_model_refuses_to_keep_it_otherwise(pictures, tmp_path, name, value):
    host = ToyHost()
    weights = {part: {k: bits(v) for k, v in root.state_dict().items()} for part, root in host.parts.items()}
    with pytest.raises(ValueError, match=rf"loop\.{name} is {value}, but toy trains on the model that it has loaded"):
        start(host, settings(pictures, **{f"loop__{name}": value}), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert weights == {p: {k: bits(v) for k, v in root.state_dict().items()} for p, root in host.parts.items()}
