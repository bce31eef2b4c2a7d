"""A caption's conditioning is the same bits from the encoder, from memory and from disk, in whatever batch."""

import pytest
import torch
from sd_atelier.lib.data import shards
from sd_atelier.lib.data.conditioner import Conditioner
from sd_atelier.lib.lengths import stacked

CAPTIONS = ["", "a cat", "a dog, " * 30, "one " * 160, "a cat"]
WINDOW = 75


class FakeText:
    """Chunks of 77 tokens as CLIP has them; a token's embedding depends on all before it in its chunk."""

    def __init__(self, key="fake", dtype=torch.float32, pooled=False):
        self.key = key
        self.encoded = []
        self.pooled = pooled
        self.table = torch.nn.Parameter(torch.randn(300, 6, generator=torch.Generator().manual_seed(0)).to(dtype))

    def num_tokens(self, caption):
        return len(caption.split())

    def encode(self, captions):
        self.encoded.append(tuple(captions))
        ids = [[sum(map(ord, word)) % 290 for word in c.split()] for c in captions]
        num_chunks = max(1, *(-(-len(i) // WINDOW) for i in ids))
        rows = []
        for row in ids:
            chunks = []
            for c in range(num_chunks):
                chunk = row[c * WINDOW : (c + 1) * WINDOW]
                tokens = self.table[[298, *chunk, *[299] * (WINDOW + 1 - len(chunk))]]
                chunks.append(tokens.float().cumsum(0).to(tokens.dtype))
            rows.append(torch.cat(chunks))
        text = torch.stack(rows)
        if not self.pooled:
            return {"text": text}
        used = torch.tensor([[i < len(row) for i in range(text.shape[1])] for row in ids])
        return {"text": text, "pooled": text[:, 0] * 2, "used": used}


def equal(a, b):
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_live_prepared_and_resumed_conditioning_are_what_the_encoder_gives(tmp_path, folder, pooled, dtype):
    encoder = FakeText(dtype=dtype, pooled=pooled)
    expected = {n: t.detach() for n, t in encoder.encode(CAPTIONS).items()}
    assert expected["text"].shape == (5, 3 * 77, 6)
    live = Conditioner(encoder, None, "cpu", False)
    prepared = Conditioner(encoder, tmp_path / "text" if folder else None, "cpu", False)
    prepared.prepare(CAPTIONS)
    resumed = Conditioner(encoder, tmp_path / "text" if folder else None, "cpu", False)
    resumed.prepare(CAPTIONS)
    for conditioner in (live, prepared, resumed):
        assert equal(conditioner(CAPTIONS), expected)
        assert equal(conditioner(CAPTIONS), expected)


def test_a_batch_is_padded_to_its_longest_only():
    conditioner = Conditioner(FakeText(), None, "cpu", False)
    assert conditioner(["a cat", ""])["text"].shape == (2, 77, 6)
    assert conditioner(["a cat", CAPTIONS[3]])["text"].shape == (2, 231, 6)
    assert conditioner([CAPTIONS[3], "one " * 76])["text"].shape == (2, 231, 6)


def test_a_caption_has_the_same_bits_in_every_batch():
    conditioner = Conditioner(FakeText(), None, "cpu", False)
    alone = conditioner(["a cat"])["text"][0]
    for batch in (["a cat", "a dog"], ["x", "a cat"][::-1], ["a cat", CAPTIONS[3]]):
        assert torch.equal(conditioner(batch)["text"][0, :77], alone)


def test_each_distinct_caption_is_encoded_once_and_alone():
    encoder = FakeText()
    conditioner = Conditioner(encoder, None, "cpu", False)
    for _ in range(3):
        conditioner(["a", "b", "a"])
        conditioner(["b", "c"])
    assert encoder.encoded == [("a",), ("b",), ("c",)]


def test_memory_is_bounded_and_the_least_recently_used_goes_first():
    encoder = FakeText()
    conditioner = Conditioner(encoder, None, "cpu", False, max_entries=2)
    for caption in ("a", "b", "a", "c", "a", "b"):
        conditioner([caption])
        assert len(conditioner._recent) <= 2
    assert encoder.encoded == [("a",), ("b",), ("c",), ("b",)]
    assert conditioner(["a", "b", "c", "d"])["text"].shape == (4, 77, 6)


@pytest.mark.parametrize("folder", [True, False])
def test_after_prepare_the_text_encoder_is_not_needed(tmp_path, folder):
    encoder = FakeText()
    expected = {n: t.detach() for n, t in encoder.encode(CAPTIONS).items()}
    conditioner = Conditioner(encoder, tmp_path if folder else None, "cpu", False, max_entries=1)
    progress = []
    conditioner.prepare(CAPTIONS, lambda done, total: progress.append((done, total)))
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    del encoder.table, encoder.key
    assert equal(conditioner(CAPTIONS), expected)
    assert conditioner([CAPTIONS[3], "a cat"])["text"].shape == (2, 231, 6)


def test_constant_text_is_encoded_once_for_all_runs(tmp_path):
    Conditioner(FakeText(), tmp_path, "cpu", False).prepare(CAPTIONS)
    second = FakeText()
    conditioner = Conditioner(second, tmp_path, "cpu", False)
    assert conditioner.prepare([*CAPTIONS, "new"]) == []
    assert second.encoded == [("new",)]
    conditioner(CAPTIONS)
    assert second.encoded == [("new",)]


def test_another_encoder_does_not_find_the_encodings_of_this_one(tmp_path):
    Conditioner(FakeText("one"), tmp_path, "cpu", False).prepare(CAPTIONS)
    other = FakeText("two")
    Conditioner(other, tmp_path, "cpu", False).prepare(CAPTIONS)
    assert len(other.encoded) == 4


def test_captions_that_were_not_prepared_are_encoded_when_they_come(tmp_path):
    encoder = FakeText()
    conditioner = Conditioner(encoder, tmp_path, "cpu", False)
    conditioner.prepare(["a"])
    num_files = len(list(tmp_path.iterdir()))
    conditioner(["a", "b"])
    assert encoder.encoded == [("",), ("a",), ("b",)]
    assert len(list(tmp_path.iterdir())) == num_files


def test_a_damaged_shard_is_noticed_and_encoded_again(tmp_path):
    Conditioner(FakeText(), tmp_path, "cpu", False).prepare(CAPTIONS)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-7] ^= 16
    path.write_bytes(data)
    encoder = FakeText()
    conditioner = Conditioner(encoder, tmp_path, "cpu", False)
    (problem,) = conditioner.prepare(CAPTIONS)
    assert (problem.path, problem.severity) == (path, "warning")
    assert len(encoder.encoded) == 4
    assert equal(conditioner(CAPTIONS), {n: t.detach() for n, t in FakeText().encode(CAPTIONS).items()})


def test_a_stop_or_an_error_keeps_what_is_encoded(tmp_path, monkeypatch):
    encoder = FakeText()
    Conditioner(encoder, tmp_path, "cpu", False).prepare(CAPTIONS, stop_requested=lambda: len(encoder.encoded) == 2)
    second = FakeText()
    conditioner = Conditioner(second, tmp_path, "cpu", False)
    with monkeypatch.context() as patch:
        original = second.encode

        def failing(captions):
            if len(second.encoded) == 1:
                raise RuntimeError("out of memory")
            return original(captions)

        patch.setattr(second, "encode", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            conditioner.prepare(CAPTIONS)
    third = FakeText()
    Conditioner(third, tmp_path, "cpu", False).prepare(CAPTIONS)
    assert encoder.encoded + second.encoded + third.encoded == [(c,) for c in dict.fromkeys(CAPTIONS)]


def test_many_captions_stay_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SHARD_ENTRIES", 10)
    encoder = FakeText()
    captions = [f"caption {i}" for i in range(45)]
    conditioner = Conditioner(encoder, tmp_path, "cpu", False, max_entries=4)
    conditioner.prepare(captions)
    assert len(list(tmp_path.iterdir())) == 5
    expected = FakeText().encode(captions)["text"]
    assert torch.equal(conditioner(captions)["text"], expected)
    assert len(conditioner._recent) == 4
    assert len(encoder.encoded) == 46


def test_a_trained_text_encoder_is_called_live_with_gradients_and_nothing_is_kept(tmp_path):
    encoder = FakeText()
    conditioner = Conditioner(encoder, tmp_path, "cpu", True)
    for num_calls in (1, 2):
        text = conditioner(["a cat", "a dog"])["text"]
        text.square().sum().backward()
        assert encoder.encoded == [("a cat", "a dog")] * num_calls
        with torch.no_grad():
            encoder.table -= 0.01 * encoder.table.grad
    assert not torch.equal(conditioner(["a cat", "a dog"])["text"], text)
    assert not list(tmp_path.iterdir())
    assert not conditioner._recent
    with pytest.raises(AssertionError, match="no constant encodings"):
        conditioner.prepare(["a cat"])


def test_a_frozen_text_encoder_gives_no_gradients():
    conditioner = Conditioner(FakeText(), None, "cpu", False)
    assert not conditioner(["a cat"])["text"].requires_grad


def test_encodings_that_are_not_finite_are_refused_by_caption(tmp_path):
    encoder = FakeText()
    encoder.table.data[sum(map(ord, "dog")) % 290] = torch.inf
    conditioner = Conditioner(encoder, tmp_path, "cpu", False)
    with pytest.raises(ValueError, match='text with values that are not finite for "a dog"'):
        conditioner.prepare(["a cat", "a dog"])
    with pytest.raises(ValueError, match="not finite"):
        conditioner(["a dog"])


def test_lengths_that_chunks_cannot_fill_are_refused():
    class Odd(FakeText):
        def encode(self, captions):
            return {"text": torch.zeros(len(captions), 100 if captions[0] else 77, 6)}

    conditioner = Conditioner(Odd(), None, "cpu", False)
    with pytest.raises(ValueError, match="77 tokens cannot be padded to 100 in chunks of 77"):
        conditioner(["", "a"])


class FakeT5:
    """A token for each word and no fewer than four; nothing may be added to a caption."""

    key = "t5"

    def num_tokens(self, caption):
        return len(caption.split())

    def encode(self, captions):
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(300, 4, generator=generator)
        ids = [[sum(map(ord, word)) % 290 for word in c.split()] for c in captions]
        texts = [table[[*i, 299, *[298] * (3 - len(i))]][None].cumsum(1) for i in ids]
        return {"pooled": torch.stack([t[0, :4].sum(0) for t in texts]), **stacked(texts)}


@pytest.mark.parametrize("folder", [True, False])
def test_captions_that_cannot_be_filled_up_keep_their_lengths(tmp_path, folder):
    captions = ["a cat", "a b c d e f", "", "a b c d e f g"]
    expected = FakeT5().encode(captions)
    assert expected["num_tokens"].tolist() == [4, 7, 4, 8]
    conditioner = Conditioner(FakeT5(), tmp_path / "text" if folder else None, "cpu", False)
    conditioner.prepare(captions)
    for live in (conditioner, Conditioner(FakeT5(), None, "cpu", True)):
        assert equal(live(captions), expected)


def test_pooled_is_never_taken_for_tokens():
    """Its width may be the number of tokens."""

    class Text(FakeText):
        def encode(self, captions):
            text = super().encode(captions)["text"]
            return {"text": text, "pooled": torch.ones(len(captions), 77)}

    conditioning = Conditioner(Text(), None, "cpu", False)(["a cat", CAPTIONS[3]])
    assert conditioning["text"].shape == (2, 231, 6)
    assert conditioning["pooled"].shape == (2, 77)
