"""Train LoRA: a network on the loaded MODEL, and at once the MODEL with it."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image, ImageDraw
from server import PromptServer

from ..lib.config import RunConfig
from ..lib.data.given import GivenText, NoAutoencoder
from ..lib.files import read_safetensors
from ..lib.memory import OutOfMemoryError, let_go_of_frames
from ..lib.preparation import StoppedError
from ..lib.trainer import NotFiniteError
from . import keeping, progress_text, settings
from .families import family_of
from .host import ComfyHost
from .live import RUNS, LiveRun
from .prediction import prediction_of
from .schema import schema, socket
from .session import Done, Shower, Task, run_task
from .sockets import DATASET, OPTIONS, RUN, SCHEDULE, Dataset, Run

# What a user can do something about: said in its own words, without the way that led there.
_SAID = (ValueError, OutOfMemoryError, NotFiniteError, StoppedError)


class Train(io.ComfyNode):
    """Trains on the model that is loaded, in place, and gives it back as it was."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierTrain",
            "Train LoRA",
            "Trains a network on the connected MODEL without a second copy of it. Queued again, an unfinished run goes "
            "on and a finished one is there at once. Only model, clip, vae and a data set are needed.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="what is trained on, with the patches it has; it stays as it is"),
                socket(DATASET).Input("dataset", tooltip="from a Dataset node"),
                io.Clip.Input(
                    "clip", optional=True, tooltip="of the same checkpoint; encodes captions and preview prompts"
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="of the same checkpoint; encodes pictures, decodes previews"
                ),
                socket(SCHEDULE).Input("schedule", optional=True, tooltip="learning rate; else the preset's"),
                socket(OPTIONS).Input("optimizer", optional=True, tooltip="from an Optimizer node; else the preset's"),
                socket(OPTIONS).Input("objective", optional=True, tooltip="from an Objective node; else the preset's"),
                socket(OPTIONS).Input("lora", optional=True, tooltip="from a LoRA node; else the preset's"),
                socket(RUN).Input("run", optional=True, tooltip="a run to continue, or to fork, from a Run node"),
                *settings.widgets(),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="the model with the trained network"),
                io.Clip.Output("clip_out", display_name="clip", tooltip="the CLIP with the trained network"),
                socket("LORA_MODEL").Output(
                    "lora_out", display_name="lora", tooltip="the network, for Save LoRA Weights"
                ),
                socket("LOSS_MAP").Output("loss_map", display_name="loss_map", tooltip="for Plot Loss Graph"),
                socket(RUN).Output("run_out", display_name="run", tooltip="for Loss Report, Save LoRA, Train LoRA"),
                io.Image.Output("strip", tooltip="the previews, steps side by side"),
            ],
            search_aliases=["train", "trainer", "finetune", "dreambooth", "lora training", "loha", "locon"],
        )

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> int:
        return RUNS.fingerprint(str(cls.hidden.unique_id))

    @classmethod
    def execute(
        cls,
        model: Any,
        dataset: Dataset,
        clip: Any = None,
        vae: Any = None,
        schedule: Any = None,
        optimizer: Any = None,
        objective: Any = None,
        lora: Any = None,
        run: Run | None = None,
        **given: Any,
    ) -> io.NodeOutput:
        node = str(cls.hidden.unique_id)
        server = PromptServer.instance
        live = RUNS.begin(node, server.send_sync)
        bar = comfy.utils.ProgressBar(1)
        shower = Shower(live, lambda text: progress_text.send(server, text, node), bar.update_absolute)
        try:
            prediction, _ = prediction_of(model.get_model_object("model_sampling"))
            task = Task(
                family=family_of(model.model),
                prediction=prediction,
                memory_mb=comfy.model_management.get_total_memory(model.load_device) / 2**20,
                make_host=lambda config: _host(model, clip, vae, config, dataset, live, shower),
                scaled=model.model.process_latent_in,
                dataset=dataset,
                widgets=given,
                options=[schedule, optimizer, objective, lora],
                run=run,
            )
            done = run_task(task, shower)
            output = _output(model, clip, done)
        except _SAID as error:
            live.end("failed", str(error))
            let_go_of_frames(error)
            raise error.with_traceback(None) from None
        except BaseException as error:
            interrupted = isinstance(error, comfy.model_management.InterruptProcessingException)
            state, message = ("interrupted", "queue again to go on") if interrupted else ("failed", str(error))
            live.end(state, message)
            let_go_of_frames(error)
            raise
        if done.state == "stopped":
            RUNS.ended_unfinished(node)
        live.end(done.state, _last_words(done), done.file.name)
        return output


def _last_words(done: Done) -> str:
    what = {"restored": "nothing changed since it was finished", "stopped": "stopped; queue again to go on"}
    return f"{what.get(done.state, done.state)}: step {done.step}, loras/{done.file.name}"


def _host(
    model: Any, clip: Any, vae: Any, config: RunConfig, dataset: Dataset, live: LiveRun, shower: Shower
) -> ComfyHost:
    text = None
    if dataset.given is not None and clip is None:
        if config.data.caption_dropout:
            raise ValueError("data.caption_dropout needs a CLIP for the empty caption; connect one or set it to 0")
        text = GivenText(dataset.given, None)
    if config.preview.prompts and config.preview.every_steps and (clip is None or vae is None):
        raise ValueError("previews need a CLIP and a VAE; connect them, or clear the preview prompts")
    return ComfyHost(
        model,
        clip,
        vae,
        max_token_chunks=config.data.max_token_chunks,
        train_text=config.trainable.text_encoder,
        control=live.control,
        on_progress=shower.progress,
        on_preview=shower.preview,
        text=text,
        autoencoder=NoAutoencoder() if dataset.given is not None and vae is None else None,
    )


def _output(model: Any, clip: Any, done: Done) -> io.NodeOutput:
    network, _ = read_safetensors(done.network)
    trained_model, trained_clip = comfy.sd.load_lora_for_models(model, clip, dict(network), 1.0, 1.0)
    strip = keeping.strip_of_previews(done.run) or _no_previews()
    facts = {
        "run": done.run.path.name,
        "folder": str(done.run.path),
        "state": done.state,
        "step": done.step,
        "file": done.file.name,
    }
    return io.NodeOutput(
        trained_model,
        trained_clip,
        network,
        {"loss": keeping.losses(done.run)},
        Run(folder=done.run.path, step=done.step),
        as_tensor(strip),
        ui={"atelier": [facts]},
    )


def as_tensor(image: Image.Image) -> torch.Tensor:
    """A picture as ComfyUI's IMAGE, (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255)[None]


def _no_previews() -> Image.Image:
    image = Image.new("RGB", (384, 64), "#F1F4F6")
    ImageDraw.Draw(image).text((16, 24), "no previews: give preview prompts to Train LoRA", fill="#52606D")
    return image
