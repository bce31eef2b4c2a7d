"""Names of all layers of the full-size models: distinct, both ways, and the same that diffusers' own readers have."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from sd_atelier.lib.keys.family import Family, Place
from sd_atelier.lib.keys.layers import CanonicalLayer, canonical_layers
from sd_atelier.lib.keys.table import output_slices
from sd_atelier.lib.registry import SPELLINGS
from torch import Tensor, nn

Layers = dict[tuple[str, str], nn.Module]


@pytest.fixture
def names(family: str) -> Family:
    return SPELLINGS.get(family)()  # type: ignore[operator]


def num_outputs(layer: nn.Module) -> int:
    return layer.weight.shape[0]


def test_every_layer_has_an_original_of_its_own_and_comes_back_from_it(names: Family, layers: Layers) -> None:
    originals: dict[tuple[str, str, int], str] = {}
    for part, name in layers:
        original = names.original_name(part, name)
        assert originals.setdefault((part, original.name, original.index), name) == name
        split = names.split_names(part, original.name)
        assert len(split) == original.count
        assert split[original.index] == names.spelled_out(part, name)
    assert len(originals) == len(layers) > 200


def test_the_layers_of_an_original_are_all_there_and_of_one_kind_and_input(names: Family, layers: Layers) -> None:
    groups: dict[tuple[str, str], list[tuple[str, nn.Module]]] = defaultdict(list)
    for (part, name), layer in layers.items():
        groups[part, names.original_name(part, name).name].append((name, layer))
    for (part, original), group in groups.items():
        assert len(group) == len(names.split_names(part, original)), original
        assert len({names.kind(part, name) for name, _ in group}) == 1, original
        assert len({layer.weight.shape[1:] for _, layer in group}) == 1, original
        assert len({names.kohya_name(part, name) for name, _ in group}) in (1, len(group)), original


def test_every_layer_inside_the_blocks_has_a_kind(names: Family, layers: Layers) -> None:
    for part, name in layers:
        inside = any(piece.isdigit() for piece in name.split("."))
        assert (names.kind(part, name) is not None) == inside, name


def test_names_in_files_tell_layers_apart_that_share_no_adapter(family: str, names: Family, layers: Layers) -> None:
    sharing: dict[str, set[str]] = defaultdict(set)
    for part, name in layers:
        shared = family == "flux"  # its adapters are on the original layers
        sharing[names.file_name(part, name)].add(names.original_name(part, name).name if shared else name)
    assert all(len(layers_of_name) == 1 for layers_of_name in sharing.values())


def test_kohyas_preset_is_as_many_layers_as_kohya_trains(model: str, names: Family, layers: Layers) -> None:
    kinds = {"attention", "mlp", "projection"}
    count = {"sd1": 192, "sd2": 192, "sdxl": 722, "sd3": 237, "sd35_medium": 263, "sd35_large": 377, "flux": 304}
    chosen = {names.kohya_name(part, n) for part, n in layers if part == "unet" and names.kind(part, n) in kinds}
    assert len(chosen) == count[model]


def test_both_spellings_stand_at_the_same_places(names: Family, layers: Layers) -> None:
    for part, name in layers:
        split, original = names.place(part, name), names.original_name(part, name)
        if part == "unet" and names.kohya_is_original:
            fused = Place(split.name, 0, 1, split.kind)
            assert names.place(part, original.name) == fused
            assert (split.index, split.count) == (original.index, original.count)
        elif original.count == 1:
            assert names.place(part, original.name) == split
        else:
            with pytest.raises(ValueError, match="3 layers with an adapter each"):
                names.place(part, original.name)
            assert (split.index, split.count) == (0, 1)
        assert set(names.siblings(part, name)) >= {names.spelled_out(part, name)}
        assert len(names.siblings(part, name)) == split.count


def test_every_spelling_in_a_file_finds_the_layer_again(names: Family, layers: Layers) -> None:
    for part, name in layers:
        place, original = names.place(part, name), names.original_name(part, name)
        flat = name.replace(".", "_")
        spellings = [place.name, names.file_name(part, name), f"{names.diffusers[part]}.{name}"]
        spellings += [names.prefixes[part] + names.spelled_out(part, name).replace(".", "_")]
        spellings += [f"lora_transformer_{flat}", f"diffusion_model.{original.name}"] if part == "unet" else []
        for spelling in spellings:
            found = names.place_in_file(spelling)
            assert found is not None, spelling
            assert found[0] == part and names.place(*found).name == place.name, spelling


def test_original_names_alone_tell_the_shape_of_a_unet(names: Family, layers: Layers) -> None:
    originals = [names.original_name("unet", name).name for part, name in layers if part == "unet"]
    splits = [name for part, name in layers if part == "unet"]
    for fitted in (names.fitted("unet", originals), names.fitted("unet", splits)):
        for original, split in zip(originals, splits, strict=True):
            assert fitted.original_name("unet", split).name == original
            assert fitted.place("unet", original).name == names.place("unet", split).name


def test_both_spellings_of_the_whole_model_have_the_same_canonical_layers(
    family: str, names: Family, parts: dict[str, nn.Module], layers: Layers
) -> None:
    split = canonical_layers(family, parts)
    fused_parts = {part: nn.Module() for part in parts}
    for (part, name), layer in layers.items():
        original = names.original_name(part, name)
        single = original.count == 1 or part != "unet"
        own = name if single and original.count > 1 else original.name
        if original.index and own == original.name:
            continue
        num_in = layer.weight.shape[1]
        with torch.device("meta"):
            if isinstance(layer, nn.Conv2d):
                new: nn.Module = nn.Conv2d(num_in, num_outputs(layer), layer.kernel_size)
            else:
                place = split[names.place(part, name).name]
                new = nn.Linear(num_in, place.num_out)
        put(fused_parts[part], own, new)
    fused = canonical_layers(family, fused_parts)
    assert fused.keys() == split.keys()
    for name, layer in fused.items():
        (member,) = layer.members
        assert not member.swapped
        other = split[name]
        assert (layer.kind, layer.num_in, layer.num_out, layer.kernel) == (
            other.kind,
            other.num_in,
            other.num_out,
            other.kernel,
        )
        widths = names.widths(other.part, names.siblings(other.part, module_of(layers, other)), other.num_in)
        if widths is not None:
            assert widths == tuple(m.rows.stop - m.rows.start for m in other.members), name


def module_of(layers: Layers, layer: CanonicalLayer) -> str:
    return next(name for (_, name), module in layers.items() if module is layer.members[0].module)


def put(root: nn.Module, name: str, layer: nn.Module) -> None:
    *path, last = name.split(".")
    for piece in path:
        if not hasattr(root, piece):
            root.add_module(piece, nn.Module())
        root = getattr(root, piece)
    root.add_module(last, layer)


def marked(layers: Layers, part: str) -> dict[str, Tensor]:
    """A weight with one input and a bias for each layer, every entry another number."""
    tensors, start = {}, 0
    for (own, name), layer in layers.items():
        if own == part:
            values = torch.arange(start, start + num_outputs(layer), dtype=torch.int64)
            tensors |= {f"{name}.weight": values[:, None], f"{name}.bias": values}
            start += len(values)
    return tensors


def as_original(names: Family, layers: Layers, part: str) -> dict[str, Tensor]:
    """The tensors of `marked` in the original spelling."""
    tensors: dict[str, Tensor] = {}
    split = marked(layers, part)
    module_of = {names.spelled_out(part, name): name for own, name in layers if own == part}
    for name in module_of.values():
        original = names.original_name(part, name)
        own = [module_of[other] for other in names.split_names(part, original.name)]
        slices = output_slices(num_outputs(layers[part, other]) for other in own)
        for kind in ("weight", "bias"):
            value = split[f"{name}.{kind}"]
            layer = layers[part, name]
            if names.halves_swapped(part, name, num_outputs(layer), layer.weight.shape[1]):
                value = torch.cat(value.chunk(2)[::-1])
            whole = tensors.setdefault(
                f"{original.name}.{kind}", value.new_full((slices[-1].stop, *value.shape[1:]), -1)
            )
            whole[slices[original.index]] = value
    return tensors


class Checkpoint(dict):
    """Gives something for the norms and embeddings, which are no layers with a table of names."""

    def pop(self, key: str) -> Tensor:  # type: ignore[override]
        known = key in self or not ("norm" in key or "ln_" in key or key == "pos_embed")
        return super().pop(key) if known else torch.zeros(1)


def assert_converted(converted: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for key, value in expected.items():
        assert torch.equal(converted[key], value), key


def test_diffusers_reads_the_original_names_of_the_denoiser_as_the_same_layers(
    model: str, names: Family, parts: dict[str, nn.Module], layers: Layers
) -> None:
    from diffusers.loaders import single_file_utils as reader

    tensors = Checkpoint(as_original(names, layers, "unet"))
    if model == "flux":
        converted = reader.convert_flux_transformer_checkpoint_to_diffusers(tensors)
    elif model.startswith("sd3"):
        converted = reader.convert_sd3_transformer_checkpoint_to_diffusers(tensors)
    else:
        checkpoint = {f"model.diffusion_model.{key}": value for key, value in tensors.items()}
        converted = reader.convert_ldm_unet_checkpoint(checkpoint, dict(parts["unet"].config))
    assert_converted(converted, marked(layers, "unet"))


@pytest.mark.parametrize("model", ["sd2", "sdxl"], indirect=True)
def test_diffusers_reads_the_original_names_of_openclip_as_the_same_layers(
    names: Family, parts: dict[str, nn.Module], layers: Layers
) -> None:
    from diffusers.loaders import single_file_utils as reader

    part = "te2" if "te2" in parts else "te"
    # in_proj and text_projection are parameters there, not modules
    checkpoint = {
        f"model.{key.replace('in_proj.', 'in_proj_')}": value
        for key, value in as_original(names, layers, part).items()
        if not key.startswith("text_projection")
    }
    converted = reader.convert_open_clip_checkpoint(parts[part], checkpoint, prefix="model.")
    expected = {names.spelled_out(part, key): value for key, value in marked(layers, part).items()}
    assert_converted(converted, {k: v for k, v in expected.items() if not k.startswith("text_projection")})


def test_a_small_sdxl_unet_has_the_original_names_that_diffusers_reads() -> None:
    diffusers = pytest.importorskip("diffusers", reason="the U-Net is made by diffusers")
    from diffusers.loaders import single_file_utils as reader

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            cross_attention_dim=64,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,
        )
    layers = {("unet", n): m for n, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    tensors = as_original(SPELLINGS.get("sdxl")(), layers, "unet")  # type: ignore[operator]
    checkpoint = {f"model.diffusion_model.{key}": value for key, value in tensors.items()}
    assert_converted(reader.convert_ldm_unet_checkpoint(checkpoint, dict(unet.config)), marked(layers, "unet"))
