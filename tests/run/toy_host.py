"""A host in miniature: a U-Net, a text encoder and an autoencoder whose layers are named as those of Stable Diffusion.

A step takes some milliseconds. Tests reach into a run by `at`: it is called with the name of each phase that the core
passes through, and may raise, stop the run, or return a factor on the prediction.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sd_atelier.lib.control import Control
from sd_atelier.lib.fingerprint import fingerprint
from sd_atelier.lib.frozen import plain_weight, stays
from sd_atelier.lib.host import Conditioning, Progress, SampleRequest
from sd_atelier.lib.recompute import recomputed
from torch import Tensor, nn

CHANNELS, TEXT_WIDTH, WINDOW = 8, 8, 10
Phase = Callable[[str], "float | None"]


class Attention(nn.Module):
    def __init__(self, context: int = CHANNELS) -> None:
        super().__init__()
        self.to_q = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, CHANNELS, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(CHANNELS, CHANNELS)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out[0](torch.softmax(q @ k.transpose(-1, -2), -1) @ v)


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(CHANNELS) for _ in range(3))
        self.attn1, self.attn2 = Attention(), Attention(TEXT_WIDTH)
        self.ff = nn.Module()
        self.ff.net = nn.ModuleList([nn.Linear(CHANNELS, 2 * CHANNELS), nn.Identity(), nn.Linear(2 * CHANNELS, 8)])

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        rows = self.norm1(x)
        x = x + self.attn1(rows, rows)
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff.net[2](F.gelu(self.ff.net[0](self.norm3(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, CHANNELS)
        self.proj_in, self.proj_out = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock()])

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        rows = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        rows = self.transformer_blocks[0](rows, text)
        return x + self.proj_out(rows.transpose(1, 2).reshape(x.shape))


class Resnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.time_emb_proj = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(embedding)[:, :, None, None]


class Block(nn.Module):
    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet()])
        self.attentions = nn.ModuleList([Transformer()] if attends else [])

    def forward(self, x: Tensor, embedding: Tensor, text: Tensor) -> Tensor:
        x = self.resnets[0](x, embedding)
        for attention in self.attentions:
            x = attention(x, text)
        return x


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(4, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList([Block(True)]), nn.ModuleList([Block(False)])

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        angles = t.float()[:, None] * torch.logspace(0, -3, CHANNELS // 2)
        embedding = torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype)
        x = self.down_blocks[0](self.conv_in(x), embedding, text)
        return self.conv_out(self.up_blocks[0](x, embedding, text))


class TextLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(TEXT_WIDTH), nn.LayerNorm(TEXT_WIDTH)
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self.self_attn, name, nn.Linear(TEXT_WIDTH, TEXT_WIDTH))
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(TEXT_WIDTH, TEXT_WIDTH), nn.Linear(TEXT_WIDTH, TEXT_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows, own = self.layer_norm1(x), self.self_attn
        weights = torch.softmax(own.q_proj(rows) @ own.k_proj(rows).transpose(-1, -2), -1)
        x = x + own.out_proj(weights @ own.v_proj(rows))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.layer_norm2(x))))


class TextModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text_model = nn.Module()
        self.text_model.embedding = nn.Embedding(256, TEXT_WIDTH)
        self.text_model.encoder = nn.Module()
        self.text_model.encoder.layers = nn.ModuleList([TextLayer()])
        self.text_model.final_layer_norm = nn.LayerNorm(TEXT_WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.text_model.embedding(ids)
        return self.text_model.final_layer_norm(self.text_model.encoder.layers[0](x))


class ToyText:
    """One token a byte, in chunks of ten; longer captions are cut after three."""

    def __init__(self, encoder: TextModel) -> None:
        self._encoder = encoder

    @property
    def key(self) -> str:
        return hashlib.sha256(repr(fingerprint(self._encoder.state_dict().items())).encode()).hexdigest()

    def num_tokens(self, caption: str) -> int:
        return len(caption.encode())

    def encode(self, captions: Sequence[str]) -> Conditioning:
        ids = [list(c.encode()[: 3 * WINDOW]) for c in captions]
        length = max(1, *(-(-len(i) // WINDOW) for i in ids), 1) * WINDOW
        return {"text": self._encoder(torch.tensor([i + [0] * (length - len(i)) for i in ids]))}


class ToyAutoencoder:
    """Means over 8 x 8 pixels."""

    scale_px = 8
    key = "means over 8 x 8 pixels"

    def __init__(self) -> None:
        self._mix = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, -1]])

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        return torch.einsum("cr,brhw->bchw", self._mix, F.avg_pool2d(pictures.float(), 8))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3], scale_factor=8).clamp(-1, 1)


class _Backward(torch.autograd.Function):
    """Does nothing, and says when the backward pass begins."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Phase) -> Tensor:
        ctx.at = at
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.at("backward")
        return grad, None


