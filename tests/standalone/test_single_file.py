"""A single-file checkpoint equals the folder that it was made from; what is no whole model is refused in words.

diffusers reads the original layout but cannot write it, so the names are written down here once more, the other way.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sd_atelier.lib.config import RunConfig, from_dict
from sd_atelier.lib.host import SampleRequest
from sd_atelier.lib.preparation import base_of, start
from sd_atelier.lib.standalone.demo.model import write_tokenizer
from sd_atelier.lib.standalone.host import StandaloneHost
from sd_atelier.lib.standalone.pipeline import load_pipeline

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


def text_tensors(state: dict[str, torch.Tensor], num_layers: int) -> dict[str, torch.Tensor]:
    """Stable Diffusion 1.x keeps the names of transformers; its files hold things that are no weights, too."""
    others = {"embeddings.position_ids": torch.arange(77)[None]}
    return {TEXT + name: t for name, t in {**state, **others}.items()}


def open_clip_tensors(state: dict[str, torch.Tensor], num_layers: int) -> dict[str, torch.Tensor]:
    """Stable Diffusion 2.x has those of OpenCLIP, and one more layer, which is not used."""
    tensors = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": torch.eye(state["final_layer_norm.weight"].shape[0]),
    }
    for layer in range(num_layers + 1):
        source = f"encoder.layers.{min(layer, num_layers - 1)}."
        target = f"transformer.resblocks.{layer}."
        for end in ("weight", "bias"):
            qkv = [state[f"{source}self_attn.{letter}_proj.{end}"] for letter in "qkv"]
            tensors[f"{target}attn.in_proj_{end}"] = torch.cat(qkv)
            for ours, original in CLIP.items():
                tensors[f"{target}{original}.{end}"] = state[f"{source}{ours}.{end}"]
    return {f"cond_stage_model.model.{name}": t for name, t in tensors.items()}


def original_layout(pipeline, text) -> dict[str, torch.Tensor]:
    unet, vae, encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    tensors = {"betas": torch.zeros(1000), "model_ema.decay": torch.zeros(())}
    for name, tensor in unet.state_dict().items():
        tensors[UNET + unet_name(name, unet.config)] = tensor
    for name, tensor in vae.state_dict().items():
        key = vae_name(name, len(vae.config.block_out_channels))
        attention = re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight", key)
        tensors[VAE + key] = tensor[..., None, None] if attention else tensor
    state = {name.removeprefix("text_model."): t for name, t in encoder.state_dict().items()}
    tensors |= text(state, encoder.config.num_hidden_layers)
    return {name: t.clone().contiguous() for name, t in tensors.items()}


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
