"""A batch of captions of several lengths gives what each caption gives alone."""

import pytest
import torch
from sd_atelier.lib.lengths import NUM_TOKENS, denoised, stacked


def denoiser(x_t, t, conditioning):
    """Reads every token and its place, as attention without a mask does."""
    text = conditioning["text"]
    places = torch.arange(1, text.shape[1] + 1, dtype=text.dtype)
    read = ((text + 1).sum(-1) * places).sum(1) / text.shape[1]
    factor = read + conditioning["pooled"].sum(1) + conditioning["sizes"].sum(1) + t
    return x_t * factor[:, None, None, None]


def captions(lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, n, 3, dtype=torch.float64, generator=generator, requires_grad=True) for n in lengths]


def batch(texts):
    num = len(texts)
    x_t = torch.randn(num, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    others = {"pooled": torch.arange(2.0 * num).view(num, 2), "sizes": torch.arange(6.0 * num).view(num, 6)}
    return x_t, torch.arange(num) + 0.5, {**others, **stacked(texts)}


@pytest.mark.parametrize("lengths", [[5], [5, 5], [5, 7], [9, 5, 7, 5], [3, 2, 1]])
def test_each_caption_is_seen_at_its_own_length(lengths):
    texts = captions(lengths)
    x_t, t, conditioning = batch(texts)
    got = denoised(denoiser, x_t, t, conditioning)
    for i, text in enumerate(texts):
        own = {name: conditioning[name][i : i + 1] for name in ("pooled", "sizes")}
        expected = denoiser(x_t[i : i + 1], t[i : i + 1], {**own, "text": text})
        assert torch.equal(got[i : i + 1], expected)


def test_gradients_reach_each_caption():
    texts = captions([4, 6, 4])
    x_t, t, conditioning = batch(texts)
    together = torch.autograd.grad(denoised(denoiser, x_t, t, conditioning).square().sum(), texts)
    for i, (text, grad) in enumerate(zip(texts, together, strict=True)):
        own = {name: conditioning[name][i : i + 1] for name in ("pooled", "sizes")}
        alone = denoiser(x_t[i : i + 1], t[i : i + 1], {**own, "text": text}).square().sum()
        assert torch.allclose(grad, torch.autograd.grad(alone, text)[0], rtol=1e-12)


def test_behind_a_caption_is_nothing_but_zeros():
    conditioning = stacked(captions([2, 5]))
    assert conditioning[NUM_TOKENS].tolist() == [2, 5]
    assert conditioning["text"].shape == (2, 5, 3)
    assert conditioning["text"][0, 2:].abs().max() == 0


def test_conditioning_without_lengths_goes_to_the_denoiser_as_it_is():
    seen = []

    def records(x_t, t, conditioning):
        seen.append(conditioning)
        return x_t

    x_t = torch.zeros(1, 1, 1, 1)
    conditioning = {"text": torch.zeros(1, 2, 3)}
    assert denoised(records, x_t, torch.zeros(1), conditioning) is x_t
    assert seen[0]["text"] is conditioning["text"]
