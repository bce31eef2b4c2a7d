"""ComfyUI's text encoders through the core's face."""

import os

import pytest
import torch

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH names no ComfyUI", allow_module_level=True)

import importlib.util
from pathlib import Path

from sd_atelier.lib.config import TrainableConfig
from sd_atelier.lib.frozen import attached
from sd_atelier.lib.trainables.lora import Lora
from sd_atelier.nodes.host import ComfyHost

spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)

STEP = 2e-3  # of the finite differences
LONG = " ".join(f"word{i}" for i in range(40))
PLAIN = ["", "a cat", "a cat, sitting; on a mat.", LONG]


@pytest.fixture(scope="module")
def models():
    with torch.inference_mode():
        return tiny_models.model("sd1"), tiny_models.clip()


def hosted(models, **options):
    with torch.inference_mode():
        return ComfyHost(*models, **options)


def core(clip, text):
    """What CLIPTextEncode gives."""
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]


@pytest.mark.parametrize("skip", [None, 2])
@pytest.mark.parametrize("caption", PLAIN)
def test_plain_text_is_encoded_as_the_hosts_own_node_does(caption, skip, models):
    text = hosted(models, clip_skip=skip).text
    clip = models[1].clone()
    if skip:
        clip.clip_layer(-skip)
    expected, facts = core(clip, caption)
    encoded = text.encode([caption])
    assert torch.equal(encoded["text"], expected)
    assert torch.equal(encoded["pooled"], facts["pooled_output"])
    assert not encoded["text"].is_inference()


@pytest.mark.parametrize(
    "caption, escaped",
    [
        ("toy (plush:1.4)", "toy \\(plush:1.4\\)"),
        ("((a)) (b", "\\(\\(a\\)\\) \\(b"),
        (r"saber \(fate\)", "saber \\\\(fate\\\\)"),
    ],
)
def test_captions_are_literal(caption, escaped, models):
    clip = models[1]
    text = hosted(models).text
    ids = clip.tokenizer.clip_l.tokenizer(caption)["input_ids"][1:-1]
    (chunk,) = text.tokens(caption)["l"]
    assert [token for token, _ in chunk][1 : len(ids) + 1] == ids
    assert {weight for _, weight in chunk} == {1.0}
    assert text.num_tokens(caption) == len(ids)
    assert torch.equal(text.encode([caption])["text"], core(clip, escaped)[0])


def test_names_of_embeddings_are_text(models, tmp_path):
    clip = models[1]
    before = clip.tokenizer.clip_l.embedding_directory
    (tmp_path / "style.pt").write_bytes(b"")
    clip.tokenizer.clip_l.embedding_directory = [str(tmp_path)]
    try:
        text = hosted(models).text
        assert text.num_tokens("a embedding:style b") == text.num_tokens("a embedding: style b") > 3
        assert clip.tokenizer.clip_l.embedding_directory == [str(tmp_path)]
    finally:
        clip.tokenizer.clip_l.embedding_directory = before


def test_a_batch_is_continued_to_its_longest_by_the_empty_caption(models):
    text = hosted(models).text
    batch, alone = text.encode(["a cat", LONG]), text.encode(["a cat"])
    assert batch["text"].shape[1] == 2 * alone["text"].shape[1] == 154
    assert torch.equal(batch["text"][0], torch.cat([alone["text"][0], text.encode([""])["text"][0]]))
    assert torch.equal(batch["text"][1:], text.encode([LONG])["text"])


def test_captions_are_cut_after_the_chunks_that_are_allowed(models):
    assert hosted(models, max_token_chunks=1).text.encode([LONG])["text"].shape[1] == 77


def test_the_key_tells_what_changes_encodings(models):
    model, clip = models
    keys = [hosted(models).text.key, hosted(models, clip_skip=2).text.key, hosted(models, max_token_chunks=1).text.key]
    with torch.inference_mode():
        other = clip.clone()
        name = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
        other.add_patches({name: ("diff", (torch.full((768, 768), 0.01),))})
    keys.append(hosted((model, other)).text.key)
    assert hosted(models).text.key == keys[0]
    assert len(set(keys)) == 4


def test_gradients_reach_a_text_encoder_that_is_trained(models):
    """Against finite differences, through the denoiser."""
    host = hosted(models, train_text=True)
    trainable = Lora(TrainableConfig(rank=2, alpha=2.0, text_encoder=True), seed=3)
    trainable.prepare(host)
    parameters = trainable.parameters()
    generator = torch.Generator().manual_seed(4)
    direction = {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items() if "lora_te" in name}
    assert direction
    with torch.no_grad():
        for p in parameters.values():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    x_t = torch.randn(1, 4, 8, 8, generator=generator)

    def loss():
        conditioning = {**host.text.encode(["a cat"]), "sizes": torch.zeros(1, 6), "guidance": torch.ones(1)}
        return host.denoiser(x_t, torch.tensor([500]), conditioning).square().mean()

    with (
        host.training(torch.float32, False),
        attached(host.parts.values(), host.weight_of, trainable.branch_of, host.used),
    ):
        loss().backward()
        expected = sum((parameters[name].grad * d).sum().item() for name, d in direction.items())
        ends = []
        for step in (STEP, -STEP):
            with torch.no_grad():
                for name, d in direction.items():
                    parameters[name].add_(d, alpha=step)
                ends.append(loss().double().item())
                for name, d in direction.items():
                    parameters[name].add_(d, alpha=-step)
    assert (ends[0] - ends[1]) / (2 * STEP) == pytest.approx(expected, rel=0.02)


def test_an_encoder_that_nothing_is_trained_in_is_run_once(models):
    host = hosted(models, train_text=True)
    calls = []
    inner = models[1].cond_stage_model.clip_l.transformer.text_model.encoder
    handle = inner.register_forward_hook(lambda *given: calls.append(1))
    try:
        with host.training(torch.float32, False):
            first = host.text.encode(["a cat"])
            again = host.text.encode(["a cat"])
    finally:
        handle.remove()
    assert len(calls) == 1
    assert torch.equal(first["text"], again["text"])
