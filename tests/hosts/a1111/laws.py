"""What holds of runs in a real WebUI; run by `test_runs.py` in the WebUI's own Python, one process a checkpoint.

Each `law_*` asserts; what they say goes to standard output as one line of JSON each: {"law": ..., "wrong": ...}.
"""

import gc
import hashlib
import json
import os
import random
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from boot import CHECKPOINT, DATA, boot

boot()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from modules import call_queue, devices, initialize, processing, script_callbacks, sd_models, shared  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

PHOTOS = os.environ["A1111_PHOTOS"]
WAIT_SECONDS = 1200  # on a busy machine
SIZE = 64
PROMPT = "a photo of a m0nster toy on grass"
FAMILY = os.environ["A1111_FAMILY"]
# where the host moves the model about, fused text encoders are refused
MOVED = shared.cmd_opts.medvram or shared.cmd_opts.lowvram
TEXT_TOO = (FAMILY == "sd1" or not MOVED) and not os.environ.get("A1111_UNET_ONLY")
IS_HALF = devices.dtype_unet == torch.float16


def ours(name):
    """A module of the adapter as it is mounted now."""
    return import_module("sd_atelier.scripts.webui." + name)


def config(name, **changes):
    """A run of a few steps on small pictures."""
    from sd_atelier.lib.config import RunConfig, from_dict, merge

    data = {
        "concepts": [{"folder": PHOTOS, "trigger": "m0nster toy"}],
        "resolution": SIZE,
        "bucket_min_px": SIZE,
        "bucket_max_px": SIZE,
    }
    values = {
        "name": name,
        "data": data,
        "loop": {"steps": 3, "seed": 3},
        "trainable": {"rank": 4, "alpha": 4.0, "text_encoder": TEXT_TOO},
        "rate": {"schedule": "2e-2"},
        "save": {"dtype": "fp32"},
        "preview": {"steps": 2, "width": SIZE, "height": SIZE, "guidance": 4.0},
    }
    return merge(from_dict(RunConfig, values), changes)


def ended(run):
    """The status of a run once it has ended."""
    run.join(WAIT_SECONDS)
    assert not run.is_live, "the run did not end"
    return run.status()


def trained(name, **changes):
    """The folder of a run that finished."""
    status = ended(ours("runs").start(config(name, **changes)))
    assert status["phase"] == "finished", status
    return Path(status["folder"])


def picture(prompt=PROMPT, seed=5, steps=2, cfg_scale=4.0):
    """What txt2img makes, as the host's own page or route would: behind the queue lock."""
    with call_queue.queue_lock:
        shared.state.begin(job="test")
        try:
            p = processing.StableDiffusionProcessingTxt2Img(
                prompt=prompt,
                seed=seed,
                steps=steps,
                cfg_scale=cfg_scale,
                width=SIZE,
                height=SIZE,
                sampler_name="Euler",
                do_not_save_samples=True,
                do_not_save_grid=True,
            )
            images = processing.process_images(p).images
            p.close()
        finally:
            shared.state.end()
    return np.asarray(images[0].convert("RGB")).astype(np.float32) / 255


def hash_of(tensors):
    """One hash of names and bits."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def live_bytes():
    """Bytes of all storages that tensors of this program hold."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def everything():
    """All of the host that a run could leave other than it found it."""
    model = shared.sd_model
    attention = model.model.diffusion_model
    return {
        "weights": hash_of(model.state_dict().items()),
        "alphas_cumprod": hash_of([("", model.alphas_cumprod)]),
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad is None for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "forwards": [name for name, m in model.named_modules() if "forward" in vars(m)],
        "others": [name for name, m in model.named_modules() if "process_texts" in vars(m)],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "checkpointing": [(vars(m).get("checkpoint"), vars(m).get("use_checkpoint")) for m in model.modules()],
        "classes": sorted({(type(m).__qualname__, id(type(m).forward)) for m in model.modules()}),
        "dtype": vars(attention).get("dtype"),
        "settings": json.dumps(shared.opts.data, default=str, sort_keys=True),
        "options": str(sorted(vars(shared.cmd_opts).items(), key=str)),
        "state": {n: v for n, v in vars(shared.state).items() if n in ("interrupt", "stop_generating", "interrupted")},
        "reload": sd_models.reload_model_weights,
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002 - the host's state, not ours
        "torch": hash_of([("", torch.get_rng_state())]),
        "grad mode": torch.is_grad_enabled(),
    }


