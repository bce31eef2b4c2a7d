"""Fingerprints: the same model under any dtype and layout, another model never."""

import json

import pytest
import torch
from sd_atelier.lib.fingerprint import NUM_VALUES, Rows, compare_fingerprints, fingerprint

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (8, 4, 3, 3), "linear.weight": (16, 12), "bias": (5,), "scale": (), "empty": (0, 3)}
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


def of(weights):
    return fingerprint(weights.items())


def test_values_are_those_at_even_strides():
    weight = torch.arange(64.0).reshape(4, 4, 4)
    assert of({"x": weight})["x"] == {"dtype": "float32", "values": [4.0 * i for i in range(NUM_VALUES)]}
    assert of({"x": torch.arange(3.0)})["x"]["values"] == [0.0, 1.0, 2.0]
    assert of({"x": torch.tensor(7.0)})["x"]["values"] == [7.0]
    assert of({"x": torch.empty(0)})["x"]["values"] == []


def test_the_memory_format_changes_nothing():
    weight = model()["conv.weight"]
    for dtype in DTYPES:
        one = weight.to(dtype)
        other = one.to(memory_format=torch.channels_last)
        assert one.stride() != other.stride()
        assert of({"x": one}) == of({"x": other})
    assert of({"x": weight[0, 0]}) == of({"x": weight[0, 0].T.contiguous().T})


@pytest.mark.parametrize("old", DTYPES)
@pytest.mark.parametrize("new", DTYPES)
def test_the_same_weights_in_two_dtypes_are_the_same_model(old, new):
    weights = model()
    a = of({name: w.to(old) for name, w in weights.items()})
    b = of({name: w.to(new) for name, w in weights.items()})
    assert compare_fingerprints(a, b) == []
    # as it comes back from run.json
    assert compare_fingerprints(json.loads(json.dumps(a)), b) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_weights_are_another_model(dtype):
    a = of({name: w.to(dtype) for name, w in model(0).items()})
    b = of({name: w.to(dtype) for name, w in model(1).items()})
    (line,) = compare_fingerprints(a, b)
    assert line == "base model: weights differ in 4 of 5 layers: bias, conv.weight, linear.weight and 1 more"


def test_a_light_fine_tune_is_another_model_in_every_precision_that_can_tell():
    weights = model()
    tuned = {
        name: w + 1e-3 * torch.randn(w.shape, generator=torch.Generator().manual_seed(5)) for name, w in weights.items()
    }
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        a, b = (of({name: w.to(dtype) for name, w in m.items()}) for m in (weights, tuned))
        assert "conv.weight" in compare_fingerprints(a, b)[0]


def test_missing_and_new_layers_are_counted_and_named():
    weights = model()
    a, b = of(weights), of({"new": torch.ones(2), **{n: w for n, w in weights.items() if n != "bias"}})
    assert compare_fingerprints(a, b) == ["base model: layers missing (1): bias", "base model: layers new (1): new"]


def test_whole_numbers_are_compared_exactly_and_nan_is_nan():
    assert compare_fingerprints(of({"x": torch.arange(5)}), of({"x": torch.arange(5)})) == []
    assert compare_fingerprints(of({"x": torch.arange(5)}), of({"x": torch.arange(1, 6)})) != []
    broken = torch.tensor([float("nan"), 1.0])
    assert compare_fingerprints(of({"x": broken}), of({"x": broken})) == []
    assert compare_fingerprints(of({"x": broken}), of({"x": torch.ones(2)})) != []
    assert compare_fingerprints(of({"x": torch.ones(2)}), of({"x": torch.ones(3)})) != []


def test_no_weight_is_copied():
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in before:
                self.largest = max(self.largest, out.numel())
            return out

    weight = torch.randn(64, 32, 3, 3).to(memory_format=torch.channels_last)
    before = {weight.untyped_storage().data_ptr()}
    with Watch() as watch:
        of({"x": weight})
    assert 0 < watch.largest <= NUM_VALUES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heights", [(1, 2, 3), (5, 40, 1), (16, 16, 16, 64), (1, 1)])
def test_pieces_have_the_fingerprint_of_the_whole(dtype, heights):
    weight = torch.randn(sum(heights), 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    pieces, start = [], 0
    for height in heights:
        pieces.append(("x", Rows(weight[start : start + height], start, sum(heights))))
        start += height
    assert fingerprint(pieces) == of({"x": weight})


def test_a_weight_may_be_gone_when_the_next_is_asked_for():
    buffer = torch.empty(8, 4)
    weights = {name: torch.randn(8, 4, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abc")}

    def fetched():
        for name, weight in weights.items():
            yield name, buffer.copy_(weight)

    assert fingerprint(fetched()) == of(weights)
