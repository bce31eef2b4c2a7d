"""The memory ladder on tiny models of each family: the same gradients with fewer weights on the device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from sd_atelier.lib.block_fetching import NUM_SLOTS, BlockFetcher
from sd_atelier.lib.config import RunConfig, TrainableConfig, from_dict
from sd_atelier.lib.frozen import attached
from sd_atelier.lib.host import KeepsWeights, SampleRequest
from sd_atelier.lib.preparation import resume, start
from sd_atelier.lib.standalone.host import StandaloneHost
from sd_atelier.lib.storage import RELATIVE_ERROR
from sd_atelier.lib.trainables.lora import Lora
from torch import Tensor, nn

FAMILIES = ("sd1", "sd3.5-medium", "flux-dev")  # the blocks of the U-Nets are the same
families = pytest.mark.parametrize("family", FAMILIES)
checkpointing = pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
Make = Callable[..., StandaloneHost]


@pytest.fixture(scope="module")
def make(make_host, family_model) -> Make:
    def made(family: str, **options) -> StandaloneHost:
        return make_host(*([] if family == "sd1" else [family_model(family)]), **options)

    return made


def large_layers(host: StandaloneHost) -> list[nn.Module]:
    """The layers whose weights are stored and moved, found without the code under test."""
    kinds = ("ResnetBlock2D", "TransformerBlock", "JointTransformerBlock", "FluxSingleTransformerBlock")
    blocks = [m for m in host.parts["unet"].modules() if type(m).__name__.endswith(kinds)]
    layers = [m for block in blocks for m in block.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return [m for m in layers if m.weight.numel() >= 1024]


@contextmanager
def ready(host: StandaloneHost, checkpointing: bool) -> Iterator[Lora]:
    lora = Lora(TrainableConfig(rank=4, alpha=2.0), seed=5)
    lora.prepare(host)
    generator = torch.Generator().manual_seed(1)
    for p in lora.parameters().values():
        p.data = torch.randn(p.shape, generator=generator) * 0.2
    roots = [host.parts["unet"]]
    with host.training(torch.float32, checkpointing), attached(roots, host.weight_of, lora.branch_of, host.used):
        yield lora


def backward(host: StandaloneHost) -> None:
    generator = torch.Generator().manual_seed(2)
    shape = 2, host.autoencoder.num_channels, 8, 8
    x_t, target = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    with torch.no_grad():
        conditioning = host.text.encode(["a toy", "night"])
    conditioning |= {"sizes": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2), "guidance": torch.ones(2)}
    t = torch.tensor([0.3, 0.8]) if host.prediction == "flow" else torch.tensor([300, 800])
    (host.denoiser(x_t, t, conditioning) - target).square().mean().backward()


def gradients(host: StandaloneHost, checkpointing: bool = False, rounds: int = 1) -> Tensor:
    with ready(host, checkpointing) as lora:
        for _ in range(rounds):
            for p in lora.parameters().values():
                p.grad = None
            backward(host)
    grads = [p.grad for p in lora.parameters().values()]
    assert all(g is not None for g in grads)
    gradient = torch.cat([g.flatten() for g in grads if g is not None])
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    return gradient


def distance(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.norm(a - b) / torch.linalg.norm(b))


@families
@checkpointing
@pytest.mark.parametrize("part", [0.5, 1.0])
def test_cpu_blocks_give_the_plain_gradients_bit_for_bit(family, checkpointing, part, make):
    expected = gradients(make(family), checkpointing)
    host = make(family)
    assert isinstance(host, KeepsWeights) and host.num_blocks >= 2
    host.keep("model", int(part * host.num_blocks))
    assert torch.equal(gradients(host, checkpointing, rounds=2), expected)


def stored_as(weight: Tensor, storage: str) -> Tensor:
    """Rounded to the type by torch itself, float8 at a scale that leaves each row's largest between 224 and 448."""
    if storage == "bf16":
        return weight.to(torch.bfloat16).float()
    largest = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True)
    scale = 2.0 ** torch.ceil(torch.log2(largest / 448))
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


@families
@checkpointing
@pytest.mark.parametrize("storage", ["bf16", "float8"])
def test_narrow_storage_gives_the_gradients_of_the_rounded_weights_also_with_cpu_blocks(
    family, checkpointing, storage, make
):
    plain = make(family)
    for layer in large_layers(plain):
        layer.weight.data = stored_as(layer.weight.data, storage)
    expected = gradients(plain, checkpointing)
    for cpu_blocks in (0, 2):
        host = make(family, base_storage=storage, cpu_blocks=cpu_blocks)
        assert {layer.weight.dtype for layer in large_layers(host)} == {
            {"bf16": torch.bfloat16, "float8": torch.float8_e4m3fn}[storage]
        }
        assert torch.equal(gradients(host, checkpointing), expected)


