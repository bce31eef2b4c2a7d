"""Layers of the U-Nets of Stable Diffusion 1.x, 2.x and XL: the original numbered blocks beside those of diffusers."""

from __future__ import annotations

from collections.abc import Sequence

from .table import Table

KINDS = {
    "attention": r"\.attn[12]\.to_(q|k|v|out\.0)$",
    "mlp": r"\.ff\.net\.\d+(\.proj)?$",
    "projection": r"\.attentions\.\d+\.proj_(in|out)$",
    "block": r"^\.(down_blocks|mid_block|up_blocks)\.",
}

_RESNET = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
# inside a transformer both spellings are the same
_TRANSFORMER = {
    name: name
    for name in (
        "proj_in",
        "proj_out",
        *(f"transformer_blocks.{{}}.attn{i}.to_{x}" for i in (1, 2) for x in ("q", "k", "v", "out.0")),
        "transformer_blocks.{}.ff.net.0.proj",
        "transformer_blocks.{}.ff.net.2",
    )
}
_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
}


def unet_table(up_attention: Sequence[bool]) -> Table:
    """The layers of a U-Net with two residual blocks a level on the way down and three on the way up.

    `up_attention`: which levels have attention, in the order of `up_blocks`; the way down has it at the same levels.
    """
    resnets = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    transformers = {"middle_block.1": "mid_block.attentions.0"}
    rows: dict[str, str | tuple[str, ...]] = dict(_OUTSIDE)
    for i, attention in enumerate(reversed(up_attention)):
        for j in range(2):
            resnets[f"input_blocks.{3 * i + j + 1}.0"] = f"down_blocks.{i}.resnets.{j}"
            if attention:
                transformers[f"input_blocks.{3 * i + j + 1}.1"] = f"down_blocks.{i}.attentions.{j}"
        rows[f"input_blocks.{3 * i + 3}.0.op"] = f"down_blocks.{i}.downsamplers.0.conv"
    for i, attention in enumerate(up_attention):
        for j in range(3):
            resnets[f"output_blocks.{3 * i + j}.0"] = f"up_blocks.{i}.resnets.{j}"
            if attention:
                transformers[f"output_blocks.{3 * i + j}.1"] = f"up_blocks.{i}.attentions.{j}"
        rows[f"output_blocks.{3 * i + 2}.{2 if attention else 1}.conv"] = f"up_blocks.{i}.upsamplers.0.conv"
    for blocks, layers in ((resnets, _RESNET), (transformers, _TRANSFORMER)):
        for original, block in blocks.items():
            rows.update({f"{original}.{ours}": f"{block}.{theirs}" for ours, theirs in layers.items()})
    return Table(rows)
