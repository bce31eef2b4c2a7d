"""The command `atelier schedule`, called as the command line calls it."""

import argparse
import math

import pytest
from sd_atelier.lib.standalone.commands import schedule as command


def run(capsys, *arguments):
    parser = argparse.ArgumentParser(prog="atelier schedule")
    command.add_arguments(parser)
    code = command.run(parser.parse_args([str(argument) for argument in arguments]))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_header_and_one_row_for_every_step(capsys):
    code, out, err = run(capsys, "0->1e-4:10%, 1e-4->0 cosine", "--steps", 1000)
    lines = out.splitlines()
    assert code == 0 and err == ""
    assert lines[0] == "step,rate" and len(lines) == 1001
    rows = [line.split(",") for line in lines[1:]]
    assert [int(step) for step, _ in rows] == list(range(1000))
    for step in (0, 1, 50, 99, 100, 101, 550, 999):
        warm_up, fall = 1e-4 * step / 100, 1e-4 * (1 + math.cos(math.pi * (step - 100) / 900)) / 2
        assert float(rows[step][1]) == pytest.approx(warm_up if step < 100 else fall, rel=1e-12)


def test_rates_are_written_so_that_reading_gives_the_same_number(capsys):
    _, out, _ = run(capsys, "1e-4->1e-6 exp", "--steps", 7)
    written = [line.split(",")[1] for line in out.splitlines()[1:]]
    assert [repr(float(text)) for text in written] == written
    assert len(set(written)) == 7


def test_epochs_need_their_length(capsys):
    code, out, err = run(capsys, "1:1ep, 0.5", "--steps", 5, "--steps-per-epoch", 2)
    assert (code, err) == (0, "")
    assert out == "step,rate\n0,1.0\n1,1.0\n2,0.5\n3,0.5\n4,0.5\n"
    code, out, err = run(capsys, "1:1ep, 0.5", "--steps", 5)
    assert code == 2 and out == "" and "steps per epoch" in err


@pytest.mark.parametrize(
    "text", ["", "1e-3:5:9", "-0.5 ", "nan", "1:10", "1:3, 2:2, 3", "1, 2", "1\n\x1b[31m", "1->0 cosin"]
)
def test_a_bad_string_gives_one_line_on_standard_error_and_nothing_else(capsys, text):
    code, out, err = run(capsys, "--steps", 100, "--", text)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert "column" in err and "Traceback" not in err


def test_stop_at_end_prints_the_steps_up_to_there(capsys):
    code, out, err = run(capsys, "1:2, 0.5:3", "--steps", 10, "--stop-at-end")
    assert (code, err) == (0, "")
    assert out == "step,rate\n0,1.0\n1,1.0\n2,0.5\n"


def test_notes_go_to_standard_error(capsys):
    code, out, err = run(capsys, "1:500", "--steps", 2)
    assert code == 0 and out == "step,rate\n0,1.0\n1,1.0\n"
    assert err.startswith("note: ") and "longer than the run" in err


@pytest.mark.parametrize("steps", ["0", "-1", "1.5", "many", ""])
def test_a_run_needs_at_least_one_step(capsys, steps):
    with pytest.raises(SystemExit) as exit_code:
        run(capsys, "1", f"--steps={steps}")
    assert exit_code.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "must be a whole number of at least 1" in captured.err


def test_the_number_of_steps_is_required(capsys):
    with pytest.raises(SystemExit) as exit_code:
        run(capsys, "1")
    assert exit_code.value.code == 2
    assert "--steps" in capsys.readouterr().err


def test_the_plot_is_drawn_beside_the_rows(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "curve.png"
    code, out, _ = run(capsys, "3 x (1e-4->1e-6 cosine:+10)", "--steps", 30, "--plot", plot)
    assert code == 0 and len(out.splitlines()) == 31
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_plot_marks_the_ends_of_cycles(capsys, tmp_path, monkeypatch):
    from sd_atelier.lib import charts

    drawn = []
    monkeypatch.setattr(charts, "schedule_plot", lambda *arguments: drawn.append(arguments))
    code, _, _ = run(capsys, "2 x (1:+2, 0:+1)", "--steps", 6, "--plot", tmp_path / "a.png")
    assert code == 0
    assert drawn == [([1, 1, 0, 1, 1, 0], (3, 6), tmp_path / "a.png")]


def test_a_plot_that_cannot_be_written_is_said_and_prints_no_rows(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, err = run(capsys, "1", "--steps", 3, "--plot", tmp_path / "absent" / "a.png")
    assert code == 1 and out == ""
    assert err.startswith("error: no plot at ") and err.count("\n") == 1
