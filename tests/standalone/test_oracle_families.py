"""LoRA on tiny denoisers of SDXL, SD3 and Flux: PEFT's output and gradients, and the same output from the saved file.

PEFT has an adapter for each split layer. Where ours is shared by several, PEFT's get copies of the one down, and the
gradients to the copies are summed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from sd_atelier.lib.config import LayerRule, TrainableConfig
from sd_atelier.lib.frozen import attached
from sd_atelier.lib.keys.published import Adapter, adapters_in, published
from sd_atelier.lib.recompute import recomputed
from sd_atelier.lib.trainables.lora import Lora
from torch import Tensor, nn

FAMILIES = ("sdxl", "sd3", "flux")


def sdxl() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        norm_num_groups=8,
    )


def sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"sdxl": sdxl, "sd3": sd3, "flux": flux}


def model_of(family: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    model = MODELS[family]().eval().requires_grad_(False).to(dtype)
    for p in model.parameters():  # the output layers start at zero, which would hide everything
        if not p.any():
            nn.init.normal_(p, std=0.2)
    return model


def output_of(family: str, model: nn.Module, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    text, pooled = randn(2, 5, 16), randn(2, 16)
    if family == "sdxl":
        added = {"text_embeds": pooled, "time_ids": torch.arange(12).view(2, 6).to(dtype)}
        t = torch.tensor([37, 811])
        return model(randn(2, 4, 8, 8), t, encoder_hidden_states=text, added_cond_kwargs=added).sample
    t = torch.tensor([0.25, 0.75], dtype=dtype)
    if family == "sd3":
        return model(randn(2, 4, 8, 8), text, pooled, 1000 * t).sample
    ids = torch.tensor([[0.0, i // 4, i % 4] for i in range(16)])
    return model(
        randn(2, 16, 4),
        text,
        pooled,
        t,
        img_ids=ids,
        txt_ids=torch.zeros(5, 3),
        guidance=torch.tensor([3.5, 1.0], dtype=dtype),
    ).sample


def trained(family: str, model: nn.Module, dtype: torch.dtype, **settings: object) -> Lora:
    lora = Lora(TrainableConfig(**{"rank": 3, "alpha": 2.0, **settings}), seed=5)  # type: ignore[arg-type]
    lora.prepare(SimpleNamespace(family=family, parts={"unet": model}, device=torch.device("cpu")))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    for p in lora.parameters().values():
        p.data = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.1).to(dtype)
    return lora


def blocks_of(model: nn.Module) -> list[nn.Module]:
    lists = ("transformer_blocks", "single_transformer_blocks", "resnets", "attentions")
    found = [m for name in lists for child in model.modules() for m in getattr(child, name, ())]
    inner = {id(m) for block in found for m in block.modules() if m is not block}
    return [block for block in found if id(block) not in inner]


def peft_twin(model: nn.Module, other: nn.Module, lora: Lora) -> dict[str, list[tuple[nn.Module, bool]]]:
    """Canonical name -> the layers that PEFT adapts in `other`, in order, each with whether its halves are swapped."""
    from peft import LoraConfig, inject_adapter_in_model

    names = {id(module): name for name, module in model.named_modules()}
    groups = {name: [(names[id(m.module)], m) for m in members] for name, members in lora.layer_names().items()}
    flat = [module_name for own in groups.values() for module_name, _ in own]
    file = lora.parameters()
    ranks = {re.escape(n): file[f"{name}.lora_down.weight"].shape[0] for name, own in groups.items() for n, _ in own}
    config = LoraConfig(target_modules=flat, lora_alpha=2, r=3, rank_pattern=ranks)
    inject_adapter_in_model(config, other)
    twins: dict[str, list[tuple[nn.Module, bool]]] = {}
    for name, own in groups.items():
        for module_name, member in own:
            layer = other.get_submodule(module_name)
            layer.lora_A["default"].weight.data = file[f"{name}.lora_down.weight"].detach().clone()
            layer.lora_B["default"].weight.data = member.own(file[f"{name}.lora_up.weight"].detach()).clone()
            twins.setdefault(name, []).append((layer, member.swapped))
    return twins


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("family", "settings"),
    [("sdxl", {}), ("sdxl", {"layers": "all"}), ("sd3", {}), ("flux", {}), ("flux", {"layers": "attention"})],
)
def test_output_and_gradients_equal_pefts(family, settings, recompute) -> None:
    model = model_of(family, torch.float64)
    base = output_of(family, model, torch.float64)
    other = copy.deepcopy(model)
    lora = trained(family, model, torch.float64, **settings)
    twins = peft_twin(model, other, lora)
    num_forwards = 0

    def count(*_: object) -> None:
        nonlocal num_forwards
        num_forwards += 1

    probed = next(iter(lora.layer_names().values()))[0].module
    hook = probed.register_forward_hook(count)
    with attached([model], branch_of=lora.branch_of), recomputed(blocks_of(model) if recompute else []):
        output = output_of(family, model, torch.float64)
        torch.sin(output * 5).sum().backward()
    hook.remove()
    assert num_forwards == (2 if recompute else 1)
    expected = output_of(family, other, torch.float64)
    torch.sin(expected * 5).sum().backward()
    assert close(output, expected, 1e-9) and not close(output, base, 1e-3)
    trained_by_peft = {id(p) for p in other.parameters() if p.requires_grad}
    parameters = lora.parameters()
    for name, layers in twins.items():
        downs = [layer.lora_A["default"].weight for layer, _ in layers]
        ups = [layer.lora_B["default"].weight for layer, _ in layers]
        trained_by_peft -= {id(p) for p in (*downs, *ups)}
        down = sum(p.grad for p in downs)
        up = torch.cat(
            [torch.cat(p.grad.chunk(2)[::-1]) if s else p.grad for p, (_, s) in zip(ups, layers, strict=True)]
        )
        for half, gradient in (("down", down), ("up", up)):
            own = parameters[f"{name}.lora_{half}.weight"].grad
            if gradient.abs().max() == 0:  # the text stream ends before the last of its layers
                assert own is None or own.abs().max() == 0, name
                continue
            assert own is not None and close(own, gradient, 1e-9), f"{name} {half}"
    assert not trained_by_peft


def load_into(family: str, path: Path, model: nn.Module) -> None:
    """The file into a plain model, by diffusers' own reader of this family."""
    import diffusers

    if family == "sdxl":
        pipeline = diffusers.StableDiffusionXLPipeline
        tensors, alphas = pipeline.lora_state_dict(path, unet_config=model.config)
        pipeline.load_lora_into_unet(tensors, alphas, model)
    elif family == "sd3":
        pipeline = diffusers.StableDiffusion3Pipeline
        pipeline.load_lora_into_transformer(pipeline.lora_state_dict(path), model)
    else:
        pipeline = diffusers.FluxPipeline
        tensors, alphas = pipeline.lora_state_dict(path, return_alphas=True)
        pipeline.load_lora_into_transformer(tensors, alphas, model)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("sdxl", {}),
        ("sdxl", {"layers": "all"}),
        ("sd3", {}),
        ("sd3", {"rank_stabilized": True}),
        # diffusers takes this layer apart at the widths of the full-size model alone: see the next test
        ("flux", {"rules": (LayerRule(layers="*_linear1", rank=0),)}),
    ],
)
def test_the_file_changes_the_model_in_diffusers_as_the_live_network_does(family, settings, tmp_path) -> None:
    model = model_of(family, torch.float32)
    plain = copy.deepcopy(model)
    base = output_of(family, model, torch.float32)
    lora = trained(family, model, torch.float32, **settings)
    path = tmp_path / "network.safetensors"
    save_file(lora.export(lora.parameters(), torch.float32), path)
    with torch.no_grad():
        with attached([model], branch_of=lora.branch_of):
            live = output_of(family, model, torch.float32)
        load_into(family, path, plain)
        loaded = output_of(family, plain, torch.float32)
    assert close(loaded, live, 1e-5) and not close(loaded, base, 1e-2)
    num_layers = sum(len(members) for members in lora.layer_names().values())
    assert sum("lora_B" in name for name, _ in plain.named_parameters()) == num_layers


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_a_pipeline_loads_the_text_encoders_too(family, tmp_path) -> None:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    dims = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(2)
    encoders = [CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=40, **dims)).eval() for _ in range(2)]
    parts = {"unet": model_of(family, torch.float32), "te1": encoders[0], "te2": encoders[1]}
    live = Lora(TrainableConfig(rank=3, alpha=2.0, text_encoder=True), seed=5)
    live.prepare(SimpleNamespace(family=family, parts=parts, device=torch.device("cpu")))  # type: ignore[arg-type]
    for p in live.parameters().values():
        nn.init.normal_(p, std=0.3)
    path = tmp_path / "network.safetensors"
    save_file(live.export(live.parameters(), torch.float32), path)
    tokens = torch.tensor([[38, 5, 7, 39]])
    with torch.no_grad():
        base = [encoder(tokens).last_hidden_state for encoder in encoders]
        with attached(parts.values(), branch_of=live.branch_of):
            expected = [encoder(tokens).last_hidden_state for encoder in encoders]
        plain = dict.fromkeys(("vae", "tokenizer", "tokenizer_2"))
        plain |= {
            "text_encoder": encoders[0],
            "text_encoder_2": encoders[1],
            "scheduler": diffusers.EulerDiscreteScheduler(),
        }
        if family == "sdxl":
            pipeline = diffusers.StableDiffusionXLPipeline(unet=parts["unet"], **plain)
        else:
            plain |= {"text_encoder_3": None, "tokenizer_3": None}
            pipeline = diffusers.StableDiffusion3Pipeline(transformer=parts["unet"], **plain)
        pipeline.load_lora_weights(path)
        loaded = [encoder(tokens).last_hidden_state for encoder in encoders]
    for own, theirs, without in zip(expected, loaded, base, strict=True):
        assert close(theirs, own, 1e-5) and not close(theirs, without, 1e-2)


