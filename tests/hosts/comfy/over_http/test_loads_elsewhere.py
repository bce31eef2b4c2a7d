"""A network trained in ComfyUI, elsewhere: diffusers loads every key, and the WebUI's rules find every layer."""

import contextlib
import re

import pytest
import torch
from comfy_client import MODELS
from safetensors.torch import load_file
from sd_atelier.lib.inspection import inspect_file
from sd_atelier.lib.keys.published import adapters_in
from sd_atelier.lib.registry import SPELLINGS
from sd_atelier.lib.standalone.single_file import _unet_config, shapes_of
from sd_atelier.lib.standalone.transformer_file import family_in, transformer

FAMILIES = {"sd15-mini-tae": "sd1", "sd15-full": "sd1", "sdxl-mini": "sdxl", "sd3-mini": "sd3", "flux-mini": "flux"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, server, graphs, drawn):
    """The checkpoint, and the file that was published for it: all layers, with text encoders where they are U-Nets'."""
    checkpoint = request.param
    text = FAMILIES[checkpoint] in ("sd1", "sdxl")
    graph = graphs.training(checkpoint, drawn, name=f"elsewhere-{checkpoint}", steps=2, save_every_steps=0)
    graph["5"] = graphs.node("AtelierSchedule", schedule="1e-2")
    graph["6"] = graphs.node(
        "AtelierLora", rank=4, alpha=2.0, layers="all", conv_rank=3, conv_alpha=3.0, text_encoder=text
    )
    graph["3"]["inputs"] |= {"schedule": ["5", 0], "lora": ["6", 0]}
    (about,) = server.run(graph)["3"]["atelier"]
    server.call("/free", {"unload_models": True, "free_memory": True})
    return checkpoint, server.output / "loras" / about["file"]


def tensors_of(path):
    """The tensors of a network, without upsamplers that stand behind no attention: the small SDXL has some where no
    SDXL of full size has, and readers that know its names by heart, diffusers too, take them for something else."""
    return {name: t for name, t in load_file(path).items() if not re.search(r"output_blocks_\d+_1_conv", name)}


def test_every_key_has_its_layer(trained):
    checkpoint, path = trained
    found = inspect_file(path)
    assert found.other_keys == ()
    assert found.nonfinite == ()
    idle = [layer.name for layer in found.layers if layer.no_effect]
    # the last block's context asks for nothing any more, and SDXL reads the first encoder before its last layer
    unused = re.compile(r".*attn\.add_q_proj|lora_te1_text_model_encoder_layers_11_.*")
    assert [name for name in idle if not unused.fullmatch(name)] == []
    adapters, unknown = adapters_in(FAMILIES[checkpoint], tensors_of(path))
    assert unknown == ()
    assert adapters


@contextlib.contextmanager
def warnings_of_diffusers(caplog):
    """Yields what says them; that a part has no adapters is none."""
    from diffusers.utils import logging

    logging.enable_propagation()  # it hands nothing on to the root logger of its own accord
    try:
        with caplog.at_level("WARNING", logger="diffusers"):
            yield lambda: [
                text
                for text in (r.getMessage() for r in caplog.records if r.name.startswith("diffusers"))
                if "No LoRA keys associated to NoneType" not in text
            ]
    finally:
        logging.disable_propagation()


