"""Text encoders: captions to what each family's denoiser is conditioned on, the same numbers as ComfyUI's core gives.

Captions are literal. CLIP reads chunks of 75 tokens, each between a start and an end token; T5 reads the whole caption
at once, filled up to a least length with tokens that it reads too. What is trained is encoded anew each time; an
encoder beside it that is constant reads each caption once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..fingerprint import fingerprint
from ..host import Conditioning
from ..lengths import stacked

Encoding = tuple[Tensor, ...]


def key_of(modules: Sequence[nn.Module], *facts: object) -> str:
    """A short hash of what modules compute: 16 values of each tensor, and further facts."""
    values = [fingerprint(module.state_dict().items()) for module in modules]
    return hashlib.sha256(repr((values, facts)).encode()).hexdigest()[:16]


class Clip:
    """A CLIP tokenizer and text encoder.

    `layer` is counted from the last, which is 1. `normed`: the final norm is applied to a layer before the last too.
    """

    def __init__(self, tokenizer: Any, model: Any, *, layer: int = 1, normed: bool = True) -> None:
        self.tokenizer, self.model = tokenizer, model
        self._layer, self._normed = layer, normed
        # the tokenizer may not know it: its own limit is in a file of its folder that is often left out
        self.window: int = model.config.max_position_embeddings - 2
        num_layers = model.config.num_hidden_layers
        if not 1 <= layer <= num_layers:
            raise ValueError(f"clip skip must be from 1 to {num_layers} for this text encoder, got {layer}")

    @property
    def facts(self) -> tuple[object, ...]:
        """What the encoding depends on besides the weights."""
        return (_vocabulary(self.tokenizer), self.tokenizer.pad_token_id, self._layer, self._normed)

    def ids(self, caption: str) -> list[int]:
        """The caption's tokens, without start and end."""
        return self.tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids

    def num_chunks(self, caption: str, max_chunks: int) -> int:
        """Chunks that the caption needs, at least one and at most `max_chunks`; what is behind them is cut."""
        return max(1, min(max_chunks, -(-len(self.ids(caption)) // self.window)))

    def encode(self, captions: Sequence[str], num_chunks: int) -> Encoding:
        """Tokens (B, num_chunks * (window + 2), width), and the pooled output of the first chunk (B, width)."""
        tokenizer, window = self.tokenizer, self.window
        rows = []
        for caption in captions:
            ids = self.ids(caption)
            for c in range(num_chunks):
                chunk = ids[c * window : (c + 1) * window]
                padding = [tokenizer.pad_token_id] * (window - len(chunk))
                rows.append([tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id, *padding])
        device = next(self.model.parameters()).device
        output = self.model(torch.tensor(rows, device=device), output_hidden_states=self._layer > 1)
        hidden = output.last_hidden_state
        if self._layer > 1:
            hidden = output.hidden_states[-self._layer]
            if self._normed:
                hidden = getattr(self.model, "text_model", self.model).final_layer_norm(hidden)
        # a projection is part of the model where its pooled output is used
        pooled = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
        return hidden.reshape(len(captions), -1, hidden.shape[-1]), pooled[::num_chunks]


class T5:
    """A T5 tokenizer and encoder. The whole caption and an end token, filled up to `min_tokens` and never cut."""

    def __init__(self, tokenizer: Any, model: Any, *, min_tokens: int) -> None:
        self.tokenizer, self.model, self._min_tokens = tokenizer, model, min_tokens

    @property
    def facts(self) -> tuple[object, ...]:
        """What the encoding depends on besides the weights."""
        return (_vocabulary(self.tokenizer), self._min_tokens)

    def ids(self, caption: str) -> list[int]:
        """The caption's tokens, without the end."""
        return self.tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids

    def encode(self, caption: str) -> Encoding:
        """Tokens (1, tokens, width). The padding is read like any token: there is no mask."""
        ids = [*self.ids(caption), self.tokenizer.eos_token_id]
        ids += [self.tokenizer.pad_token_id] * (self._min_tokens - len(ids))
        device = next(self.model.parameters()).device
        return (self.model(torch.tensor([ids], device=device)).last_hidden_state,)


def _vocabulary(tokenizer: Any) -> str:
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


class StandaloneText:
    """The text encoders of a family. Made by `of_sd`, `of_sdxl`, `of_sd3` and `of_flux`."""

    def __init__(
        self,
        layout: str,
        encoders: Mapping[str, Clip | T5],
        combine: Callable[[StandaloneText, Sequence[str]], Conditioning],
        max_chunks: int,
        max_entries: int = 128,
    ) -> None:
        self._layout, self._encoders, self._combine, self.max_chunks = layout, encoders, combine, max_chunks
        self._max_entries = max_entries
        self._constant: OrderedDict[tuple[str, str, int], Encoding] = OrderedDict()
        self._trained: set[str] = set()
        self._training = False
        self.dtype: torch.dtype = next(self._models[0].parameters()).dtype

    @property
    def _models(self) -> list[Any]:
        return [encoder.model for encoder in self._encoders.values()]

    @property
    def key(self) -> str:
        facts = [encoder.facts for encoder in self._encoders.values()]
        return key_of(self._models, self._layout, facts, self.max_chunks, str(self.dtype))

    def num_tokens(self, caption: str) -> int:
        return len(next(iter(self._encoders.values())).ids(caption))

    def encode(self, captions: Sequence[str]) -> Conditioning:
        return self._combine(self, captions)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Encoders that turn out to be constant read each caption once, inside; nothing is kept behind it."""
        self._training = True
        try:
            yield
        finally:
            self._training = False
            self._constant.clear()
            self._trained.clear()

    def clip(self, part: str) -> Clip:
        encoder = self._encoders[part]
        assert isinstance(encoder, Clip)
        return encoder

    def clip_of(self, part: str, captions: Sequence[str], num_chunks: int) -> Encoding:
        """Tokens (B, tokens, width) and pooled (B, width) of a CLIP."""
        clip = self.clip(part)
        return self._encoded(part, captions, num_chunks, lambda some: clip.encode(some, num_chunks))

    def t5_of(self, part: str, captions: Sequence[str]) -> list[Tensor]:
        """Tokens (1, tokens, width) of T5, for each caption its own number."""
        t5 = self._encoders[part]
        assert isinstance(t5, T5)
        read = t5.encode
        return [self._encoded(part, [caption], 0, lambda some: read(some[0]))[0] for caption in captions]

    def has(self, part: str) -> bool:
        return part in self._encoders

    def _encoded(
        self, part: str, captions: Sequence[str], chunks: int, encode: Callable[[Sequence[str]], Encoding]
    ) -> Encoding:
        """What `encode` gives; of an encoder that is known to be constant while others are trained, from memory."""
        wanted = [(part, caption, chunks) for caption in captions]
        new = [place for place in dict.fromkeys(wanted) if place not in self._constant]
        if not self._training or part in self._trained or (new and not torch.is_grad_enabled()):
            return encode(captions)
        entries = {place: self._constant[place] for place in wanted if place not in new}
        for place in new:
            # one by one, so that what is kept does not depend on the batch that it came in
            entries[place] = encode([place[1]])
            if any(tensor.requires_grad for tensor in entries[place]):
                self._trained.add(part)
                return encode(captions)
        for place in wanted:
            self._constant[place] = entries[place]
            self._constant.move_to_end(place)
        while len(self._constant) > self._max_entries:
            self._constant.popitem(last=False)
        return tuple(torch.cat(tensors) for tensors in zip(*(entries[place] for place in wanted), strict=True))


def of_sd(clip: Clip, max_chunks: int) -> StandaloneText:
    """Stable Diffusion 1.x and 2.x: one CLIP."""
    return StandaloneText("sd", {"te": clip}, _sd, max_chunks)


def of_sdxl(clip_l: Clip, clip_g: Clip, max_chunks: int) -> StandaloneText:
    """Stable Diffusion XL: both CLIPs beside each other, and the second's pooled output (Podell et al. 2023)."""
    return StandaloneText("sdxl", {"te1": clip_l, "te2": clip_g}, _sdxl, max_chunks)


def of_sd3(clip_l: Clip, clip_g: Clip, t5: T5 | None, width: int, max_chunks: int) -> StandaloneText:
    """Stable Diffusion 3: both CLIPs beside each other and zeros up to `width`, then T5 (Esser et al. 2024).

    Without T5 there are no tokens of it, as in ComfyUI.
    """

    def sd3(text: StandaloneText, captions: Sequence[str]) -> Conditioning:
        chunks = [text.clip("te1").num_chunks(caption, text.max_chunks) for caption in captions]
        both = [text.clip_of(part, captions, max(chunks)) for part in ("te1", "te2")]
        tokens, pooled = (torch.cat(pair, dim=-1) for pair in zip(*both, strict=True))
        tokens = nn.functional.pad(tokens, (0, width - tokens.shape[-1]))
        # a chunk knows nothing of the others, so those that a caption does not have are cut off again
        num_tokens = [num * tokens.shape[1] // max(chunks) for num in chunks]
        texts = [row[:, :num] for row, num in zip(tokens.split(1), num_tokens, strict=True)]
        if text.has("te3"):
            pairs = zip(texts, text.t5_of("te3", captions), strict=True)
            texts = [torch.cat([of_clip, of_t5.to(of_clip)], dim=1) for of_clip, of_t5 in pairs]
        return {"pooled": pooled, **stacked(texts)}

    encoders: dict[str, Clip | T5] = {"te1": clip_l, "te2": clip_g}
    return StandaloneText("sd3", encoders if t5 is None else {**encoders, "te3": t5}, sd3, max_chunks)


def of_flux(clip_l: Clip, t5: T5, max_chunks: int) -> StandaloneText:
    """Flux: T5's tokens, and the pooled output of CLIP's first chunk."""
    return StandaloneText("flux", {"te1": clip_l, "te3": t5}, _flux, max_chunks)


def _chunks(text: StandaloneText, part: str, captions: Sequence[str]) -> int:
    """Of the longest; the others are filled up with empty chunks."""
    return max((text.clip(part).num_chunks(caption, text.max_chunks) for caption in captions), default=1)


def _sd(text: StandaloneText, captions: Sequence[str]) -> Conditioning:
    return {"text": text.clip_of("te", captions, _chunks(text, "te", captions))[0]}


def _sdxl(text: StandaloneText, captions: Sequence[str]) -> Conditioning:
    num_chunks = _chunks(text, "te1", captions)
    tokens_l, _ = text.clip_of("te1", captions, num_chunks)
    tokens_g, pooled = text.clip_of("te2", captions, num_chunks)
    return {"text": torch.cat([tokens_l, tokens_g], dim=-1), "pooled": pooled}


def _flux(text: StandaloneText, captions: Sequence[str]) -> Conditioning:
    pooled = text.clip_of("te1", captions, 1)[1]
    return {"pooled": pooled, **stacked(text.t5_of("te3", captions))}
