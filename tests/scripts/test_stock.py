"""The rows and schedules of the host's own training, without the host."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sd_atelier.lib.lr_schedule import ScheduleError
from sd_atelier.lib.records import read_losses
from sd_atelier.scripts.webui import stock
from sd_atelier.scripts.webui.stock import _HOSTS_OWN, StockRecorder, StockSchedule


def record(folder, steps, recorder=None):
    recorder = recorder or StockRecorder()
    for step in steps:
        recorder.batch([("a.png", "a, toy"), ("=b.png", "")])
        recorder.losses(torch.tensor([10, 900]), torch.tensor([0.5 + step, 1.5 + step]))
        recorder.end_step(folder, step, step // 2, 1e-3)
    recorder.flush()
    return recorder


def test_each_sample_of_each_step_is_a_row_with_its_picture_and_t(tmp_path):
    record(tmp_path, range(25))
    rows = read_losses(tmp_path / "loss.csv")
    assert rows["step"].tolist() == [s for s in range(25) for _ in range(2)]
    assert set(rows["image"]) == {"a.png", "=b.png"} and set(rows["t"]) == {10, 900}
    means = [rows["loss"][rows["step"] == s].mean() for s in range(25)]
    assert np.allclose(means, [1 + s for s in range(25)])


def test_a_run_that_goes_on_adds_to_the_file_and_one_that_begins_again_gets_its_own(tmp_path):
    record(tmp_path, range(3))
    record(tmp_path, range(3, 5))
    assert read_losses(tmp_path / "loss.csv")["step"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    record(tmp_path, range(2))
    assert read_losses(tmp_path / "loss-2.csv")["step"].tolist() == [0, 0, 1, 1]
    assert len(read_losses(tmp_path / "loss.csv")["step"]) == 10


def test_a_row_that_was_cut_off_is_taken_back_and_no_other(tmp_path):
    record(tmp_path, range(3))
    with open(tmp_path / "loss.csv", "ab") as file:
        file.write(b"3,1,a.p")
    record(tmp_path, range(3, 4))
    assert read_losses(tmp_path / "loss.csv")["step"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_where_rows_cannot_be_written_it_is_said_and_training_goes_on(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    record(tmp_path / "file", range(25))
    assert capsys.readouterr().out.count("no further rows") == 1


@pytest.mark.parametrize("text", ["0.005", "5e-3:100, 1e-3:1000, 1e-5", "1e-3:10, 1e-4:-1", "0.005:100,", "1e-3:5 , 2"])
def test_what_the_host_reads_rightly_stays_with_the_host(text):
    assert _HOSTS_OWN.fullmatch(text)


@pytest.mark.parametrize(
    "text",
    ["1e-3->0", "10 x (5e-5:+100, 5e-7:+900)", "1e-3:10%, 1e-4", "1e-3:3ep, 1e-4", "1e-3:+5, 2e-3:+5", "1e-3:5:9"],
)
def test_our_own_strings_are_told_from_the_hosts(text):
    assert not _HOSTS_OWN.fullmatch(text)


def stepped(schedule, first, last):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=schedule.learn_rate)
    rates = []
    for step in range(first, last):
        schedule.apply(optimizer, step)
        if schedule.finished:
            break
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_a_schedule_of_ours_is_followed_from_any_step():
    assert stepped(StockSchedule("1e-3->0:+4", 4, lambda: None, False), 0, 4) == [1e-3, 7.5e-4, 5e-4, 2.5e-4]
    assert stepped(StockSchedule("1e-3->0:+4", 4, lambda: None, False), 2, 4) == [5e-4, 2.5e-4]


def test_epochs_wait_for_the_data_set():
    schedule = StockSchedule("1e-3:2ep, 1e-4", 10, lambda: 3, False)
    assert schedule.learn_rate == 1e-3
    assert stepped(schedule, 0, 10) == [1e-3] * 6 + [1e-4] * 4


def test_a_schedule_that_ends_before_the_run_ends_it_as_the_hosts_does():
    schedule = StockSchedule("2 x (1e-3:+1, 1e-4:+1)", 10, lambda: None, False)
    assert stepped(schedule, 0, 10) == [1e-3, 1e-4, 1e-3, 1e-4] and schedule.finished


@pytest.mark.parametrize("text", ["1e-3:5:9", "fast", "1e-3:5, 1e-4:3ep:2"])
def test_a_fault_is_said_before_training(text):
    with pytest.raises(ScheduleError):
        StockSchedule(text, 10, lambda: None, False)


def test_the_hosts_functions_are_put_back_wherever_they_went(monkeypatch):
    own = SimpleNamespace(train_embedding=lambda: "host's")
    host = own.train_embedding
    monkeypatch.setitem(sys.modules, "modules.textual_inversion.textual_inversion", own)
    stock.install()
    # the host's API is imported later, and takes what it finds there
    api = SimpleNamespace(train_embedding=own.train_embedding)
    monkeypatch.setitem(sys.modules, "modules.api.api", api)
    assert own.train_embedding is not host
    stock.install()
    assert own.train_embedding.atelier_original is host
    stock.uninstall()
    assert own.train_embedding is host and api.train_embedding is host
