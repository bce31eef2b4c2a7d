"""Files in every spelling are the same adapters: nothing is lost, and what does not fit is refused by name."""

from __future__ import annotations

import pytest
import torch
from sd_atelier.lib.keys.published import Adapter, adapters_in, published
from torch import Tensor

D, R = 6, 3
QKV = "lora_unet_joint_blocks_0_x_block_attn_qkv"
LINEAR1 = "lora_unet_single_blocks_0_linear1"
SPLIT = "transformer.transformer_blocks.0.attn.to_"
T5 = "encoder.block.0.layer.0.SelfAttention.q"


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 100 * shape[0] + shape[1])).double()


def delta(adapter: Adapter) -> Tensor:
    return adapter.scale * adapter.up.double().flatten(1) @ adapter.down.double().flatten(1)


def adapter(num_out: int, num_in: int = D, scale: float = 0.75, rank: int = R) -> Adapter:
    return Adapter(rand(rank, num_in), rand(num_out, rank, seed=1), scale)


CANONICAL = {
    "sd1": {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": D},
    "sd2": {"lora_te_text_model_encoder_layers_0_self_attn_k_proj": D},
    "sdxl": {"lora_unet_input_blocks_4_1_proj_in": D, "lora_te2_text_model_encoder_layers_0_mlp_fc1": D},
    "sd3": {
        QKV: 3 * D,
        "lora_unet_joint_blocks_1_context_block_adaLN_modulation_1": 2 * D,
        "lora_unet_final_layer_adaLN_modulation_1": 2 * D,
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": D,
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": D,
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q": D,
    },
    "flux": {LINEAR1: 7 * D, "lora_te1_text_model_encoder_layers_0_mlp_fc1": D},
}


@pytest.mark.parametrize("family", CANONICAL)
@pytest.mark.parametrize("names", ["family", "kohya"])
def test_what_is_published_is_read_as_the_same_update(family: str, names: str) -> None:
    adapters = {name: adapter(num_out) for name, num_out in CANONICAL[family].items()}
    tensors = published(family, adapters, torch.float64, names)
    assert len({t.untyped_storage().data_ptr() for t in tensors.values()}) == len(tensors), "files share no memory"
    again, unknown = adapters_in(family, tensors)
    assert again.keys() == adapters.keys() and unknown == ()
    for name, own in adapters.items():
        assert torch.allclose(delta(again[name]), delta(own), rtol=1e-14, atol=1e-14), name
        assert again[name].down.shape == own.down.shape, "slices of one adapter are one adapter again"
    assert all(key.startswith("lora_") for key in tensors) == (family != "sd3" or names == "kohya")


def test_stable_diffusion_3_is_published_in_slices_with_the_scale_in_b() -> None:
    own = adapter(3 * D)
    tensors = published("sd3", {QKV: own}, torch.float64, "family")
    assert set(tensors) == {f"{SPLIT}{x}.lora_{half}.weight" for x in "qkv" for half in "AB"}
    for i, x in enumerate("qkv"):
        assert torch.equal(tensors[f"{SPLIT}{x}.lora_A.weight"], own.down)
        assert torch.equal(tensors[f"{SPLIT}{x}.lora_B.weight"], own.up[i * D : i * D + D] * 0.75)
    last = "lora_unet_joint_blocks_1_context_block_adaLN_modulation_1"
    tensors = published("sd3", {last: adapter(2 * D, scale=1.0)}, torch.float64, "family")
    swapped = tensors["transformer.transformer_blocks.1.norm1_context.linear.lora_B.weight"]
    assert torch.equal(swapped, torch.cat(adapter(2 * D).up.chunk(2)[::-1]))
    whole = published("sd3", {last: adapter(6 * D, scale=1.0)}, torch.float64, "family")
    assert torch.equal(whole["transformer.transformer_blocks.1.norm1_context.linear.lora_B.weight"], adapter(6 * D).up)


SUFFIXES = [
    ("lora_down.weight", "lora_up.weight"),
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora.down.weight", "lora.up.weight"),
]


@pytest.mark.parametrize(("down", "up"), SUFFIXES)
@pytest.mark.parametrize(
    ("family", "name", "canonical"),
    [
        ("sd1", "lora_unet_input_blocks_1_1_proj_in", "lora_unet_down_blocks_0_attentions_0_proj_in"),
        ("sd1", "unet.down_blocks.0.attentions.0.proj_in", "lora_unet_down_blocks_0_attentions_0_proj_in"),
        ("sd1", "text_encoder.text_model.encoder.layers.0.mlp.fc1", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        ("sdxl", "lora_unet_down_blocks_1_attentions_0_proj_in", "lora_unet_input_blocks_4_1_proj_in"),
        ("sdxl", "diffusion_model.input_blocks.4.1.proj_in", "lora_unet_input_blocks_4_1_proj_in"),
        ("sdxl", "text_encoder_2.encoder.layers.0.mlp.fc1", "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        ("sd3", "diffusion_model.joint_blocks.0.x_block.attn.qkv", QKV),
        ("sd3", f"text_encoder_3.{T5}", "lora_te3_" + T5.replace(".", "_")),
        ("flux", "lora_transformer_single_transformer_blocks_0_proj_out", "lora_unet_single_blocks_0_linear2"),
        ("flux", "lora_unet_single_transformer_blocks_0_proj_out", "lora_unet_single_blocks_0_linear2"),
        ("flux", f"text_encoder_2.{T5}", "lora_te3_" + T5.replace(".", "_")),
    ],
)
def test_every_spelling_is_read(family: str, name: str, canonical: str, down: str, up: str) -> None:
    tensors = {f"{name}.{down}": rand(R, D), f"{name}.{up}": rand(D, R), f"{name}.alpha": torch.tensor(1.5)}
    adapters, unknown = adapters_in(family, tensors)
    assert unknown == () and list(adapters) == [canonical]
    assert adapters[canonical].scale == 0.5
    assert torch.equal(adapters[canonical].up, rand(D, R)) and torch.equal(adapters[canonical].down, rand(R, D))


def slices(*ups: tuple[str, int, int], shared: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(file, split name -> delta) of slices given as (name, outputs, rank)."""
    file, deltas = {}, {}
    for i, (name, num_out, rank) in enumerate(ups):
        down, up = rand(rank, D, seed=0 if shared else i), rand(num_out, rank, seed=i)
        file |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        deltas[name] = up @ down
    return file, deltas


def test_slices_with_downs_of_their_own_become_one_adapter_of_their_summed_rank() -> None:
    file, deltas = slices((SPLIT + "q", D, 2), (SPLIT + "k", D, 3), (SPLIT + "v", D, 1), shared=False)
    file |= {f"{SPLIT}k.alpha": torch.tensor(6.0)}  # a scale of its own
    deltas[SPLIT + "k"] *= 2
    adapters, _ = adapters_in("sd3", file)
    assert adapters[QKV].down.shape == (6, D)
    assert torch.allclose(delta(adapters[QKV]), torch.cat([deltas[SPLIT + x] for x in "qkv"]), rtol=1e-6, atol=1e-6)


def test_slices_that_share_their_down_keep_its_rank() -> None:
    file, deltas = slices(*((SPLIT + x, D, 2) for x in "qkv"), shared=True)
    adapters, _ = adapters_in("sd3", file)
    assert adapters[QKV].down.shape == (2, D)
    assert torch.equal(delta(adapters[QKV]), torch.cat([deltas[SPLIT + x] for x in "qkv"]))
    adapters, _ = adapters_in("sd3", file | {f"{SPLIT}k.alpha": torch.tensor(1.0)})  # half the scale of the others
    deltas[SPLIT + "k"] /= 2
    assert torch.allclose(delta(adapters[QKV]), torch.cat([deltas[SPLIT + x] for x in "qkv"]), rtol=1e-6, atol=1e-6)


def test_a_slice_that_the_file_lacks_is_no_change() -> None:
    single = "transformer.single_transformer_blocks.0."
    file, deltas = slices((single + "attn.to_q", D, 2), (single + "attn.to_v", D, 2), shared=False)
    whole = delta(adapters_in("flux", file)[0][LINEAR1])
    assert whole.shape == (7 * D, D)
    expected = torch.zeros_like(whole)
    expected[:D], expected[2 * D : 3 * D] = deltas[single + "attn.to_q"], deltas[single + "attn.to_v"]
    assert torch.allclose(whole, expected, rtol=1e-6, atol=1e-6)


def test_halves_of_a_last_modulation_come_back_in_the_original_order() -> None:
    file, deltas = slices(("transformer.norm_out.linear", 2 * D, 2), shared=True)
    (whole,) = adapters_in("flux", file)[0].values()
    assert torch.equal(delta(whole), torch.cat(deltas["transformer.norm_out.linear"].chunk(2)[::-1]))


def test_keys_of_no_known_layer_are_named() -> None:
    file, _ = slices((SPLIT + "q", D, 2), ("transformer.other.layer", D, 2), shared=True)
    file |= {"transformer.transformer_blocks.0.attn.to_k.hada_w1_a": rand(D, 2), "x": rand(1, 1)}
    adapters, unknown = adapters_in("sd3", file)
    assert list(adapters) == [QKV]
    assert set(unknown) == {key for key in file if not key.startswith(SPLIT + "q.")}
    nothing, all_of_them = adapters_in("sd1", file)
    assert nothing == {} and set(all_of_them) == set(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{QKV}.lora_up.weight": None}, r"has only one of its two halves"),
        ({f"{QKV}.lora_up.weight": rand(D, R + 1)}, r"have different ranks: 3 and 4"),
        ({f"{QKV}.dora_scale": rand(D, 1)}, r"more than a plain LoRA"),
        ({f"{QKV}.lora_mid.weight": rand(R, R)}, r"more than a plain LoRA"),
        ({f"{SPLIT}q.lora_A.weight": rand(R, D), f"{SPLIT}q.lora_B.weight": rand(D, R)}, r"a second adapter on"),
    ],
)
def test_a_layer_that_is_no_plain_lora_is_refused(change: dict[str, Tensor | None], said: str) -> None:
    file = published("sd3", {QKV: adapter(3 * D)}, torch.float64, "kohya") | change
    with pytest.raises(ValueError, match=said):
        adapters_in("sd3", {key: tensor for key, tensor in file.items() if tensor is not None})


def test_slices_of_different_inputs_are_refused() -> None:
    file, _ = slices((SPLIT + "q", D, 2), shared=True)
    file |= {f"{SPLIT}k.lora_A.weight": rand(2, D + 1), f"{SPLIT}k.lora_B.weight": rand(D, 2)}
    with pytest.raises(ValueError, match=r"must have the same inputs to be one adapter, got .*to_q 6, .*to_k 7"):
        adapters_in("sd3", file)


def test_a_width_that_has_no_slices_is_refused() -> None:
    with pytest.raises(ValueError, match=r"20 outputs, which are not 3 layers of 6; use kohya's names"):
        published("sd3", {QKV: adapter(20)}, torch.float64, "family")
