"""Laws of every registered algorithm: it starts as no change, delta is what forward does, and saving loses nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sd_atelier.lib.config import LayerRule, TrainableConfig
from sd_atelier.lib.frozen import attached
from sd_atelier.lib.registry import ALGORITHMS
from torch import nn


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        return self.to_out[0](torch.softmax(q @ k.transpose(-1, -2), -1) @ v)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.attentions = nn.ModuleList([nn.Module()])
        inner = self.attentions[0]
        inner.proj_in, inner.attn1 = nn.Conv2d(width, width, 1), Attention(width)
        inner.ff = nn.Module()
        inner.ff.net = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.conv(x)
        inner = self.attentions[0]
        rows = inner.proj_in(x).flatten(2).transpose(1, 2)
        rows = rows + inner.ff.net[0](torch.tanh(rows + inner.attn1(rows)))
        return x + rows.transpose(1, 2).view_as(x)


class TinyUnet(nn.Module):
    """Layers that are named as those of diffusers' U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 6, 3, padding=1)
        self.down_blocks = nn.ModuleList([Block(6)])
        self.up_blocks = nn.ModuleList([Block(6)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up_blocks[0](self.down_blocks[0](self.conv_in(x)))


def tiny_host(seed: int = 0) -> SimpleNamespace:
    torch.manual_seed(seed)
    unet = TinyUnet().double().requires_grad_(False)
    return SimpleNamespace(family="sd1", parts={"unet": unet}, device=torch.device("cpu"))


CONFIGS = {
    "plain": {"rank": 4, "alpha": 2.0},
    "every layer": {"rank": 4, "alpha": 2.0, "layers": "all", "conv_rank": 2, "conv_alpha": 1.0},
    "rank stabilised": {"rank": 4, "alpha": 2.0, "rank_stabilized": True},
    "rules": {
        "rank": 4,
        "rules": (LayerRule(layers="*_attn1_*", rank=0), LayerRule(layers="*_up_blocks_*", rank=2, rate="1e-5")),
    },
}


@pytest.fixture(params=ALGORITHMS.names())
def algorithm(request: pytest.FixtureRequest):
    return ALGORITHMS.get(request.param)


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> TrainableConfig:
    return TrainableConfig(**CONFIGS[request.param])


def prepared(algorithm, config: TrainableConfig, host: SimpleNamespace):
    trainable = algorithm(config, 7)
    trainable.prepare(host)
    return trainable


def shake(trainable, seed: int = 1) -> None:
    """Non-zero everywhere: a half that starts at zero hides mistakes in the other."""
    generator = torch.Generator().manual_seed(seed)
    for p in trainable.parameters().values():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.2


X = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_it_starts_as_no_change(algorithm, config) -> None:
    host = tiny_host()
    trainable = prepared(algorithm, config, host)
    expected = host.parts["unet"](X)
    with attached(host.parts.values(), branch_of=trainable.branch_of):
        assert torch.allclose(host.parts["unet"](X), expected, rtol=0, atol=1e-12)
    assert any(p.abs().sum() > 0 for p in trainable.parameters().values())


def test_forward_is_the_model_with_delta_added(algorithm, config) -> None:
    host = tiny_host()
    trainable = prepared(algorithm, config, host)
    shake(trainable)
    base = host.parts["unet"](X)
    with attached(host.parts.values(), branch_of=trainable.branch_of):
        got = host.parts["unet"](X)
        with trainable.off():
            assert torch.allclose(host.parts["unet"](X), base, rtol=0, atol=1e-12)
    for name, members in trainable.layer_names().items():
        for member in members:
            member.module.weight.data = member.module.weight + member.own(trainable.delta(name))
    assert torch.allclose(got, host.parts["unet"](X), rtol=1e-10, atol=1e-12)
    assert (got - base).abs().max() > 1e-3


def test_what_is_exported_restores_to_the_same_network(algorithm, config) -> None:
    trainable = prepared(algorithm, config, tiny_host())
    shake(trainable)
    tensors = trainable.export(trainable.parameters(), torch.float64)
    other = prepared(algorithm, config, tiny_host())
    for p in other.parameters().values():
        p.data = p.data.double()
    other.restore(tensors)
    assert trainable.layer_names().keys() == other.layer_names().keys()
    for name in trainable.layer_names():
        assert torch.equal(trainable.delta(name), other.delta(name))


def test_exporting_does_not_share_memory_with_what_is_trained(algorithm, config) -> None:
    trainable = prepared(algorithm, config, tiny_host())
    shake(trainable)
    before = {n: t.clone() for n, t in trainable.export(trainable.parameters(), torch.float32).items()}
    exported = trainable.export(trainable.parameters(), torch.float32)
    shake(trainable, seed=2)
    assert all(torch.equal(exported[n], before[n]) for n in before)


def test_a_lacking_or_odd_tensor_is_named(algorithm, config) -> None:
    trainable = prepared(algorithm, config, tiny_host())
    tensors = trainable.export(trainable.parameters(), torch.float32)
    first = next(iter(trainable.parameters()))
    with pytest.raises(ValueError, match=first):
        trainable.restore({n: t for n, t in tensors.items() if n != first})
    with pytest.raises(ValueError, match=r"lora_unet_other"):
        trainable.restore({**tensors, "lora_unet_other.lora_up.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=first):
        trainable.restore({**tensors, first: torch.zeros(1, 1)})


def test_the_start_depends_on_the_seed_and_not_on_the_other_layers(algorithm) -> None:
    narrow = prepared(algorithm, TrainableConfig(layers="attention"), tiny_host()).parameters()
    wide = prepared(algorithm, TrainableConfig(layers="kohya"), tiny_host(seed=5)).parameters()
    assert narrow.keys() < wide.keys()
    assert all(torch.equal(p, wide[n]) for n, p in narrow.items())
    trainable = algorithm(TrainableConfig(layers="attention"), 8)
    trainable.prepare(tiny_host())
    assert any(not torch.equal(p, narrow[n]) for n, p in trainable.parameters().items())


def test_every_parameter_is_in_exactly_one_group(algorithm, config) -> None:
    trainable = prepared(algorithm, config, tiny_host())
    names = [name for _, group in trainable.groups().values() for name in group]
    assert sorted(names) == sorted(trainable.parameters())


def test_settings_that_choose_no_layer_are_refused(algorithm) -> None:
    with pytest.raises(ValueError, match="chooses no layer"):
        prepared(algorithm, TrainableConfig(rules=(LayerRule(layers="*", rank=0),)), tiny_host())
