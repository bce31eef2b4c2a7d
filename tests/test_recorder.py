"""The records: exact, never waiting for the device, the same bytes after any interruption."""

import csv
import errno
import hashlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sd_atelier.lib.config import RecordConfig
from sd_atelier.lib.recorder import Recorder
from sd_atelier.lib.records import copy_records, read_losses, read_probe, read_run

FILES = ("loss.csv", "run.csv", "probe.csv")
GROUPS = ("unet", "te")
NAMES = (
    "set/a.png",
    "set/b, c.png",
    '=set/"d".png',
    "'set/e.png",
    "日本/é.png",
    "set/line\nbreak.png",
    "@f",
    "'=g",
    "x\udc80",
)


def recorder_of(folder, window_steps=4, groups=GROUPS):
    return Recorder(folder, RecordConfig(window_steps=window_steps), 2**63 - 1, groups)


def train(recorder, first, last, *, flush_every=3, flow=False, groups=GROUPS):
    """Steps first..last-1 of a run that depends on the step only."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for micro in range(2):
            size = 1 + (step + micro) % 3
            names = [NAMES[int(i)] for i in torch.randint(len(NAMES), (size,), generator=generator)]
            shas = [hashlib.sha256(n.encode("utf-8", "replace")).hexdigest()[:12] for n in names]
            u = torch.rand(size, generator=generator)
            losses = torch.rand(size, generator=generator) ** 4
            if step % 7 == 3:
                losses[0] = float("nan") if micro else float("inf")
            t = u if flow else (u * 1000).long()
            recorder.add(step, step // 5, names, shas, t, losses, torch.full((size,), 0.3), 1e-4 / (step + 1))
        norm = torch.rand((), generator=generator) if step % 2 else 0.1 * step
        recorder.end_step(step, {g: 1e-4 / (i + step + 1) for i, g in enumerate(groups)}, norm)
        if (step + 1) % flush_every == 0:
            recorder.flush()
        if step % 4 == 0:
            rows = [SimpleNamespace(image=n, t=500, loss=0.1 + step, loss_base=0.3) for n in NAMES]
            recorder.add_probe(step, rows)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


@pytest.mark.parametrize("flow", [False, True])
def test_a_row_per_sample_holds_what_was_added(tmp_path, flow):
    recorder = recorder_of(tmp_path)
    t = torch.tensor([0.1, 0.9]) if flow else torch.tensor([7, 999])
    losses, weight = torch.tensor([0.1, 1e-9]), torch.tensor([1.0, 1 / 3])
    recorder.add(0, 2, ("a", "b"), ("aa", "bb"), t, losses, weight, 0.1)
    recorder.end_step(0, {"unet": 0.1, "te": 1e-5}, 0.25)
    assert recorder.smoothed is None
    recorder.flush()
    shown = ("0.1", "0.9") if flow else ("7", "999")
    assert (tmp_path / "loss.csv").read_text() == (
        "step,epoch,image,caption_sha,t,loss,weight,lr,seed\n"
        f"0,2,a,aa,{shown[0]},0.1,1.0,0.1,9223372036854775807\n"
        f"0,2,b,bb,{shown[1]},1e-09,0.33333334,0.1,9223372036854775807\n"
    )
    header, row = (tmp_path / "run.csv").read_text().splitlines()
    assert header == "step,epoch,loss,loss_latest,loss_window,loss_window_se,n,grad_norm,lr_unet,lr_te"
    mean = losses.double().mean().item()
    error = float(np.std(losses.double().numpy(), ddof=1) / math.sqrt(2))
    values = [float(x) for x in row.split(",")]
    assert values == pytest.approx([0, 2, mean, mean, mean, error, 2, 0.25, 0.1, 1e-5], rel=1e-12)
    assert recorder.smoothed == values[4]


def test_every_number_reads_back_exactly(tmp_path):
    recorder = recorder_of(tmp_path)
    bits = torch.randint(-(2**31), 2**31, (2000,), generator=torch.Generator().manual_seed(0)).int()
    losses = bits.view(torch.float32)
    rate = 1 / 3e5
    recorder.add(0, 0, ["a"] * 2000, ["s"] * 2000, torch.arange(2000) % 1000, losses, losses.flip(0), rate)
    recorder.end_step(0, {"unet": rate, "te": math.pi}, losses[5])
    recorder.flush()
    rows, run = read_losses(tmp_path / "loss.csv"), read_run(tmp_path / "run.csv")
    np.testing.assert_array_equal(rows["loss"].astype(np.float32), losses.numpy())
    np.testing.assert_array_equal(rows["weight"].astype(np.float32), losses.numpy()[::-1])
    np.testing.assert_array_equal(rows["t"], np.arange(2000) % 1000)
    assert (rows["lr"] == rate).all() and (rows["seed"] == 2**63 - 1).all()
    assert run["lr_te"][0] == math.pi and run["grad_norm"][0].astype(np.float32) == losses[5].item()


def test_adding_never_touches_a_value(tmp_path):
    """As on a GPU, where reading a value waits for everything that was queued."""

    class OnDevice(torch.Tensor):
        reads = 0

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            out = super().__torch_function__(func, types, args, kwargs or {})
            if func.__name__ in ("cpu", "item", "tolist", "numpy", "__float__", "__int__", "__bool__", "to", "cat"):
                OnDevice.reads += 1
            return out

    recorder = recorder_of(tmp_path)
    for step in range(3):
        values = [torch.rand(2).as_subclass(OnDevice) for _ in range(3)]
        recorder.add(step, 0, ("a", "b"), ("x", "y"), *values, 1e-4)
        recorder.end_step(step, dict.fromkeys(GROUPS, 1e-4), torch.rand(()).as_subclass(OnDevice))
    assert OnDevice.reads == 0
    recorder.flush()
    assert OnDevice.reads > 0
    assert len(read_losses(tmp_path / "loss.csv")["loss"]) == 6


def test_one_transfer_fetches_all_that_waits(tmp_path, monkeypatch):
    fetched = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: fetched.append(self.numel()) or cpu(self))
    recorder = recorder_of(tmp_path)
    train(recorder, 0, 10, flush_every=100)
    fetched.clear()
    recorder.flush()
    rows = len(read_losses(tmp_path / "loss.csv")["loss"])
    assert fetched == [3 * rows + 10]


def test_how_often_is_flushed_changes_no_byte(tmp_path):
    for every in (1, 4, 100):
        (tmp_path / str(every)).mkdir()
        recorder = recorder_of(tmp_path / str(every))
        train(recorder, 0, 20, flush_every=every)
        recorder.flush()
    assert contents(tmp_path / "1") == contents(tmp_path / "4") == contents(tmp_path / "100")


@pytest.mark.parametrize("window_steps", [2, 7, 100])
def test_a_run_that_is_cut_at_any_step_writes_the_same_bytes(tmp_path, window_steps):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = recorder_of(tmp_path / "whole", window_steps)
    train(whole, 0, 30)
    whole.flush()
    for cut in range(0, 30, 3):
        for path in (tmp_path / "cut").iterdir():
            path.unlink()
        first = recorder_of(tmp_path / "cut", window_steps)
        train(first, 0, cut)
        offsets = first.offsets()
        train(first, cut, min(30, cut + 5), flush_every=2)
        with open(tmp_path / "cut" / "loss.csv", "ab") as file:
            file.write(b'99,1,"torn')
        # in a new process, or in the same one
        second = recorder_of(tmp_path / "cut", window_steps) if cut % 2 else first
        second.restore(offsets)
        assert second.num_nonfinite == sum(1 for s in range(cut) if s % 7 == 3) * 2
        train(second, cut, 30)
        second.flush()
        assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
        assert second.smoothed == whole.smoothed


def test_a_step_that_did_not_end_leaves_no_row(tmp_path):
    recorder = recorder_of(tmp_path)
    train(recorder, 0, 2)
    offsets = recorder.offsets()
    recorder.add(2, 0, ["a"], ["x"], torch.tensor([1]), torch.tensor([1.0]), torch.tensor([1.0]), 1e-4)
    recorder.flush()
    recorder.abandon_step()
    assert recorder.offsets() == offsets
    train(recorder, 2, 3)
    assert recorder.offsets() != offsets


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_flush_loses_no_row_and_doubles_none(tmp_path, failing_disk, code):
    (tmp_path / "whole").mkdir()
    train(recorder_of(tmp_path / "whole"), 0, 6, flush_every=6)
    (tmp_path / "bad").mkdir()
    at = 0
    while True:
        for path in (tmp_path / "bad").iterdir():
            path.unlink()
        failing_disk.disarm()
        recorder = recorder_of(tmp_path / "bad")
        failing_disk.arm(at, code, lasting=False)
        for step in range(6):
            try:
                train(recorder, step, step + 1, flush_every=6)
            except OSError as error:
                assert error.errno == code
                recorder.flush()
        recorder.flush()
        if failing_disk.failed is None:
            break
        assert contents(tmp_path / "bad") == contents(tmp_path / "whole"), at
        at += 1
    assert at >= 3 * 4


def test_records_that_are_missing_short_or_changed_are_named(tmp_path):
    recorder = recorder_of(tmp_path)
    train(recorder, 0, 9)
    offsets, before = recorder.offsets(), contents(tmp_path)
    for name in FILES:
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=rf"{name} is missing"):
            recorder_of(tmp_path).restore(offsets)
        (tmp_path / name).write_bytes(before[name][:-1])
        with pytest.raises(ValueError, match=rf"{name} is shorter"):
            recorder_of(tmp_path).restore(offsets)
        (tmp_path / name).write_bytes(before[name].replace(b"step", b"Step", 1))
        with pytest.raises(ValueError, match=rf"{name} has the columns Step"):
            recorder_of(tmp_path).restore(offsets)
        (tmp_path / name).write_bytes(before[name])
    (tmp_path / "loss.csv").write_bytes(before["loss.csv"].replace(b"\n0,", b"\nx,", 1))
    with pytest.raises(ValueError, match=r"loss\.csv was changed: it has a row \['x'"):
        recorder_of(tmp_path).restore(offsets)


def test_records_that_are_there_are_never_written_over_without_restore(tmp_path):
    train(recorder_of(tmp_path), 0, 3)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="restore"):
        train(recorder_of(tmp_path), 0, 3)
    assert contents(tmp_path) == before
    fresh = recorder_of(tmp_path)
    fresh.restore({})
    train(fresh, 0, 3)
    assert contents(tmp_path) == before


def test_a_fork_with_other_groups_keeps_the_old_columns_and_its_offsets(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = recorder_of(tmp_path / "old")
    train(old, 0, 6)
    offsets = old.offsets()
    train(old, 6, 9)
    copy_records(tmp_path / "old", tmp_path / "new", offsets)
    for _ in range(2):  # the second as after a kill, when the columns are there already
        new = recorder_of(tmp_path / "new", groups=("unet", "rule, 1"))
        new.restore(offsets)
        train(new, 6, 9, groups=("unet", "rule, 1"))
        new.flush()
    run, parent = read_run(tmp_path / "new" / "run.csv"), read_run(tmp_path / "old" / "run.csv")
    assert list(run)[-3:] == ["lr_unet", "lr_te", "lr_rule, 1"]
    assert run["step"].tolist() == list(range(9))
    assert np.isnan(run["lr_te"][6:]).all() and not np.isnan(run["lr_te"][:6]).any()
    assert np.isnan(run["lr_rule, 1"][:6]).all() and not np.isnan(run["lr_rule, 1"][6:]).any()
    for column in ("loss", "loss_latest", "loss_window", "n"):
        np.testing.assert_array_equal(run[column], parent[column])
    assert (tmp_path / "new" / "loss.csv").read_bytes() == (tmp_path / "old" / "loss.csv").read_bytes()
    assert recorder_of(tmp_path / "new", groups=GROUPS).restore(offsets) is None


def test_copied_records_end_at_their_offsets_and_missing_ones_are_named(tmp_path):
    (tmp_path / "new").mkdir()
    recorder = recorder_of(tmp_path)
    train(recorder, 0, 4)
    offsets, before = recorder.offsets(), contents(tmp_path)
    train(recorder, 4, 8)
    copy_records(tmp_path, tmp_path / "new", {**offsets, "probe.csv": 0})
    assert contents(tmp_path / "new") == {name: before[name] for name in ("loss.csv", "run.csv")}
    (tmp_path / "run.csv").unlink()
    with pytest.raises(ValueError, match=r"run\.csv is missing"):
        copy_records(tmp_path, tmp_path / "new", offsets)


def test_formulas_are_marked_in_the_file_and_names_come_back_as_they_were(tmp_path):
    recorder = recorder_of(tmp_path)
    names = [*NAMES[:-1], "+1", "-1", "\tx", "a=1", '"', ""]
    size = len(names)
    recorder.add(0, 0, names, ["=sha"] * size, torch.arange(size), torch.rand(size), torch.ones(size), 1.0)
    recorder.end_step(0, dict.fromkeys(GROUPS, 1.0), 0.0)
    recorder.add_probe(0, [SimpleNamespace(image=n, t=0.5, loss=1.0, loss_base=2.0) for n in names])
    recorder.flush()
    rows = read_losses(tmp_path / "loss.csv")
    assert rows["image"].tolist() == names and set(rows["caption_sha"]) == {"=sha"}
    assert read_probe(tmp_path / "probe.csv")["image"].tolist() == names
    assert b"\r" not in (tmp_path / "loss.csv").read_bytes()
    with open(tmp_path / "loss.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert not row["image"].startswith(("=", "+", "-", "@", "\t")) and row["caption_sha"] == "'=sha"


def test_a_torn_last_row_is_left_out_wherever_it_was_torn(tmp_path):
    recorder = recorder_of(tmp_path)
    train(recorder, 0, 6)
    recorder.flush()
    for name, read in (("loss.csv", read_losses), ("run.csv", read_run), ("probe.csv", read_probe)):
        path = tmp_path / name
        data, whole = path.read_bytes(), read(path)
        for length in [*range(0, len(data), 11), *range(len(data) - 150, len(data))]:
            path.write_bytes(data[:length])
            rows = read(path)
            assert rows.keys() == whole.keys() or length < data.index(b"\n") + 1
            count = len(rows["step"])
            assert count <= len(whole["step"]) - 1
            for column in rows:
                np.testing.assert_array_equal(rows[column], whole[column][:count])
        assert count == len(whole["step"]) - 1


def test_a_wrong_row_in_the_middle_is_named(tmp_path):
    recorder = recorder_of(tmp_path)
    train(recorder, 0, 6)
    recorder.flush()
    data = (tmp_path / "loss.csv").read_bytes()
    for bad in (b"\nx,1,a,s,1,1,1,1,1\n", b"\n1,2\n", b"\n1,1,a,s,1,1,1,1,1,1\n"):
        (tmp_path / "loss.csv").write_bytes(data.replace(b"\n", bad, 1))
        with pytest.raises(ValueError, match=r"loss\.csv was changed"):
            read_losses(tmp_path / "loss.csv")


def test_missing_and_empty_records_have_the_columns_and_no_rows(tmp_path):
    for name, read in (("loss.csv", read_losses), ("run.csv", read_run), ("probe.csv", read_probe)):
        missing = read(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        empty = read(tmp_path / name)
        assert missing.keys() == empty.keys() and "step" in missing
        assert all(len(column) == 0 for rows in (missing, empty) for column in rows.values())
