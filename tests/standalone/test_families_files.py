"""A single file of Stable Diffusion XL, 3 or Flux equals its folder, with what it lacks from elsewhere or said."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_layout import encoder_tensors, flux_transformer, sd3_transformer, sdxl_layout, vae_tensors
from safetensors.torch import load_file, save_file
from sd_atelier.lib.host import SampleRequest
from sd_atelier.lib.preparation import base_of
from sd_atelier.lib.standalone.host import StandaloneHost
from sd_atelier.lib.standalone.pipeline import load_pipeline
from sd_atelier.lib.standalone.sources import Sources
from tiny_families import FAMILIES, FAMILY

PREFIX = "model.diffusion_model."
SD3_ENCODERS = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
FLUX_ENCODERS = {"text_encoder": SD3_ENCODERS["text_encoder"], "text_encoder_2": SD3_ENCODERS["text_encoder_3"]}


@dataclass
class Model:
    """A model as a folder, loaded, and where tokenizers and single parts of it lie."""

    folder: Path
    pipeline: Any

    def sources(self, **more: Any) -> Sources:
        return Sources(tokenizer=self.folder / "clip", t5_tokenizer=self.folder / "t5", **more)

    def transformer(self, prefix: str = PREFIX) -> dict[str, torch.Tensor]:
        write = sd3_transformer if "SD3" in type(self.pipeline.transformer).__name__ else flux_transformer
        return write(self.pipeline.transformer, prefix)

    def whole(self) -> dict[str, torch.Tensor]:
        """All but the tokenizers in one file."""
        if hasattr(self.pipeline, "unet"):
            return sdxl_layout(self.pipeline)
        sd3 = hasattr(self.pipeline, "text_encoder_3")
        encoders = encoder_tensors(self.pipeline, SD3_ENCODERS if sd3 else FLUX_ENCODERS)
        return {
            **self.transformer(),
            **encoders,
            **vae_tensors(self.pipeline.vae, "first_stage_model." if sd3 else "vae."),
        }


@pytest.fixture
def model(family_model):
    def of(name: str) -> Model:
        folder = family_model(name)
        return Model(folder, load_pipeline(folder, dtype=torch.float32)[0])

    return of


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    # T5 has one table under two names
    save_file({name: t.clone().contiguous() for name, t in tensors.items()}, path)
    return path


def hosts(model: Model, path: Path, **options: Any) -> tuple[StandaloneHost, StandaloneHost]:
    pipeline, _ = load_pipeline(path, dtype=torch.float32, **options)
    return tuple(StandaloneHost(p, model_info={}, device=torch.device("cpu")) for p in (model.pipeline, pipeline))


def assert_equal(of_folder: StandaloneHost, of_file: StandaloneHost) -> None:
    """The same weights, the same conditioning and the same picture."""
    for part in of_folder.parts.keys() | of_file.parts.keys():
        expected, got = of_folder.parts[part].state_dict(), of_file.parts[part].state_dict()
        assert expected.keys() == got.keys()
        assert [name for name, t in expected.items() if not torch.equal(t, got[name])] == []
    assert base_of(of_folder) == base_of(of_file)
    for name in ("family", "prediction"):
        assert getattr(of_folder, name) == getattr(of_file, name)
    if of_folder.alphas_cumprod is not None:
        assert torch.equal(of_folder.alphas_cumprod, of_file.alphas_cumprod)
    request = SampleRequest(prompt="a toy, night", negative_prompt="red", steps=2, seed=3, width=96, height=64)
    expected, got = (np.asarray(host.sampler(request)) for host in (of_folder, of_file))
    assert expected.std() > 0
    assert np.array_equal(expected, got)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_file_is_the_folder(name, model, tmp_path):
    own = model(name)
    tensors = own.whole()
    if name == "sdxl-v":
        tensors |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    assert_equal(*hosts(own, saved(tmp_path / "model.safetensors", tensors), sources=own.sources()))


@pytest.mark.parametrize("prefix", [PREFIX, ""])
@pytest.mark.parametrize("name", ["sd3.5-medium", "flux-dev"])
def test_a_transformer_alone_is_the_folder_with_the_parts_of_another_folder(name, prefix, model, tmp_path):
    own = model(name)
    path = saved(tmp_path / "model.safetensors", own.transformer(prefix))
    assert_equal(*hosts(own, path, sources=Sources(parts=own.folder)))


@pytest.mark.parametrize("name", ["sd3", "flux-schnell"])
def test_a_transformer_alone_is_the_folder_with_parts_from_files_of_their_own(name, model, tmp_path):
    own = model(name)
    path = saved(tmp_path / "model.safetensors", own.transformer(""))
    places = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
    if FAMILY[name] == "flux":
        places = {"clip_l": "text_encoder", "t5": "text_encoder_2"}
    files = {
        role: saved(tmp_path / f"{role}.safetensors", encoder_tensors(own.pipeline, {part: ""}))
        for role, part in places.items()
    }
    files["vae"] = saved(tmp_path / "ae.safetensors", vae_tensors(own.pipeline.vae, ""))
    assert_equal(*hosts(own, path, sources=own.sources(**files)))


def test_weights_of_another_type_are_read_in_the_type_that_is_asked_for(model, tmp_path):
    own = model("flux-dev")
    tensors = {name: t.to(torch.float8_e4m3fn) for name, t in own.transformer().items()}
    path = saved(tmp_path / "model.safetensors", tensors)
    pipeline, _ = load_pipeline(path, dtype=torch.bfloat16, sources=Sources(parts=own.folder))
    expected = own.pipeline.transformer.x_embedder.weight.to(torch.float8_e4m3fn).to(torch.bfloat16)
    assert torch.equal(pipeline.transformer.x_embedder.weight, expected)
    assert pipeline.text_encoder_2.shared.weight.dtype == torch.bfloat16
    assert pipeline.vae.dtype == torch.float32


def refusal(path: Path, sources: Sources) -> str:
    with pytest.raises(ValueError) as caught:
        load_pipeline(path, dtype=torch.float32, sources=sources)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "lacking", "what"),
    [
        ("sd3", "text_encoders.clip_l.", "--clip-l"),
        ("sd3", "text_encoders.clip_g.", "--clip-g"),
        ("sd3", "text_encoders.t5xxl.", "--no-t5"),
        ("flux-dev", "text_encoders.t5xxl.", "--t5 "),
        ("flux-dev", "vae.", "--vae"),
        ("sd3", PREFIX + "joint_blocks.1.x_block.attn.qkv.weight", "incomplete"),
        ("sd3", PREFIX + "pos_embed", "pos_embed is missing"),
        ("flux-dev", PREFIX + "single_blocks.0.linear2.bias", "its transformer lacks 64 of"),
        ("flux-dev", PREFIX + "vector_in.in_layer.weight", "vector_in.in_layer.weight is missing"),
        ("flux-dev", "text_encoders.clip_l.transformer.text_model.final_layer_norm.bias", "lacks"),
        ("flux-dev", "text_encoders.t5xxl.transformer.encoder.block.1.layer.0.SelfAttention.k", "lacks"),
        ("flux-dev", "vae.decoder.mid.attn_1.q.weight", "its autoencoder lacks"),
        ("sdxl", "conditioner.embedders.1.model.ln_final.bias", "its text encoder 2 lacks 128 of"),
        ("sdxl", "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "its text encoder lacks 64"),
    ],
)
def test_what_a_file_lacks_is_said_and_never_made_up(name, lacking, what, model, tmp_path):
    own = model(name)
    tensors = {key: t for key, t in own.whole().items() if not key.startswith(lacking)}
    text = refusal(saved(tmp_path / "model.safetensors", tensors), own.sources())
    assert what in text and "model.safetensors" in text


def test_what_is_no_plain_model_is_refused_in_words(model, tmp_path):
    flux = model("flux-dev")
    tensors = flux.transformer("")
    wide = {**tensors, "img_in.weight": torch.zeros(64, 384)}
    other = {**tensors, "distilled_guidance_layer.in_proj.weight": torch.zeros(4, 4)}
    scaled = {**tensors, "img_in.scale_weight": torch.ones(1)}
    for what, kind in (("takes 384 channels", wide), ("is no Flux", other), ("with scales", scaled)):
        assert what in refusal(saved(tmp_path / "model.safetensors", kind), Sources(parts=flux.folder))
    refiner = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}
    refiner |= {"first_stage_model.encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)}
    refiner |= {"conditioner.embedders.0.model.ln_final.bias": torch.zeros(4)}
    assert "refiner" in refusal(saved(tmp_path / "model.safetensors", refiner), Sources())


def test_stable_diffusion_3_goes_without_t5_where_asked(model, tmp_path):
    own = model("sd3")
    tensors = {key: t for key, t in own.whole().items() if "t5xxl" not in key}
    path = saved(tmp_path / "model.safetensors", tensors)
    lengths = []
    for place in (path, own.folder):
        pipeline, _ = load_pipeline(place, dtype=torch.float32, sources=own.sources(without_t5=True))
        host = StandaloneHost(pipeline, model_info={}, device=torch.device("cpu"))
        assert host.parts.keys() == {"unet", "te1", "te2"}
        lengths.append(host.text.encode(["a toy"])["text"].shape[1])
    assert lengths == [77, 77]
    assert "only Stable Diffusion 3" in refusal(model("flux-dev").folder, Sources(without_t5=True))


@pytest.mark.parametrize(
    ("name", "part"), [("sdxl", "text_encoder_2"), ("sd3", "text_encoder_3"), ("flux-dev", "transformer")]
)
def test_a_folder_that_lacks_a_tensor_is_refused(name, part, model, tmp_path):
    folder = shutil.copytree(model(name).folder, tmp_path / "model")
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    lost = next(key for key in sorted(tensors) if key.endswith(("fc1.weight", "wi_0.weight", "proj_mlp.weight")))
    save_file({key: t for key, t in tensors.items() if key != lost}, path, {"format": "pt"})
    assert f"{part} is incomplete: it lacks {tensors[lost].numel():,} of" in refusal(folder, Sources())
