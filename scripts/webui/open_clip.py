"""OpenCLIP's text encoder with layers that can be trained.

Its attention is torch's fused MultiheadAttention, whose query, key and value weights are one parameter and whose
forward calls no layer. `Third` is such a layer: a Linear on a third of that parameter, found anew at each use, so
that nothing is copied and a model that moves between devices takes it along. `split` names all layers as transformers
does, which is how files name them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Third(nn.Linear):
    """Rows `index * width` and on of a fused attention's in_proj, as a Linear without parameters of its own."""

    def __init__(self, attention: nn.MultiheadAttention, index: int) -> None:
        nn.Module.__init__(self)
        width = attention.embed_dim
        self.in_features = self.out_features = width
        # not as a submodule: it would be found in its own child
        self.__dict__["_attention"], self.__dict__["_rows"] = attention, slice(index * width, (index + 1) * width)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.__dict__["_attention"].in_proj_weight[self.__dict__["_rows"]]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        bias = self.__dict__["_attention"].in_proj_bias
        return None if bias is None else bias[self.__dict__["_rows"]]


class Projection(nn.Linear):
    """The projection of the pooled text, which the model keeps transposed, as a Linear without its own parameters."""

    def __init__(self, model: Any) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = model.text_projection.shape
        self.__dict__["_model"] = model

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.__dict__["_model"].text_projection.t()

    @property
    def bias(self) -> None:  # type: ignore[override]
        return None


def split(model: Any, num_unused: int, projects: bool) -> nn.Module:
    """The layers of an OpenCLIP text model under the names of transformers: `text_model.encoder.layers.0.mlp.fc1`.

    A container: the layers are the model's own, and stand-ins for what is no layer there. Without the last `num_unused`
    blocks, which other programs do not have; `projects`: whether the pooled text is used.
    """
    root = nn.Module()
    layers = _child(_child(_child(root, "text_model"), "encoder"), "layers")
    blocks = model.transformer.resblocks
    for index, block in enumerate(blocks[: len(blocks) - num_unused]):
        layer = _child(layers, str(index))
        attention = _child(layer, "self_attn")
        for i, name in enumerate(PROJECTIONS):
            attention.add_module(name, Third(block.attn, i))
        attention.add_module("out_proj", block.attn.out_proj)
        mlp = _child(layer, "mlp")
        mlp.add_module("fc1", block.mlp.c_fc)
        mlp.add_module("fc2", block.mlp.c_proj)
        layer.add_module("layer_norm1", block.ln_1)
        layer.add_module("layer_norm2", block.ln_2)
    root.text_model.add_module("final_layer_norm", model.ln_final)  # type: ignore[union-attr]
    if projects:
        root.add_module("text_projection", Projection(model))
    return root


def attentions(model: Any, container: nn.Module) -> list[tuple[nn.Module, Callable[..., Any]]]:
    """Each fused attention of the model with a forward that goes through its layers where they run frozen."""
    layers = container.text_model.encoder.layers  # type: ignore[union-attr]
    blocks = zip(model.transformer.resblocks, layers.children(), strict=False)  # type: ignore[union-attr]
    return [(block.attn, _forward(block.attn, layer.self_attn)) for block, layer in blocks]  # type: ignore[arg-type]


def _forward(attention: nn.MultiheadAttention, layers: nn.Module) -> Callable[..., Any]:
    fused = attention.forward

    def forward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        q_proj, k_proj, v_proj, out_proj = (getattr(layers, name) for name in (*PROJECTIONS, "out_proj"))
        if "forward" not in vars(q_proj):
            return fused(query, key, value, *args, **kwargs)
        assert not args, "this text encoder calls its attention in a way that is not known"
        mask = kwargs.get("attn_mask")
        # (batch, tokens, width), whichever of the two comes first in the model
        q, k, v = q_proj(query), k_proj(key), v_proj(value)
        if not attention.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        mask = mask.to(q) if mask is not None else None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return out_proj(out if attention.batch_first else out.transpose(0, 1)), None

    return forward


def _child(parent: nn.Module, name: str) -> nn.Module:
    child = nn.Module()
    parent.add_module(name, child)
    return child
