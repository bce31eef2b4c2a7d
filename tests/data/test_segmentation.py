"""Segmentation models get what they were trained on, and their maps become masks."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_writer import write_segmenter, write_tagger
from PIL import Image
from sd_atelier.lib.data.image_steps import Piece, Tools, steps_from, take
from sd_atelier.lib.data.segmentation import Segmenter, segmentation_input


def half_red(size=(40, 20)):
    image = Image.new("RGB", size, (20, 20, 20))
    image.paste((220, 20, 20), (size[0] // 2, 0, *size))
    return image


@pytest.fixture
def ort():
    return pytest.importorskip("onnxruntime", reason="segmentation needs onnxruntime (the extra tagger)")


def test_the_input_is_normalised_as_each_kind_was_trained():
    image = Image.new("RGB", (10, 6), (51, 102, 204))
    isnet = segmentation_input(image, (4, 4), "isnet")
    assert isnet.shape == (3, 4, 4) and isnet.dtype == np.float32
    assert isnet[:, 0, 0] == pytest.approx([0.2 - 0.5, 0.4 - 0.5, 0.8 - 0.5])
    u2net = segmentation_input(image, (4, 4), "u2net")  # the brightest value counts as 1
    expected = [(51 / 204 - 0.485) / 0.229, (102 / 204 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert u2net[:, 0, 0] == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(segmentation_input(Image.new("RGB", (3, 3)), (4, 4), "u2net")).all()


@pytest.mark.parametrize("name", ["u2net", "isnet-general-use"])
@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_the_known_mask_is_given(ort, tmp_path, name, batch):
    write_segmenter(tmp_path / f"{name}.onnx", batch=batch)
    segmenter = Segmenter(tmp_path)
    assert segmenter.kind == name.partition("-")[0] and segmenter.size_px == (8, 8)
    masks = segmenter.masks([half_red(), half_red((10, 30)), half_red().transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert [mask.size for mask in masks] == [(40, 20), (10, 30), (40, 20)] and all(m.mode == "L" for m in masks)
    assert (np.asarray(masks[0])[:, :10] == 0).all() and (np.asarray(masks[0])[:, 30:] == 255).all()
    assert (np.asarray(masks[2]) == np.asarray(masks[0])[:, ::-1]).all()


def test_a_picture_without_contrast_has_no_subject(ort, tmp_path):
    write_segmenter(tmp_path / "u2net.onnx")
    assert Segmenter(tmp_path)(Image.new("RGB", (9, 9), "grey")).getextrema() == (0, 0)


def test_it_is_the_tool_of_the_step_background(ort, tmp_path):
    write_segmenter(tmp_path / "u2net.onnx")
    tools = Tools(background_mask=Segmenter(tmp_path / "u2net.onnx"))
    (piece,) = take(Piece(half_red(), ""), steps_from([{"step": "background"}]), tools)
    assert piece.image.getpixel((0, 0)) == (255, 255, 255) and piece.image.getpixel((39, 19)) == (220, 20, 20)


def test_what_is_missing_or_wrong_is_one_sentence(ort, tmp_path):
    with pytest.raises(ValueError, match=r"put the .onnx file of a U2-Net or IS-Net there"):
        Segmenter(tmp_path)
    with pytest.raises(ValueError, match=r"put the .onnx file"):
        Segmenter(tmp_path / "nothing.onnx")
    write_segmenter(tmp_path / "u2net.onnx")
    with pytest.raises(ValueError, match="one of u2net, isnet"):
        Segmenter(tmp_path, kind="other")
    write_segmenter(tmp_path / "isnet.onnx")
    with pytest.raises(ValueError, match=r"several models \(isnet.onnx, u2net.onnx\)"):
        Segmenter(tmp_path)
    write_tagger(tmp_path / "tagger", [[0, 0, 0]], [0], [])
    with pytest.raises(ValueError, match=r"must take \(N, 3, S, S\) pictures"):
        Segmenter(tmp_path / "tagger")
