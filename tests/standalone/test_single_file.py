"""A single-file checkpoint equals the folder that it was made from; what is no whole model is refused in words."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from original_layout import TEXT, UNET, VAE, open_clip_tensors, original_layout, text_tensors
from PIL import Image
from safetensors.torch import load_file, save_file
from sd_atelier.lib.config import RunConfig, from_dict
from sd_atelier.lib.host import SampleRequest
from sd_atelier.lib.preparation import base_of, start
from sd_atelier.lib.standalone.demo.model import write_tokenizer
from sd_atelier.lib.standalone.host import StandaloneHost
from sd_atelier.lib.standalone.pipeline import load_pipeline


def small_pipeline(folder: Path, version: int):
    """A pipeline with the head counts that a file of this version implies, since no shape tells them."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    num_tokens = write_tokenizer(folder / "tokenizer")
    width = 64 if version == 1 else 1024
    channels = (32, 64, 64) if version == 1 else (64, 128, 128)
    torch.manual_seed(version)
    unet = UNet2DConditionModel(
        sample_size=64 if version == 1 else 96,
        block_out_channels=channels,
        layers_per_block=2,
        cross_attention_dim=width,
        attention_head_dim=8 if version == 1 else tuple(c // 64 for c in channels),
        use_linear_projection=version == 2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=num_tokens,
            hidden_size=width,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=width // 64,
            hidden_act="quick_gelu" if version == 1 else "gelu",
            bos_token_id=num_tokens - 2,
            eos_token_id=num_tokens - 1,
        )
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    if version == 2:
        tokenizer.pad_token = "!"  # as in the folder that Stable Diffusion 2 was published in
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon" if version == 1 else "v_prediction",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module", params=[1, 2], ids=["SD 1.x", "SD 2.x"])
def both(request, tmp_path_factory):
    """The same model as a folder and as a single file, each loaded as the command line loads it."""
    folder = tmp_path_factory.mktemp("both")
    small_pipeline(folder, request.param).save_pretrained(folder)
    prediction = "epsilon" if request.param == 1 else "v"
    pipeline, _ = load_pipeline(folder, dtype=torch.float32)
    file = folder / "model.safetensors"
    save_file(original_layout(pipeline, text_tensors if request.param == 1 else open_clip_tensors), file)
    other, info = load_pipeline(file, dtype=torch.float32, tokenizer=folder / "tokenizer", prediction=prediction)
    assert info["name"] == "model" and len(info["sha256"]) == 64
    return tuple(StandaloneHost(p, model_info={}, device=torch.device("cpu")) for p in (pipeline, other))


def test_every_weight_is_the_folders(both):
    of_folder, of_file = both
    for part in ("unet", "te"):
        expected, got = of_folder.parts[part].state_dict(), of_file.parts[part].state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(t, got[name]) for name, t in expected.items())
    assert base_of(of_folder) == base_of(of_file)
    assert (of_folder.family, of_folder.prediction) == (of_file.family, of_file.prediction)
    assert torch.equal(of_folder.alphas_cumprod, of_file.alphas_cumprod)


def test_a_picture_sampled_from_the_file_is_the_folders(both):
    request = SampleRequest(prompt="a toy, night", negative_prompt="red", steps=2, seed=3, width=64, height=32)
    expected, got = (np.asarray(host.sampler(request)) for host in both)
    assert expected.std() > 0
    assert np.array_equal(expected, got)


