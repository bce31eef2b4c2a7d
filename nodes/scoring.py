"""The node that says how pleasing the pictures of a data set are."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io
from PIL import Image, ImageDraw

from ..lib.data.aesthetic import AestheticScorer, best_first, score_pictures, score_table
from ..lib.data.headers import PictureError
from ..lib.data.scan import scan
from ..lib.data.thumbnails import reduced
from ..lib.strip.lettering import ellipsis, font
from . import model_files
from .dataset_work import Progress, files_config, sheets, shown
from .schema import schema, socket
from .sockets import DATASET, Dataset

_SHEET_PX, _LABEL_PX = 512, 56


class ScorePictures(io.ComfyNode):
    """The pictures of a data set, the most pleasing first."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierScorePictures",
            "Score pictures",
            "Says how pleasing each picture of a data set is, by an aesthetic predictor that lies in "
            "models/aesthetic_predictors. Needs onnxruntime. Nothing is downloaded and no file is changed.",
            is_output_node=True,
            inputs=[
                socket(DATASET).Input("dataset", tooltip="the data set whose pictures are looked at"),
                io.Combo.Input(
                    "predictor",
                    display_name="Predictor",
                    options=model_files.choices(model_files.predictors()),
                    tooltip="an .onnx file in models/aesthetic_predictors, or a folder there with image_encoder.onnx "
                    "and predictor.onnx",
                ),
                io.Int.Input(
                    "most",
                    display_name="At most",
                    default=24,
                    min=1,
                    max=256,
                    tooltip="so many pictures are shown, half of them the best and half the worst",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                socket(DATASET).Output(
                    "dataset_out",
                    display_name="dataset",
                    tooltip="the data set as it came, for Train LoRA or another node",
                ),
                io.String.Output("scores", tooltip="CSV with the columns image and score, the best first"),
                io.Image.Output("preview", tooltip="pictures with their scores, the best first"),
            ],
            search_aliases=["aesthetic score", "rate images", "image quality", "nima", "sort pictures"],
        )

    @classmethod
    def validate_inputs(cls, predictor: str | None) -> bool | str:
        try:
            if predictor is not None:
                model_files.predictor_place(predictor)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, dataset: Dataset, predictor: str, most: int) -> io.NodeOutput:
        config, progress = files_config(dataset), Progress()
        scorer = AestheticScorer(model_files.predictor_place(predictor), model_files.device())
        names = {sample.path: sample.name for sample in scan(config).samples}
        found = score_pictures(
            names, scorer, max_megapixels=config.max_megapixels, on_progress=progress, stopped=progress.stopped
        )
        scores = {names[path]: score for path, score in found.scores.items()}
        ranked = sorted(found.scores, key=lambda path: (-found.scores[path], names[path]))
        if len(ranked) > most:
            ranked = ranked[: most - most // 2] + ranked[len(ranked) - most // 2 :]
        pictures = sheets((_labelled(path, f"{found.scores[path]:.3f}  {path.name}") for path in ranked), _SHEET_PX)
        lines = [f"{score:8.3f}  {name}" for name, score in best_first(scores)]
        lines += [f"{problem}; it gets no score" for problem in found.problems]
        about = shown(cls, "\n".join(lines) or "there are no pictures", pictures if ranked else None)
        progress.end()
        return io.NodeOutput(dataset, score_table(scores).decode(), pictures, ui=about)


def _labelled(path: Path, text: str) -> Image.Image:
    """A picture with a line of text below it."""
    sheet = Image.new("RGB", (_SHEET_PX, _SHEET_PX), "#202020")
    try:
        picture = reduced(path, _SHEET_PX - _LABEL_PX)
    except PictureError:
        return sheet  # it was damaged since it was looked at
    sheet.paste(picture, ((_SHEET_PX - picture.width) // 2, (_SHEET_PX - _LABEL_PX - picture.height) // 2))
    letters = font(36)
    line = ellipsis(text, _SHEET_PX - 16, letters)
    ImageDraw.Draw(sheet).text((8, _SHEET_PX - _LABEL_PX + 6), line, fill="#E0E0E0", font=letters)
    return sheet
