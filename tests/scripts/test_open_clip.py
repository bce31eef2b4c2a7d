"""OpenCLIP's fused attention through layers: the same output, the gradients of the merged weights, no copy."""

import pytest
import torch
from sd_atelier.lib.forwards import replaced
from sd_atelier.lib.frozen import Branch, attached
from sd_atelier.scripts.webui import open_clip
from torch import nn

WIDTH, HEADS, TOKENS, BATCH = 8, 2, 5, 3


class Block(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x, mask):
        rows = self.ln_1(x)
        x = x + self.attn(rows, rows, rows, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp.c_proj(self.mlp.c_fc(self.ln_2(x)).relu())


class TextModel(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([Block(batch_first) for _ in range(2)])
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, 6))

    def forward(self, x, mask):
        for block in self.transformer.resblocks:
            x = block(x, mask)
        return self.ln_final(x)


@pytest.fixture(params=[False, True], ids=["tokens first", "batch first"])
def model(request):
    torch.manual_seed(1)
    model = TextModel(request.param).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.5)
    shape = (BATCH, TOKENS, WIDTH) if request.param else (TOKENS, BATCH, WIDTH)
    mask = torch.full((TOKENS, TOKENS), float("-inf"), dtype=torch.float64).triu(1)
    return model, torch.randn(shape, dtype=torch.float64), mask


def test_the_container_names_the_models_own_layers_as_transformers_does(model):
    text, _, _ = model
    container = open_clip.split(text, num_unused=0, projects=True)
    layers = {name: module for name, module in container.named_modules() if isinstance(module, nn.Linear)}
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]
    expected = [f"text_model.encoder.layers.{i}.{name}" for i in (0, 1) for name in names] + ["text_projection"]
    assert list(layers) == expected
    assert layers["text_model.encoder.layers.1.mlp.fc2"] is text.transformer.resblocks[1].mlp.c_proj
    assert len(list(open_clip.split(text, num_unused=1, projects=False).text_model.encoder.layers.children())) == 1


def test_stand_ins_are_views_of_what_the_model_has_now(model):
    text, _, _ = model
    container = open_clip.split(text, num_unused=0, projects=True)
    attention = text.transformer.resblocks[0].attn
    layers = container.text_model.encoder.layers.get_submodule("0").self_attn
    for index, name in enumerate(open_clip.PROJECTIONS):
        third = getattr(layers, name)
        rows = slice(index * WIDTH, (index + 1) * WIDTH)
        assert third.weight.untyped_storage().data_ptr() == attention.in_proj_weight.untyped_storage().data_ptr()
        assert torch.equal(third.weight, attention.in_proj_weight[rows])
        # a module that moves to another device gets other memory
        attention.in_proj_weight.data = attention.in_proj_weight.data.clone() + 1
        assert torch.equal(third.weight, attention.in_proj_weight[rows])
        assert torch.equal(third.bias, attention.in_proj_bias[rows])
    assert torch.equal(container.text_projection.weight, text.text_projection.t())
    assert all(any(p is q for q in text.parameters()) for p in container.parameters())


def test_with_nothing_attached_the_models_own_attention_runs(model):
    text, x, mask = model
    expected = text(x, mask)
    container = open_clip.split(text, num_unused=0, projects=False)
    with replaced(open_clip.attentions(text, container)):
        assert torch.equal(text(x, mask), expected)
    assert "forward" not in vars(text.transformer.resblocks[0].attn)


def test_output_and_gradients_are_those_of_the_merged_weights(model):
    text, x, mask = model
    container = open_clip.split(text, num_unused=0, projects=False)
    branches, merged = {}, {n: p.detach().clone() for n, p in text.named_parameters()}
    fused = {f"text_model.encoder.layers.{i}.self_attn.{n}": (i, n) for i in (0, 1) for n in open_clip.PROJECTIONS}
    for name, layer in container.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        down = torch.randn(2, layer.in_features, dtype=torch.float64, requires_grad=True)
        up = torch.randn(layer.out_features, 2, dtype=torch.float64, requires_grad=True)
        branches[id(layer)] = Branch(down, up, 0.3)
        delta = 0.3 * up @ down
        if name in fused:
            index, projection = fused[name]
            key = f"transformer.resblocks.{index}.attn.in_proj_weight"
            start = open_clip.PROJECTIONS.index(projection) * WIDTH
            rows = torch.zeros(3 * WIDTH, WIDTH, dtype=torch.float64)
            merged[key] = merged[key] + torch.cat([rows[:start], delta, rows[start + WIDTH :]])
        else:
            key = next(n for n, module in text.named_modules() if module is layer) + ".weight"
            merged[key] = merged[key] + delta
    trained = [p for branch in branches.values() for p in (branch.down, branch.up)]
    expected = torch.func.functional_call(text, merged, (x, mask))
    wanted = torch.autograd.grad(expected.pow(3).sum(), trained)
    with (
        attached([container], branch_of=lambda layer: branches.get(id(layer))),
        replaced(open_clip.attentions(text, container)),
    ):
        got = text(x, mask)
        grads = torch.autograd.grad(got.pow(3).sum(), trained)
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-10)
    for grad, other in zip(grads, wanted, strict=True):
        assert other.abs().sum() > 0
        assert torch.allclose(grad, other, rtol=1e-8, atol=1e-8)
