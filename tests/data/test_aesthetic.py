"""Aesthetic predictors get pictures as CLIP sees them, and their numbers become scores."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from onnx_writer import write_encoder_and_predictor, write_picture_scorer, write_tagger
from PIL import Image
from sd_atelier.lib.data.aesthetic import AestheticScorer, clip_input, score_pictures, score_table

MEAN, DEVIATION = np.array((0.48145466, 0.4578275, 0.40821073)), np.array((0.26862954, 0.26130258, 0.27577711))
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0), "grey": (90, 90, 90)}


def seen(colour):
    return (np.array(colour) / 255 - MEAN) / DEVIATION


@pytest.fixture
def ort():
    return pytest.importorskip("onnxruntime", reason="aesthetic scores need onnxruntime (the extra tagger)")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    return folder


def paths(folder):
    return sorted(folder.glob("*.png"))


def test_the_input_is_the_middle_square_normalised_as_clips():
    image = Image.new("RGB", (40, 20), "red")
    image.paste((51, 102, 204), (10, 0, 30, 20))
    values = clip_input(image, 4)
    assert values.shape == (3, 4, 4) and values.dtype == np.float32
    assert values[:, 2, 2] == pytest.approx(seen((51, 102, 204)), rel=1e-5)
    assert np.ptp(values, axis=(1, 2)).max() < 1e-6


@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_the_known_score_is_given_whatever_the_batch(ort, tmp_path, pictures, batch):
    weights = np.array([3.0, 2.0, 1.0])
    write_picture_scorer(tmp_path / "scorer.onnx", [weights], batch=batch)
    progress = []
    scorer = AestheticScorer(tmp_path / "scorer.onnx")
    found = score_pictures(paths(pictures), scorer, batch_size=2, on_progress=lambda *n: progress.append(n))
    for path, score in found.scores.items():
        assert score == pytest.approx(weights @ seen(COLOURS[path.stem]), rel=1e-4)
    assert len(found.scores) == 4 and not found.stopped and progress == [(2, 4), (4, 4)]


def test_ratings_from_one_to_ten_are_averaged(ort, tmp_path):
    weights = np.zeros((10, 3))
    weights[3, 0] = weights[7, 0] = 1.0  # as likely to be 4 as 8, of a picture whose red is above its mean
    write_picture_scorer(tmp_path / "nima.onnx", weights)
    (score,) = AestheticScorer(tmp_path / "nima.onnx").scores([Image.new("RGB", (9, 9), "red")])
    assert score == pytest.approx(6.0)


@pytest.mark.parametrize("batch", ["N", 2])
def test_a_predictor_over_an_encoder_gets_embeddings_of_length_one(ort, tmp_path, batch):
    weights = np.array([1.0, -2.0, 0.5])
    write_encoder_and_predictor(tmp_path / "clip", weights, batch=batch)
    colours = [(255, 0, 0), (10, 200, 30), (90, 90, 90)]
    scores = AestheticScorer(tmp_path / "clip").scores([Image.new("RGB", (9, 9), colour) for colour in colours])
    for colour, score in zip(colours, scores, strict=True):
        embedding = seen(colour)
        assert score == pytest.approx(weights @ embedding / np.linalg.norm(embedding), rel=1e-4)


def test_stopping_keeps_what_is_done_and_bad_pictures_are_named(ort, tmp_path, pictures):
    write_picture_scorer(tmp_path / "scorer.onnx", [[1.0, 0.0, 0.0]])
    scorer = AestheticScorer(tmp_path / "scorer.onnx")
    progress = []
    found = score_pictures(
        paths(pictures), scorer, batch_size=2, on_progress=lambda *n: progress.append(n), stopped=lambda: bool(progress)
    )
    assert [path.stem for path in found.scores] == ["blue", "green"] and found.stopped
    (pictures / "green.png").write_bytes((pictures / "green.png").read_bytes()[:50])
    found = score_pictures(paths(pictures), scorer)
    assert len(found.scores) == 3 and [str(p) for p in found.problems] == [f"{pictures / 'green.png'} is truncated"]


def test_the_table_has_the_best_first_and_no_formula():
    scores = {"a.png": 1.5, "sub/b, c.png": 7.25, "=x.png": 3.0}
    rows = list(csv.reader(io.StringIO(score_table(scores).decode())))
    assert rows == [["image", "score"], ["sub/b, c.png", "7.2500"], ["'=x.png", "3.0000"], ["a.png", "1.5000"]]


def test_what_is_missing_or_wrong_is_one_sentence(ort, tmp_path):
    with pytest.raises(ValueError, match=r"a folder with image_encoder.onnx and predictor.onnx; nothing is downloaded"):
        AestheticScorer(tmp_path)
    with pytest.raises(ValueError, match="there is no aesthetic predictor in"):
        AestheticScorer(tmp_path / "missing.onnx")
    write_tagger(tmp_path / "tagger", [[0, 0, 0]], [0], [])
    with pytest.raises(ValueError, match=r"must take \(N, 3, S, S\) pictures"):
        AestheticScorer(tmp_path / "tagger" / "model.onnx")
    write_picture_scorer(tmp_path / "two.onnx", [[1, 0, 0], [0, 1, 0]])
    with pytest.raises(ValueError, match="gives 2 numbers for a picture; an aesthetic predictor gives one"):
        AestheticScorer(tmp_path / "two.onnx").scores([Image.new("RGB", (9, 9))])
