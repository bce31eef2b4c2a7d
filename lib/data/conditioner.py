"""Captions to conditioning: live where the text encoder is trained, otherwise each distinct caption encoded once.

A caption is encoded alone, so its values depend on nothing but itself, and a batch is padded to its longest caption
with the chunks of the empty caption, as the WebUI does; where the encoder gives "num_tokens" nothing can be added to a
caption, and what is behind it is zeros that are never read (`lengths`). Tensors are kept in the dtype that they were
encoded in: they are the same bits from the encoder, from memory and from disk.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..host import Conditioning, TextEncoder
from ..lengths import NUM_TOKENS, stacked
from .scan import Problem
from .shards import Shards


class Conditioner:
    """`conditioner(captions)` is what the denoiser is conditioned on: (B, ...) on `device`, in the captions' order.

    `folder` holds what `prepare` encodes; None keeps it in memory. Other captions are encoded when they come, and the
    `max_entries` last used are kept in memory. With `train_text` nothing is kept and gradients flow.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        folder: Path | None,
        device: torch.device | str,
        train_text: bool,
        max_entries: int = 512,
    ) -> None:
        self._text_encoder = text_encoder
        self._device = device
        self._train_text = train_text
        self._encoder_key = "" if train_text else text_encoder.key  # asked once: it may be a hash of all weights
        self._max_entries = max_entries
        self._recent: OrderedDict[str, Conditioning] = OrderedDict()
        self._prepared: Shards | dict[str, Conditioning] = {} if folder is None else Shards(folder, "text")

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """Errors: `ValueError` when an encoding cannot be padded or is not finite."""
        if self._train_text:
            return self._placed(self._text_encoder.encode(captions))
        entries = [self._entry(caption) for caption in captions]
        if NUM_TOKENS in entries[0]:
            others = entries[0].keys() - {"text", NUM_TOKENS}
            joined = {name: torch.cat([e[name] for e in entries]) for name in sorted(others)}
            return self._placed({**joined, **stacked([e["text"] for e in entries])})
        longest = max(_num_tokens(e) for e in entries)
        padded = [e if _num_tokens(e) == longest else _pad(e, self._entry(""), longest) for e in entries]
        return self._placed({name: torch.cat([e[name] for e in padded]) for name in padded[0]})

    def prepare(
        self,
        captions: Iterable[str],
        on_progress: Callable[[int, int], None] | None = None,
        stop_requested: Callable[[], bool] | None = None,
    ) -> list[Problem]:
        """Encode these and the empty caption; the text encoder may then leave memory. Returns what to tell the user.

        For captions that never change: what is dropped or shuffled at each visit is better encoded when it comes.
        on_progress(done, total) counts the captions to encode. A stop between two captions keeps what is encoded.
        Errors: `ValueError` for an encoding that is not finite, `OSError` when the folder cannot be written.
        """
        assert not self._train_text, "a text encoder that is trained has no constant encodings"
        keys = {caption: self._key(caption) for caption in dict.fromkeys(["", *captions])}
        problems = []
        if isinstance(self._prepared, Shards):
            damaged = self._prepared.find(keys.values())
            problems = [Problem(path, "is damaged; what it held is encoded again", "warning") for path in damaged]
        todo = {caption: key for caption, key in keys.items() if key not in self._prepared}
        try:
            for num_done, (caption, key) in enumerate(todo.items(), start=1):
                if stop_requested and stop_requested():
                    break
                entry = self._recent.get(caption) or self._encode(caption)
                if isinstance(self._prepared, Shards):
                    self._prepared.add(key, entry)
                else:
                    self._prepared[key] = entry
                if on_progress:
                    on_progress(num_done, len(todo))
        finally:
            if isinstance(self._prepared, Shards):
                self._prepared.flush()
        return problems

    def _placed(self, conditioning: Conditioning) -> Conditioning:
        # the lengths stay on the CPU, where they are read
        return {name: t if name == NUM_TOKENS else t.to(self._device) for name, t in conditioning.items()}

    def _entry(self, caption: str) -> Conditioning:
        if caption in self._recent:
            self._recent.move_to_end(caption)
            return self._recent[caption]
        key = self._key(caption)
        if key not in self._prepared:
            entry = self._encode(caption)
        elif isinstance(self._prepared, Shards):
            entry = self._prepared.read(key)
        else:
            entry = self._prepared[key]
        self._recent[caption] = entry
        if len(self._recent) > self._max_entries:
            self._recent.popitem(last=False)
        return entry

    def _encode(self, caption: str) -> Conditioning:
        with torch.no_grad():
            entry = {name: t.detach().cpu() for name, t in self._text_encoder.encode([caption]).items()}
        for name, tensor in entry.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f'the text encoder gave {name} with values that are not finite for "{caption[:80]}"')
        return entry

    def _key(self, caption: str) -> str:
        text = f"{self._encoder_key}\0{caption}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _num_tokens(entry: Conditioning) -> int:
    return entry["text"].shape[1]


def _pad(entry: Conditioning, empty: Conditioning, num_tokens: int) -> Conditioning:
    """The entry with every tensor that runs over its tokens, (1, tokens, ...), continued by those of `empty`.

    "pooled" (1, width) never does, whatever its width.
    """
    own, chunk = _num_tokens(entry), _num_tokens(empty)
    if (num_tokens - own) % chunk:
        raise ValueError(f"an encoding of {own} tokens cannot be padded to {num_tokens} in chunks of {chunk}")

    def continued(name: str, tensor: Tensor) -> Tensor:
        if name == "pooled" or tensor.ndim < 2 or tensor.shape[1] != own:
            return tensor
        return torch.cat([tensor] + [empty[name]] * ((num_tokens - own) // chunk), dim=1)

    return {name: continued(name, tensor) for name, tensor in entry.items()}
