"""Making the base model, in miniature: what it learns from, how it learns, and that it can go on."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sd_atelier.lib.standalone.demo import pretraining
from sd_atelier.lib.standalone.demo.characters import CHARACTERS
from sd_atelier.lib.standalone.demo.drawing import Description, any_description, draw, words
from sd_atelier.lib.standalone.demo.model import Sizes, tiny_pipeline, write_tokenizer
from sd_atelier.lib.standalone.demo.muon import Muon, orthogonal
from sd_atelier.lib.standalone.demo.pictures import numbered
from sd_atelier.lib.standalone.demo.pretraining import SIZES, make
from sd_atelier.lib.standalone.demo.thumbnail import start_as_thumbnail


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "NUM_COLOURED", 8)
    monkeypatch.setattr(pretraining, "AUTOENCODER_STEPS", 2)
    monkeypatch.setattr(pretraining, "DECODER_STEPS", 2)
    monkeypatch.setattr(pretraining, "AUTOENCODER_BATCH", 2)
    monkeypatch.setattr(pretraining, "DENOISER_BATCH", 4)
    monkeypatch.setattr(pretraining, "BATCH", 8)


def weights(base: Path) -> dict[str, torch.Tensor]:
    return {f"{file.parent.name}.{n}": t for file in base.rglob("*.safetensors") for n, t in load_file(file).items()}


@pytest.mark.usefixtures("short")
def test_going_on_makes_the_same_model_as_never_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a", tmp_path / "whole", 4, 16)
    monkeypatch.setattr(pretraining, "SAVE_SECONDS", -1.0)  # at every step

    def killed(learner: pretraining.Learner, folder: Path) -> None:
        save(learner, folder)
        if learner.num_done == 2:
            raise KeyboardInterrupt

    save = pretraining.Learner.save
    with monkeypatch.context() as patch:
        patch.setattr(pretraining.Learner, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "b", tmp_path / "parts", 4, 16)
    make(tmp_path / "b", tmp_path / "parts", 4, 16)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_every_word_of_a_caption_is_one_token_and_a_trigger_is_none(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path, words(), SIZES.max_tokens)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert all(tokenizer.tokenize(word) == [f"{word}</w>"] for word in words())
    rng = random.Random(0)
    captions = [any_description(rng).caption() for _ in range(100)]
    captions += [numbered(who, number).caption() for who in CHARACTERS for number in range(10)]
    known = {f"{word}</w>" for word in words()} | {",</w>", "-</w>"}
    for caption in captions:
        tokens = tokenizer.tokenize(caption)
        assert len(tokens) <= SIZES.max_tokens - 2
        spelled = set(tokens) - known
        assert bool(spelled) == caption.startswith(tuple(CHARACTERS)), caption


def through_an_untrained_autoencoder(folder: Path, sizes: Sizes, background: str) -> tuple[torch.Tensor, ...]:
    """A drawing's squares of 4 x 4 pixels by their average colour, its latents, and what is decoded from them."""
    vae = tiny_pipeline(folder, 0, sizes).vae
    start_as_thumbnail(vae)
    picture = draw(Description(who="cat", colour="red", background=background), random.Random(1))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean
        return torch.nn.functional.avg_pool2d(pixels, 4), latents, vae.decode(latents).sample


def test_an_untrained_autoencoder_keeps_the_average_colour_of_each_square(tmp_path: Path) -> None:
    sizes = dataclasses.replace(SIZES, autoencoder=(16, 32, 32))
    small, latents, decoded = through_an_untrained_autoencoder(tmp_path, sizes, "night")
    assert (latents[:, :3] - small).abs().mean() < 0.05
    assert (decoded - torch.nn.functional.interpolate(small, scale_factor=4)).abs().mean() < 0.05


def test_the_base_models_autoencoder_starts_with_every_colour_in_its_place(tmp_path: Path) -> None:
    small, latents, decoded = through_an_untrained_autoencoder(tmp_path, SIZES, "meadow")
    assert (latents[:, :3] - small).abs().mean() < 0.05
    # the norms of its wider decoder squeeze what is bright
    large = torch.nn.functional.interpolate(small, scale_factor=4)
    assert torch.corrcoef(torch.stack([decoded.flatten(), large.flatten()]))[0, 1] > 0.97


@pytest.mark.parametrize("shape", [(2, 8, 40), (1, 40, 8), (3, 6, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 0.05)])
def test_orthogonal_keeps_the_directions_and_evens_the_strengths(
    shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(shape[0], shape[1], min(shape[1:]), generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(shape[0], shape[2], min(shape[1:]), generator=generator, dtype=torch.float64))[0]
    strengths = torch.linspace(0.2, 3.0, min(shape[1:]), dtype=torch.float64)
    inner = u.mT @ orthogonal((u * strengths @ v.mT).to(dtype)).double() @ v
    even = torch.diagonal(inner, dim1=1, dim2=2)
    assert even.min() > 0.6 and even.max() < 1.3
    assert (inner - torch.diag_embed(even)).abs().max() < tolerance


def test_muon_steps_against_the_gradient_by_a_fifth_of_the_rate() -> None:
    parameters = [torch.zeros(8, 4, 3, 3, requires_grad=True), torch.zeros(8, 36, requires_grad=True)]
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(8, 36, generator=generator)
    for parameter in parameters:
        parameter.grad = gradient.view_as(parameter).clone()
    Muon(parameters).step(0.1)
    convolution, matrix = (p.detach().flatten(1) for p in parameters)
    assert torch.allclose(convolution, matrix) and (matrix * gradient).sum() < 0
    assert 0.012 < matrix.square().mean().sqrt() < 0.026
