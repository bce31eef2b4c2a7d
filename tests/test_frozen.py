"""Laws of frozen layers: gradients are plain autograd's, no weight is kept, whatever the host's weights are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sd_atelier.lib.frozen import Branch, attached, plain_weight
from sd_atelier.lib.recompute import recomputed
from torch import nn

RANK, SCALE = 3, 0.7


class Net(nn.Module):
    """Linear, both kinds of convolution, and both norms, with an in-place addition as some models have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
        self.point = nn.Conv2d(8, 6, 1)
        self.layer_norm = nn.LayerNorm(6)
        self.linear = nn.Linear(6, 10)
        self.out = nn.Linear(10, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm(self.conv(x)))
        x = self.point(self.down(x)).permute(0, 2, 3, 1)
        y = self.linear(self.layer_norm(x))
        z = self.out(F.gelu(y))
        z += x
        return z


ADAPTED = ("conv", "down", "point", "linear", "out")


def make(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Net, dict[str, Branch], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    net = Net().to(dtype).requires_grad_(False)
    for p in net.parameters():
        p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.4)
    branches = {}
    for name in ADAPTED:
        layer = net.get_submodule(name)
        spatial = isinstance(layer, nn.Conv2d)
        num_in, num_out = layer.weight.shape[1], layer.weight.shape[0]
        down = torch.randn(
            RANK, num_in, *(layer.kernel_size if spatial else ()), generator=generator, dtype=torch.float64
        )
        up = torch.randn(num_out, RANK, *((1, 1) if spatial else ()), generator=generator, dtype=torch.float64)
        parameters = [
            nn.Parameter((p * 0.3).to(torch.float64 if dtype == torch.float64 else torch.float32)) for p in (down, up)
        ]
        branches[name] = Branch(*parameters, SCALE)
    x = torch.randn(2, 4, 6, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(True)
    return net, branches, x


def trained(branches: dict[str, Branch], x: torch.Tensor) -> list[torch.Tensor]:
    return [x] + [p for b in branches.values() for p in (b.down, b.up)]


def merged(net: Net, branches: dict[str, Branch], x: torch.Tensor) -> torch.Tensor:
    weights = {}
    for name, b in branches.items():
        weight = net.get_submodule(name).weight
        weights[f"{name}.weight"] = weight + SCALE * (b.up.flatten(1) @ b.down.flatten(1)).view_as(weight)
    return torch.func.functional_call(net, weights, (x,))


def through(
    net: Net, branches: dict[str, Branch], x: torch.Tensor, weight_of=plain_weight, recompute: bool = False
) -> torch.Tensor:
    of = {id(net.get_submodule(name)): b for name, b in branches.items()}
    with attached([net], weight_of, lambda layer: of.get(id(layer))), recomputed([net] if recompute else []):
        y = net(x)
        y.pow(3).sum().backward()
    return y.detach()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_output_and_gradients_are_those_of_the_merged_weights(recompute: bool, channels_last: bool) -> None:
    net, branches, x = make()
    y = merged(net, branches, x)
    expected = torch.autograd.grad(y.pow(3).sum(), trained(branches, x))
    if channels_last:
        net.to(memory_format=torch.channels_last)
    got = through(net, branches, x, recompute=recompute)
    assert relative(got, y) < 1e-12
    for grad, p in zip(expected, trained(branches, x), strict=True):
        assert p.grad is not None and grad.abs().sum() > 0
        assert relative(p.grad, grad) < 1e-11


def test_without_branches_the_gradient_to_the_input_is_plain_autograds() -> None:
    net, _, x = make()
    expected = torch.autograd.grad(net(x).pow(3).sum(), x)[0]
    through(net, {}, x)
    assert relative(x.grad, expected) < 1e-12


@pytest.mark.parametrize("recompute", [False, True])
def test_weights_made_under_inference_mode_train(recompute: bool) -> None:
    net, branches, x = make()
    expected = torch.autograd.grad(merged(net, branches, x).pow(3).sum(), trained(branches, x))
    with torch.inference_mode():
        made_inside = {name: p.detach().clone() for name, p in net.named_parameters()}
    for name, weight in made_inside.items():
        owner, _, leaf = name.rpartition(".")
        net.get_submodule(owner)._parameters[leaf] = weight  # as a host's own loader leaves them
    assert net.conv.weight.is_inference()
    through(net, branches, x, recompute=recompute)
    for grad, p in zip(expected, trained(branches, x), strict=True):
        assert relative(p.grad, grad) < 1e-11


@pytest.mark.parametrize("recompute", [False, True])
def test_weights_may_live_in_a_buffer_that_is_poisoned_after_each_use(recompute: bool) -> None:
    net, branches, x = make()
    expected = torch.autograd.grad(merged(net, branches, x).pow(3).sum(), trained(branches, x))
    store = {id(m): (m.weight.clone(), None if m.bias is None else m.bias.clone()) for m in net.children()}
    buffer = torch.full((4096,), float("nan"), dtype=torch.float64)
    fetches = 0
    for m in net.children():
        m.weight.fill_(float("nan"))  # whoever reads the layer itself is found out

    def weight_of(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
        nonlocal fetches
        fetches += 1
        buffer.fill_(float("nan"))  # poisons what the previous call returned
        weight, bias = store[id(layer)]
        views, offset = [], 0
        for value in (weight, bias):
            if value is not None:
                views.append(buffer[offset : offset + value.numel()].view_as(value).copy_(value))
                offset += value.numel()
        return views[0], views[1] if bias is not None else None

    through(net, branches, x, weight_of, recompute)
    assert fetches > len(store)
    for grad, p in zip(expected, trained(branches, x), strict=True):
        assert relative(p.grad, grad) < 1e-11


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_narrow_storage_trains_as_its_widened_weights_do(storage: torch.dtype) -> None:
    net, branches, x = make(torch.float32)
    narrow = {id(m): m.weight.to(storage) for m in net.children()}
    for m in net.children():
        m.weight.copy_(narrow[id(m)].float())
    y = merged(net, branches, x)
    expected = torch.autograd.grad(y.pow(3).sum(), trained(branches, x))
    biases = {id(m): m.bias for m in net.children()}
    for m in net.children():
        m.weight.fill_(float("nan"))
    through(net, branches, x, lambda layer: (narrow[id(layer)], biases[id(layer)]))
    for grad, p in zip(expected, trained(branches, x), strict=True):
        assert p.grad.dtype == torch.float32
        assert relative(p.grad, grad) < 1e-5


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_narrow_arithmetic_gives_float32_gradients_near_the_exact_ones(compute: torch.dtype) -> None:
    net, branches, x = make(torch.float32)
    expected = torch.autograd.grad(merged(net, branches, x).pow(3).sum(), trained(branches, x)[1:])
    if compute == torch.float16 and torch.__version__.startswith("2.1."):
        pytest.skip("torch 2.1 has no fp16 convolution on the CPU")
    through(net.to(compute), branches, x.detach().to(compute).requires_grad_(True))
    for grad, p in zip(expected, trained(branches, x)[1:], strict=True):
        assert p.grad.dtype == torch.float32
        assert relative(p.grad, grad) < 0.05


class Convolutions(nn.Module):
    """A deep convolution, which becomes a matrix product, and a shallow one, which does not."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.shallow = nn.Conv2d(24, 160, 3, padding=1), nn.Conv2d(160, 20, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shallow(F.silu(self.deep(x)))


SIZED = {
    "linear": (lambda: nn.Sequential(nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 96), nn.LayerNorm(96)), (5, 96)),
    "convolution": (Convolutions, (1, 24, 4, 4)),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", SIZED)
@pytest.mark.parametrize("channels_last", [False, True])
def test_no_tensor_of_a_weights_size_is_saved_or_made(recompute: bool, kind: str, channels_last: bool) -> None:
    make_net, shape = SIZED[kind]
    net = make_net().requires_grad_(False)
    if channels_last and kind == "convolution":
        net.to(memory_format=torch.channels_last)
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    branches = {}
    for m in layers:
        num_out, num_in = m.weight.shape[:2]
        down, up = (
            torch.randn(4, num_in, *m.weight.shape[2:]),
            torch.randn(num_out, 4, *(1 for _ in m.weight.shape[2:])),
        )
        branches[id(m)] = Branch(nn.Parameter(down), nn.Parameter(up), 1.0)
    sizes = {m.weight.numel() for m in layers}
    storages = {m.weight.untyped_storage().data_ptr() for m in layers}
    saved: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    x = torch.randn(shape, requires_grad=True)
    with attached([net], branch_of=lambda m: branches.get(id(m))), recomputed([net] if recompute else []):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = net(x).square().sum()
        with _AllocationCounter() as counter:
            loss.backward()
            net(x)
    assert saved
    assert not [t.shape for t in saved if t.numel() in sizes or t.untyped_storage().data_ptr() in storages]
    assert not [shape for shape in counter.shapes if torch.Size(shape).numel() in sizes]


class _AllocationCounter(torch.utils._python_dispatch.TorchDispatchMode):
    """Shapes of all tensors that operations return with a storage of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage().data_ptr() for t in _tensors([args, kwargs])}
        self.shapes += [t.shape for t in _tensors(out) if t.untyped_storage().data_ptr() not in inputs]
        return out


def _tensors(tree: object) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_flatten(tree)[0] if isinstance(t, torch.Tensor)]


