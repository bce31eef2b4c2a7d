"""A tiny Stable Diffusion 1.x pipeline with seeded random weights, as an ordinary diffusers folder.

Every layer of the real layout is there in small: the names, the file formats and the code paths are those of a real
model. The tests train on it.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

WIDTH = 32  # of the text encoder
START, END = "<|startoftext|>", "<|endoftext|>"


def _alphabet() -> list[str]:
    """One printable character for each byte, as byte-level BPE wants it: printable bytes stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def write_tokenizer(folder: Path) -> int:
    """A CLIP tokenizer whose tokens are single bytes; returns the size of its vocabulary."""
    letters = _alphabet()
    tokens = [*letters, *(letter + "</w>" for letter in letters), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": 77,
                "bos_token": START,
                "eos_token": END,
                "unk_token": END,
                "pad_token": END,
            }
        ),
        encoding="utf-8",
    )
    return len(tokens)


def tiny_pipeline(folder: Path, seed: int = 0) -> Any:
    """A StableDiffusionPipeline of 0.3 million parameters: latents of 4 channels at an eighth of the side, 8 px steps.

    `folder` is where the tokenizer is written; `save_pretrained` of the result writes the rest.
    """
    # a module: what its classes declare is narrower than what they take
    diffusers: Any = importlib.import_module("diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    num_tokens = write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=8,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            latent_channels=4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=num_tokens,
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                bos_token_id=num_tokens - 2,
                eos_token_id=num_tokens - 1,
                pad_token_id=num_tokens - 1,
            )
        )
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_pipeline(folder: Path, seed: int = 0) -> Path:
    """`tiny_pipeline` as a diffusers folder; returns the folder."""
    tiny_pipeline(folder, seed).save_pretrained(folder, safe_serialization=True)
    return folder
