"""Every registered optimizer: resume to the bit, state by name, nothing moves that must not; and their oracles."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load, save
from sd_atelier.lib.config import OptimizerConfig
from sd_atelier.lib.optimizers import Optimizer, create
from sd_atelier.lib.registry import OPTIMIZERS

NUM_STEPS = 40


def entry(name: str) -> type[Optimizer]:
    return OPTIMIZERS.get(name)  # type: ignore[return-value]


def every_optimizer():
    for name in OPTIMIZERS.names():
        library = entry(name).library
        absent = library is not None and importlib.util.find_spec(library) is None
        yield pytest.param(name, marks=pytest.mark.skipif(absent, reason=f"{library} is not installed"))


each = pytest.mark.parametrize("name", list(every_optimizer()))


def weights() -> dict[str, torch.nn.Parameter]:
    """Two groups of what adapters are made of: matrices, one of them zero, a convolution, a vector, a scalar."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"unet.a": (8, 600), "unet.b": (9, 8), "unet.conv": (4, 3, 3, 3)}
    shapes |= {"te.a": (6, 7), "te.bias": (5,), "te.s": ()}
    params = {key: torch.nn.Parameter(torch.randn(shape, generator=generator)) for key, shape in shapes.items()}
    params["unet.b"].data.zero_()
    params["unet.conv"].data = params["unet.conv"].data.to(memory_format=torch.channels_last)
    params["te.a"].data[0, 0] = -0.0
    return params


def groups(params: dict[str, torch.nn.Parameter], *prefixes: str) -> list[dict]:
    names = [[n for n in params if n.startswith(p)] for p in prefixes or ("unet", "te")]
    return [{"params": [params[n] for n in group], "names": group, "lr": 0.1} for group in names]


def made(name: str, params: dict[str, torch.nn.Parameter], **settings) -> Optimizer:
    return create(name, groups(params), OptimizerConfig(name=name, **settings))


