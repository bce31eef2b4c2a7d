"""Contender: kohya-ss/sd-scripts, imported from the folder given as --peer; nothing of it is kept here.

The step is that of `train_network.py --mixed_precision bf16 (or no) --sdpa --cache_latents --network_train_unet_only
--network_dim 8`: its own argument defaults, accelerator, U-Net, LoRA network, optimizer, `process_batch`. Noise and t
are given instead of drawn. With --live-text it also encodes the text in each step and holds text encoder and
autoencoder, as its script does; without, it is spared both.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from contender import (
    ALPHA,
    LATENT_SCALE,
    RANK,
    RATE,
    TEXT_TOKENS,
    Batch,
    Setup,
    Step,
    adapter_weights,
    load_base,
    serve,
)


def declare_vision_operators() -> None:
    """torchvision cannot be imported where its compiled operators do not load (a CUDA build beside a CPU torch).

    sd-scripts imports it for picture transforms, which need none of them, so the two names it looks up are declared.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("sd-scripts needs torchvision: install the build that goes with this torch")
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declare_vision_operators.library = library  # a library that is collected takes its operators with it


def build(setup: Setup) -> Step:
    declare_vision_operators()
    sys.path.insert(0, setup.peer)
    import train_network
    from library import original_unet, strategy_sd, train_util
    from networks import lora

    precision = "no" if setup.dtype == torch.float32 else "bf16"
    options = f"""
        --mixed_precision {precision} --sdpa --cache_latents --network_train_unet_only --optimizer_type AdamW
        --network_module networks.lora --network_dim {RANK} --network_alpha {ALPHA} --learning_rate {RATE}
    """
    args = train_network.setup_parser().parse_args(options.split())
    accelerator = train_util.prepare_accelerator(args)
    weight_dtype, _ = train_util.prepare_dtype(args)
    if weight_dtype != setup.dtype:
        raise ValueError(f"sd-scripts would keep its weights in {weight_dtype}, not {setup.dtype}")
    if setup.tiny:
        channels = setup.architecture["block_out_channels"]
        original_unet.BLOCK_OUT_CHANNELS = channels
        original_unet.TIMESTEP_INPUT_DIM, original_unet.TIME_EMBED_DIM = channels[0], channels[0] * 4
    with torch.device("meta"):
        unet = original_unet.UNet2DConditionModel(
            sample_size=setup.architecture["sample_size"],
            attention_head_dim=8,
            cross_attention_dim=setup.architecture["cross_attention_dim"],
        )
    load_base(unet, setup)
    train_util.replace_unet_modules(unet, args.mem_eff_attn, args.xformers, args.sdpa)
    network = lora.create_network(
        1.0, args.network_dim, args.network_alpha, None, [], unet, neuron_dropout=args.network_dropout
    )
    network.apply_to([], unet, False, True)
    _fill(network, setup)
    groups, _ = network.prepare_optimizer_params(None, args.unet_lr, args.learning_rate)
    _, _, optimizer = train_util.get_optimizer(args, groups)
    schedule = train_util.get_scheduler_fix(args, optimizer, accelerator.num_processes)
    unet = accelerator.prepare(unet)
    network, optimizer, schedule = accelerator.prepare(network, optimizer, schedule)
    unet.eval()
    accelerator.unwrap_model(network).prepare_grad_etc(None, unet)
    accelerator.unwrap_model(network).on_epoch_start(None, unet)
    trainer = train_network.NetworkTrainer()
    noise_scheduler = trainer.get_noise_scheduler(args, accelerator.device)
    given: list[Batch] = []
    encoders, autoencoder = _live_text(setup, given) if setup.live_text else ([], None)
    encoding = strategy_sd.SdTextEncodingStrategy(args.clip_skip)
    tokenization = SimpleNamespace(tokenizer=SimpleNamespace(model_max_length=TEXT_TOKENS))

    def given_noise(args, scheduler, latents):
        batch = given[-1]
        return batch.noise, scheduler.add_noise(latents, batch.noise, batch.t), batch.t

    train_util.get_noise_noisy_latents_and_timesteps = given_noise

    def step(batch: Batch) -> float:
        given[:] = [batch]
        inputs = {
            "latents": batch.latents / LATENT_SCALE,
            "text_encoder_outputs_list": None if setup.live_text else [batch.text],
            "input_ids_list": [torch.zeros(setup.batch_size, 1, TEXT_TOKENS, dtype=torch.int64)],
            "loss_weights": torch.ones(setup.batch_size),
        }
        with accelerator.accumulate(network):
            loss = trainer.process_batch(
                inputs, encoders, unet, network, autoencoder, noise_scheduler, None, weight_dtype, accelerator, args,
                encoding, tokenization, train_text_encoder=False,
            )  # fmt: skip
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                trainer.all_reduce_network(accelerator, network)
                accelerator.clip_grad_norm_(
                    accelerator.unwrap_model(network).get_trainable_params(), args.max_grad_norm
                )
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach().item()

    return step


def _live_text(setup: Setup, given: list[Batch]) -> tuple[list[torch.nn.Module], torch.nn.Module]:
    """Text encoder and autoencoder of Stable Diffusion 1.5's size; the text computed is replaced by the given one."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12, num_attention_heads=12
    )
    encoder = CLIPTextModel(config).to(setup.dtype).eval().requires_grad_(False)
    encoder.register_forward_hook(lambda module, inputs, output: (given[-1].text,))
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    )
    return [encoder], autoencoder.to(setup.dtype).eval().requires_grad_(False)


def _fill(network: torch.nn.Module, setup: Setup) -> None:
    modules = dict(network.named_children())
    with torch.no_grad():
        for name, down, up in adapter_weights(setup):
            module = modules.pop("lora_unet_" + name.replace(".", "_"))
            module.lora_down.weight.copy_(down.reshape(module.lora_down.weight.shape))
            module.lora_up.weight.copy_(up.reshape(module.lora_up.weight.shape))
    if modules:
        raise ValueError(f"sd-scripts adapts layers that the benchmark's adapter does not have: {sorted(modules)}")


if __name__ == "__main__":
    serve(build)