def compare(before, after):
    """Assert that nothing of `everything` differs, and say what does."""
    assert before.keys() == after.keys()
    differing = [name for name in before if before[name] != after[name]]
    assert not differing, f"{differing} are not as before"


def law_a_run_of_any_end_leaves_the_host_as_it_was():
    runs = ours("runs")
    other_lora()
    trained("warm-up")
    first = picture()
    before = everything()
    held = live_bytes()

    def checked(name, status, phase):
        assert status["phase"] == phase, (name, status)
        after = everything()
        compare(before, after)
        assert live_bytes() <= held + 4096, f"{name}: {live_bytes() - held} bytes are still held"

    settings = {"preview": {"prompts": ["a red toy <lora:other:1>"], "every_steps": 2}}
    checked("a full run", ended(runs.start(config("full", **settings))), "finished")
    stopped = runs.start(config("stopped", loop={"steps": 1000}))
    wait_for(lambda: stopped.status()["step"] >= 1)
    stopped.stop()
    checked("a stop", ended(stopped), "stopped")
    for name, fault in (
        ("error", ValueError("a fault")),
        ("memory", torch.cuda.OutOfMemoryError("CUDA out of memory")),
    ):
        host = ours("host").WebuiHost
        plain, calls = host.denoiser, []

        def failing(self, *args, plain=plain, calls=calls, fault=fault):
            calls.append(1)
            if len(calls) == 2:
                raise fault
            return plain(self, *args)

        host.denoiser = failing
        try:
            status = ended(runs.start(config(name)))
        finally:
            host.denoiser = plain
            # the thread's traceback holds the frames of the step
            calls.clear()
        assert ("a fault" if name == "error" else "out of memory") in status["error"], status
        fault.__traceback__ = None
        checked(name, status, "failed")
    assert (picture() == first).all(), "the same seed gives another picture"


