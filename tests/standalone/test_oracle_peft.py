"""Our LoRA against PEFT's on the same U-Net and text encoder, in float64: the same output, the same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from sd_atelier.lib.config import TrainableConfig
from sd_atelier.lib.frozen import attached
from sd_atelier.lib.trainables.lora import Lora
from transformers import CLIPTokenizer

CONFIGS = {
    "linear": TrainableConfig(rank=4, alpha=2.0),
    "attention": TrainableConfig(rank=2, alpha=3.0, layers="attention"),
    "convolutions": TrainableConfig(rank=4, alpha=2.0, layers="all", conv_rank=3, conv_alpha=1.5),
    "convolutions of the linear rank": TrainableConfig(rank=4, alpha=2.0, layers="all"),
    "rank stabilised": TrainableConfig(rank=4, alpha=2.0, rank_stabilized=True),
    "text encoder": TrainableConfig(rank=4, alpha=2.0, text_encoder=True),
    "all of it": TrainableConfig(rank=4, alpha=2.0, layers="all", conv_rank=2, text_encoder=True),
}
CAPTIONS = ["a red cube", "two blue balls, night"]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("block_checkpointing", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_output_and_every_gradient_equal_pefts(name, block_checkpointing, tiny_model, make_host, peft_twin) -> None:
    host = make_host(dtype=torch.float64)
    unet = host.parts["unet"]
    lora = Lora(CONFIGS[name], seed=5)
    lora.prepare(host)
    generator = torch.Generator().manual_seed(1)
    for p in lora.parameters().values():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.2
    others = copy.deepcopy(host.parts)
    theirs = peft_twin(host.parts, others, lora)

    x_t = torch.randn(2, 4, 8, 12, generator=generator, dtype=torch.float64)
    target = torch.randn(2, 4, 8, 12, generator=generator, dtype=torch.float64)
    t = torch.tensor([37, 811])
    tokenizer = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")
    tokens = tokenizer(CAPTIONS, padding="max_length", return_tensors="pt").input_ids

    num_forwards = 0

    def count(*_: object) -> None:
        nonlocal num_forwards
        num_forwards += 1

    hook = unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q").register_forward_hook(count)
    with host.training(torch.float64, block_checkpointing), attached(host.parts.values(), branch_of=lora.branch_of):
        text = host.text.encode(CAPTIONS)["text"]
        output = unet(x_t, t, encoder_hidden_states=text).sample
        (output - target).square().mean().backward()
    hook.remove()
    assert num_forwards == (2 if block_checkpointing else 1)

    text_theirs = others["te"](tokens).last_hidden_state
    output_theirs = others["unet"](x_t, t, encoder_hidden_states=text_theirs).sample
    (output_theirs - target).square().mean().backward()

    assert output.dtype == torch.float64 and relative(output, output_theirs) < 1e-9
    with torch.no_grad():
        base = copy.deepcopy(host.parts)["unet"](x_t, t, encoder_hidden_states=text_theirs).sample
    assert relative(output, base) > 1e-3, "the network must matter for its gradient to be tested"
    for parameter_name, p in lora.parameters().items():
        expected = theirs[parameter_name].grad
        assert p.grad is not None and expected is not None and expected.abs().max() > 0, parameter_name
        assert relative(p.grad, expected) < 1e-9, parameter_name
