"""ONNX files with known answers, written by hand as protobuf, so that no test needs the onnx package.

Field numbers are those of onnx.proto3 (ONNX IR version 8, opset 13).
"""

from __future__ import annotations

import csv
import struct

import numpy as np

_FLOAT, _INTS, _INT = 1, 7, 2


def _varint(value):
    out = bytearray()
    value &= (1 << 64) - 1
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def _field(number, value):
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _tensor(name, values):
    values = np.asarray(values, np.float32)
    dims = b"".join(_field(1, n) for n in values.shape)
    return dims + _field(2, _FLOAT) + _field(8, name) + _field(9, struct.pack(f"<{values.size}f", *values.reshape(-1)))


def _value(name, shape):
    dims = b"".join(_field(1, _field(2, n) if isinstance(n, str) else _field(1, n)) for n in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, dims)))


def _node(kind, inputs, outputs, **attributes):
    node = b"".join(_field(1, i) for i in inputs) + b"".join(_field(2, o) for o in outputs) + _field(4, kind)
    for name, value in attributes.items():
        if isinstance(value, int):
            node += _field(5, _field(1, name) + _field(3, value) + _field(20, _INT))
        else:
            node += _field(5, _field(1, name) + b"".join(_field(8, v) for v in value) + _field(20, _INTS))
    return node


def _model(path, nodes, constants, taken, given):
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "known")
    graph += b"".join(_field(5, _tensor(name, values)) for name, values in constants.items())
    graph += _field(11, _value(*taken)) + _field(12, _value(*given))
    path.write_bytes(_field(1, 8) + _field(8, _field(2, 13)) + _field(7, graph))


def write_tagger(folder, weights, bias, rows, side_px=8, batch="N"):
    """A tagger whose probabilities are sigmoid(weights @ mean + bias) of a picture's mean (B, G, R), in 0 to 255."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.asarray(weights, np.float32)  # (number of tags, 3)
    nodes = [
        _node("ReduceMean", ["input"], ["mean"], axes=[1, 2], keepdims=0),
        _node("MatMul", ["mean", "w"], ["product"]),
        _node("Add", ["product", "b"], ["logits"]),
        _node("Sigmoid", ["logits"], ["output"]),
    ]
    shapes = ("input", (batch, side_px, side_px, 3)), ("output", (batch, len(weights)))
    _model(folder / "model.onnx", nodes, {"w": weights.T, "b": bias}, *shapes)
    with open(folder / "selected_tags.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tag_id", "name", "category", "count"])
        writer.writerows(rows)


def write_segmenter(path, side_px=8, batch="N", channel_weights=(1.0, 0.0, 0.0)):
    """A segmentation model whose map is the weighted sum of the normalised channels, pixel by pixel."""
    nodes = [_node("Conv", ["input", "w"], ["output"])]
    weights = np.asarray(channel_weights, np.float32).reshape(1, 3, 1, 1)
    _model(
        path, nodes, {"w": weights}, ("input", (batch, 3, side_px, side_px)), ("output", (batch, 1, side_px, side_px))
    )


def write_picture_scorer(path, weights, side_px=8, batch="N"):
    """A predictor whose scores are weights (number of scores, 3) @ mean of a picture's normalised channels R, G, B."""
    weights = np.asarray(weights, np.float32)
    nodes = [
        _node("ReduceMean", ["input"], ["mean"], axes=[2, 3], keepdims=0),
        _node("MatMul", ["mean", "w"], ["output"]),
    ]
    shapes = ("input", (batch, 3, side_px, side_px)), ("output", (batch, len(weights)))
    _model(path, nodes, {"w": weights.T}, *shapes)


def write_encoder_and_predictor(folder, weights, side_px=8, batch="N"):
    """An encoder that gives the means of the channels, and a predictor that weighs them (3,) into one number."""
    folder.mkdir(parents=True, exist_ok=True)
    mean = _node("ReduceMean", ["input"], ["output"], axes=[2, 3], keepdims=0)
    shapes = ("input", (batch, 3, side_px, side_px)), ("output", (batch, 3))
    _model(folder / "image_encoder.onnx", [mean], {}, *shapes)
    product = _node("MatMul", ["input", "w"], ["output"])
    constants = {"w": np.asarray(weights, np.float32).reshape(3, 1)}
    _model(folder / "predictor.onnx", [product], constants, ("input", (batch, 3)), ("output", (batch, 1)))