def law_the_saved_file_gives_the_live_networks_picture():
    publish, sampled = ours("publish"), {}
    preview = {"prompts": [PROMPT], "every_steps": 3, "seed": 5}
    # the host reads no LoRA of SD 3's text encoders
    text_too = TEXT_TOO and FAMILY != "sd3"
    settings = config("live", preview=preview, trainable={"text_encoder": text_too})
    run = ours("runs").start(settings, txt2img={"sampler_name": "Euler"})
    folder = Path(ended(run)["folder"])
    for path in sorted((folder / "previews").glob("*.png")):
        sampled[path.name[:6]] = pixels(path)
    published = publish.publish(folder, name="Live network")
    publish.refresh_menu()
    assert published.prompt == "<lora:Live network:1> m0nster toy"
    base = picture()
    through_file = picture(PROMPT + "<lora:Live network:1>")
    # pictures have whole pixel values: a difference of far less than a thousandth may round one to the next
    for made, expected, what in (
        (sampled["000000"], base, "the first preview is not txt2img's own picture"),
        (sampled["000003"], through_file, "the saved file does not give the live network's picture"),
    ):
        difference = np.abs(made - expected)
        mean, highest = (1e-3, 4 / 255) if IS_HALF else (1e-4, 1 / 255)
        assert difference.mean() < mean and difference.max() <= highest + 1e-6, (what, difference.max())
    assert np.abs(base - through_file).mean() > 5e-3, "the network changes nothing"
    assert (picture() == base).all(), "the network stayed in the weights"
    keys = load_file(published.path)
    assert any("text_model" in key for key in keys) == text_too and any("unet" in key for key in keys)
    networks = sys.modules["networks"]
    network = networks.load_network("Live network", networks.available_networks["Live network"])
    assert len(network.modules) == len({key.split(".")[0] for key in keys}), "some keys match nothing"
    card = json.loads(published.path.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["activation text"] == "m0nster toy" and card["preferred weight"] == 1.0
    assert (published.path.parent / "Live network.preview.png").is_file()
    again = publish.publish(folder, name="Live network")
    assert again.path.name == "Live network-2.safetensors"


def drawn(source, **changes):
    """A strip of small pictures, ended: label of column -> pictures by row, and what each cell says."""
    strips = ours("strip")
    settings = {"prompts": (PROMPT, "a red toy"), "seeds": (5,), "steps": 2, "guidance": 4.0, "sampler": "Euler"}
    wanted = strips.StripRequest(source=str(source), width=SIZE, height=SIZE, **{**settings, **changes})
    strip = strips.start(wanted)
    wait_for(lambda: not strip.is_live)
    assert strip.phase == "finished", strip.error
    found, errors = {label: {} for label in strip.labels}, {}
    for cell in strip.cells:
        label = strip.labels[cell.column]
        if cell.error:
            errors[label] = cell.error
        else:
            found[label][cell.row] = pixels(cell.image)
    return found, errors


def law_a_strips_cells_are_txt2imgs_own_bit_by_bit():
    folder = trained("stripped", save={"every_steps": 1}, loop={"steps": 2})
    networks = sorted((folder / "checkpoints").glob("*.safetensors"))
    loras = Path(shared.cmd_opts.lora_dir)
    for path in networks:
        save_file(load_file(path), loras / f"by txt2img {path.name}", {"ss_output_name": f"by txt2img {path.stem}"})
    sys.modules["networks"].list_available_networks()
    before = everything()
    found, errors = drawn(ours("catalogue").key_of(folder), strengths=(1.0, 0.5), prompts=(PROMPT,))
    assert not errors and list(found) == ["no network", *(path.stem for path in networks)]
    compare({**before, "state": None}, {**everything(), "state": None})
    for label, pictures in found.items():
        for row, strength in enumerate(("1", "0.5")):
            tag = "" if label == "no network" else f" <lora:by txt2img {label}:{strength}>"
            expected = picture(PROMPT + tag)
            assert (pictures[row] == expected).all(), (label, row, np.abs(pictures[row] - expected).max())
    assert np.abs(found["no network"][0] - found[networks[-1].stem][0]).mean() > 1e-3, "the network changes nothing"


def law_bad_input_costs_its_own_cells_of_a_strip():
    folder = Path(shared.cmd_opts.lora_dir) / "mixed"
    folder.mkdir()
    good = sorted((trained("mixed") / "checkpoints").glob("*.safetensors"))[-1]
    save_file(load_file(good), folder / "toy-100.safetensors")
    (folder / "toy-200.safetensors").write_bytes(good.read_bytes()[:100])
    save_file({"lora_unet_none_of_ours.lora_up.weight": torch.ones(4, 4)}, folder / "toy-300.safetensors")
    fallen = {name: tensor * float("nan") for name, tensor in load_file(good).items()}
    save_file(fallen, folder / "toy-400.safetensors")
    save_file(load_file(good), folder / "toy-500.safetensors")
    found, errors = drawn("mixed")
    assert list(found) == ["no network", "toy-100", "toy-200", "toy-300", "toy-400", "toy-500"]
    assert [len(pictures) for pictures in found.values()] == [2, 2, 0, 0, 0, 2]
    assert (found["toy-100"][0] == found["toy-500"][0]).all(), "what is NaN leaves nothing behind"
    for label, said in {"toy-200": "cut off", "toy-300": "another family", "toy-400": "NaN"}.items():
        assert said in errors[label], errors


def law_a_whole_checkpoint_is_a_column_and_the_loaded_one_comes_back():
    folder = Path(DATA) / "models" / "Stable-diffusion" / "full"
    folder.mkdir()
    tensors = load_file(CHECKPOINT)
    name = "first_stage_model.decoder.conv_out.bias"
    tensors[name] = tensors[name] + 0.5
    save_file(tensors, folder / "toy-800.safetensors")
    sidecar = CHECKPOINT.with_suffix(".yaml")
    if sidecar.exists():
        (folder / "toy-800.yaml").write_text(sidecar.read_text(encoding="utf-8"), encoding="utf-8")
    first = picture()
    weights = hash_of(shared.sd_model.state_dict().items())
    found, errors = drawn("full", prompts=(PROMPT,))
    assert not errors and list(found) == ["no network", "toy-800"]
    assert hash_of(shared.sd_model.state_dict().items()) == weights and (picture() == first).all()
    assert shared.sd_model.sd_checkpoint_info.filename == str(CHECKPOINT)
    info = sd_models.CheckpointInfo(str(folder / "toy-800.safetensors"))
    info.register()
    chosen = shared.opts.data.get("sd_model_checkpoint")
    shared.opts.data["sd_model_checkpoint"] = info.title
    try:
        assert (found["toy-800"][0] == picture()).all() and np.abs(found["toy-800"][0] - first).mean() > 1e-3
    finally:
        shared.opts.data["sd_model_checkpoint"] = chosen
        sd_models.reload_model_weights()


def law_previews_change_nothing_of_the_training():
    other_lora()
    rows = {}
    for name, preview in {
        "none": {},
        "many": {"prompts": ["a red toy <lora:other:1>", PROMPT], "every_steps": 1},
    }.items():
        picture("a toy <lora:other:1>")
        folder = trained(f"rows-{name}", preview=preview)
        rows[name] = (folder / "loss.csv").read_text(encoding="utf-8")
        network = sorted((folder / "checkpoints").glob("*.safetensors"))[-1]
        rows[name] += hash_of(sorted(load_file(network).items()))
    assert rows["none"] == rows["many"]


def law_a_preview_shows_the_network_as_it_is_and_any_network_of_its_prompt():
    other_lora()
    prompts = [PROMPT, PROMPT + " <lora:other:1>"]
    folder = trained("shown", preview={"prompts": prompts, "every_steps": 1}, loop={"steps": 2})
    shown = [[pixels(p) for p in sorted((folder / "previews").glob(f"*-{n}-*.png"))] for n in (1, 2)]
    for pictures in shown:
        assert len(pictures) == 3
        for a, b in ((0, 1), (1, 2)):
            assert np.abs(pictures[a] - pictures[b]).mean() > 1e-4, "a preview is stale"
    assert np.abs(shown[0][0] - shown[1][0]).mean() > 1e-3, "the network of the prompt is not in the preview"


def law_a_generation_that_is_asked_for_meanwhile_waits_and_works():
    before = picture()
    run = ours("runs").start(config("queue", loop={"steps": 4}))
    wait_for(lambda: run.status()["phase"] == "training")
    made = []
    thread = threading.Thread(target=lambda: made.append((run.is_live, picture())))
    live_while_waiting = run.is_live
    thread.start()
    assert ended(run)["phase"] == "finished" and live_while_waiting
    thread.join(120)
    assert made and (made[0][1] == before).all()


def law_interrupt_stops_a_run_and_reload_does_not():
    runs = ours("runs")
    run = runs.start(config("interrupted", loop={"steps": 1000}))
    wait_for(lambda: run.status()["step"] >= 1)
    shared.state.request_restart()
    assert shared.state.wait_for_server_command(1) == "restart"
    step = run.status()["step"]
    wait_for(lambda: run.status()["step"] >= step + 2)
    shared.state.interrupt()
    step = run.status()["step"]
    status = ended(run)
    assert status["phase"] == "stopped" and status["step"] <= step + 1


def law_reload_keeps_a_live_run_and_its_modules_and_wraps_nothing_twice():
    forwards = {name: getattr(torch.nn, name).forward for name in ("Linear", "Conv2d", "MultiheadAttention")}
    runs = ours("runs")
    run = runs.start(config("reloaded", loop={"steps": 1000}, preview={"prompts": [PROMPT], "every_steps": 3}))
    wait_for(lambda: run.status()["step"] >= 1)
    for _ in range(2):
        reload()
        assert ours("runs") is runs and runs.find(run.id) is run and runs.live_run() is run
    step = run.status()["step"]
    wait_for(lambda: run.status()["step"] >= step + 2)
    run.stop()
    assert ended(run)["phase"] == "stopped", run.status()
    reload()
    assert ours("runs") is not runs, "the pack is not loaded anew where no run goes on"
    assert ours("runs").find(run.id).status()["phase"] == "stopped"
    script_callbacks.before_ui_callback()
    for name, forward in forwards.items():
        now = getattr(torch.nn, name).forward
        assert now.__qualname__ == forward.__qualname__, f"{name}.forward is wrapped by {now}"


def law_captions_are_encoded_as_txt2img_encodes_plain_text():
    from modules import prompt_parser

    text, model = host().text, shared.sd_model
    captions = ["a photo of a toy", "", "a very long caption, " * 30]
    for caption in captions:
        with torch.no_grad(), devices.autocast():
            expected = model.get_learned_conditioning(prompt_parser.SdConditioning([caption], width=SIZE, height=SIZE))
        expected = expected if isinstance(expected, dict) else {"crossattn": expected}
        got = text.encode([caption])
        assert torch.equal(got["text"], expected["crossattn"]), caption[:20]
        if FAMILY == "sdxl":
            sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32)
            vector = text.vector({**got, "sizes": sizes}, torch.device("cpu"))
            assert torch.allclose(vector, expected["vector"], atol=1e-6)
    literal, escaped = "a (red:1.3) [old] toy\\", "a \\(red:1.3\\) \\[old\\] toy\\\\"
    with torch.no_grad(), devices.autocast():
        expected = model.get_learned_conditioning(prompt_parser.SdConditioning([escaped], width=SIZE, height=SIZE))
        with_break = text.encode(["one BREAK two"])["text"]
        lower = text.encode(["one break two"])["text"]
    expected = expected["crossattn"] if isinstance(expected, dict) else expected
    assert torch.equal(text.encode([literal])["text"], expected)
    assert torch.equal(with_break, lower), "BREAK is no word"
    long = "word " * 400
    # SD 3 has as many tokens again of T5, or zeros in their place
    num_tokens = 3 * 77 * (2 if FAMILY == "sd3" else 1)
    assert text.encode([long])["text"].shape[1] == num_tokens, "captions are cut after data.max_token_chunks"
    both = text.encode([captions[0], captions[2]])["text"]
    assert both.shape[1] == text.encode([captions[2]])["text"].shape[1]
    assert shared.opts.emphasis == "Original"