def test_a_step_trained_on_the_file_is_the_folders(both, tmp_path):
    (tmp_path / "toys").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "toys" / "a.png")
    (tmp_path / "toys" / "a.txt").write_text("a toy")
    settings = {
        "data": {"concepts": [{"folder": str(tmp_path / "toys")}], "resolution": 32, "bucket_step": 16},
        "trainable": {"rank": 2, "text_encoder": True},
        "loop": {"steps": 2},
        "save": {"dtype": "fp32"},
    }
    settings["data"]["bucket_min_px"] = 32
    networks = []
    for host in both:
        with start(host, from_dict(RunConfig, settings), tmp_path) as prepared:
            assert prepared.trainer.train().step == 2
        networks.append(load_file(prepared.run.checkpoints.networks()[2]))
    assert networks[0].keys() == networks[1].keys()
    assert all(torch.equal(t, networks[1][name]) for name, t in networks[0].items())
    assert any(t.abs().max() > 0 for name, t in networks[0].items() if "lora_up" in name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The tensors of a whole checkpoint, and a folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return original_layout(small_pipeline(folder, 1), text_tensors), folder / "tokenizer"


def refusal(path: Path, tokenizer: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_pipeline(path, dtype=torch.float32, tokenizer=tokenizer)
    assert str(path) in str(caught.value) or str(tokenizer) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("lacking", "what"),
    [
        (UNET, "holds no U-Net"),
        (VAE, "holds no autoencoder"),
        (TEXT, "holds no text encoder"),
        (UNET + "out.2.weight", "incomplete: model.diffusion_model.out.2.weight is missing"),
        (UNET + "output_blocks.0.0.in_layers.2.weight", "incomplete: its U-Net lacks"),
        (UNET + "input_blocks.1.1.", "incomplete: its U-Net lacks"),
        (VAE + "decoder.mid.attn_1.q.weight", "incomplete: its autoencoder lacks"),
        (TEXT + "final_layer_norm.bias", "incomplete: its text encoder lacks 64 of"),
    ],
)
def test_what_a_file_lacks_is_said_and_never_made_up(checkpoint, tmp_path, lacking, what):
    tensors, tokenizer = checkpoint
    path = tmp_path / "model.safetensors"
    save_file({name: t for name, t in tensors.items() if not name.startswith(lacking)}, path)
    assert what in refusal(path, tokenizer)


@pytest.mark.parametrize("files", [[], ["merges.txt"], ["vocab.json"]])
def test_a_missing_tokenizer_is_said_with_the_way_out(checkpoint, tmp_path, files):
    tensors, tokenizer = checkpoint
    path, folder = tmp_path / "model.safetensors", tmp_path / "tokenizer"
    save_file(tensors, path)
    folder.mkdir()
    for name in files:
        shutil.copy(tokenizer / name, folder)
    assert "--tokenizer" in refusal(path, folder)


def test_a_tokenizer_of_its_two_files_alone_is_enough(checkpoint, tmp_path):
    tensors, tokenizer = checkpoint
    path, folder = tmp_path / "model.safetensors", tmp_path / "tokenizer"
    save_file(tensors, path)
    folder.mkdir()
    for name in ("merges.txt", "vocab.json"):
        shutil.copy(tokenizer / name, folder)
    texts = []
    for source in (tokenizer, folder):
        pipeline, _ = load_pipeline(path, dtype=torch.float32, tokenizer=source)
        host = StandaloneHost(pipeline, model_info={}, device=torch.device("cpu"))
        with torch.no_grad():
            texts.append(host.text.encode(["a toy, " * 16, "night"])["text"])
    assert texts[0].shape[1] == 2 * 77
    assert torch.equal(*texts)


def test_an_inpainting_model_is_refused(checkpoint, tmp_path):
    tensors, tokenizer = checkpoint
    path, name = tmp_path / "model.safetensors", UNET + "input_blocks.0.0.weight"
    save_file({**tensors, name: torch.zeros(32, 9, 3, 3)}, path)
    assert "takes 9 channels" in refusal(path, tokenizer)


def test_what_is_no_checkpoint_is_refused_in_words(checkpoint, tmp_path):
    _, tokenizer = checkpoint
    (tmp_path / "model.ckpt").write_bytes(b"PK")
    (tmp_path / "text.safetensors").write_bytes(b"not a model")
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    (tmp_path / "folder").mkdir()
    for name, what in (
        ("model.ckpt", "can run code"),
        ("text.safetensors", "cannot be read as safetensors"),
        ("lora.safetensors", "holds no U-Net"),
        ("folder", "is not a diffusers folder"),
        ("absent.safetensors", "does not exist"),
    ):
        assert what in refusal(tmp_path / name, tokenizer)


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_folder_that_lacks_a_tensor_is_refused(folder, part):
    path = folder / part / WEIGHTS[part]
    tensors = load_file(path)
    lost = next(name for name in sorted(tensors) if name.endswith("norm1.weight"))
    save_file({name: t for name, t in tensors.items() if name != lost}, path, {"format": "pt"})
    assert f"{part} is incomplete: it lacks {tensors[lost].numel()} of" in refusal(folder, folder / "tokenizer")


@pytest.mark.parametrize("part", WEIGHTS)
def test_pickled_weights_are_not_read(folder, part):
    path = folder / part / WEIGHTS[part]
    pickled = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(path), path.with_name(pickled))
    path.unlink()
    assert "cannot be loaded" in refusal(folder, folder / "tokenizer")
