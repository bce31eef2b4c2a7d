"""A tiny Stable Diffusion 1.x pipeline with seeded random weights, as an ordinary diffusers folder.

Every layer of the real layout is there in small: the names, the file formats and the code paths are those of a real
model. The tests train on it.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large each part is."""

    text_width: int = 32
    max_tokens: int = 77  # of a caption, with its start and end
    latents: int = 8  # side of the latents of a picture whose size is not said
    autoencoder: tuple[int, ...] = (8, 8, 16, 16)  # channels by level; each level but the last halves the side
    unet: tuple[int, ...] = (32, 64)  # the same
    cross_attention: tuple[bool, ...] = (True, False)  # by level of the U-Net


def _alphabet() -> list[str]:
    """One printable character for each byte, as byte-level BPE wants it: printable bytes stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def write_tokenizer(folder: Path, words: Sequence[str] = (), max_tokens: int = 77) -> int:
    """A CLIP tokenizer whose tokens are single bytes and whole `words`; returns the size of its vocabulary.

    Words are of small ASCII letters. Whatever is none of them is spelled in bytes.
    """
    letters = _alphabet()
    merges = _merges(words)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": max_tokens,
                "bos_token": START,
                "eos_token": END,
                "unk_token": END,
                "pad_token": END,
            }
        ),
        encoding="utf-8",
    )
    return len(tokens)


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, first ones first, that make one token of each word.

    A merge comes after all that earlier words need, so it never takes a piece away from them.
    """
    merges: list[tuple[str, str]] = []
    for word in words:
        while len(pieces := _pieces(word, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    return merges


def _pieces(word: str, merges: Sequence[tuple[str, str]]) -> list[str]:
    """A word as byte-pair encoding cuts it."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    rank = {pair: place for place, pair in enumerate(merges)}
    while found := [pair for pair in itertools.pairwise(pieces) if pair in rank]:
        first, second = min(found, key=rank.__getitem__)
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == (first, second):
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined
    return pieces


def tiny_pipeline(folder: Path, seed: int = 0, sizes: Sizes = Sizes(), words: Sequence[str] = ()) -> Any:
    """A StableDiffusionPipeline. Its default is 0.3 million parameters, latents of 4 channels at an eighth of the side.

    `folder` is where the tokenizer is written, which has a token for each of `words`; `save_pretrained` of the result
    writes the rest.
    """
    # a module: what its classes declare is narrower than what they take
    diffusers: Any = importlib.import_module("diffusers")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    num_tokens = write_tokenizer(folder / "tokenizer", words, sizes.max_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=sizes.latents,
            block_out_channels=sizes.unet,
            layers_per_block=1,
            cross_attention_dim=sizes.text_width,
            attention_head_dim=2,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in sizes.cross_attention),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in sizes.cross_attention[::-1]),
            norm_num_groups=8,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=sizes.autoencoder,
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * len(sizes.autoencoder),
            up_block_types=("UpDecoderBlock2D",) * len(sizes.autoencoder),
            norm_num_groups=4,
            latent_channels=4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=num_tokens,
                hidden_size=sizes.text_width,
                intermediate_size=2 * sizes.text_width,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=sizes.max_tokens,
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
