"""Layers of text encoders: CLIP and T5 as transformers spells them, and OpenCLIP's own spelling."""

from __future__ import annotations

from .table import Table

CLIP_KINDS = {"attention": r"\.self_attn\.(q|k|v|out)_proj$", "mlp": r"\.mlp\.fc[12]$"}
T5_KINDS = {"attention": r"\.SelfAttention\.[qkvo]$", "mlp": r"\.DenseReluDense\.w(i|i_0|i_1|o)$"}

_LAYER = "text_model.encoder.layers.{}."
_BLOCK = "transformer.resblocks.{}."

# one spelling only: a layer is its own original
CLIP = Table(
    {
        name: name
        for name in (
            *(f"{_LAYER}self_attn.{x}_proj" for x in ("q", "k", "v", "out")),
            _LAYER + "mlp.fc1",
            _LAYER + "mlp.fc2",
            "text_projection",
        )
    }
)
T5 = Table(
    {
        name: name
        for name in (
            *(f"encoder.block.{{}}.layer.0.SelfAttention.{x}" for x in "qkvo"),
            *(f"encoder.block.{{}}.layer.1.DenseReluDense.{x}" for x in ("wi", "wi_0", "wi_1", "wo")),
        )
    }
)

# in_proj is no module there but the parameters in_proj_weight and in_proj_bias of a torch MultiheadAttention; a host
# that makes layers of its thirds may call them attn.q_proj and so on. text_projection is a parameter too, transposed.
OPEN_CLIP = Table(
    {
        _BLOCK + "attn.in_proj": tuple(f"{_LAYER}self_attn.{x}_proj" for x in "qkv"),
        _BLOCK + "attn.out_proj": _LAYER + "self_attn.out_proj",
        _BLOCK + "mlp.c_fc": _LAYER + "mlp.fc1",
        _BLOCK + "mlp.c_proj": _LAYER + "mlp.fc2",
        "text_projection": "text_projection",
    },
    aliases={f"{_BLOCK}attn.{x}_proj": f"{_LAYER}self_attn.{x}_proj" for x in "qkv"},
)
