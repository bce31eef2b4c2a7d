"""Pipelines of diffusers in the layout of the first code, as single files have it.

diffusers reads that layout but cannot write it, so the names are written down here once more, the other way.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_NAMES = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_out.0": "proj_out",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
}
CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def unet_name(name: str, config) -> str:
    for ours, original in OUTER.items():
        if name.startswith(f"{ours}."):
            return original + name[len(ours) :]
    side, block, kind, index, rest = re.fullmatch(
        r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)",
        name,
    ).groups()  # type: ignore[union-attr]
    block, index, per_block = int(block or 0), int(index), config.layers_per_block
    if kind == "resnets":
        layer, _, end = rest.rpartition(".")
        rest = f"{RESNET[layer]}.{end}"
    if side == "mid_block":
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{rest}"
    if side == "down_blocks":
        first = 1 + block * (per_block + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + per_block}.0.{rest.replace('conv', 'op')}"
        return f"input_blocks.{first + index}.{int(kind == 'attentions')}.{rest}"
    first = block * (per_block + 1)
    if kind == "upsamplers":
        behind_attention = config.up_block_types[block].startswith("CrossAttn")
        return f"output_blocks.{first + per_block}.{1 + behind_attention}.{rest}"
    return f"output_blocks.{first + index}.{int(kind == 'attentions')}.{rest}"


def vae_name(name: str, num_levels: int) -> str:
    match = re.fullmatch(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if match:
        half, block, kind, index, rest = match.groups()
        level = int(block) if half == "encoder" else num_levels - 1 - int(block)
        way = "down" if half == "encoder" else "up"
        inner = f"block.{index}" if kind == "resnets" else f"{way}sample"
        name = f"{half}.{way}.{level}.{inner}.{rest}"
    for ours, original in VAE_NAMES.items():
        name = name.replace(f".{ours}.", f".{original}.")
    return name


def text_tensors(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Stable Diffusion 1.x keeps the names of transformers; its files hold things that are no weights, too."""
    others = {"embeddings.position_ids": torch.arange(77)[None]}
    return {TEXT + name: t for name, t in {**state, **others}.items()}


