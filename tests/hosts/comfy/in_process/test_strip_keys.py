"""What tells the cells of a strip apart in ComfyUI: every bit that a picture depends on, and nothing else."""

import os

import pytest
import torch

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH names no ComfyUI", allow_module_level=True)

import importlib.util
from pathlib import Path

from sd_atelier.nodes.painting import ComfyPainter

spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)


def settings(family, change=lambda clip: None, pooled=0.0):
    """What a painter says that its pictures depend on, of models made anew."""
    with torch.inference_mode():
        model, clip = tiny_models.model(family), tiny_models.clip()
        change(clip)
        positive = [[torch.ones(1, 77, 8), {"pooled_output": torch.full((1, 8), pooled)}]]
        options = {"sampler_name": "euler", "scheduler": "normal", "positive": positive, "negative": None}
        return ComfyPainter(model, clip, tiny_models.vae(), on_step=lambda step: None, **options).settings


def fill_projection(clip):
    """As the memory happens to be that a file without this weight leaves there."""
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.fill_(3.0)


def change_embedding(clip):
    clip.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight[5, 5] += 1e-3


def test_models_that_are_loaded_again_have_the_same_keys():
    assert settings("sd1") == settings("sd1")
    assert settings("sd1") != settings("sd1", change_embedding)


def test_a_pooled_output_that_the_model_never_sees_is_not_in_the_keys():
    assert settings("sd1") == settings("sd1", fill_projection, pooled=2.0)


def test_a_pooled_output_that_the_model_sees_is_in_the_keys():
    assert settings("flux") != settings("flux", fill_projection)
    assert settings("flux") != settings("flux", pooled=2.0)