def law_the_denoiser_is_the_hosts_own():
    from modules import prompt_parser

    current, model = host(), shared.sd_model
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(2, 16 if FAMILY == "sd3" else 4, 8, 8, generator=generator)
    t = torch.tensor([0.02, 0.7]) if FAMILY == "sd3" else torch.tensor([20, 700])
    captions = prompt_parser.SdConditioning(["a toy", "a cat"], width=SIZE, height=SIZE)
    with torch.no_grad():
        conditioning = model.get_learned_conditioning(captions)
        if FAMILY == "sd3":
            # the host gives the clean picture, x_t - t * velocity
            expected = (x_t - model.apply_model(x_t, t, conditioning)) / t[:, None, None, None]
        elif FAMILY == "sdxl":
            cond = {"crossattn": conditioning["crossattn"], "vector": conditioning["vector"]}
            expected = model.apply_model(x_t, t, cond)
        else:
            expected = model.apply_model(x_t, t, conditioning)
    sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * 2, dtype=torch.float32)
    with current.held(), current.training(torch.float32, False):
        got = current.denoiser(x_t, t, {**current.text.encode(list(captions)), "sizes": sizes})
    assert (got - expected).abs().max() < 1e-4, (got - expected).abs().max()


def law_recomputing_blocks_changes_no_gradient():
    losses = {}
    for recompute in (False, True):
        loop = {"block_checkpointing": recompute, "steps": 2}
        # with so large an eps the steps are as long as the gradients, and say how alike those are
        optimizer = {"name": "adamw", "eps": 1.0, "clip_norm": 0.0}
        folder = trained(f"recomputed-{recompute}", loop=loop, optimizer=optimizer, rate={"schedule": "1"})
        losses[recompute] = load_file(sorted((folder / "checkpoints").glob("*.safetensors"))[-1])
    ups = {name: tensor for name, tensor in losses[False].items() if "lora_up" in name or "lora_B" in name}
    assert sum(bool(tensor.abs().max() > 0) for tensor in ups.values()) > len(ups) / 2
    for name, tensor in ups.items():
        if ("attn1_to_q" in name or "attn1_to_k" in name) and max(tensor.norm(), losses[True][name].norm()) < 1e-9:
            continue  # where a block is left with a single token, attention's weights are 1: no gradient but rounding
        difference = (tensor - losses[True][name]).norm() / (tensor.norm() + 1e-9)
        assert difference < (0.05 if IS_HALF else 1e-3), (name, difference)


