"""Captions of several lengths in one batch, for models that read every token they are given.

CLIP's chunks can be filled up with those of the empty caption. Where T5 is read (Stable Diffusion 3, Flux) nothing can
be added without changing the picture, and the models take no mask, so each length is run by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .host import Conditioning, Denoiser

NUM_TOKENS = "num_tokens"


def stacked(texts: list[Tensor]) -> Conditioning:
    """Texts (1, tokens, width) of several lengths as "text" (B, longest, width), behind each nothing but zeros.

    With the "num_tokens" (B,), int64 on the CPU, that are each caption's own. Differentiable.
    """
    longest = max(text.shape[1] for text in texts)
    padded = [torch.nn.functional.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts]
    return {"text": torch.cat(padded), NUM_TOKENS: torch.tensor([text.shape[1] for text in texts])}


def denoised(denoiser: Denoiser, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """What the denoiser predicts, (B, C, h, w), each caption seen at its own length."""
    lengths = conditioning.get(NUM_TOKENS)
    conditioning = {name: values for name, values in conditioning.items() if name != NUM_TOKENS}
    if lengths is None:
        return denoiser(x_t, t, conditioning)
    groups = [(length, torch.nonzero(lengths == length).flatten()) for length in lengths.unique().tolist()]
    if len(groups) == 1:
        return denoiser(x_t, t, {**conditioning, "text": conditioning["text"][:, : groups[0][0]]})
    predictions = []
    for length, rows in groups:
        own = rows.to(x_t.device)
        of_group = {name: values[rows.to(values.device)] for name, values in conditioning.items()}
        of_group["text"] = of_group["text"][:, :length]
        predictions.append(denoiser(x_t[own], t[own], of_group))
    places = torch.argsort(torch.cat([rows for _, rows in groups])).to(x_t.device)
    return torch.cat(predictions)[places]
