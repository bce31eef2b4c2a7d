"""The demo, shortened: everything that it promises is there, and its model is built once."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sd_atelier.lib.preparation import StoppedError
from sd_atelier.lib.records import read_losses, read_probe
from sd_atelier.lib.run_folder import RunFolder
from sd_atelier.lib.standalone import cli
from sd_atelier.lib.standalone.commands import demo
from sd_atelier.lib.standalone.commands.demo import demonstrate
from sd_atelier.lib.standalone.demo.animals import draw_animal, words
from sd_atelier.lib.standalone.demo.model import tiny_pipeline, write_tokenizer
from sd_atelier.lib.standalone.demo.muon import Muon, orthogonal
from sd_atelier.lib.standalone.demo.pictures import draw_picture
from sd_atelier.lib.standalone.demo.pretraining import SIZES, Recipe, Watch, build_model
from sd_atelier.lib.standalone.demo.thumbnail import start_as_thumbnail
from sd_atelier.lib.standalone.pipeline import load_pipeline

SHORT = Recipe(num_pictures=24, autoencoder_steps=3, denoiser_steps=3)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert demonstrate(folder, 8, SHORT) == 0
    return folder


def test_it_ends_with_a_network_losses_a_report_and_a_strip(output: Path) -> None:
    run = RunFolder.open(output / "runs/demo")
    assert run.steps() == [2, 4, 6, 8]
    assert len(read_losses(run.path / "loss.csv")["step"]) >= 8
    assert set(read_probe(run.path / "probe.csv")["step"]) == {0, 2, 4, 6, 8}
    assert (run.path / "report.html").stat().st_size > 10_000
    strip = json.loads((run.path / "strip.json").read_text())
    labels = [column["label"] for column in strip["columns"]]
    assert labels == ["no network", *(f"demo-{step:06d}" for step in (2, 4, 6, 8))]
    assert len(strip["cells"]) == 5 * 3
    assert np.asarray(Image.open(run.path / "strip.png").convert("L")).std() > 5


def test_the_network_loads_elsewhere_and_changes_the_model(output: Path) -> None:
    pipeline, _ = load_pipeline(output / "model", dtype=torch.float32)
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 32, 64)
    with torch.no_grad():
        before = pipeline.unet(*inputs).sample
        pipeline.load_lora_weights(output / "runs/demo/checkpoints", weight_name="demo-000008.safetensors")
        assert not torch.equal(pipeline.unet(*inputs).sample, before)


def test_a_second_demo_uses_the_model_again_and_makes_another_run(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = output / "model/unet/diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    assert demonstrate(output, 2, SHORT) == 0
    printed = capsys.readouterr()
    assert "uses the model that was built before" in printed.err and weights.stat().st_mtime_ns == before
    assert str(output / "runs/demo-2/strip.png") in printed.out
    assert (output / "runs/demo-2/strip.png").is_file()


def test_another_recipe_builds_another_model(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = dataclasses.replace(SHORT, seed=3)
    assert demonstrate(output, 1, other) == 0
    assert "builds a tiny model" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds something else than a model of the demo"):
        demonstrate(tmp_path, 1, SHORT)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["mine.txt"]


def test_half_a_model_is_built_again(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = output / "model/recipe.json"
    recipe.write_bytes(recipe.read_bytes()[:-9])
    assert demonstrate(output, 1, SHORT) == 0
    assert "builds a tiny model" in capsys.readouterr().err


def test_a_stop_request_ends_the_building_and_leaves_no_model(tmp_path: Path) -> None:
    num_shown = 0

    def show(progress: object) -> None:
        nonlocal num_shown
        num_shown += 1

    with pytest.raises(StoppedError, match="built from the start"):
        build_model(tmp_path, SHORT, Watch(show=show, stop_requested=lambda: num_shown == 2))
    assert num_shown == 2 and not (tmp_path / "model_index.json").exists()


def test_interrupting_the_demo_has_the_exit_code_of_a_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, recipe: Recipe, watch: Watch) -> None:
        signal.raise_signal(signal.SIGINT)
        build_model(folder, SHORT, watch)

    monkeypatch.setattr(demo, "build_model", interrupted)
    before = torch.get_num_threads()
    assert cli.main(["demo", "--output", str(tmp_path)]) == 3
    assert "stopped while the model was built" in capsys.readouterr().err
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("option", ["--steps", "--seed"])
def test_a_number_out_of_range_is_wrong_input(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--output", str(tmp_path / "new"), option, "-1"]) == 2
    assert option in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_same_recipe_builds_the_same_model(tmp_path: Path) -> None:
    one, two = (build_model(tmp_path / name, SHORT) for name in "ab")
    for part in ("unet", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_every_word_of_a_caption_is_one_token_and_the_trigger_is_none(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path, words(), SIZES.max_tokens)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert all(tokenizer.tokenize(word) == [f"{word}</w>"] for word in words())
    captions = [draw_picture(number, 16)[1] for number in range(demo.NUM_PICTURES)]
    captions += [draw_animal(16, random.Random(seed))[1] for seed in range(50)]
    for caption in captions:
        tokens = tokenizer.tokenize(caption)
        assert len(tokens) <= SIZES.max_tokens - 2
        known = {f"{word}</w>" for word in words()} | {",</w>", "-</w>", "z", "u", "u</w>"}
        assert set(tokens) <= known, caption


def test_an_untrained_autoencoder_keeps_the_average_colour_of_each_square(tmp_path: Path) -> None:
    vae = tiny_pipeline(tmp_path, 0, SIZES).vae
    start_as_thumbnail(vae)
    picture, _ = draw_animal(64, random.Random(1))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    small = torch.nn.functional.avg_pool2d(pixels, 4)
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean
        decoded = vae.decode(latents).sample
    assert (latents[:, :3] - small).abs().mean() < 0.05
    assert (decoded - torch.nn.functional.interpolate(small, scale_factor=4)).abs().mean() < 0.05


@pytest.mark.parametrize("shape", [(2, 8, 40), (1, 40, 8), (3, 6, 6)])
def test_orthogonal_keeps_the_directions_and_evens_the_strengths(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(shape[0], shape[1], min(shape[1:]), generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(shape[0], shape[2], min(shape[1:]), generator=generator, dtype=torch.float64))[0]
    strengths = torch.linspace(0.2, 3.0, min(shape[1:]), dtype=torch.float64)
    inner = u.mT @ orthogonal(u * strengths @ v.mT) @ v
    even = torch.diagonal(inner, dim1=1, dim2=2)
    assert even.min() > 0.6 and even.max() < 1.3
    assert (inner - torch.diag_embed(even)).abs().max() < 1e-12


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