def test_diffusers_takes_the_fused_layers_of_the_full_size_flux_apart_as_we_do() -> None:
    import diffusers

    generator = torch.Generator().manual_seed(1)
    sizes = {"double_blocks_0_img_attn_qkv": 3, "double_blocks_0_txt_attn_qkv": 3, "single_blocks_0_linear1": 7}
    adapters = {
        f"lora_unet_{name}": Adapter(
            torch.randn(2, 3072, generator=generator), torch.randn(3072 * width, 2, generator=generator), 1.5
        )
        for name, width in sizes.items()
    }
    file = published("flux", adapters, torch.float32, "family")
    assert file["lora_unet_single_blocks_0_linear1.alpha"] == 3
    converted = diffusers.FluxPipeline.lora_state_dict(file)
    assert len(converted) == 2 * (3 + 3 + 4)
    for name, adapter in adapters_in("flux", converted)[0].items():
        ours = adapters.pop(name)
        expected = ours.scale * ours.up @ ours.down[:, :8]
        assert close(adapter.scale * adapter.up @ adapter.down[:, :8], expected, 1e-6)
    assert not adapters


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("names", ["family", "kohya"])
def test_a_file_is_the_same_network_again(family, names, tmp_path) -> None:
    model = model_of(family, torch.float32)
    lora = trained(family, model, torch.float32, alpha=1.5)  # a scale of 1/2 rounds nothing
    path = tmp_path / "network.safetensors"
    save_file(lora.export(lora.parameters(), torch.float32, names), path)
    adapters, unknown = adapters_in(family, load_file(path))
    assert not unknown and adapters.keys() == lora.layer_names().keys()
    for name, adapter in adapters.items():
        delta = adapter.scale * (adapter.up.flatten(1) @ adapter.down.flatten(1))
        assert torch.equal(delta.view(lora.delta(name).shape), lora.delta(name))
    num_split = 2 * sum(len(members) for members in lora.layer_names().values())
    num_diffusers = sum(key.startswith("transformer.") for key in load_file(path))
    assert num_diffusers == (num_split if (family, names) == ("sd3", "family") else 0)
