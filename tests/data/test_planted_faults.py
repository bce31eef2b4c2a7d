"""Every fault that is planted in a data set is named, with its file, and nothing else is."""

from __future__ import annotations

import os

import planted_faults
import pytest
from planted_faults import FAULTS, num_tokens, plant
from sd_atelier.lib.config import ConceptConfig, DataConfig
from sd_atelier.lib.data import survey as survey_module
from sd_atelier.lib.data.findings import examine, summary
from sd_atelier.lib.data.scan import scan
from sd_atelier.lib.data.survey import survey
from sd_atelier.lib.data.tag_rules import tag_rules

NUM = 200
pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="some of the faults are links"),
    pytest.mark.filterwarnings("ignore"),  # Pillow warns of what is broken
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    return root, plant(root, NUM, seed=1, longest_px=384)


def data(root, **values):
    return DataConfig(concepts=(ConceptConfig(folder=str(root)),), **values)


def named(found, root):
    return {(p.heading, path.relative_to(root).as_posix()) for p in found.problems for path in p.about}


def test_every_planted_fault_is_named_and_no_other(made):
    root, planted = made
    found = examine(data(root, flip=True), tag_rules(), num_tokens)
    assert named(found, root) == planted and not found.stopped
    assert len({heading for heading, _ in planted}) >= 30
    headings = {planted_faults.TRUNCATED, planted_faults.NO_PICTURE, planted_faults.TOO_LARGE, "is empty"}
    assert {root / name for heading, name in planted if heading in headings} <= found.left_out


@pytest.mark.parametrize("name", FAULTS)
def test_each_kind_of_fault_is_named_by_itself(tmp_path, name):
    surface = planted_faults.texture()
    planted = set()
    for index in range(3):
        place = planted_faults.Place(tmp_path, 5, index, surface, 320)
        planted_faults.Place.picture(planted_faults.Place(tmp_path, 6, 10 + index, surface, 320))
        if name != "circle of links" or index == 0:
            FAULTS[name](place)
        planted |= place.found
    assert planted and named(examine(data(tmp_path, flip=True), tag_rules(), num_tokens), tmp_path) == planted


def test_what_was_not_asked_for_is_not_said(made):
    root, planted = made
    found = examine(data(root), tag_rules())
    unasked = ("is mirrored, and its caption names what is then wrong", "has a caption of more than 75 tokens")
    assert named(found, root) == {fault for fault in planted if fault[0] not in unasked}


def test_the_summary_is_one_page_however_large_the_set(made):
    root, planted = made
    found = examine(data(root, flip=True), tag_rules(), num_tokens)
    assert len(summary(found.problems, root)) <= 60
    more = summary([problem for problem in found.problems for _ in range(30)], root)
    assert len(more) <= 40 and max(map(len, more)) < 400
    assert all(any(line.startswith(f"  {heading} (") for line in more) for heading, _ in planted)
    everything = " ".join(summary(found.problems, root, most_named=0))
    assert all(name.rpartition("/")[2] in everything for _, name in planted)


def test_a_survey_can_be_stopped_and_says_how_far_it_is(made):
    root, _ = made
    samples = scan(data(root)).samples
    progress = []
    seen = survey(samples, 200.0, on_progress=lambda *n: progress.append(n), stopped=lambda: len(progress) == 5)
    assert seen.stopped and progress == [(i, len(samples)) for i in range(1, 6)]
    assert not survey(samples[:20], 200.0).stopped and survey([], 200.0) == survey_module.Survey((), (), False)


def test_each_picture_is_decoded_once(made, monkeypatch):
    root, _ = made
    samples = scan(data(root)).samples
    decoded = []
    decode = survey_module.decode
    monkeypatch.setattr(survey_module, "decode", lambda path, *rest: decoded.append(path) or decode(path, *rest))
    survey([*samples, *samples], 200.0)
    assert sorted(decoded) == sorted({sample.path for sample in samples})


def test_the_made_tokenizer_counts_about_as_many_tokens_as_words(tmp_path):
    transformers = pytest.importorskip("transformers", reason="a real tokenizer needs transformers")
    captions = ("1girl, solo, amber bench", ", ".join(planted_faults.TAGS))
    planted_faults.write_tokenizer(tmp_path, captions)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    for caption in captions:
        counted = len(tokenizer(caption, add_special_tokens=False).input_ids)
        # "1girl" is several tokens, and some words share pieces
        assert num_tokens(caption) <= counted <= 1.3 * num_tokens(caption) + 4