def law_text_encoders_learn_in_every_layer_that_counts():
    folder = trained("text", loop={"steps": 2})
    network = load_file(sorted((folder / "checkpoints").glob("*.safetensors"))[-1])
    ups = {
        name.replace(".", "_"): bool(tensor.abs().max() > 0)
        for name, tensor in network.items()
        if "text_model" in name and ("lora_up" in name or "lora_B" in name)
    }
    for kind in ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1"):
        own = {name: learned for name, learned in ups.items() if kind in name}
        assert own and any(own.values()), (kind, list(ups)[:3])
    for part in {name.split("_text_model")[0] for name in ups}:
        first = [
            learned for name, learned in ups.items() if name.startswith(part + "_text_model") and "_layers_0_" in name
        ]
        assert all(first) and len(first) == 6, part


def law_a_network_left_in_the_weights_is_not_trained_on():
    other_lora()
    bases = []
    for prompt in ("a toy", "a toy <lora:other:1>"):
        picture(prompt)
        folder = trained(f"left-{len(bases)}", loop={"steps": 1})
        bases.append(json.loads((folder / "run.json").read_text(encoding="utf-8"))["base"])
    assert bases[0] == bases[1]


def law_a_checkpoint_that_goes_away_ends_the_run_with_everything_saved():
    run = ours("runs").start(config("gone", loop={"steps": 1000}))
    wait_for(lambda: run.status()["step"] >= 2)
    data, model = sd_models.model_data, sd_models.model_data.sd_model
    data.sd_model = None
    try:
        status = ended(run)
    finally:
        data.sd_model = model
    assert status["phase"] == "failed" and "load it again" in status["error"], status
    assert list((Path(status["folder"]) / "checkpoints").glob("*.safetensors"))


