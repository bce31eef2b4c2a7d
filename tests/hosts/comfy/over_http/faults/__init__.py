"""Nodes that tests use beside the pack's own: what a model hashes to, what the server's tensors take, and a model that
fails when it is told to."""

import gc
import hashlib
from collections import Counter

import torch


class HashOf:
    """SHA-256 of every tensor of a model, its text encoder and its autoencoder, and the bytes they take."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        optional = {"clip": ("CLIP",), "vae": ("VAE",), "after": ("*",)}
        return {"required": {"model": ("MODEL",), "salt": ("INT", {"default": 0})}, "optional": optional}

    def run(self, model, salt, clip=None, vae=None, after=None):
        roots = (
            [model.model] + [clip.cond_stage_model] * (clip is not None) + [vae.first_stage_model] * (vae is not None)
        )
        digest, num_bytes = hashlib.sha256(), 0
        for root in roots:
            for name, tensor in root.state_dict().items():
                digest.update(name.encode())
                flat = tensor.detach().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
                num_bytes += flat.numel() * flat.element_size()
            for module in root.modules():
                digest.update(str(("forward" in vars(module), module.training)).encode())
            for parameter in root.parameters():
                digest.update(str((parameter.requires_grad, parameter.grad is None, parameter.is_inference())).encode())
        return {"ui": {"hash": [digest.hexdigest()], "num_bytes": [num_bytes]}}


class LiveTensors:
    """The bytes of all tensors that live in the server, memory that several share counted once; by shape too."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        kept = {"model": ("MODEL",), "clip": ("CLIP",), "vae": ("VAE",)}
        return {"required": {}, "optional": kept}

    @classmethod
    def IS_CHANGED(cls, **kwargs):
        return float("nan")

    def run(self, **kept):
        gc.collect()
        memory, shapes = {}, Counter()
        for thing in gc.get_objects():
            # not isinstance, which asks proxies of all kinds what they are
            if not issubclass(type(thing), torch.Tensor) or thing.device.type == "meta":
                continue
            storage = thing.untyped_storage()
            if storage.data_ptr() not in memory:
                memory[storage.data_ptr()] = storage.nbytes()
                shapes[f"{tuple(thing.shape)} {thing.dtype}"] += 1
        return {"ui": {"num_bytes": [sum(memory.values())], "shapes": [dict(shapes)]}}


class Failing:
    """The model; in its n-th call from now on it raises, as an error in the middle or as memory that ran out."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "run"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        kinds = ["error", "out of memory"]
        return {"required": {"model": ("MODEL",), "call": ("INT", {"default": 3}), "kind": (kinds,)}}

    @classmethod
    def IS_CHANGED(cls, **kwargs):
        return float("nan")

    def run(self, model, call, kind):
        num_calls = 0

        def wrapper(apply_model, given):
            nonlocal num_calls
            num_calls += 1
            if num_calls == call:
                if kind == "error":
                    raise RuntimeError("the model broke, as it was told to")
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB, as it was told to")
            return apply_model(given["input"], given["timestep"], **given["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return (model,)


NODE_CLASS_MAPPINGS = {"AtelierTestHash": HashOf, "AtelierTestLive": LiveTensors, "AtelierTestFailing": Failing}