def set_gradients(params: dict[str, torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params.values():
        # a slope towards 0.3, so that optimizers that measure progress find some
        p.grad = (p.detach() - 0.3) + 0.1 * torch.randn(p.shape, generator=generator)


def rates(name: str, step: int) -> list[float]:
    rate = 0.01 * min(1.0, step / 3) * (1 - step / 60)  # a warm-up from 0, then down
    return [300 * rate] * 2 if entry(name).one_rate else [rate, rate / 3]


def train(optimizer: Optimizer, params: dict[str, torch.nn.Parameter], first: int, end: int) -> None:
    for step in range(first, end):
        set_gradients(params, step)
        optimizer.set_rates(rates(optimizer.name, step))
        optimizer.step()
        optimizer.zero_grad()


def everything(optimizer: Optimizer, params: dict[str, torch.nn.Parameter]) -> dict[str, bytes]:
    """All bits of the weights, the state and the published weights, by name."""
    tensors, values = optimizer.state()
    parts = {"weight": params, "state": tensors, "published": optimizer.published(params)}
    bits = {f"{part} {k}": v.detach().numpy().tobytes() for part, ts in parts.items() for k, v in ts.items()}
    return {**bits, "values": json.dumps(values, sort_keys=True).encode()}


@each
def test_resume_after_any_step_is_bit_identical(name):
    params = weights()
    optimizer = made(name, params)
    optimizer.allocate()
    saved = []
    for step in range(NUM_STEPS):
        tensors, values = optimizer.state()
        kept = save({k: v.contiguous() for k, v in tensors.items()})
        saved.append((kept, json.dumps(values), {k: p.detach().clone() for k, p in params.items()}))
        train(optimizer, params, step, step + 1)
    expected = everything(optimizer, params)

    for step, (kept, values, then) in enumerate(saved):
        fresh = weights()
        resumed = made(name, fresh)
        resumed.allocate()
        with torch.no_grad():
            for key, p in fresh.items():
                p.copy_(then[key])
        resumed.restore(load(kept), json.loads(values))
        train(resumed, fresh, step, NUM_STEPS)
        assert everything(resumed, fresh) == expected, f"resumed at step {step}"


@each
def test_training_moves_every_parameter(name):
    params, before = weights(), weights()
    optimizer = made(name, params)
    train(optimizer, params, 0, NUM_STEPS)
    published = optimizer.published(params)
    for key in params:
        assert not torch.equal(params[key], before[key]), key
        assert not torch.equal(published[key], before[key]), key
        assert published[key].isfinite().all(), key


@each
def test_training_goes_downhill(name):
    params = weights()
    optimizer = made(name, params, weight_decay=0.0)

    def height(tensors) -> float:
        return sum((t.detach() - 0.3).square().sum().item() for t in tensors.values())

    before = height(params)
    for _ in range(150):
        for p in params.values():
            p.grad = p.detach() - 0.3
        optimizer.set_rates([1.0, 1.0] if optimizer.one_rate else [0.01, 0.01])
        optimizer.step()
    assert height(optimizer.published(params)) < 0.5 * before


@each
def test_allocating_first_changes_no_bit_of_anything(name):
    params, plain_params = weights(), weights()
    optimizer, plain = made(name, params), made(name, plain_params)
    set_gradients(params, 0)
    grads = {k: p.grad for k, p in params.items()}
    optimizer.allocate()
    for key, p in params.items():
        assert p.detach().numpy().tobytes() == plain_params[key].detach().numpy().tobytes(), key
        assert p.grad is grads[key]
    assert [g["lr"] for g in optimizer.inner.param_groups] == [0.1, 0.1]
    optimizer.zero_grad()
    train(optimizer, params, 0, NUM_STEPS)
    # steps of the torch optimizer itself, which then makes its state on the way
    for step in range(NUM_STEPS):
        set_gradients(plain_params, step)
        plain.set_rates(rates(name, step))
        plain.inner.step()
    assert everything(optimizer, params) == everything(plain, plain_params)


@each
def test_after_allocating_a_step_makes_no_state_any_more(name):
    params = weights()
    optimizer = made(name, params)
    optimizer.allocate()
    before = {k: v.data_ptr() for k, v in optimizer.state()[0].items()}
    assert before
    train(optimizer, params, 0, 2)
    assert {k: v.data_ptr() for k, v in optimizer.state()[0].items()} == before


@each
def test_a_fresh_state_is_zero_or_a_copy_of_the_weights(name):
    params = weights()
    optimizer = made(name, params)
    for key, value in optimizer.state()[0].items():
        parameter, _, kind = key.rpartition(".")
        if kind in optimizer.weight_copies:
            weight = params[parameter].detach().flatten()
            # prodigy keeps a single zero for a weight that is all zero
            assert torch.equal(value.flatten().expand_as(weight), weight), key
        else:
            assert not value.any(), key


@each
def test_state_is_named_by_parameter_and_holds_no_index(name):
    params = weights()
    optimizer = made(name, params)
    train(optimizer, params, 0, 2)
    tensors, values = optimizer.state()
    assert {key.rpartition(".")[0] for key in tensors} == set(params)
    assert set(values["parameters"]) <= set(params)
    assert values["optimizer"] == name


@each
def test_the_order_of_parameters_and_groups_does_not_matter_to_the_state(name):
    params = weights()
    optimizer = made(name, params)
    train(optimizer, params, 0, 3)
    tensors, values = optimizer.state()
    other = dict(reversed(weights().items()))
    swapped = create(name, groups(other, "te", "unet"), OptimizerConfig(name=name))
    swapped.restore(tensors, values)
    again, again_values = swapped.state()
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[k], tensors[k]) for k in tensors)
    assert again_values["parameters"] == values["parameters"]


@each
def test_at_rate_0_nothing_moves(name):
    params, before = weights(), weights()
    optimizer = made(name, params)
    for step in range(3):
        set_gradients(params, step)
        optimizer.set_rates([0.0, 0.0])
        optimizer.step()
    for tensors in (params, optimizer.published(params)):
        assert all(torch.equal(tensors[k], before[k]) for k in before)


@each
def test_a_group_whose_rate_falls_to_0_rests(name):
    if name == "adamw_schedulefree":
        pytest.skip("its weights go on moving towards z by definition")
    params = weights()
    optimizer = made(name, params)
    train(optimizer, params, 0, 5)
    then = {k: p.detach().clone() for k, p in params.items()}
    set_gradients(params, 5)
    optimizer.set_rates([0.0, rates(name, 5)[1]])
    optimizer.step()
    for key, p in params.items():
        assert torch.equal(p, then[key]) == key.startswith("unet"), key


