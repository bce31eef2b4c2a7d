"""One adapter on a fused layer, however a host splits and spells it: the same update, gradients, state and base."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from sd_atelier.lib.config import LayerRule, TrainableConfig
from sd_atelier.lib.fingerprint import compare_fingerprints
from sd_atelier.lib.frozen import attached, plain_weight
from sd_atelier.lib.keys.layers import canonical_layers
from sd_atelier.lib.preparation import base_of
from sd_atelier.lib.trainables.lora import Lora
from torch import Tensor, nn

D = 6
ORIGINAL = {
    "sd3": {
        "joint_blocks.0.x_block.attn.qkv": (D, 3 * D),
        "joint_blocks.0.x_block.attn2.qkv": (D, 3 * D),
        "joint_blocks.0.x_block.attn.proj": (D, D),
        "joint_blocks.0.context_block.attn.qkv": (D, 3 * D),
        "joint_blocks.0.context_block.adaLN_modulation.1": (D, 2 * D),
        "joint_blocks.1.context_block.adaLN_modulation.1": (D, 6 * D),
        "final_layer.adaLN_modulation.1": (D, 2 * D),
    },
    "flux": {
        "double_blocks.0.img_attn.qkv": (D, 3 * D),
        "double_blocks.0.txt_attn.qkv": (D, 3 * D),
        "double_blocks.0.img_mlp.0": (D, 4 * D),
        "single_blocks.0.linear1": (D, 7 * D),
        "single_blocks.0.linear2": (5 * D, D),
        "final_layer.adaLN_modulation.1": (D, 2 * D),
    },
}
FAMILIES = list(ORIGINAL)


def spelled(layers: dict[str, nn.Module]) -> nn.Module:
    """A module whose named modules have these dotted names."""
    root = nn.Module()
    for name, layer in layers.items():
        *path, last = name.split(".")
        node = root
        for piece in path:
            if not hasattr(node, piece):
                node.add_module(piece, nn.Module())
            node = getattr(node, piece)
        node.add_module(last, layer)
    return root


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def weights(family: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        name: torch.randn(num_out, num_in, generator=generator, dtype=torch.float64)
        for name, (num_in, num_out) in ORIGINAL[family].items()
    }


def host_of(family: str, layers: dict[str, nn.Module]) -> SimpleNamespace:
    parts = {"unet": spelled(layers)}
    return SimpleNamespace(family=family, parts=parts, device=torch.device("cpu"), weight_of=plain_weight)


def fused_host(family: str) -> SimpleNamespace:
    return host_of(family, {name: linear(weight) for name, weight in weights(family).items()})


def split_by_hand(family: str) -> dict[str, tuple[str, Tensor]]:
    """Split name -> (original name, weight), as diffusers holds them; written out here, not asked of the tables."""
    w = weights(family)

    def thirds(original: str, block: str, names: tuple[str, ...]) -> dict[str, tuple[str, Tensor]]:
        return {f"{block}.{n}": (original, t) for n, t in zip(names, w[original].chunk(3), strict=True)}

    def swapped(original: str) -> tuple[str, Tensor]:
        first, second = w[original].chunk(2)
        return original, torch.cat([second, first])

    if family == "sd3":
        text, other = (f"joint_blocks.{i}.context_block.adaLN_modulation.1" for i in (0, 1))
        proj, last = "joint_blocks.0.x_block.attn.proj", "final_layer.adaLN_modulation.1"
        block = "transformer_blocks.0"
        return {
            **thirds("joint_blocks.0.x_block.attn.qkv", f"{block}.attn", ("to_q", "to_k", "to_v")),
            **thirds("joint_blocks.0.x_block.attn2.qkv", f"{block}.attn2", ("to_q", "to_k", "to_v")),
            **thirds(
                "joint_blocks.0.context_block.attn.qkv", f"{block}.attn", ("add_q_proj", "add_k_proj", "add_v_proj")
            ),
            f"{block}.attn.to_out.0": (proj, w[proj]),
            f"{block}.norm1_context.linear": swapped(text),
            "transformer_blocks.1.norm1_context.linear": (other, w[other]),
            "norm_out.linear": swapped(last),
        }
    one, two, mlp = "single_blocks.0.linear1", "single_blocks.0.linear2", "double_blocks.0.img_mlp.0"
    single = dict(zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), w[one].split([D, D, D, 4 * D]), strict=True))
    block = "transformer_blocks.0"
    return {
        **thirds("double_blocks.0.img_attn.qkv", f"{block}.attn", ("to_q", "to_k", "to_v")),
        **thirds("double_blocks.0.txt_attn.qkv", f"{block}.attn", ("add_q_proj", "add_k_proj", "add_v_proj")),
        f"{block}.ff.net.0.proj": (mlp, w[mlp]),
        **{f"single_transformer_blocks.0.{name}": (one, t) for name, t in single.items()},
        "single_transformer_blocks.0.proj_out": (two, w[two]),
        "norm_out.linear": swapped("final_layer.adaLN_modulation.1"),
    }


def split_host(family: str, dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    return host_of(family, {name: linear(weight.to(dtype)) for name, (_, weight) in split_by_hand(family).items()})


def trained(host: SimpleNamespace, **settings: object) -> Lora:
    lora = Lora(TrainableConfig(**{"rank": 2, "alpha": 3.0, **settings}), seed=7)  # type: ignore[arg-type]
    lora.prepare(host)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for _, p in sorted(lora.parameters().items()):
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return lora


def x_of(original: str, num_in: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(original) + num_in)
    return torch.randn(2, 3, num_in, generator=generator, dtype=torch.float64)


def outputs(host: SimpleNamespace, family: str, lora: Lora) -> dict[str, Tensor]:
    """What each original layer gives, put together from its parts and in its own order."""
    names = {name: name for name in ORIGINAL[family]}
    if "transformer_blocks" in dict(host.parts["unet"].named_children()):
        names = {name: original for name, (original, _) in split_by_hand(family).items()}
    pieces: dict[str, list[Tensor]] = {}
    with attached(host.parts.values(), branch_of=lora.branch_of):
        for name, original in names.items():
            y = host.parts["unet"].get_submodule(name)(x_of(original, ORIGINAL[family][original][0]))
            if name != original and (name == "norm_out.linear" or (name.endswith("0.norm1_context.linear"))):
                y = torch.cat(y.chunk(2, -1)[::-1], -1)
            pieces.setdefault(original, []).append(y)
    return {original: torch.cat(own, -1) for original, own in pieces.items()}


def loss_of(outputs: dict[str, Tensor]) -> Tensor:
    return sum((torch.sin(y) * torch.arange(y.shape[-1])).sum() for y in outputs.values())  # type: ignore[return-value]


def kohya(original: str) -> str:
    return "lora_unet_" + original.replace(".", "_")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [fused_host, split_host])
def test_values_and_gradients_are_those_of_a_fused_layer_built_by_hand(family, make) -> None:
    host = make(family)
    lora = trained(host)
    got = outputs(host, family, lora)
    gradients = dict(
        zip(lora.parameters(), torch.autograd.grad(loss_of(got), list(lora.parameters().values())), strict=True)
    )

    copies = {name: p.detach().clone().requires_grad_() for name, p in lora.parameters().items()}
    expected = {}
    for original, weight in weights(family).items():
        x = x_of(original, weight.shape[1])
        expected[original] = x @ weight.t()
        if f"{kohya(original)}.lora_up.weight" in copies:
            down, up = (copies[f"{kohya(original)}.lora_{half}.weight"] for half in ("down", "up"))
            expected[original] = expected[original] + 3 / 2 * (x @ down.t()) @ up.t()
    assert len(copies) == 2 * (len(expected) - 1), "all but the last layer, which is outside the blocks"
    for original, y in expected.items():
        assert torch.allclose(got[original], y, rtol=1e-12, atol=1e-12), original
    for name, gradient in zip(copies, torch.autograd.grad(loss_of(expected), list(copies.values())), strict=True):
        assert gradient.abs().max() > 0
        assert torch.allclose(gradients[name], gradient, rtol=1e-10, atol=1e-10), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_starts_equal_and_means_the_same_in_both_hosts(family) -> None:
    states = []
    for host in (fused_host(family), split_host(family)):
        lora = Lora(TrainableConfig(rank=2), seed=7)
        lora.prepare(host)  # type: ignore[arg-type]
        states.append(lora.parameters())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(p, states[1][name]) for name, p in states[0].items())
    fused, split = (trained(host) for host in (fused_host(family), split_host(family)))
    for name in fused.layer_names():
        assert torch.equal(fused.delta(name), split.delta(name))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_module_has_its_own_rows_of_the_delta(family) -> None:
    host = split_host(family)
    lora = trained(host)
    changed = outputs(host, family, lora)
    for name, members in lora.layer_names().items():
        for member in members:
            member.module.weight.data += member.own(lora.delta(name))
    with lora.off():
        merged = outputs(host, family, lora)
    assert all(torch.allclose(changed[name], merged[name], rtol=1e-10, atol=1e-10) for name in changed)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("names", ["family", "kohya"])
def test_a_file_made_in_one_host_is_the_same_network_in_the_other(family, names) -> None:
    for one, other in ((fused_host, split_host), (split_host, fused_host)):
        lora = trained(one(family))
        file = lora.export(lora.parameters(), torch.float64, names)
        again = Lora(TrainableConfig(rank=2, alpha=5.0), seed=9)
        again.prepare(other(family))  # type: ignore[arg-type]
        for p in again.parameters().values():
            p.data = p.data.double()
        again.restore(file)
        for name in lora.layer_names():
            assert torch.allclose(again.delta(name), lora.delta(name), rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_masks_the_shared_product_alike_in_all_parts(family) -> None:
    results = []
    for host in (fused_host(family), split_host(family)):
        lora = trained(host, dropout=0.5)
        with lora.training(3, 0):
            results.append(outputs(host, family, lora))
        plain = outputs(host, family, lora)
        assert any(not torch.allclose(plain[name], results[-1][name]) for name in plain)
    for name, y in results[0].items():
        assert torch.allclose(y, results[1][name], rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_the_base_has_one_fingerprint_whether_it_is_split_or_fused(family, dtype) -> None:
    fused = base_of(fused_host(family))  # type: ignore[arg-type]
    split = json.loads(json.dumps(base_of(split_host(family, dtype))))  # type: ignore[arg-type]
    assert fused.keys() == split.keys() == {kohya(name) for name in ORIGINAL[family]}
    assert all(len(layer["values"]) == 16 for layer in fused.values())
    assert compare_fingerprints(fused, split) == []
    if dtype == torch.float64:
        assert fused == split
    other = split_host(family, dtype)
    for module in other.parts["unet"].modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.float().mul(1.5).to(dtype)
    assert compare_fingerprints(fused, base_of(other))  # type: ignore[arg-type]


def test_a_fused_layer_of_which_a_part_is_missing_is_refused() -> None:
    layers = {name: linear(weight) for name, (_, weight) in split_by_hand("flux").items()}
    del layers["single_transformer_blocks.0.attn.to_k"]
    with pytest.raises(ValueError, match=r"single_blocks_0_linear1 has 4 parts.*attn\.to_k is not there.*needs all"):
        canonical_layers("flux", {"unet": spelled(layers)})


def test_parts_of_different_inputs_are_refused() -> None:
    layers = {name: linear(weight) for name, (_, weight) in split_by_hand("sd3").items()}
    layers["transformer_blocks.0.attn.to_k"] = linear(torch.zeros(D, D + 1))
    with pytest.raises(ValueError, match=r"x_block_attn_qkv must have the same inputs.*to_q 6.*to_k 7"):
        canonical_layers("sd3", {"unet": spelled(layers)})


def test_one_layer_in_both_spellings_is_refused() -> None:
    layers = {
        "transformer_blocks.0.ff.net.2": linear(torch.zeros(D, D)),
        "double_blocks.0.img_mlp.2": linear(torch.zeros(D, D)),
    }
    with pytest.raises(ValueError, match=r"are both lora_unet_double_blocks_0_img_mlp_2"):
        canonical_layers("flux", {"unet": spelled(layers)})


def test_layers_with_quantised_weights_get_adapters_though_they_are_no_linear_of_torch() -> None:
    class Quantised(nn.Module):
        def __init__(self, num_in: int, num_out: int) -> None:
            super().__init__()
            self.in_features, self.out_features, self.weight_function = num_in, num_out, []

    layers = {name: Quantised(num_in, num_out) for name, (num_in, num_out) in ORIGINAL["flux"].items()}
    lora = trained(host_of("flux", layers))  # type: ignore[arg-type]
    assert lora.parameters()["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (7 * D, 2)
    assert lora.branch_of(layers["single_blocks.0.linear1"]) is not None


def test_rules_name_the_canonical_layer_in_every_host() -> None:
    rules = (LayerRule(layers="*", rank=0), LayerRule(layers="lora_unet_joint_blocks_0_x_block_attn_qkv", rank=3))
    for host in (fused_host("sd3"), split_host("sd3")):
        (name,) = trained(host, rules=rules).layer_names()
        assert name == "lora_unet_joint_blocks_0_x_block_attn_qkv"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reader_in_sd_scripts_is_named(family) -> None:
    assert trained(split_host(family)).metadata()["ss_network_module"] == f"networks.lora_{family}"


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, set()),
        ({"text_encoder": True}, {"te1"}),
        ({"text_encoder": True, "t5": True}, {"te1", "te3"}),
        ({"t5": True}, set()),
    ],
)
def test_t5_is_trained_only_when_it_is_asked_for(settings, parts) -> None:
    host = fused_host("flux")
    host.parts["te1"] = spelled({"text_model.encoder.layers.0.mlp.fc1": nn.Linear(D, D)})
    host.parts["te3"] = spelled({"encoder.block.0.layer.0.SelfAttention.q": nn.Linear(D, D)})
    assert set(trained(host, **settings).groups()) == {"unet", *parts}


def test_openclip_gets_the_same_adapters_in_its_own_spelling() -> None:
    block, layer = "transformer.resblocks.3.", "text_model.encoder.layers.3."
    original = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    split = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    parameters = []
    for names in ([block + name for name in original], [layer + name for name in split]):
        host = SimpleNamespace(
            family="sdxl", parts={"te2": spelled({n: nn.Linear(D, D) for n in names})}, device=torch.device("cpu")
        )
        parameters.append(trained(host, text_encoder=True).parameters())
    assert list(parameters[0]) == list(parameters[1])
    assert "lora_te2_text_model_encoder_layers_3_self_attn_k_proj.lora_up.weight" in parameters[0]
    with pytest.raises(ValueError, match=r"attn\.in_proj.*3 layers with an adapter each"):
        canonical_layers("sdxl", {"te2": spelled({block + "attn.in_proj": nn.Linear(D, 3 * D)})})


MINI = {  # two levels of one residual block: other numbers than those of the full size
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
    "input_blocks.1.1.proj_in": "down_blocks.0.attentions.0.proj_in",
    "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.3.0.in_layers.2": "down_blocks.1.resnets.0.conv1",
    "input_blocks.3.1.proj_in": "down_blocks.1.attentions.0.proj_in",
    "middle_block.1.proj_in": "mid_block.attentions.0.proj_in",
    "output_blocks.0.0.in_layers.2": "up_blocks.0.resnets.0.conv1",
    "output_blocks.0.1.proj_in": "up_blocks.0.attentions.0.proj_in",
    "output_blocks.1.0.in_layers.2": "up_blocks.0.resnets.1.conv1",
    "output_blocks.1.1.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.2.0.in_layers.2": "up_blocks.1.resnets.0.conv1",
    "output_blocks.3.0.in_layers.2": "up_blocks.1.resnets.1.conv1",
    "output_blocks.3.1.proj_in": "up_blocks.1.attentions.1.proj_in",
    "out.2": "conv_out",
}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_unet_of_another_shape_has_the_same_layers_in_both_spellings(family) -> None:
    original, split = (
        canonical_layers(family, {"unet": spelled({name: nn.Conv2d(2, 2, 1) for name in names})})
        for names in (MINI.keys(), MINI.values())
    )
    assert original.keys() == split.keys()
    own = MINI.keys() if family == "sdxl" else MINI.values()
    assert set(original) == {kohya(name) for name in own}
    assert {name: layer.kind for name, layer in original.items()} == {name: x.kind for name, x in split.items()}