def open_clip_tensors(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Stable Diffusion 2.x has those of OpenCLIP, and one more layer, which is not used."""
    more = {f"encoder.layers.{num_layers}.{n}": t for n, t in _layer(state, num_layers - 1).items()}
    tensors = _open_clip({**state, **more}, num_layers + 1)
    return {f"cond_stage_model.model.{name}": t for name, t in tensors.items()}


def _layer(state: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    prefix = f"encoder.layers.{index}."
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def _open_clip(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    tensors = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": torch.eye(state["final_layer_norm.weight"].shape[0]),
    }
    for layer in range(num_layers):
        source = f"encoder.layers.{layer}."
        target = f"transformer.resblocks.{layer}."
        for end in ("weight", "bias"):
            qkv = [state[f"{source}self_attn.{letter}_proj.{end}"] for letter in "qkv"]
            tensors[f"{target}attn.in_proj_{end}"] = torch.cat(qkv)
            for ours, original in CLIP.items():
                tensors[f"{target}{original}.{end}"] = state[f"{source}{ours}.{end}"]
    return tensors


def original_layout(pipeline, text) -> dict[str, Tensor]:
    unet, vae, encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    tensors = {"betas": torch.zeros(1000), "model_ema.decay": torch.zeros(())}
    for name, tensor in unet.state_dict().items():
        tensors[UNET + unet_name(name, unet.config)] = tensor
    tensors |= vae_tensors(vae, VAE)
    state = {name.removeprefix("text_model."): t for name, t in encoder.state_dict().items()}
    tensors |= text(state, encoder.config.num_hidden_layers)
    return {name: t.clone().contiguous() for name, t in tensors.items()}


def vae_tensors(vae: Any, prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in vae.state_dict().items():
        key = vae_name(name, len(vae.config.block_out_channels))
        attention = re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight", key)
        tensors[prefix + key] = tensor[..., None, None] if attention else tensor
    return tensors


def sdxl_layout(pipeline: Any) -> dict[str, Tensor]:
    """A whole checkpoint of Stable Diffusion XL."""
    unet, second = pipeline.unet, pipeline.text_encoder_2
    tensors = {UNET + unet_name(name, unet.config): t for name, t in unet.state_dict().items()}
    tensors |= vae_tensors(pipeline.vae, VAE)
    first = {name.removeprefix("text_model."): t for name, t in pipeline.text_encoder.state_dict().items()}
    tensors |= {f"conditioner.embedders.0.transformer.text_model.{name}": t for name, t in first.items()}
    state = {name.removeprefix("text_model."): t for name, t in second.state_dict().items()}
    open_clip = _open_clip(state, second.config.num_hidden_layers)
    open_clip["text_projection"] = state["text_projection.weight"].T
    tensors |= {f"conditioner.embedders.1.model.{name}": t for name, t in open_clip.items()}
    return {name: t.clone().contiguous() for name, t in tensors.items()}


def encoder_tensors(pipeline: Any, names: dict[str, str]) -> dict[str, Tensor]:
    """Text encoders as ComfyUI keeps them: the names of transformers behind a prefix; `names`: part -> prefix."""
    tensors = {}
    for part, prefix in names.items():
        for name, tensor in getattr(pipeline, part).state_dict().items():
            bare = name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
            tensors[prefix + ("text_model." if bare else "") + name] = tensor
    return tensors


def _linear(state: dict[str, Tensor], tensors: dict[str, Tensor], to: str, *of: str, swap: bool = False) -> None:
    """Move layers out of `state`, concatenated along their outputs; with `swap` the halves change places."""
    for end in ("weight", "bias"):
        if f"{of[0]}.{end}" in state:
            tensor = torch.cat([state.pop(f"{name}.{end}") for name in of])
            tensors[f"{to}.{end}"] = torch.cat(tensor.chunk(2)[::-1]) if swap else tensor


def sd3_transformer(transformer: Any, prefix: str) -> dict[str, Tensor]:
    state, tensors = dict(transformer.state_dict()), {}
    last = transformer.config.num_layers - 1
    for i in range(last + 1):
        ours, picture, text = (
            f"transformer_blocks.{i}.",
            f"joint_blocks.{i}.x_block.",
            f"joint_blocks.{i}.context_block.",
        )
        for attn in ("attn", "attn2"):
            _linear(state, tensors, f"{picture}{attn}.qkv", *(f"{ours}{attn}.to_{x}" for x in "qkv"))
            _linear(state, tensors, f"{picture}{attn}.proj", f"{ours}{attn}.to_out.0")
            for x in "qk":
                _linear(state, tensors, f"{picture}{attn}.ln_{x}", f"{ours}{attn}.norm_{x}")
        for x in "qk":
            _linear(state, tensors, f"{text}attn.ln_{x}", f"{ours}attn.norm_added_{x}")
        _linear(state, tensors, f"{text}attn.qkv", *(f"{ours}attn.add_{x}_proj" for x in "qkv"))
        _linear(state, tensors, f"{text}attn.proj", f"{ours}attn.to_add_out")
        for side, mlp, norm in ((picture, "ff", "norm1"), (text, "ff_context", "norm1_context")):
            _linear(state, tensors, f"{side}mlp.fc1", f"{ours}{mlp}.net.0.proj")
            _linear(state, tensors, f"{side}mlp.fc2", f"{ours}{mlp}.net.2")
            _linear(
                state, tensors, f"{side}adaLN_modulation.1", f"{ours}{norm}.linear", swap=side == text and i == last
            )
    for original, embedder in (("t_embedder", "timestep"), ("y_embedder", "text")):
        for place, number in ((0, 1), (2, 2)):
            _linear(state, tensors, f"{original}.mlp.{place}", f"time_text_embed.{embedder}_embedder.linear_{number}")
    _linear(state, tensors, "x_embedder.proj", "pos_embed.proj")
    _linear(state, tensors, "context_embedder", "context_embedder")
    _linear(state, tensors, "final_layer.adaLN_modulation.1", "norm_out.linear", swap=True)
    _linear(state, tensors, "final_layer.linear", "proj_out")
    tensors["pos_embed"] = state.pop("pos_embed.pos_embed")
    assert not state
    return {prefix + name: t.contiguous() for name, t in tensors.items()}


def flux_transformer(transformer: Any, prefix: str) -> dict[str, Tensor]:
    state, tensors = dict(transformer.state_dict()), {}
    long = {"q": "query", "k": "key"}
    for i in range(transformer.config.num_layers):
        ours = f"transformer_blocks.{i}."
        sides = (
            ("img", "to_{}", "to_out.0", "ff", "norm1", ""),
            ("txt", "add_{}_proj", "to_add_out", "ff_context", "norm1_context", "added_"),
        )
        for side, each, out, mlp, norm, added in sides:
            theirs = f"double_blocks.{i}.{side}_"
            _linear(state, tensors, f"{theirs}attn.qkv", *(f"{ours}attn.{each.format(x)}" for x in "qkv"))
            _linear(state, tensors, f"{theirs}attn.proj", f"{ours}attn.{out}")
            _linear(state, tensors, f"{theirs}mlp.0", f"{ours}{mlp}.net.0.proj")
            _linear(state, tensors, f"{theirs}mlp.2", f"{ours}{mlp}.net.2")
            _linear(state, tensors, f"{theirs}mod.lin", f"{ours}{norm}.linear")
            for x in "qk":
                tensors[f"{theirs}attn.norm.{long[x]}_norm.scale"] = state.pop(f"{ours}attn.norm_{added}{x}.weight")
    for i in range(transformer.config.num_single_layers):
        ours, theirs = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
        _linear(state, tensors, f"{theirs}linear1", *(f"{ours}attn.to_{x}" for x in "qkv"), f"{ours}proj_mlp")
        _linear(state, tensors, f"{theirs}linear2", f"{ours}proj_out")
        _linear(state, tensors, f"{theirs}modulation.lin", f"{ours}norm.linear")
        for x in "qk":
            tensors[f"{theirs}norm.{long[x]}_norm.scale"] = state.pop(f"{ours}attn.norm_{x}.weight")
    for original, embedder in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance")):
        for layer, number in (("in_layer", 1), ("out_layer", 2)):
            _linear(state, tensors, f"{original}.{layer}", f"time_text_embed.{embedder}_embedder.linear_{number}")
    _linear(state, tensors, "img_in", "x_embedder")
    _linear(state, tensors, "txt_in", "context_embedder")
    _linear(state, tensors, "final_layer.adaLN_modulation.1", "norm_out.linear", swap=True)
    _linear(state, tensors, "final_layer.linear", "proj_out")
    assert not state
    return {prefix + name: t.contiguous() for name, t in tensors.items()}
