"""ComfyUI's text encoders behind the core's face: captions taken literally."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..lib.fingerprint import fingerprint
from ..lib.forwards import replaced
from ..lib.host import Conditioning
from ..lib.lengths import stacked

_CLIPS = ("l", "g", "h")  # ComfyUI's names of the encoders that take chunks of 75 tokens
_MAX_KEPT_BYTES = 1 << 30


def literal(caption: str) -> str:
    """The prompt that means this caption: ComfyUI reads unescaped parentheses as emphasis."""
    return caption.replace("(", "\\(").replace(")", "\\)")


class ComfyText:
    """A CLIP object as the core's text encoder. `at_work` is the host's own mode of working.

    While `training` is on, captions are encoded on the spot, without the host loading models for it, and gradients
    flow; the output of an encoder that nothing is trained in is kept and not computed again.
    """

    def __init__(self, clip: Any, max_chunks: int, at_work: Callable[[], AbstractContextManager[None]]) -> None:
        self._clip, self._max_chunks, self._at_work = clip, max_chunks, at_work
        self._direct = False
        # behind a caption in T5 or a language model nothing can be added without changing the picture
        self._reads_every_token = any(name not in _CLIPS for name in self.tokens(""))

    @property
    def key(self) -> str:
        clip = self._clip
        facts = (
            clip.layer_idx,
            self._max_chunks,
            repr(sorted(clip.tokenizer_options.items())),
            type(clip.tokenizer).__name__,
        )
        patches = sorted(str(key) for key in clip.patcher.patches)
        with self._at_work():
            clip.load_model()
            tensors = clip.cond_stage_model.state_dict().items()
            values = fingerprint(
                (name, tensor) for name, tensor in tensors if torch.is_tensor(tensor) and tensor.numel()
            )
        return hashlib.sha256(repr((values, facts, patches)).encode()).hexdigest()[:16]

    def num_tokens(self, caption: str) -> int:
        """Of the encoder that takes chunks, where there is one; that of T5 or a language model is never cut."""
        with _no_embeddings(self._clip.tokenizer):
            tokens = self._clip.tokenize(literal(caption), return_word_ids=True)
        name = next((n for n in _CLIPS if n in tokens), next(iter(tokens)))
        return sum(token[-1] != 0 for chunk in tokens[name] for token in chunk)

    def tokens(self, caption: str) -> dict[str, Any]:
        """ComfyUI's tokens of a caption, cut after the chunks that are allowed."""
        with _no_embeddings(self._clip.tokenizer):
            tokens = self._clip.tokenize(literal(caption))
        return {name: rows[: self._max_chunks] if name in _CLIPS else rows for name, rows in tokens.items()}

    def encode(self, captions: Sequence[str]) -> Conditioning:
        encodings = [self._encoded(caption) for caption in captions]
        if self._reads_every_token and all(e.keys() <= {"text", "pooled"} for e in encodings):
            found = stacked([e["text"] for e in encodings])
            pooled = [e["pooled"] for e in encodings if "pooled" in e]
            return found | ({"pooled": torch.cat(pooled)} if pooled else {})
        longest = max(len(e["text"][0]) for e in encodings)
        if any(len(e["text"][0]) != longest for e in encodings):
            empty = self._encoded("")
            encodings = [_continued(e, empty, longest) for e in encodings]
        return {name: torch.cat([e[name] for e in encodings]) for name in encodings[0]}

    def _encoded(self, caption: str) -> Conditioning:
        tokens = self.tokens(caption)
        if self._direct:
            return self._conditioning(self._directly(tokens))
        with self._at_work():
            found = self._conditioning(self._clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True))
        return {name: tensor.clone() for name, tensor in found.items()}

    def _directly(self, tokens: dict[str, Any]) -> dict[str, Any]:
        """What `encode_from_tokens` does, but for loading: that could move weights which a backward pass needs."""
        clip, model = self._clip, self._clip.cond_stage_model
        model.reset_clip_options()
        if clip.layer_idx is not None:
            model.set_clip_options({"layer": clip.layer_idx})
        model.set_clip_options({"execution_device": clip.patcher.load_device})
        text, pooled, *extra = model.encode_token_weights(tokens)
        return {"cond": text, "pooled_output": pooled, **(extra[0] if extra else {})}

    def _conditioning(self, found: dict[str, Any]) -> Conditioning:
        conditioning: Conditioning = {"text": found.pop("cond")}
        pooled = found.pop("pooled_output", None)
        if pooled is not None:
            conditioning["pooled"] = pooled
        for name, value in found.items():
            if name == "hooks":
                raise ValueError("this CLIP carries hooks, which change in the course of sampling; train without them")
            if value is None:
                continue
            if not torch.is_tensor(value) or value.shape[0] != 1:
                raise ValueError(
                    f"the text encoder gives {name} ({type(value).__name__}), which cannot be trained with"
                )
            conditioning[name] = value
        return conditioning

    @contextmanager
    def training(self) -> Iterator[None]:
        """Encode directly, inside."""
        encoders = [m for m in self._clip.cond_stage_model.modules() if hasattr(m, "encode_token_weights")]
        encoders = [m for m in encoders if hasattr(m, "process_tokens")]
        self._direct = True
        try:
            with replaced((encoder, _remembering(encoder)) for encoder in encoders):
                yield
        finally:
            self._direct = False
            self._clip.cond_stage_model.reset_clip_options()


