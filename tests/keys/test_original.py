"""Models whose layers have no names but those of their own code."""

import pytest
import torch
from sd_atelier.lib.keys.layers import canonical_layers
from sd_atelier.lib.keys.published import Adapter, adapters_in, published
from sd_atelier.lib.registry import SPELLINGS

KINDS = {
    "blocks.0.self_attn.q": "attention",
    "layers.11.attention.qkv": "attention",
    "transformer_blocks.3.attn.to_k": "attention",
    "blocks.0.ffn.2": "mlp",
    "layers.1.feed_forward.w1": "mlp",
    "transformer_blocks.0.img_mlp.net.0.proj": "mlp",
    "transformer_blocks.0.img_mod.1": "projection",
    "blocks.7.adaln_modulation.1": "projection",
    "input_blocks.4.0.in_layers.2": "block",
    "patch_embedding": None,
    "final_layer.linear": None,
    "time_projection.1": None,
}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_layer_is_is_told_by_its_name(name):
    assert SPELLINGS.get("original")().kind("unet", name) == KINDS[name]


def test_every_layer_has_one_adapter_under_its_own_name():
    root = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.ModuleDict({"ffn": torch.nn.Linear(3, 5)})])})
    (layer,) = canonical_layers("original", {"unet": root}).values()
    assert (layer.name, layer.kind) == ("diffusion_model.blocks.0.ffn", "mlp")
    assert (layer.num_in, layer.num_out, layer.members[0].module) == (3, 5, root["blocks"][0]["ffn"])


def test_files_go_round():
    adapter = Adapter(torch.randn(2, 3), torch.randn(5, 2), 0.5)
    file = published("original", {"diffusion_model.blocks.0.ffn.2": adapter}, torch.float32, "family")
    assert set(file) == {
        f"diffusion_model.blocks.0.ffn.2.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    found, unknown = adapters_in("original", file)
    assert not unknown
    assert torch.equal(found["diffusion_model.blocks.0.ffn.2"].down, adapter.down)
    assert found["diffusion_model.blocks.0.ffn.2"].scale == 0.5


def test_text_encoders_have_no_names():
    with pytest.raises(ValueError, match='unknown part "te"'):
        SPELLINGS.get("original")().place("te", "encoder.layers.0.mlp.fc1")
