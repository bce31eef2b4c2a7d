"""Captions to conditioning by the host's own text encoders: what txt2img uses for the same plain text.

Captions are literal: parentheses, brackets, colons and BREAK are text. The host's encoders are called with the prompt
parser off, which is a view of the settings of our own, so that a user who saves the settings meanwhile saves theirs.
Embeddings whose names stand in a caption are used, as in txt2img.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...lib.fingerprint import fingerprint
from ...lib.host import Conditioning
from .loaded import Loaded
from .patched import Overlay, patched
from .readiness import arrive

WINDOW = 75
# what the host's conditioner calls the three sizes, and where they stand in the core's: each as height, width
_SIZES = {
    "original_size_as_tuple": (1, 0),
    "crop_coords_top_left": (3, 2),
    "target_size_as_tuple": (5, 4),
}


class WebuiText:
    """The text encoders of the loaded checkpoint. `max_chunks`: captions are cut after so many times 75 tokens."""

    def __init__(self, loaded: Loaded, max_chunks: int) -> None:
        self._loaded, self._max_chunks = loaded, max_chunks

    @property
    def _embedders(self) -> list[Any]:
        """The host's encoders, which take captions."""
        model, family = self._loaded.model, self._loaded.family
        if family == "sdxl":
            return list(model.conditioner.embedders[:2])
        return [model.text_encoders.model_lg if family == "sd3" else model.cond_stage_model]

    @property
    def key(self) -> str:
        from modules import sd_hijack, shared

        tensors: list[tuple[str, Tensor]] = []
        for part, root in self._encoders().items():
            tensors += [(f"{part}.{name}", t) for name, t in root.state_dict().items()]
        embeddings = {name: e.checksum() for name, e in sd_hijack.model_hijack.embedding_db.word_embeddings.items()}
        settings = (shared.opts.CLIP_stop_at_last_layers, shared.opts.comma_padding_backtrack, self._max_chunks)
        facts = (
            fingerprint(tensors),
            sorted(embeddings.items()),
            settings,
            getattr(shared.opts, "sd3_enable_t5", None),
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def num_tokens(self, caption: str) -> int:
        return len(self._embedders[0].tokenize([caption])[0])

    def encode(self, captions: Sequence[str]) -> Conditioning:
        model, captions = self._loaded.model, list(captions)
        with self._literally(), self._precision():
            if self._loaded.family == "sd3":
                encoded = model.get_learned_conditioning(captions)
                return {"text": encoded["crossattn"], "pooled": encoded["vector"]}
            if self._loaded.family != "sdxl":
                return {"text": model.cond_stage_model(captions)}
            # not by the conditioner, which turns gradients off
            arrive(model.conditioner)
            clip, (open_clip, pooled) = (embedder(captions) for embedder in self._embedders)
            return {"text": torch.cat([clip, open_clip], dim=2), "pooled": pooled}

    def vector(self, conditioning: Conditioning, device: torch.device) -> Tensor:
        """SDXL's second condition, (B, 2816): pooled text and embedded sizes."""
        pieces = [conditioning["pooled"].to(device)]
        for embedder in self._loaded.model.conditioner.embedders[2:]:
            pieces.append(embedder(conditioning["sizes"].to(device)[:, _SIZES[embedder.input_key]]).to(pieces[0].dtype))
        return torch.cat(pieces, dim=1)

    def _encoders(self) -> dict[str, nn.Module]:
        """All that is computed with, by part; fused models themselves, whose containers lack what is no layer."""
        whole = {id(container): encoder for encoder, container in self._loaded.fused}
        return {part: whole.get(id(m), m) for part, m in self._loaded.parts.items() if part != "unet"}

    def _precision(self) -> AbstractContextManager[Any]:
        """The host's own autocast, which 8-bit weights need; none where the layers are trained, and know their type."""
        from modules import devices

        layers = (m for part, root in self._loaded.parts.items() if part != "unet" for m in root.modules())
        is_attached = any("forward" in vars(m) for m in layers if isinstance(m, nn.Linear))
        return nullcontext() if is_attached else devices.autocast()

    @contextmanager
    def _literally(self) -> Iterator[None]:
        """The prompt parser off and captions cut, inside."""
        from modules import sd_hijack_clip, shared

        options = Overlay(shared.opts, emphasis="None")
        with ExitStack() as stack:
            stack.enter_context(patched(sd_hijack_clip, opts=options))
            if self._loaded.family == "sd3":
                from modules.models.sd3 import sd3_cond

                stack.enter_context(patched(sd3_cond, shared=Overlay(shared, opts=options)))
            for embedder in self._embedders:
                stack.enter_context(patched(embedder, process_texts=self._cut(embedder)))
            yield

    def _cut(self, embedder: Any) -> Any:
        whole = embedder.process_texts

        def process_texts(texts: list[str]) -> tuple[list[Any], int]:
            chunks, num_tokens = whole(texts)
            return [c[: self._max_chunks] for c in chunks], min(num_tokens, WINDOW * self._max_chunks)

        return process_texts