def test_the_allocation_counter_sees_a_copied_weight() -> None:
    layer = nn.Linear(96, 160).requires_grad_(False)
    with _AllocationCounter() as counter, attached([layer], lambda m: (m.weight.clone(), m.bias)):
        layer(torch.randn(5, 96))
    assert layer.weight.shape in counter.shapes


def test_every_forward_is_put_back_after_an_error_too() -> None:
    net, branches, _ = make()
    of = {id(net.get_submodule(name)): b for name, b in branches.items()}
    with pytest.raises(ZeroDivisionError), attached([net], branch_of=lambda m: of.get(id(m))), recomputed([net]):
        assert "forward" in net.conv.__dict__ and "forward" in net.__dict__
        raise ZeroDivisionError
    assert not any("forward" in m.__dict__ for m in net.modules())


@pytest.mark.parametrize("padding", ["same", "valid", (2, 1)])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_every_padding_is_the_layers_own(padding: object, mode: str) -> None:
    layer = nn.Conv2d(3, 5, (3, 2), padding=padding, padding_mode=mode).double().requires_grad_(False)
    down, up = nn.Parameter(torch.randn(2, 3, 3, 2).double()), nn.Parameter(torch.randn(5, 2, 1, 1).double())
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    delta = (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
    expected = layer._conv_forward(x, layer.weight + SCALE * delta, layer.bias)
    grads = torch.autograd.grad(expected.pow(2).sum(), [x, down, up])
    with attached([layer], branch_of=lambda m: Branch(down, up, SCALE)):
        y = layer(x)
    assert relative(y, expected) < 1e-12
    for got, want in zip(torch.autograd.grad(y.pow(2).sum(), [x, down, up]), grads, strict=True):
        assert relative(got, want) < 1e-12


def test_a_grouped_convolution_passes_through_and_refuses_a_branch() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=2).double().requires_grad_(False)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(layer(x).pow(2).sum(), x)[0]
    with attached([layer]):
        assert relative(torch.autograd.grad(layer(x).pow(2).sum(), x)[0], expected) < 1e-12
    branch = Branch(torch.zeros(1, 4, 3, 3), torch.zeros(4, 1, 1, 1), 1.0)
    with attached([layer], branch_of=lambda m: branch), pytest.raises(ValueError, match="groups=2"):
        layer(x)


def test_in_a_hosts_autocast_the_arithmetic_is_autocasts() -> None:
    net, branches, x = make(torch.float32)
    of = {id(net.get_submodule(name)): b for name, b in branches.items()}
    with torch.no_grad(), attached([net], plain_weight, lambda layer: of.get(id(layer))):
        exact = net(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = net.linear(torch.zeros(1, 6)), net.conv(x), net.norm(net.conv(x))
            near = net.out(F.gelu(net.linear(net.layer_norm(torch.ones(2, 6)))))
        expected = net.out(F.gelu(net.linear(net.layer_norm(torch.ones(2, 6)))))
    assert [y.dtype for y in cast[:2]] == [torch.bfloat16] * 2
    assert exact.dtype == torch.float32
    assert not torch.equal(near.float(), expected)
    assert torch.allclose(near.float(), expected, rtol=0.1, atol=0.1)