@each
def test_publishing_changes_no_live_bit_and_gives_copies(name):
    params = weights()
    optimizer = made(name, params)
    train(optimizer, params, 0, 3)
    before = everything(optimizer, params)
    for tensor in optimizer.published(params).values():
        assert not tensor.requires_grad
        tensor.fill_(7.0)
    assert everything(optimizer, params) == before


@each
def test_publishing_a_part_gives_that_part(name):
    params = weights()
    optimizer = made(name, params)
    train(optimizer, params, 0, 3)
    part = {k: p for k, p in params.items() if k.startswith("te")}
    whole = optimizer.published(params)
    assert {k: v.tolist() for k, v in optimizer.published(part).items()} == {k: whole[k].tolist() for k in part}


@each
def test_a_state_that_lacks_a_tensor_or_a_number_is_refused_by_name_and_changes_nothing(name):
    params = weights()
    optimizer = made(name, params)
    train(optimizer, params, 0, 2)
    tensors, values = optimizer.state()
    fresh = weights()
    other = made(name, fresh)
    before = everything(other, fresh)
    key = next(iter(tensors))
    with pytest.raises(ValueError, match=f"lacks {key}"):
        other.restore({k: v for k, v in tensors.items() if k != key}, values)
    with pytest.raises(ValueError, match=r"has stray.exp_avg, which this run does not train"):
        other.restore({**tensors, "stray.exp_avg": torch.zeros(1)}, values)
    with pytest.raises(ValueError, match=rf"\(3, 5, 7\) float32 for {key}"):
        other.restore({**tensors, key: torch.zeros(3, 5, 7)}, values)
    if values["parameters"]:
        with pytest.raises(ValueError, match=r"for unet.a lacks step"):
            other.restore(tensors, {**values, "parameters": {**values["parameters"], "unet.a": {}}})
    if values["groups"]:
        with pytest.raises(ValueError, match=r"lacks the group of te.a, te.bias, te.s"):
            other.restore(tensors, {**values, "groups": values["groups"][:1]})
        cut = {"names": values["groups"][0]["names"], "values": {}}
        with pytest.raises(ValueError, match=r"for the group of unet.a lacks "):
            other.restore(tensors, {**values, "groups": [cut, values["groups"][1]]})
    with pytest.raises(ValueError, match='is of optimizer "sgd", not of'):
        other.restore(tensors, {**values, "optimizer": "sgd"})
    assert everything(other, fresh) == before


def test_an_unknown_optimizer_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match='unknown optimizer "adamv"; did you mean "adamw"'):
        made("adamv", weights())


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS.names() if entry(n).library])
def test_a_missing_library_is_one_clear_sentence(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=f'optimizer "{name}" needs the package {entry(name).library}; install it'):
        made(name, weights())


@pytest.mark.parametrize("key", ["beta1", "beta2"])
def test_adafactor_refuses_settings_that_it_has_no_use_for(key):
    with pytest.raises(ValueError, match=rf"optimizer\.{key} has no meaning"):
        made("adafactor", weights(), **{key: 0.9})


def test_prodigy_and_schedulefree_refuse_what_would_divide_by_zero():
    pytest.importorskip("prodigyopt")
    pytest.importorskip("schedulefree")
    with pytest.raises(ValueError, match=r"optimizer.eps must be above 0"):
        made("prodigy", weights(), eps=0.0)
    with pytest.raises(ValueError, match=r"optimizer.beta1 must be above 0"):
        made("adamw_schedulefree", weights(), beta1=0.0)


def test_prodigy_refuses_two_rates_and_prints_nothing(capsys):
    pytest.importorskip("prodigyopt")
    optimizer = made("prodigy", weights())
    with pytest.raises(ValueError, match=r"all rates must be equal or 0, got 1.0, 0.5"):
        optimizer.set_rates([1.0, 0.5])
    optimizer.set_rates([1.0, 0.0])
    assert capsys.readouterr().out == ""