def pipeline_of(checkpoint):
    """A pipeline of the checkpoint's shape without weights, so that it costs no memory."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    path, family = MODELS / "checkpoints" / f"{checkpoint}.safetensors", FAMILIES[checkpoint]
    shapes = shapes_of(path)
    parts = {"vae": None, "tokenizer": None}
    if family == "sd3":
        lacking = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer_2", "tokenizer_3")
        parts |= dict.fromkeys(lacking) | {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}
        model = transformer(path, *family_in(shapes), torch.float32)
        return diffusers.StableDiffusion3Pipeline(**parts, transformer=model)
    with torch.device("meta"):
        parts["unet"] = diffusers.UNet2DConditionModel.from_config(_unet_config(shapes))
        clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        parts["text_encoder"] = CLIPTextModel(clip)
        if family == "sdxl":
            size = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
            parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**size, projection_dim=1280))
    for model in parts.values():
        if model is not None:
            model.to_empty(device="cpu")
    parts["scheduler"] = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    if family == "sdxl":
        return diffusers.StableDiffusionXLPipeline(**parts, tokenizer_2=None)
    return diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def test_diffusers_puts_every_adapter_on_the_layer_that_it_is_of(trained, caplog):
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from peft.tuners.tuners_utils import BaseTunerLayer

    checkpoint, path = trained
    family = FAMILIES[checkpoint]
    if family == "flux":
        pytest.skip("diffusers reads kohya's files for Flux at the width of 3072 only; the next test is for it")
    pipeline = pipeline_of(checkpoint)
    tensors = tensors_of(path)
    with warnings_of_diffusers(caplog) as said:
        pipeline.load_lora_weights(dict(tensors), low_cpu_mem_usage=True)
    assert said() == []

    adapters, _ = adapters_in(family, tensors)
    spelling, loaded, energy = SPELLINGS.get(family)(), {}, 0.0
    for part, folder in spelling.diffusers.items():
        root = getattr(pipeline, folder, None)
        if root is None:
            continue
        names = [name.replace(".base_layer", "") for name, _ in root.named_modules()]
        spelling = spelling.fitted(part, names)
        for name, layer in root.named_modules():
            if isinstance(layer, BaseTunerLayer):
                ((adapter, down),) = layer.lora_A.items()
                up = layer.lora_B[adapter].weight.detach().flatten(1).double() * layer.scaling[adapter]
                energy += float((up @ down.weight.detach().flatten(1).double()).square().sum())
                loaded.setdefault(spelling.kohya_name(part, name), []).append(down.weight)
    assert set(loaded) ^ set(adapters) == set()
    for name, downs in loaded.items():
        assert all(torch.equal(down, adapters[name].down) for down in downs), name
    # slices of a fused layer, some of them swapped, are together as large as the whole
    wanted = [(a.up.flatten(1).double() * a.scale) @ a.down.flatten(1).double() for a in adapters.values()]
    assert energy == pytest.approx(sum(float(update.square().sum()) for update in wanted), rel=1e-6)
    assert energy > 0


def test_diffusers_has_a_layer_for_every_name_of_flux(trained, caplog):
    pytest.importorskip("diffusers")
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    checkpoint, path = trained
    if FAMILIES[checkpoint] != "flux":
        pytest.skip("the test before is for it")
    file = MODELS / "checkpoints" / f"{checkpoint}.safetensors"
    modules = {name for name, _ in transformer(file, *family_in(shapes_of(file)), torch.float32).named_modules()}
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("_linear1.lora_up.weight")]:
        # queries, keys, values and the MLP of a Flux of full width, which is written into the reader
        tensors[name] = torch.zeros(3 * 3072 + 12288, tensors[name].shape[1])
    with warnings_of_diffusers(caplog) as said:
        converted = _convert_kohya_flux_lora_to_diffusers(tensors)
    assert said() == []
    layers = {name.removeprefix("transformer.").partition(".lora_")[0] for name in converted}
    assert layers - modules == set()
    assert len(layers) > 10


RESNET = {
    "conv1": "in_layers_2", "conv2": "out_layers_3", "norm1": "in_layers_0", "norm2": "out_layers_0",
    "time_emb_proj": "emb_layers_1", "conv_shortcut": "skip_connection",
}  # fmt: skip


def webui_name(name):
    """A layer's name in the WebUI's model, which knows a fused attention's q, k and v by what stands behind.

    The rules are those of its built-in extension Lora, networks.py in 1.9 and 1.10: names of diffusers are counted into
    the original blocks, three to a level; other names of the U-Net are the original ones.
    """
    name = re.sub(r"^lora_te_(text_model_.*)", r"transformer_\1", name)
    name = re.sub(r"^lora_te1_(text_model_.*)", r"0_transformer_\1", name)
    if match := re.fullmatch(r"lora_te2_text_model_encoder_layers_(\d+)_(.+)", name):
        inner = match[2].replace("mlp_fc1", "mlp_c_fc").replace("mlp_fc2", "mlp_c_proj").replace("self_attn", "attn")
        return f"1_model_transformer_resblocks_{match[1]}_{inner}"
    if match := re.fullmatch(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", name):
        side, level, kind, index, inner = match[1], int(match[2]), match[3], int(match[4]), match[5]
        number = 3 * level + index + (side == "down")
        inner = RESNET.get(inner, inner) if kind == "resnets" else inner
        blocks = "input_blocks" if side == "down" else "output_blocks"
        return f"diffusion_model_{blocks}_{number}_{int(kind == 'attentions')}_{inner}"
    if match := re.fullmatch(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)", name):
        inner = RESNET.get(match[3], match[3]) if match[1] == "resnets" else match[3]
        return f"diffusion_model_middle_block_{1 if match[1] == 'attentions' else 2 * int(match[2])}_{inner}"
    if match := re.fullmatch(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", name):
        return f"diffusion_model_input_blocks_{3 + 3 * int(match[1])}_0_op"
    if match := re.fullmatch(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", name):
        return f"diffusion_model_output_blocks_{2 + 3 * int(match[1])}_{2 if int(match[1]) else 1}_conv"
    if match := re.fullmatch(r"lora_unet_time_embedding_linear_(\d+)", name):
        return f"diffusion_model_time_embed_{2 * int(match[1]) - 2}"
    for theirs, original in (("conv_in", "input_blocks_0_0"), ("conv_out", "out_2")):
        if name == f"lora_unet_{theirs}":
            return f"diffusion_model_{original}"
    return name.replace("lora_unet_", "diffusion_model_")


def webui_layers(checkpoint):
    """The layers of the WebUI's model of a checkpoint, which has the names of the file, by their flat names."""
    layers = {}
    for name, shape in shapes_of(MODELS / "checkpoints" / f"{checkpoint}.safetensors").items():
        name = re.sub(r"^(model|cond_stage_model|conditioner\.embedders)\.", "", name)
        layer, _, end = name.rpartition(".")
        if end in ("weight", "in_proj_weight"):
            layers[layer.replace(".", "_")] = shape
    return layers


