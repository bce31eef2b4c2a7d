"""LoRA's own laws: scale, dropout, ranks and rates by rule."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from sd_atelier.lib.config import LayerRule, TrainableConfig
from sd_atelier.lib.frozen import attached
from sd_atelier.lib.recompute import recomputed
from sd_atelier.lib.trainables.lora import Lora
from torch import nn


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_blocks = nn.ModuleList([nn.Module(), nn.Module()])
        for block in self.up_blocks:
            block.attn1 = nn.Module()
            block.attn1.to_q = nn.Linear(6, 6)
            block.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.up_blocks:
            x = block.conv(torch.tanh(block.attn1.to_q(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))
        return x


def make(**settings: object) -> tuple[Lora, Unet]:
    torch.manual_seed(0)
    unet = Unet().requires_grad_(False)
    lora = Lora(TrainableConfig(**settings), seed=3)  # type: ignore[arg-type]
    lora.prepare(SimpleNamespace(family="sd1", parts={"unet": unet}, device=torch.device("cpu")))  # type: ignore[arg-type]
    for p in lora.parameters().values():
        nn.init.normal_(p, std=0.3)
    return lora, unet


X = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1))
Q = "lora_unet_up_blocks_0_attn1_to_q"


@pytest.mark.parametrize(("stabilized", "scale"), [(False, 8 / 4), (True, 8 / math.sqrt(4))])
def test_readers_that_divide_alpha_by_the_rank_get_the_trained_scale(stabilized: bool, scale: float) -> None:
    lora, _ = make(rank=4, alpha=8.0, rank_stabilized=stabilized)
    file = lora.export(lora.parameters(), torch.float32)
    down, up, alpha = (file[f"{Q}.{n}"] for n in ("lora_down.weight", "lora_up.weight", "alpha"))
    assert alpha.item() / down.shape[0] == pytest.approx(scale)
    assert torch.allclose(lora.delta(Q), scale * up @ down)


def test_convolutions_get_their_own_rank_and_4d_tensors() -> None:
    lora, _ = make(rank=4, conv_rank=2, conv_alpha=1.0)
    file = lora.export(lora.parameters(), torch.float16)
    conv = "lora_unet_up_blocks_1_conv"
    assert file[f"{conv}.lora_down.weight"].shape == (2, 6, 3, 3)
    assert file[f"{conv}.lora_up.weight"].shape == (6, 2, 1, 1)
    assert file[f"{conv}.alpha"].item() == 1.0
    assert all(t.dtype == torch.float16 for t in file.values())


def test_the_last_matching_rule_sets_rank_and_rate() -> None:
    rules = (LayerRule(layers="*", rank=2), LayerRule(layers="*_up_blocks_1_*", rank=6, rate="1e-5"))
    lora, _ = make(rank=4, rules=rules)
    parameters = lora.parameters()
    assert parameters[f"{Q}.lora_down.weight"].shape[0] == 2
    assert parameters[f"{Q.replace('_0_', '_1_')}.lora_down.weight"].shape[0] == 6
    assert {name: rate for name, (rate, _) in lora.groups().items()} == {"unet": None, "unet 1e-5": "1e-5"}


def gradients_of(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    gradients = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return gradients  # type: ignore[return-value]


def loss_and_gradients(lora: Lora, unet: Unet, step: int, recompute: bool) -> list[torch.Tensor]:
    parameters = list(lora.parameters().values())
    with attached([unet], branch_of=lora.branch_of), recomputed([unet] if recompute else []), lora.training(step, 0):
        loss = unet(X).square().sum()
        loss.backward()
    return [loss.detach(), *gradients_of(parameters)]


def test_dropout_is_keyed_by_the_step_so_that_recomputing_and_resuming_see_the_same_mask() -> None:
    lora, unet = make(rank=4, conv_rank=4, dropout=0.5)
    state = torch.random.get_rng_state()
    first = loss_and_gradients(lora, unet, 5, recompute=False)
    again = loss_and_gradients(lora, unet, 5, recompute=True)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(first, again, strict=True))
    assert not torch.allclose(first[0], loss_and_gradients(lora, unet, 6, recompute=False)[0])
    assert torch.equal(state, torch.random.get_rng_state()), "dropout moved the global random state"


def test_dropout_gradients_are_those_of_autograd_through_the_same_masks() -> None:
    lora, unet = make(rank=4, dropout=0.5)
    got = loss_and_gradients(lora, unet, 5, recompute=False)
    layers = [member.module for members in lora.layer_names().values() for member in members]
    branches = {id(layer): lora.branch_of(layer) for layer in layers}

    def forward(layer: nn.Linear):
        branch = branches[id(layer)]
        assert branch is not None and branch.mask is not None

        def apply(x: torch.Tensor) -> torch.Tensor:
            h = x @ branch.down.t()
            return (
                nn.functional.linear(x, layer.weight, layer.bias) + branch.scale * (h * branch.mask(h)) @ branch.up.t()
            )

        return apply

    for layer in layers:
        layer.forward = forward(layer)  # type: ignore[method-assign]
    with lora.training(5, 0):
        loss = unet(X).square().sum()
    expected = [loss.detach(), *torch.autograd.grad(loss, list(lora.parameters().values()))]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(got, expected, strict=True))


def test_dropout_is_off_outside_training() -> None:
    lora, unet = make(rank=4, dropout=0.5)
    with attached([unet], branch_of=lora.branch_of):
        with_dropout_set = unet(X)
    for name, (member,) in lora.layer_names().items():
        member.module.weight.data += lora.delta(name)
    assert torch.allclose(with_dropout_set, unet(X), rtol=1e-4, atol=1e-5)
