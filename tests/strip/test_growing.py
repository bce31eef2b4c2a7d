"""The previews of a run grow into a strip: a page while it goes on, pages with metrics when it has ended."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sd_atelier.lib.config import RunConfig, merge
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.lib.strip.growing import controlled_changes, preview_files, write_page, write_strip

PREVIEW = {"prompts": ["a <toy>", "a cat"], "seed": 7}
CONFIG = merge(RunConfig(), {"name": "toy", "data": {"concepts": [{"folder": "a"}]}, "preview": PREVIEW})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "toy", CONFIG, versions={}, base={}, data_manifest={})


def preview(run: RunFolder, step: int, number: int) -> Path:
    """A preview of noise, as the trainer names them."""
    pixels = np.random.default_rng(step + number).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    path = run.previews / f"{step:06d}-{number}-words.png"
    Image.fromarray(pixels).save(path)
    return path


def test_a_run_without_previews_has_no_strip(run: RunFolder) -> None:
    assert write_page(run, grows=True) is None and write_strip(run) is None
    assert not list(run.path.glob("previews.*"))


def test_the_page_grows_and_loads_itself_until_the_run_has_ended(run: RunFolder) -> None:
    found = [preview(run, 0, 1)]
    page = write_page(run, grows=True)
    assert page is not None
    first = page.read_text("utf-8")
    assert 'http-equiv="refresh"' in first and "no network" in first and "a &lt;toy&gt;" in first
    found += [preview(run, 0, 2), preview(run, 200, 1)]
    write_page(run, grows=True)
    text = page.read_text("utf-8")
    assert all(f'src="previews/{path.name}"' in text for path in found) and text.count('loading="lazy"') == 3
    assert text.index("no network") < text.index("toy-000200") and text.count('<td class="empty"') == 1
    write_page(run)
    assert "refresh" not in page.read_text("utf-8")
    assert not (run.path / "previews.png").exists()


def test_the_strip_has_the_untrained_model_first_then_the_steps_in_order(run: RunFolder) -> None:
    for step in (1000, 0, 200, 90):
        for number in (1, 2):
            preview(run, step, number)
    (run.previews / "note.txt").write_text("no picture", "utf-8")
    assert len(preview_files(run)) == 8
    page = write_strip(run)
    assert page == run.path / "previews.png" and page.is_file()
    about = json.loads((run.path / "previews.json").read_text("utf-8"))
    assert [column["label"] for column in about["columns"]] == ["no network", "toy-000090", "toy-000200", "toy-001000"]
    assert [column["step"] for column in about["columns"]] == [None, 90, 200, 1000]
    assert about["rows"] == ["a <toy>\nseed 7", "a cat\nseed 8"]
    assert "to_base" in about["columns"][1]["metrics"] and "refresh" not in page.with_suffix(".html").read_text("utf-8")


def test_a_branch_that_never_saw_step_0_has_no_column_without_a_network(run: RunFolder) -> None:
    for step in (400, 600):
        preview(run, step, 1)
    write_strip(run)
    columns = json.loads((run.path / "previews.json").read_text("utf-8"))["columns"]
    assert [column["label"] for column in columns] == ["toy-000400", "toy-000600"]
    assert all("metrics" not in column for column in columns)


def test_the_controlled_loss_is_that_of_each_step_against_the_base(run: RunFolder) -> None:
    assert controlled_changes(run.path) == {}
    rows = ["step,image,t,loss,loss_base", "0,a,10,0.5,0.5", "20,a,10,0.4,0.5", "20,b,10,0.5,0.5"]
    (run.path / "probe.csv").write_text("\n".join(rows) + "\n", "utf-8")
    changes = controlled_changes(run.path)
    assert changes[0] == 0 and changes[20] == pytest.approx(-0.1)
