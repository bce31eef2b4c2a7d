"""Networks as files: Save LoRA with what a file says of itself, Load LoRA with a check of the family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
from comfy_api.latest import io

from ..lib import files
from ..lib.inspection import inspect_file
from ..lib.run_folder import RunFolder
from . import graph, keeping, paths
from .families import family_of
from .schema import schema, socket, supported
from .sockets import RUN, Run

_NOTES = {
    "title": ("modelspec.title", "what lists of networks show"),
    "author": ("modelspec.author", "who made it"),
    "description": ("modelspec.description", "what it is for"),
    "trigger": ("modelspec.trigger_phrase", "the words that call it up"),
    "license": ("modelspec.license", "under what terms others may use it"),
}


class SaveLora(io.ComfyNode):
    """A network under a name of its own in output/loras, where the list of LoRAs shows it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierSaveLora",
            "Save LoRA",
            "Saves a checkpoint of a run, or a LORA_MODEL, into output/loras. A name that is taken gets -2 and so on.",
            is_output_node=True,
            inputs=[
                socket(RUN).Input(
                    "run", optional=True, tooltip="from Train LoRA or Run; keeps the metadata of training"
                ),
                socket("LORA_MODEL").Input(
                    "lora", optional=True, tooltip="instead of a run: a network without metadata"
                ),
                io.String.Input(
                    "name", display_name="Name", default="my-lora", tooltip="of the file, without an ending"
                ),
                io.Int.Input(
                    "step",
                    display_name="Step",
                    default=-1,
                    min=-1,
                    max=100_000_000,
                    tooltip="which checkpoint of the run; -1: the one that the run means, which is its newest",
                ),
                *(
                    supported(
                        io.String.Input,
                        name,
                        display_name=name.title(),
                        default="",
                        tooltip=help,
                        optional=True,
                        advanced=True,
                    )
                    for name, (_, help) in _NOTES.items()
                ),
            ],
            outputs=[io.String.Output("file", tooltip="the file's name, as Load LoRA takes it")],
            search_aliases=["export lora", "publish"],
        )

    @classmethod
    def execute(cls, name: str, step: int, run: Run | None = None, lora: Any = None, **notes: str) -> io.NodeOutput:
        if (run is None) == (lora is None):
            raise ValueError(f"Save LoRA takes a run or a LORA_MODEL, got {'neither' if run is None else 'both'}")
        said = {_NOTES[key][0]: text.strip() for key, text in notes.items() if text.strip()}
        if run is not None:
            folder = RunFolder.open(run.folder)
            _, network = keeping.network_file(folder, step if step >= 0 else run.step)
            path = keeping.publish(network, paths.loras_folder(), name, said)
        else:
            path = keeping.write_network(paths.loras_folder(), name, lora, said)
        return io.NodeOutput(path.name, ui={"text": [f"loras/{path.name}"]})


class LoadLora(io.ComfyNode):
    """A network on a model, refused where it belongs to another family."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        strength: dict[str, Any] = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}
        return schema(
            "AtelierLoadLora",
            "Load LoRA",
            "Applies a LoRA and shows what it says of itself. One of another model family, or one that matches "
            "nothing, is an error instead of a picture without it.",
            inputs=[
                io.Model.Input("model", tooltip="the model that it is applied to"),
                io.Clip.Input("clip", optional=True, tooltip="needed where the text encoder was trained too"),
                io.Combo.Input(
                    "file",
                    display_name="File",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="a file in one of the LoRA folders",
                ),
                io.Float.Input("strength_model", display_name="Strength model", tooltip="1 is as trained", **strength),
                io.Float.Input("strength_clip", display_name="Strength CLIP", tooltip="1 is as trained", **strength),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="the model with the network"),
                io.Clip.Output("clip_out", display_name="clip", tooltip="the CLIP with the network"),
                socket("LORA_MODEL").Output("lora", tooltip="the network"),
                io.String.Output("metadata", tooltip="what the file says of itself, as JSON"),
            ],
            search_aliases=["lora loader", "apply lora"],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        path = folder_paths.get_full_path("loras", file) if file else None
        if file and path is None:
            return f'there is no LoRA "{file}"'
        model = graph.loaded_by(str(cls.hidden.unique_id), "model")
        model_path = folder_paths.get_full_path(*model) if model else None
        try:
            if path is not None and model_path is not None:
                check_family(inspect_file(path).family, graph.family_of_file(Path(model_path)), file or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **given: Any) -> str:
        path = folder_paths.get_full_path("loras", file) if file else None
        try:
            return "" if path is None else files.sha256_of(path)
        except OSError as error:
            return str(error)

    @classmethod
    def execute(
        cls, model: Any, file: str, strength_model: float, strength_clip: float, clip: Any = None
    ) -> io.NodeOutput:
        path = Path(folder_paths.get_full_path_or_raise("loras", file))
        found = inspect_file(path)
        check_family(found.family, family_of(model.model), file)
        network, metadata = files.read_safetensors(path)
        with_model, with_clip = comfy.sd.load_lora_for_models(model, clip, dict(network), strength_model, strength_clip)
        if strength_model and len(with_model.patches) == len(model.patches) and clip is None:
            raise ValueError(f"{file} matches nothing of this model ({found.family or 'family unknown'})")
        return io.NodeOutput(with_model, with_clip, network, json.dumps(metadata, indent=2, ensure_ascii=False))


def check_family(of_file: str, of_model: str, file: str) -> None:
    """Errors: `ValueError` where a network cannot be for a model. A file may be of one of several families."""
    families = [family.strip() for family in of_file.replace(" or ", ",").split(",") if family.strip()]
    known = {"sd1", "sd2", "sdxl", "sd3", "flux"}
    if families and of_model in known and set(families) <= known and of_model not in families:
        raise ValueError(
            f"{file} is a LoRA for {of_file}, and this model is {of_model}; load one that fits, or its model"
        )