def law_a_checkpoint_that_is_chosen_meanwhile_is_not_loaded_for_a_preview():
    model = shared.sd_model
    others = [title for title in sd_models.checkpoint_tiles() if CHECKPOINT.name not in title]
    if not others:
        return
    preview = {"prompts": [PROMPT], "every_steps": 1}
    run = ours("runs").start(config("chosen", preview=preview))
    wait_for(lambda: run.status()["phase"] == "training")
    chosen = shared.opts.data["sd_model_checkpoint"]
    shared.opts.data["sd_model_checkpoint"] = others[0]
    try:
        status = ended(run)
    finally:
        shared.opts.data["sd_model_checkpoint"] = chosen
    assert status["phase"] == "finished" and len(status["previews"]) == 4, status
    assert sd_models.model_data.sd_model is model and model.sd_model_checkpoint == str(CHECKPOINT)


def law_a_preview_that_fails_costs_that_preview_and_says_so():
    plain, calls = processing.process_images, []

    def failing(p):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the network is not reachable")
        return plain(p)

    processing.process_images = failing
    try:
        status = ended(ours("runs").start(config("failing", preview={"prompts": [PROMPT], "every_steps": 1})))
    finally:
        processing.process_images = plain
    assert status["phase"] == "finished" and len(status["previews"]) == 3, status
    assert any("not reachable" in note for note in status["notes"]), status["notes"]