def _remembering(encoder: nn.Module) -> Callable[[Any], Any]:
    """The forward of an encoder that keeps outputs which nothing trained has a part in."""
    inner = encoder.forward
    kept: OrderedDict[str, Any] = OrderedDict()

    def forward(tokens: Any) -> Any:
        # tokens are numbers; where an embedding stands among them the output is computed anew
        plain = all(isinstance(token, int) for row in tokens for token in row)
        options = (encoder.layer, encoder.layer_idx, encoder.return_projected_pooled)
        key = repr((tokens, options)) if plain else ""
        if key in kept:
            return kept[key]
        output = inner(tokens)
        tensors = [t for t in output if torch.is_tensor(t)]
        constant = torch.is_grad_enabled() and not any(t.requires_grad for t in tensors)
        if key and constant and all(t is None or torch.is_tensor(t) for t in output):
            kept[key] = output
            while sum(_num_bytes(o) for o in kept.values()) > _MAX_KEPT_BYTES:
                kept.popitem(last=False)
        return output

    return forward


def _num_bytes(output: Sequence[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in output if t is not None)


def _continued(encoding: Conditioning, empty: Conditioning, num_tokens: int) -> Conditioning:
    """An encoding whose tensors that run over tokens are continued by those of the empty caption."""
    own, chunk = encoding["text"].shape[1], empty["text"].shape[1]
    if (num_tokens - own) % chunk:
        raise ValueError(
            f"an encoding of {own} tokens cannot be padded to {num_tokens} in chunks of {chunk}; use batches of one"
        )

    def continued(tensor: Tensor, filler: Tensor) -> Tensor:
        if tensor.ndim < 2 or tensor.shape[1] != own:
            return tensor
        return torch.cat([tensor] + [filler] * ((num_tokens - own) // chunk), dim=1)

    return {name: continued(tensor, empty[name]) for name, tensor in encoding.items()}


@contextmanager
def _no_embeddings(tokenizer: Any) -> Iterator[None]:
    """Tokenizers inside take "embedding:" for text, as captions mean it."""
    readers = [
        t
        for t in (tokenizer, *vars(tokenizer).values())
        if hasattr(t, "embedding_directory") and hasattr(t, "tokenizer")
    ]
    before = [reader.embedding_directory for reader in readers]
    try:
        for reader in readers:
            reader.embedding_directory = None
        yield
    finally:
        for reader, folder in zip(readers, before, strict=True):
            reader.embedding_directory = folder
