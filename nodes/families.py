"""Which family of names a loaded model belongs to, and which of its text encoders are which part."""

from __future__ import annotations

from typing import Any

from torch import nn

# text width of the U-Nets
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
# family -> part -> (attribute of ComfyUI's text encoder, whether its projection belongs to the part)
_TEXT_PARTS = {
    "sd1": {"te": ("clip_l", False)},
    "sd2": {"te": ("clip_h", False)},
    "sdxl": {"te1": ("clip_l", False), "te2": ("clip_g", True)},
    "sd3": {"te1": ("clip_l", True), "te2": ("clip_g", True), "te3": ("t5xxl", False)},
    "flux": {"te1": ("clip_l", False), "te3": ("t5xxl", False)},
}
OTHER = "original"


def family_of(model: Any) -> str:
    """A name of the registry of spellings, from the class of ComfyUI's model; `original` for all without their own."""
    kind, denoiser = type(model).__name__, type(model.diffusion_model).__name__
    if denoiser == "UNetModel" and kind in ("BaseModel", "SDXL", "SD21UNCLIP", "SD15_instructpix2pix"):
        return _WIDTHS.get(model.model_config.unet_config.get("context_dim"), OTHER)
    if kind == "SD3":
        return "sd3"
    if kind == "Flux" and denoiser == "Flux" and type(model.diffusion_model).__module__ == "comfy.ldm.flux.model":
        return "flux" if hasattr(model.diffusion_model, "vector_in") else OTHER
    return OTHER


def text_parts(family: str, cond_stage_model: nn.Module) -> dict[str, nn.Module]:
    """part -> module whose layers have the names of transformers. None are trained in families of unknown names."""
    parts: dict[str, nn.Module] = {}
    for part, (name, projection) in _TEXT_PARTS.get(family, {}).items():
        encoder = getattr(cond_stage_model, name, None)
        if encoder is None:
            continue
        transformer = encoder.transformer
        if hasattr(transformer, "text_model"):
            # ComfyUI keeps a projection and, in SD 2, a last layer that the model's other programs do not have
            parts[part] = _Clip(transformer, projection, num_layers=23 if family == "sd2" else None)
        else:
            parts[part] = transformer
    return parts


class _Clip(nn.Module):
    """A CLIP text encoder as far as other programs have it. Holds the host's own modules; it is never called."""

    def __init__(self, transformer: Any, projection: bool, num_layers: int | None) -> None:
        super().__init__()
        inner = transformer.text_model
        self.text_model = nn.Module()
        self.text_model.encoder = nn.Module()
        self.text_model.encoder.layers = nn.ModuleList(list(inner.encoder.layers)[:num_layers])
        if projection:
            self.text_projection = transformer.text_projection