def test_the_webui_finds_every_layer_with_its_size(trained):
    checkpoint, path = trained
    if FAMILIES[checkpoint] not in ("sd1", "sdxl"):
        pytest.skip("the WebUI's names are those of Stable Diffusion 1.x, 2.x and XL")
    if checkpoint == "sd15-mini-tae":
        pytest.skip(
            "its levels have fewer blocks than the WebUI counts with; sd15-full has the shape of the real model"
        )
    layers, found, named = webui_layers(checkpoint), {}, set()
    for layer in inspect_file(path).layers:
        # it takes what is before the first dot for the layer
        assert "." not in layer.name
        name = webui_name(layer.name)
        named.add(name)
        fused = re.fullmatch(r"(.*_attn)_([qkv])_proj", name)
        if fused and name not in layers:
            found.setdefault(fused[1], set()).add(fused[2])
            width = layers[fused[1]][1]
            assert (layer.num_out, layer.num_in) == (width, width)
            continue
        shape = layers[name]
        assert layer.num_out == shape[0], layer.name
        assert layer.num_in == torch.Size(shape[1:]).numel(), layer.name
    # it changes a fused attention only where all four of its adapters are there
    assert all(parts == set("qkv") for parts in found.values())
    assert {f"{fused}_out_proj" for fused in found} <= named
    attention = re.compile(r"(0_)?transformer_text_model.*_(q|k|v|out)_proj")
    assert {name for name in layers if attention.fullmatch(name)} <= named
    if FAMILIES[checkpoint] == "sdxl":
        assert len(found) == sum(name.endswith("_attn") for name in layers) > 0