def test_groups_with_different_histories_cannot_be_joined_and_equal_ones_can():
    pytest.importorskip("schedulefree")
    params = weights()
    optimizer = made("adamw_schedulefree", params)
    train(optimizer, params, 0, 5)
    tensors, values = optimizer.state()
    joined = create("adamw_schedulefree", groups(weights(), ""), OptimizerConfig())
    with pytest.raises(ValueError, match=r"unet.a and te.a were trained in groups with different histories"):
        joined.restore(tensors, values)
    split = create("adamw_schedulefree", groups(weights(), "unet.a", "unet.b", "unet.c", "te"), OptimizerConfig())
    split.restore(tensors, values)
    assert [g["k"] for g in split.inner.param_groups] == [5, 5, 5, 5]


# Oracles


def compare(name: str, reference, params: dict, twins: dict, tolerance: float = 0.0, **settings) -> None:
    """Step `name` and a reference optimizer on the same gradients; the weights must stay as near as `tolerance`."""
    optimizer = made(name, params, **settings)
    for step in range(NUM_STEPS):
        set_gradients(params, step)
        for key, twin in twins.items():
            twin.grad = params[key].grad.clone()
        now = rates(name, step)
        optimizer.set_rates(now)
        for group, rate in zip(reference.param_groups, now, strict=True):
            group["lr"] = rate
        optimizer.step()
        reference.step()
    for key in params:
        torch.testing.assert_close(params[key], twins[key], rtol=tolerance, atol=tolerance, msg=key)


def test_adamw_equals_torch():
    params, twins = weights(), weights()
    reference = torch.optim.AdamW(
        [{"params": g["params"]} for g in groups(twins)],
        betas=(0.8, 0.95),
        eps=1e-6,
        weight_decay=0.1,
        foreach=True,
    )
    compare("adamw", reference, params, twins, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)


def test_adafactor_equals_transformers():
    optimization = pytest.importorskip("transformers.optimization", reason="transformers is the oracle here")
    params, twins = weights(), weights()
    reference = optimization.Adafactor(
        [{"params": g["params"]} for g in groups(twins)],
        lr=1.0,
        scale_parameter=False,
        relative_step=False,
        weight_decay=0.1,
    )
    compare("adafactor", reference, params, twins, tolerance=2e-6, weight_decay=0.1)


def test_lion_is_its_paper():
    params = weights()
    optimizer = made("lion", params, weight_decay=0.2)
    twins = {k: p.detach().double() for k, p in params.items()}
    moments = {k: torch.zeros_like(p) for k, p in twins.items()}
    for step in range(NUM_STEPS):
        set_gradients(params, step)
        now = dict(zip(("unet", "te"), rates("lion", step), strict=True))
        for key, twin in twins.items():
            grad, rate = params[key].grad.double(), now[key.partition(".")[0]]
            direction = torch.sign(0.9 * moments[key] + 0.1 * grad)
            twins[key] = twin - rate * (direction + 0.2 * twin)
            moments[key] = 0.99 * moments[key] + 0.01 * grad
        optimizer.set_rates(list(now.values()))
        optimizer.step()
    for key in params:
        torch.testing.assert_close(params[key].double(), twins[key], rtol=1e-5, atol=1e-6, msg=key)


def test_schedulefree_publishes_what_its_library_evaluates():
    schedulefree = pytest.importorskip("schedulefree")
    params, twins = weights(), weights()
    reference = schedulefree.AdamWScheduleFree([{"params": g["params"]} for g in groups(twins)], weight_decay=0.01)
    reference.train()
    optimizer = made("adamw_schedulefree", params)
    for step in range(NUM_STEPS):
        set_gradients(params, step)
        set_gradients(twins, step)
        optimizer.set_rates([0.01, 0.02])
        for group, rate in zip(reference.param_groups, (0.01, 0.02), strict=True):
            group["lr"] = rate
        optimizer.step()
        reference.step()
    published = optimizer.published(params)
    assert all(torch.equal(params[k], twins[k]) for k in params)
    reference.eval()
    for key in params:
        assert torch.equal(published[key], twins[key]), key
        assert not torch.equal(published[key], params[key]), key


def test_prodigy_equals_its_library_where_all_rates_are_equal():
    prodigyopt = pytest.importorskip("prodigyopt")
    params, twins = weights(), weights()
    reference = prodigyopt.Prodigy(
        [{"params": g["params"], "weight_decay": 0.01} for g in groups(twins)],
        use_bias_correction=True,
        safeguard_warmup=True,
    )
    compare("prodigy", reference, params, twins)
    assert reference.param_groups[0]["d"] > 1e-6, "the step size was not found, so that little was compared"


# The moving average
