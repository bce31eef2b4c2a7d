"""After training, however it ended, ComfyUI's model is as it was."""

import gc
import hashlib
import os

import pytest
import torch

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH names no ComfyUI", allow_module_level=True)

import importlib.util
from pathlib import Path

import comfy.model_management
import comfy.sample
from sd_atelier.lib.config import RunConfig, from_dict
from sd_atelier.lib.preparation import start
from sd_atelier.nodes.host import ComfyHost

spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)


def picture(model, clip, vae):
    """A picture by ComfyUI's own sampler, as a graph makes it."""
    with torch.inference_mode():
        prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a (cat:1.2)"))
        latents = torch.zeros(1, 4, 8, 8)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        sampled = comfy.sample.sample(
            model, noise, 2, 4.0, "euler", "normal", prompt, prompt, latents, disable_pbar=True, seed=1
        )
        return vae.decode(sampled).numpy().tobytes()


def live_bytes():
    """Of all tensors, each storage once."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def state(model, clip, vae):
    """Everything about the models and ComfyUI that training could change."""
    found = {
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "in_training": getattr(comfy.model_management, "in_training", None),
        "patcher": model.model.current_patcher,
        "options": repr(model.model_options),
        "sampling": sorted(vars(model.model.model_sampling)),
        "tokenizer": clip.tokenizer.clip_l.embedding_directory,
        "random": torch.random.get_rng_state().numpy().tobytes(),
        "rope": comfy.ldm.flux.math.apply_rope,
    }
    for part, root in (("model", model.model), ("clip", clip.cond_stage_model), ("vae", vae.first_stage_model)):
        for name, module in root.named_modules():
            hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            found[f"{part} {name}"] = (module.training, "forward" in vars(module), [len(h) for h in hooks])
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            bits = hashlib.sha256(
                tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            ).hexdigest()
            found[f"{part} {name}"] = (id(tensor), tensor.is_inference(), tensor.requires_grad, tensor.grad, bits)
    return found


class ReachedError(Exception):
    pass


def interrupt(progress):
    if progress.step == 2:
        comfy.model_management.interrupt_current_processing(True)


def fail(progress):
    if progress.step == 2:
        raise ReachedError


def stopping(host):
    def stop(progress):
        if progress.step == 2:
            host.control.stop()

    return stop


class RunsOut:
    """`weight_of` that finds no memory at its n-th call of training."""

    def __init__(self, weight_of, at):
        self.weight_of, self.calls, self.at = weight_of, 0, at

    def __call__(self, layer):
        self.calls += 1
        if self.calls == self.at:
            raise torch.cuda.OutOfMemoryError("injected")
        return self.weight_of(layer)


ENDS = ("finished", "stopped", "interrupted", "error", "memory early", "memory late")


@pytest.fixture(scope="module")
def models():
    import kornia  # noqa: F401 - it keeps tables of its own, and the first strip of previews imports it

    with torch.inference_mode():
        return tiny_models.model("sd1"), tiny_models.clip(), tiny_models.vae()


def test_a_model_that_wants_a_picture_is_refused_before_anything_is_encoded(models, monkeypatch):
    model, clip, vae = models
    monkeypatch.setattr(model.model, "concat_keys", ("mask", "masked_image"))  # as ComfyUI marks inpainting models
    with pytest.raises(ValueError, match="a picture beside the noise"):
        ComfyHost(model, clip, vae)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("text_encoder, checkpointing", [(False, False), (False, True), (True, False)])
def test_the_model_is_as_it_was(end, text_encoder, checkpointing, models, tmp_path):
    model, clip, vae = models
    expected = picture(model, clip, vae)
    before, bytes_before = state(model, clip, vae), live_bytes()
    on_progress = {"interrupted": interrupt, "error": fail}.get(end, lambda progress: None)
    config = {
        "name": "run",
        "data": {"concepts": [{"folder": str(tiny_models.pictures(tmp_path / "data"))}], "resolution": 64},
        "loop": {"steps": 4, "block_checkpointing": checkpointing},
        "trainable": {"rank": 2, "text_encoder": text_encoder, "layers": "all"},
        "record": {"probe_every_steps": 2, "probe_images": 1, "probe_timesteps": 2},
        "preview": {"prompts": ["noise"], "every_steps": 2, "steps": 1, "width": 64, "height": 64},
    }
    config["data"]["bucket_min_px"] = 64
    raised = None
    with torch.inference_mode():
        host = ComfyHost(model, clip, vae, train_text=text_encoder, on_progress=on_progress)
        if end == "stopped":
            host._on_progress = stopping(host)
        try:
            with start(host, from_dict(RunConfig, config), tmp_path / "runs") as prepared:
                if end.startswith("memory"):
                    host.weight_of = RunsOut(host.weight_of, 30 if end == "memory early" else 1500)
                assert prepared.trainer.train().reason == {"stopped": "stopped"}.get(end, "finished")
        except BaseException as error:  # noqa: BLE001 - ComfyUI's interrupt is none of Exception
            raised = type(error).__name__
            del error
        del host, prepared, on_progress
    assert raised == {
        "interrupted": "InterruptProcessingException",
        "error": "ReachedError",
        "memory early": "OutOfMemoryError",
        "memory late": "OutOfMemoryError",
    }.get(end)
    after = state(model, clip, vae)
    assert {name for name in before if before[name] != after.get(name)} == set()
    assert before.keys() == after.keys()
    assert picture(model, clip, vae) == expected
    assert live_bytes() <= bytes_before
