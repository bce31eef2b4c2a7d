"""The denoisers of diffusers behind the core's face: (x_t, t, conditioning) -> prediction (B, C, h, w), typed as x_t.

Tensors come on the model's device; what has to be exact (t, sizes, guidance) stays float32 until the model embeds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..forwards import replaced
from ..host import Conditioning


def unet(model: Any, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Stable Diffusion 1.x and 2.x. t: whole numbers 0..999."""
    text = conditioning["text"].to(x_t.dtype)
    return model(x_t, t, encoder_hidden_states=text, return_dict=False)[0]


def unet_with_sizes(model: Any, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Stable Diffusion XL. Pixels are embedded as heights before widths: original, crop from the top, target."""
    added = {
        "text_embeds": conditioning["pooled"].to(x_t.dtype),
        "time_ids": conditioning["sizes"][:, [1, 0, 3, 2, 5, 4]],
    }
    text = conditioning["text"].to(x_t.dtype)
    return model(x_t, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]


def sd3(model: Any, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Stable Diffusion 3 and 3.5. t: u in (0, 1), which the model knows as a thousand steps."""
    return model(
        hidden_states=x_t,
        timestep=t * 1000,
        encoder_hidden_states=conditioning["text"].to(x_t.dtype),
        pooled_projections=conditioning["pooled"].to(x_t.dtype),
        return_dict=False,
    )[0]


def flux(model: Any, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Flux. t: u in (0, 1). Guidance is an input of the distilled model alone."""
    height, width = x_t.shape[-2:]
    text = conditioning["text"].to(x_t.dtype)
    guidance = [conditioning["guidance"]] if model.config.guidance_embeds else []
    embed = model.time_text_embed.forward

    def embedded(*args: Tensor) -> Tensor:
        # diffusers has rounded them to the model's dtype: in bf16, t in steps of four
        return embed(*(exact * 1000 for exact in (t, *guidance)), args[-1])

    with replaced([(model.time_text_embed, embedded)]):
        tokens = model(
            hidden_states=pack(x_t),
            timestep=t,
            guidance=guidance[0] if guidance else None,
            encoder_hidden_states=text,
            pooled_projections=conditioning["pooled"].to(x_t.dtype),
            txt_ids=torch.zeros(text.shape[1], 3, device=x_t.device),
            img_ids=picture_ids(height // 2, width // 2).to(x_t.device),
            return_dict=False,
        )[0]
    return unpack(tokens, height, width)


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2 * w/2, 4 C): a token for each 2 x 2 pixels, channel by channel. h and w are even."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse of `pack`, for latents of this height and width."""
    b, _, c = tokens.shape
    pixels = tokens.view(b, height // 2, width // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return pixels.reshape(b, c // 4, height, width)


def picture_ids(num_rows: int, num_columns: int) -> Tensor:
    """The place of each token, (rows * columns, 3) float32: 0, row, column."""
    rows = torch.arange(num_rows).repeat_interleave(num_columns)
    columns = torch.arange(num_columns).repeat(num_rows)
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=1).float()


DENOISERS = {"sd1": unet, "sd2": unet, "sdxl": unet_with_sizes, "sd3": sd3, "flux": flux}