@families
@pytest.mark.parametrize("storage", ["bf16", "float8"])
def test_the_gradients_differ_from_the_plain_ones_no_more_than_errors_of_half_a_step_make_them(family, storage, make):
    """The tolerance is measured: weights with independent errors, uniform up to the type's largest relative one."""
    plain = gradients(make(family))
    errors = []
    for seed in range(3):
        host = make(family)
        generator = torch.Generator().manual_seed(seed)
        for layer in large_layers(host):
            noise = 2 * torch.rand(layer.weight.shape, generator=generator) - 1
            layer.weight.data *= 1 + RELATIVE_ERROR[storage] * noise
        errors.append(distance(gradients(host), plain))
    found = distance(gradients(make(family, base_storage=storage)), plain)
    assert 0 < found <= max(errors)
    assert max(errors) < 0.5, "a tolerance of the gradient's own size would show nothing"


@pytest.fixture
def slots(monkeypatch) -> list[weakref.ref]:
    """Each slot that any ring makes."""
    made: list[weakref.ref] = []
    new_slot = BlockFetcher._new_slot

    def watched(self: BlockFetcher) -> Tensor:
        flat = new_slot(self)
        made.append(weakref.ref(flat))
        return flat

    monkeypatch.setattr(BlockFetcher, "_new_slot", watched)
    return made


def alive(slots: list[weakref.ref]) -> int:
    gc.collect()
    return sum(slot() is not None for slot in slots)


@families
@checkpointing
def test_never_more_than_the_rings_blocks_are_on_the_device_and_none_afterwards(family, checkpointing, make, slots):
    host = make(family)
    host.keep("model", host.num_blocks)
    with ready(host, checkpointing):
        for _ in range(2):
            backward(host)
        assert alive(slots) == NUM_SLOTS
    assert len(slots) == NUM_SLOTS, "a slot is used again, not made anew"
    assert alive(slots) == 0


@families
def test_after_an_error_in_the_backward_pass_everything_is_given_back(family, make, slots, monkeypatch):
    host = make(family, base_storage="float8", cpu_blocks=2)
    expected = gradients(host, checkpointing=True)
    layer = large_layers(host)[0]
    calls = 0

    def failing(self: BlockFetcher, asked: nn.Module):
        nonlocal calls
        calls += asked is layer
        if calls == 2:
            raise RuntimeError("CUDA out of memory, in the middle of the backward pass")
        return of(self, asked)

    of = BlockFetcher.of
    in_ring = [m for m in large_layers(host) if m in host._weights._fetcher]
    layer = in_ring[0]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="in the middle"):
        patch.setattr(BlockFetcher, "of", failing)
        gradients(host, checkpointing=True)
    assert calls == 2
    assert alive(slots) == 0 and not host._weights._lent and not host._weights._spare
    assert torch.equal(gradients(host, checkpointing=True), expected)


@families
def test_pictures_are_sampled_from_such_weights_outside_training_too(family, make):
    request = SampleRequest(prompt="a toy", steps=2, width=64, height=64, seed=3)
    plain = make(family)
    with attached([plain.parts["unet"]]):  # our arithmetic, whose last bits are not torch's
        expected = plain.sampler(request)
    host = make(family)
    host.keep("model", 2)
    assert host.sampler(request).tobytes() == expected.tobytes()
    host.keep("float8", 2)
    assert host.sampler(request).size == (64, 64)


def run_config(pictures: Path, **loop) -> RunConfig:
    return from_dict(
        RunConfig,
        {
            "name": "ladder",
            "data": {"concepts": [{"folder": str(pictures)}], "resolution": 64, "bucket_min_px": 64},
            "loop": {"steps": 4, **loop},
            "save": {"every_steps": 2},
            "trainable": {"rank": 2},
        },
    )


@pytest.fixture
def pictures(tmp_path) -> Path:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 120, 255 - 60 * i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a toy")
    return folder


def test_a_run_with_cpu_blocks_is_the_plain_run_and_goes_on_without_them(make, pictures, tmp_path):
    losses = {}
    for name, cpu_blocks in (("plain", 0), ("kept", 4)):
        host = make("sd1", cpu_blocks=cpu_blocks)
        with start(host, run_config(pictures, cpu_blocks=cpu_blocks), tmp_path / name) as prepared:
            assert prepared.trainer.train().step == 4
            losses[name] = (prepared.run.path / "loss.csv").read_bytes()
    assert losses["kept"] == losses["plain"]
    with resume(make("sd1"), prepared.run.path, {"loop": {"cpu_blocks": 0}}) as again:
        assert again.trainer.step == 4


def test_a_run_on_another_storage_than_the_hosts_is_refused(make, pictures, tmp_path):
    host = make("sd1", base_storage="float8")
    with (
        pytest.raises(ValueError, match='stored as float8 already; load the model again for "model"'),
        start(host, run_config(pictures), tmp_path / "runs"),
    ):
        pass
    assert not (tmp_path / "runs").exists()
