"""Only what is missing is made, each model is loaded once, and a fault costs its own cells."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from sd_atelier.lib.files import DiskFullError
from sd_atelier.lib.host import SampleRequest
from sd_atelier.lib.strip.cells import CellStore
from sd_atelier.lib.strip.render import Column, Row, render, rows_of


class Painter:
    """Paints plain colours, and keeps what was asked of it."""

    def __init__(self) -> None:
        self.settings = {"sampler": "euler"}
        self.embeddings = {}
        self.loaded: list[str] = []
        self.painted: list[tuple[str, str, float]] = []
        self.fails: dict[object, Exception] = {}

    def named_in(self, request):
        return {name: content for name, content in self.embeddings.items() if name in request.prompt}

    @contextmanager
    def ready(self, column: Column):
        if column.label in self.fails:
            raise self.fails[column.label]
        self.loaded.append(column.label)

        def paint(request: SampleRequest, strength: float) -> Image.Image:
            if request.prompt in self.fails:
                raise self.fails[request.prompt]
            self.painted.append((column.label, request.prompt, strength))
            image = Image.new("RGB", (16, 8), (len(column.label), len(request.prompt), 0))
            image.info["parameters"] = f"{request.prompt}, euler"
            return image

        yield paint


def columns_of(*labels: str) -> list[Column]:
    return [Column("base", None, "model"), *(Column(label, label, f"model {label}") for label in labels)]


ROWS = [Row(SampleRequest(prompt=prompt, seed=3)) for prompt in ("a cat", "a dog")]


def test_every_cell_is_made_once_and_each_model_loaded_once(tmp_path):
    painter, store = Painter(), CellStore(tmp_path / "cells")
    first = render(columns_of("x-1", "x-2"), ROWS, painter, store)
    assert first.num_made == 6 and painter.loaded == ["base", "x-1", "x-2"]
    assert [(c.column, c.row) for c in first.cells] == [(c, r) for c in range(3) for r in range(2)]
    again = render(columns_of("x-1", "x-2"), ROWS, painter, store)
    assert again.num_made == 0 and painter.loaded == ["base", "x-1", "x-2"] and again.cells == first.cells
    more = render(columns_of("x-1", "x-2", "x-3", "x-4"), [*ROWS, Row(SampleRequest(prompt="a bird"))], painter, store)
    assert more.num_made == 2 * 3 + 3
    with Image.open(first.cells[0].image) as image:
        assert image.text["parameters"] == "a cat, euler"


def test_a_setting_of_the_host_makes_other_cells(tmp_path):
    painter, store = Painter(), CellStore(tmp_path)
    render(columns_of("x-1"), ROWS, painter, store)
    painter.settings = {"sampler": "ddim"}
    assert render(columns_of("x-1"), ROWS, painter, store).num_made == 4


def test_another_content_of_what_a_prompt_names_makes_other_cells_of_that_prompt(tmp_path):
    painter, store = Painter(), CellStore(tmp_path)
    painter.embeddings = {"cat": "1", "cow": "1"}
    render(columns_of("x-1"), ROWS, painter, store)
    painter.embeddings = {"cat": "2", "cow": "2"}
    assert render(columns_of("x-1"), ROWS, painter, store).num_made == 2


def test_without_a_network_all_strengths_are_one_picture(tmp_path):
    painter, store = Painter(), CellStore(tmp_path)
    rows = rows_of([ROWS[0].request], seeds=[7], strengths=[0.5, 1.0])
    assert [row.label for row in rows] == ["a cat\nseed 7, strength 0.5", "a cat\nseed 7"]
    rendered = render(columns_of("x-1"), rows, painter, store)
    assert {c.key for c in rendered.cells if c.column == 0} == {rendered.cells[0].key}
    assert len({c.key for c in rendered.cells if c.column == 1}) == 2


def test_rows_are_requests_with_each_seed_and_strength():
    rows = rows_of([row.request for row in ROWS], seeds=[1, 2], strengths=[0.5, 1.0])
    assert [(r.request.prompt, r.request.seed, r.strength) for r in rows] == [
        (prompt, seed, strength) for prompt in ("a cat", "a dog") for seed in (1, 2) for strength in (0.5, 1.0)
    ]
    assert rows_of([ROWS[0].request]) == [ROWS[0]]


@pytest.mark.parametrize("error", [ValueError("this network is for SDXL"), OSError("cannot be read")])
def test_a_checkpoint_that_cannot_be_loaded_costs_its_column(tmp_path, error):
    painter, store = Painter(), CellStore(tmp_path)
    painter.fails["x-1"] = error
    rendered = render(columns_of("x-1", "x-2"), ROWS, painter, store)
    assert rendered.num_made == 4 and not rendered.stopped
    assert [c.error for c in rendered.cells] == ["", "", str(error), str(error), "", ""]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("the prompt is empty"), "the prompt is empty"),
        (RuntimeError("out of memory"), "out of memory; make"),
    ],
)
def test_a_prompt_that_cannot_be_sampled_costs_its_row(tmp_path, error, said):
    painter, store = Painter(), CellStore(tmp_path)
    painter.fails["a cat"] = error
    rendered = render(columns_of("x-1"), ROWS, painter, store)
    assert [c.error.startswith(said) for c in rendered.cells] == [True, False, True, False]
    assert all((c.image is None) == bool(c.error) for c in rendered.cells)


def test_a_column_known_to_be_unusable_is_not_loaded(tmp_path):
    painter = Painter()
    columns = [*columns_of("x-1"), Column("x-2", None, error="is no safetensors file")]
    rendered = render(columns, ROWS, painter, CellStore(tmp_path))
    assert painter.loaded == ["base", "x-1"] and rendered.cells[-1].error == "is no safetensors file"


@pytest.mark.parametrize("error", [RuntimeError("a bug"), DiskFullError(Path())])
def test_what_is_not_the_checkpoints_fault_is_raised(tmp_path, error):
    painter, store = Painter(), CellStore(tmp_path)
    if isinstance(error, DiskFullError):
        store.put = lambda *args: (_ for _ in ()).throw(error)  # type: ignore[method-assign]
    else:
        painter.fails["a dog"] = error
    with pytest.raises(type(error)):
        render(columns_of("x-1"), ROWS, painter, store)


def test_a_stop_keeps_what_is_finished(tmp_path):
    painter, store, told = Painter(), CellStore(tmp_path), []
    rendered = render(
        columns_of("x-1"), ROWS, painter, store,
        on_cell=lambda cell, done, total: told.append((done, total)), stop_requested=lambda: len(painter.painted) == 3,
    )  # fmt: skip
    assert rendered.stopped and rendered.num_made == 3 and told == [(1, 4), (2, 4), (3, 4)]
    assert render(columns_of("x-1"), ROWS, painter, store).num_made == 1