def law_a_hypernetwork_that_was_left_loaded_is_not_trained_on():
    from modules.hypernetworks.hypernetwork import Hypernetwork

    if FAMILY == "sd3":
        # its attention has no hypernetworks
        return
    unet = shared.sd_model.model.diffusion_model
    widths = sorted({m.to_k.in_features for m in unet.modules() if hasattr(m, "to_k")})
    network = Hypernetwork("left", enable_sizes=widths, layer_structure=[1, 1], weight_init="Normal")
    for module in (module for pair in network.layers.values() for module in pair):
        for parameter in module.parameters():
            torch.nn.init.constant_(parameter, 0.3)
    rows = []
    record = {"probe_every_steps": 2, "probe_images": 2, "probe_timesteps": 2}
    for left in ([], [network]):
        shared.loaded_hypernetworks = left
        try:
            folder = trained(f"hyper-{len(left)}", record=record, loop={"steps": 2})
            row = [(folder / name).read_text(encoding="utf-8") for name in ("loss.csv", "probe.csv")]
            with torch.no_grad():
                attention = next(m for m in unet.modules() if hasattr(m, "to_k"))
                context = torch.ones(1, 4, attention.to_k.in_features)
                seen = attention(torch.ones(1, 4, attention.to_q.in_features), context)
        finally:
            shared.loaded_hypernetworks = []
        rows.append((row, seen))
    assert rows[0][0] == rows[1][0]
    assert not torch.equal(rows[0][1], rows[1][1]), "the hypernetwork does nothing"


def law_text_encoders_are_refused_where_they_are_moved_away():
    if FAMILY == "sd1" or not MOVED:
        return
    status = ended(ours("runs").start(config("refused", trainable={"text_encoder": True})))
    assert status["phase"] == "failed" and "--medvram" in status["error"], status


def law_wrong_input_is_a_sentence():
    runs = ours("runs")
    for make in (
        lambda: config("x", loop={"steps": -1}),
        lambda: runs.start(config("x", data={"concepts": []})),
        lambda: runs.start(config("x"), txt2img={"sampler": "Euler"}),
        lambda: runs.resume(DATA / "nothing"),
    ):
        try:
            make()
        except ValueError as error:
            assert len(str(error)) > 20
        else:
            raise AssertionError("nothing was refused")
    status = ended(runs.start(config("x", data={"concepts": [{"folder": str(DATA / "nothing")}]})))
    assert status["phase"] == "failed" and "nothing" in status["error"], status


def reload():
    """What the WebUI does at *Reload UI*, without its server."""
    script_callbacks.script_unloaded_callback()
    initialize.initialize_rest(reload_script_modules=False)
    script_callbacks.before_ui_callback()


def host():
    """The host as a run makes it."""
    from sd_atelier.lib.control import Control

    return ours("host").WebuiHost(Control())


def other_lora():
    """A network named other in the LoRA folder, strong enough to be seen."""
    path = Path(shared.cmd_opts.lora_dir) / "other.safetensors"
    if not path.exists():
        folder = trained("other", rate={"schedule": "5e-2"})
        source = sorted((folder / "checkpoints").glob("*.safetensors"))[-1]
        save_file(load_file(source), path, {"ss_output_name": "other"})
    sys.modules["networks"].list_available_networks()


def pixels(path):
    """A picture in [0, 1]."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.float32) / 255


def wait_for(condition, seconds=WAIT_SECONDS):
    """Wait until it is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def main():
    """Run the laws that are asked for, or all, and say how each went."""
    wanted = sys.argv_of_laws or [name for name in globals() if name.startswith("law_")]
    for name in wanted:
        began, wrong = time.monotonic(), ""
        try:
            globals()[name]()
        except Exception:  # noqa: BLE001 - whatever it is goes to the test that asked
            wrong = traceback.format_exc()
        line = {"law": name, "wrong": wrong, "seconds": round(time.monotonic() - began, 1)}
        print("\n" + json.dumps(line), flush=True)


assert devices.device.type == "cpu" and CHECKPOINT.exists()
sys.argv_of_laws = os.environ.get("A1111_LAWS", "").split()
main()
# the WebUI leaves threads behind that a normal end would wait for
sys.stdout.flush()
os._exit(0)
