"""The file that a run saves, in diffusers: every key finds its layer, and the output is that of the live network."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sd_atelier.lib.config import RunConfig, from_dict
from sd_atelier.lib.frozen import attached
from sd_atelier.lib.preparation import start

CAPTIONS = ["a toy on a table", "night"]
TRAINABLES = {
    "attention": {"layers": "attention"},
    "kohya": {"layers": "kohya"},
    "text encoder": {"layers": "kohya", "text_encoder": True},
    "everything": {"layers": "all", "conv_rank": 3, "conv_alpha": 5.0, "text_encoder": True},
    "rank stabilised": {"rank_stabilized": True},
    "ranks by rule": {
        "text_encoder": True,
        "rules": [{"layers": "*_attn2_*", "rank": 7}, {"layers": "lora_te_*_mlp_*", "rank": 2}],
    },
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(CAPTIONS[number])
    return folder


class Warnings(logging.Handler):
    """What the libraries warn of while it is in place."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> Warnings:
        self._before = {
            logging.getLogger(name): logging.getLogger(name).level for name in ("diffusers", "transformers")
        }
        for logger in self._before:
            logger.addHandler(self)
            logger.setLevel(logging.WARNING)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for logger, level in self._before.items():
            logger.removeHandler(self)
            logger.setLevel(level)


@pytest.mark.parametrize("name", TRAINABLES)
def test_diffusers_loads_every_key_and_gives_the_live_output(name, tiny_model, make_host, pictures, tmp_path) -> None:
    from diffusers import StableDiffusionPipeline
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = from_dict(
        RunConfig,
        {
            "data": {"concepts": [{"folder": str(pictures)}], "resolution": 32, "bucket_step": 16, "bucket_min_px": 32},
            "trainable": {"rank": 4, "alpha": 3.0, **TRAINABLES[name]},
            "rate": {"schedule": "2e-2"},
            "loop": {"steps": 4},
            "save": {"dtype": "fp32"},
        },
    )
    host = make_host()
    x_t = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([37, 811])
    with start(host, config, tmp_path) as prepared:
        assert prepared.trainer.train().step == 4
        path = prepared.run.checkpoints.networks()[4]
        lora = prepared.trainer.trainable
        with torch.no_grad():
            base = host.denoiser(x_t, t, host.text.encode(CAPTIONS))
            with attached(host.parts.values(), branch_of=lora.branch_of):
                live_text = host.text.encode(CAPTIONS)["text"]
                live = host.denoiser(x_t, t, {"text": live_text})

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    with Warnings() as warnings:
        pipeline.load_lora_weights(path)
    assert not [w for w in warnings.texts if "No LoRA keys associated to CLIPTextModel" not in w]

    file = load_file(path)
    scales = {key: file[f"{key}.alpha"].item() / file[f"{key}.lora_down.weight"].shape[0] for key in names_of(file)}
    loaded = {}
    for prefix, root in (("lora_unet_", pipeline.unet), ("lora_te_text_model_", pipeline.text_encoder)):
        for layer_name, layer in root.named_modules():
            if isinstance(layer, BaseTunerLayer):
                key = prefix + layer_name.removeprefix("text_model.").replace(".", "_")
                loaded[key] = layer.scaling["default_0"]
                assert torch.equal(layer.lora_A["default_0"].weight, file[f"{key}.lora_down.weight"])
                assert torch.equal(layer.lora_B["default_0"].weight, file[f"{key}.lora_up.weight"])
    assert loaded == pytest.approx(scales, rel=1e-6)

    with torch.no_grad():
        tokens = pipeline.tokenizer(CAPTIONS, padding="max_length", return_tensors="pt").input_ids
        text = pipeline.text_encoder(tokens).last_hidden_state
        output = pipeline.unet(x_t, t, encoder_hidden_states=text).sample
    size = live.abs().max()
    assert (live - base).abs().max() > 1e-2 * size, "the network must matter for its output to be compared"
    assert (text - live_text).abs().max() < 1e-5 * live_text.abs().max()
    assert (output - live).abs().max() < 1e-5 * size


def names_of(file) -> list[str]:
    names = [key.removesuffix(".lora_down.weight") for key in file if key.endswith(".lora_down.weight")]
    assert len(file) == 3 * len(names)
    return names