class ToyHost:
    """A host on the CPU. It asks the run to stop once it has reached `stop_at`."""

    name = "toy"
    family = "sd1"
    prediction = "epsilon"
    weight_of = staticmethod(plain_weight)
    used = staticmethod(stays)

    def __init__(self, seed: int = 0, *, dtype: torch.dtype = torch.float32, stop_at: int | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet, encoder = Unet().to(dtype), TextModel()
        # as a host may have left them, so that putting them back is more than setting all to one value
        unet.train()
        unet.down_blocks.eval()
        unet.conv_in.requires_grad_(False)
        encoder.eval()
        encoder.text_model.embedding.requires_grad_(False)
        self.device = torch.device("cpu")
        self.compute_dtype = self._dtype = dtype
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
        self.parts: dict[str, nn.Module] = {"unet": unet, "te": encoder}
        self.text, self.autoencoder = ToyText(encoder), ToyAutoencoder()
        self.model_info = {"name": "toy.safetensors", "clip_skip": "1"}
        self.at: Phase = lambda phase: None
        self.stop_at = stop_at
        self.step = -1  # as last shown: the number of steps done
        self.shown: list[Progress] = []
        self.previews: list[tuple[int, SampleRequest]] = []
        self.control = Control()
        self._sampling = False

    @contextmanager
    def training(self, compute_dtype: torch.dtype, block_checkpointing: bool) -> Iterator[None]:
        modules = list(self.parts.values())
        wanted = [(p, p.requires_grad) for m in modules for p in m.parameters()]
        modes = [(m, m.training) for root in modules for m in root.modules()]
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.enable_grad())
                for module in modules:
                    module.eval().requires_grad_(False)
                self._dtype = compute_dtype
                if block_checkpointing:
                    stack.enter_context(recomputed([m for m in self.parts["unet"].modules() if isinstance(m, Block)]))
                yield
        finally:
            self._dtype = self.compute_dtype
            for parameter, flag in wanted:
                with torch.inference_mode(parameter.is_inference()):  # the only mode in which such a flag can be set
                    parameter.requires_grad_(flag)
                    parameter.grad = None
            for module, mode in modes:
                module.training = mode

    def denoiser(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        trains = torch.is_grad_enabled()
        factor = self.at("forward" if trains else "denoise a preview" if self._sampling else "measure")
        prediction = self.parts["unet"](x_t.to(self._dtype), t, conditioning["text"].to(self._dtype)).float()
        if trains:
            prediction = _Backward.apply(prediction, self.at)
        return prediction if factor is None else prediction * factor

    @torch.no_grad()
    def sampler(self, request: SampleRequest) -> Image.Image:
        self.at("preview")
        # samplers move the random states of the whole program, some in each of these
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        self._sampling = True
        try:
            generator = torch.Generator().manual_seed(request.seed)
            x_t = torch.randn(1, 4, request.height // 8, request.width // 8, generator=generator)
            conditioning = self.text.encode([request.prompt])
            for step in range(request.steps):
                t = torch.tensor([999 - 999 * step // request.steps])
                x_t = x_t - self.denoiser(x_t, t, conditioning) / request.steps
        finally:
            self._sampling = False
        pixels = ((self.autoencoder.decode(x_t)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        return Image.fromarray(pixels)

    def progress(self, progress: Progress) -> None:
        self.shown.append(progress)
        self.step = progress.step
        self.at("pause" if progress.note else "progress")

    def preview(self, step: int, request: SampleRequest, image: Image.Image) -> None:
        self.previews.append((step, request))

    def stop_requested(self) -> bool:
        self.at("asked to stop")
        return self.control.stop_requested or (self.stop_at is not None and self.step >= self.stop_at)

    def picture(self) -> bytes:
        """The pixels of one picture from the model as it stands."""
        at, self.at = self.at, lambda phase: None
        try:
            return self.sampler(SampleRequest(prompt="a toy", steps=2, seed=5, width=64, height=48)).tobytes()
        finally:
            self.at = at

    def everything(self) -> dict[str, Any]:
        """All of the host that a run could leave other than it found it."""
        found: dict[str, Any] = {"dtype": self._dtype, "picture": self.picture()}
        for part, root in self.parts.items():
            for name, tensor in root.state_dict().items():
                found[f"{part}.{name}"] = bits(tensor)
            for name, parameter in root.named_parameters():
                found[f"{part}.{name} grad"] = (parameter.requires_grad, parameter.grad, parameter.dtype)
            for name, module in root.named_modules():
                hooks = len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
                found[f"{part}.{name} mode"] = (module.training, "forward" in vars(module), hooks)
        found["grad mode"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        found["deterministic"] = torch.are_deterministic_algorithms_enabled()
        return found


def bits(tensor: Tensor) -> bytes:
    """Every bit of a tensor, with its shape and dtype."""
    tensor = tensor.detach().cpu().contiguous()
    head = f"{tuple(tensor.shape)} {tensor.dtype} ".encode()
    return head + tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else head
