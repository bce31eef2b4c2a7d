"""Tiny pipelines of Stable Diffusion XL, 3 and 3.5 and Flux with seeded random weights, as diffusers folders.

All of the real layout is there in small. The sizes keep to what the shapes of a single file imply: heads of 64 in the
text encoders and the U-Net.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sd_atelier.lib.standalone.demo.model import write_tokenizer

FAMILIES = ("sdxl", "sdxl-v", "sd3", "sd3.5-medium", "sd3.5-large", "flux-dev", "flux-schnell")
FAMILY = {name: name.split("-")[0].split(".")[0] for name in FAMILIES}
WIDTH = 256  # of T5, and of what transformers read
WORDS = ("toy", "a", "night", "table")

diffusers: Any = importlib.import_module("diffusers")
transformers: Any = importlib.import_module("transformers")


def write_t5_tokenizer(folder: Path) -> int:
    """A T5 tokenizer whose tokens are ASCII characters and some words; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    space = "\u2581"
    pieces = [space, *map(chr, range(33, 127)), *(space + word for word in WORDS)]
    vocabulary = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    vocabulary += [(piece, -1.0 if len(piece) > 1 else -3.0) for piece in pieces]
    tokenizer: Any = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=space, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, **names).save_pretrained(folder)
    return len(vocabulary)


def _clip(num_tokens: int, width: int, activation: str, projected: bool) -> Any:
    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    model = cls(
        transformers.CLIPTextConfig(
            vocab_size=num_tokens,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=3,
            num_attention_heads=width // 64,
            hidden_act=activation,
            projection_dim=width,
            bos_token_id=num_tokens - 2,
            eos_token_id=num_tokens - 1,
        )
    )
    if projected and activation == "quick_gelu":
        # the first encoder of Stable Diffusion 3 has one that does nothing
        model.text_projection.weight.data.copy_(torch.eye(width))
    return model


def _t5(num_tokens: int) -> Any:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=num_tokens,
            d_model=WIDTH,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def _vae(num_channels: int, scale: float, shift: float | None) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=num_channels,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    )


def _sdxl(tokenizers: dict[str, Any], num_clip: int, num_t5: int, name: str) -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        cross_attention_dim=192,
        attention_head_dim=(1, 1, 1),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=128 + 6 * 256,
    )
    v = name.endswith("-v")
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if v else "epsilon",
        rescale_betas_zero_snr=v,
        timestep_spacing="trailing" if v else "leading",
        steps_offset=1,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(4, 0.13025, None),
        text_encoder=_clip(num_clip, 64, "quick_gelu", False),
        text_encoder_2=_clip(num_clip, 128, "gelu", True),
        tokenizer=tokenizers["clip"],
        tokenizer_2=tokenizers["clip_g"],
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=False,
    )


def _sd3(tokenizers: dict[str, Any], num_clip: int, num_t5: int, name: str) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=128,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=1,
        joint_attention_dim=WIDTH,
        caption_projection_dim=64,
        pooled_projection_dim=192,
        pos_embed_max_size=24,
        qk_norm=None if name == "sd3" else "rms_norm",
        dual_attention_layers=(0,) if name == "sd3.5-medium" else (),
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, 1.5305, 0.0609),
        text_encoder=_clip(num_clip, 64, "quick_gelu", True),
        tokenizer=tokenizers["clip"],
        text_encoder_2=_clip(num_clip, 128, "gelu", True),
        tokenizer_2=tokenizers["clip_g"],
        text_encoder_3=_t5(num_t5),
        tokenizer_3=tokenizers["t5"],
    )


def _flux(tokenizers: dict[str, Any], num_clip: int, num_t5: int, name: str) -> Any:
    dev = name == "flux-dev"
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=64,
        guidance_embeds=dev,
        axes_dims_rope=(4, 14, 14),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev)
    return diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=_vae(16, 0.3611, 0.1159),
        text_encoder=_clip(num_clip, 64, "quick_gelu", False),
        tokenizer=tokenizers["clip"],
        text_encoder_2=_t5(num_t5),
        tokenizer_2=tokenizers["t5"],
    )


def write_family(folder: Path, name: str, seed: int = 0) -> Path:
    """One of `FAMILIES` as a diffusers folder; returns the folder."""
    num_clip, num_t5 = write_tokenizer(folder / "clip", WORDS), write_t5_tokenizer(folder / "t5")
    tokenizers = {name: transformers.CLIPTokenizer.from_pretrained(folder / "clip") for name in ("clip", "clip_g")}
    tokenizers["clip_g"].pad_token = "!"  # as in the folders that these models were published in
    tokenizers["t5"] = transformers.T5TokenizerFast.from_pretrained(folder / "t5")
    build: Callable[..., Any] = {"sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[FAMILY[name]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = build(tokenizers, num_clip, num_t5, name)
        for model in pipeline.components.values():
            if isinstance(model, torch.nn.Module):
                _make_alive(model)
        if hasattr(pipeline, "transformer"):
            _see_through(pipeline.transformer)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _make_alive(model: torch.nn.Module) -> None:
    """Give norms and biases values of their own, so that no two of them can be confused."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)


def _see_through(transformer: Any) -> None:
    """Let the output be the input but for what loud blocks add, so that a few steps of training can learn something.

    An ordinary random transformer loses its input in a width of 64, and the best that it learns is to say nothing.
    """
    turn = torch.linalg.qr(torch.randn(64, 64))[0]
    with torch.no_grad():
        if hasattr(transformer, "x_embedder"):
            transformer.x_embedder.weight.copy_(turn)
            transformer.proj_out.weight.copy_(turn.T)
        else:
            transformer.pos_embed.pos_embed *= 0.1
            transformer.pos_embed.proj.weight.copy_(turn.view(64, 16, 2, 2))
            # it writes a token's channels after its pixels, and reads them before
            transformer.proj_out.weight.copy_(turn.view(64, 16, 2, 2).permute(2, 3, 1, 0).reshape(64, 64))
        for name, parameter in transformer.named_parameters():
            if name.endswith(("to_out.0.weight", "ff.net.2.weight")) or (
                "single" in name and "proj_out.weight" in name
            ):
                parameter *= 4
