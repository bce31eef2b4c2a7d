"""Nodes that write captions: edits in bulk, tags by a tagger, texts of the graph. All show before they write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..lib.config import from_dict
from ..lib.data.caption_files import EXISTING
from ..lib.data.gallery import EditPlan, Gallery, GalleryFilter, opened
from ..lib.data.headers import printable
from ..lib.data.scan import scan
from ..lib.data.tag_edits import EDITS, TagFilter, edit
from ..lib.data.tag_rules import tag_rules
from ..lib.data.tagger import Tagger, TaggingConfig, tag_pictures
from . import model_files
from .dataset_work import Progress, edited_text, files_config, galleries, shown
from .schema import inputs_of, schema, socket, supported
from .sockets import DATASET, Dataset

_OUTPUT = {"display_name": "dataset", "tooltip": "the data set, for Train LoRA or another node"}


def _write_input() -> Any:
    return io.Boolean.Input(
        "write",
        display_name="Write",
        default=False,
        tooltip="off: only show what would change; on: write the caption files. Undo is in the gallery of the data set",
    )


class EditCaptions(io.ComfyNode):
    """The captions of a data set, edited in bulk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierEditCaptions",
            "Edit captions",
            "Edits the caption files of a data set: tags replaced, removed, merged, joined or moved, words in front or "
            "behind, the trigger-word method. Shows every change first, and each edit can be taken back.",
            is_output_node=True,
            inputs=[
                socket(DATASET).Input("dataset", tooltip="the data set whose caption files are edited"),
                io.String.Input(
                    "edits",
                    display_name="Edits",
                    multiline=True,
                    default="subsumed\njoin",
                    placeholder="replace = old tag -> new tag",
                    tooltip="one a line, done in turn: replace = old -> new, remove = hat, *_hair, prepend = words, "
                    "append = words, trigger = word, first = 1girl, subsumed, join, spaces",
                ),
                *(_tags_input(name) for name in ("all", "any", "none")),
                _write_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                socket(DATASET).Output("dataset_out", **_OUTPUT),
                io.String.Output("diff", tooltip="what changes, a line for each caption"),
            ],
            search_aliases=["tags", "clean up tags", "batch edit captions", "trigger word", "find and replace"],
        )

    @classmethod
    def validate_inputs(cls, edits: str | None) -> bool | str:
        try:
            if edits is not None:
                for name, words in edits_in(edits):
                    edit(name, words, tag_rules())
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, dataset: Dataset, edits: str, with_all: str, with_any: str, with_none: str, write: bool
    ) -> io.NodeOutput:
        which = GalleryFilter(TagFilter(_words(with_all), _words(with_any), _words(with_none)))
        plans = []
        for gallery in galleries(dataset):
            plans.append((gallery, gallery.plan(edits_in(edits), which)))
            if write:
                gallery.apply(plans[-1][1])
        text = edited_text(plans, write)
        return io.NodeOutput(dataset, text, ui=shown(cls, text))


class TagPictures(io.ComfyNode):
    """The pictures of a data set, captioned by a tagger."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierTagPictures",
            "Tag pictures",
            "Captions the pictures of a data set by a tagger of the WD14 type that lies in models/taggers: model.onnx "
            "and selected_tags.csv in a folder of their own. Needs onnxruntime. Nothing is downloaded.",
            is_output_node=True,
            inputs=[
                socket(DATASET).Input("dataset", tooltip="the data set whose pictures are captioned"),
                io.Combo.Input(
                    "tagger",
                    display_name="Tagger",
                    options=model_files.choices(model_files.taggers()),
                    tooltip="a folder in models/taggers with model.onnx and selected_tags.csv",
                ),
                *inputs_of(
                    TaggingConfig,
                    order={"advanced": True},
                    spaces={"advanced": True},
                    escape={"advanced": True},
                    existing={"display_name": "Captions that are there"},
                ),
                _write_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                socket(DATASET).Output("dataset_out", **_OUTPUT),
                io.String.Output("diff", tooltip="the tags of each picture that got some"),
            ],
            search_aliases=["auto tag", "wd14", "caption images", "tagger", "interrogate"],
        )

    @classmethod
    def validate_inputs(cls, tagger: str | None) -> bool | str:
        try:
            if tagger is not None:
                model_files.tagger_folder(tagger)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, dataset: Dataset, tagger: str, write: bool, **given: Any) -> io.NodeOutput:
        config = from_dict(TaggingConfig, given, "Tag pictures")
        model = Tagger(model_files.tagger_folder(tagger), model_files.device())
        progress, plans, problems = Progress(), [], []
        for gallery in galleries(dataset):
            items = [gallery.item(name) for name in gallery.names()]
            tagging = tag_pictures(
                [item.path for item in items], model, config, on_progress=progress, stopped=progress.stopped
            )
            problems += [f"{problem}; it gets no tags" for problem in tagging.problems]
            words = tagging.words()
            words = {item.name: words[item.path] for item in items if item.path in words}
            plans.append((gallery, gallery.plan_words(words, config.existing, f"tags by {tagger}")))
            if write:
                gallery.apply(plans[-1][1])
            if progress.stopped():
                break
        text = "\n".join([edited_text(plans, write), *problems])
        about = shown(cls, text)
        progress.end()
        return io.NodeOutput(dataset, text, ui=about)


class WriteCaptions(io.ComfyNode):
    """Texts of the graph as captions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AtelierWriteCaptions",
            "Write captions",
            "Writes texts that any node gives as the captions of a data set, in the order in which Pictures of a "
            "dataset gives the pictures.",
            is_input_list=True,
            is_output_node=True,
            inputs=[
                socket(DATASET).Input("dataset", tooltip="the data set whose caption files are written"),
                io.String.Input(
                    "captions", force_input=True, tooltip="a text for each picture, such as a captioner gives"
                ),
                io.String.Input(
                    "names",
                    optional=True,
                    force_input=True,
                    tooltip="which picture each text is for, as Pictures of a dataset says; without it all, in order",
                ),
                io.Combo.Input(
                    "existing",
                    display_name="Captions that are there",
                    options=list(EXISTING),
                    tooltip="leave them (skip), add what they lack (append), or replace them",
                ),
                _write_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                socket(DATASET).Output("dataset_out", **_OUTPUT),
                io.String.Output("diff", tooltip="what changes, a line for each caption"),
            ],
            search_aliases=["save captions", "caption files", "blip", "florence", "llm caption"],
        )

    @classmethod
    def execute(
        cls,
        dataset: list[Dataset],
        captions: list[str],
        existing: list[str],
        write: list[bool],
        names: list[str] | None = None,
    ) -> io.NodeOutput:
        plans = written_plans(dataset[0], captions, names, existing[0])
        for gallery, plan in plans if write[0] else ():
            gallery.apply(plan)
        text = edited_text(plans, write[0])
        return io.NodeOutput(dataset[0], text, ui=shown(cls, text))


def written_plans(
    dataset: Dataset, captions: Sequence[str], names: Sequence[str] | None, existing: str
) -> list[tuple[Gallery, EditPlan]]:
    """What writing captions would change, by folder. Errors: `ValueError` where their number or a name is wrong."""
    config = files_config(dataset)
    samples = {sample.name: sample for sample in scan(config).samples}
    meant = list(samples) if names is None else list(names)
    if len(captions) != len(meant):
        what = "pictures" if names is None else "names"
        raise ValueError(f"captions: there must be one for each of the {len(meant)} {what}, got {len(captions)}")
    words: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for name, caption in zip(meant, captions, strict=True):
        if name not in samples:
            raise ValueError(f'names: there is no picture "{name[:200]}" in the data set')
        sample = samples[name]
        folder = config.concepts[sample.concept].folder
        relative = printable(sample.path.relative_to(opened(folder).folder).as_posix())
        words[folder][relative] = [caption.strip()] if caption.strip() else []
    return [
        (opened(folder), opened(folder).plan_words(by_name, existing, "captions of a workflow"))
        for folder, by_name in words.items()
    ]


def edits_in(text: str) -> list[tuple[str, str]]:
    """Edits, one a line: NAME, or NAME = WORDS. Errors: `ValueError` for a text without any."""
    found = [line.partition("=") for line in text.splitlines() if line.strip()]
    if not found:
        raise ValueError(f"edits: write one a line: {', '.join(EDITS)}")
    return [(name.strip(), words.strip()) for name, _, words in found]


def _tags_input(name: str) -> Any:
    texts = {
        "all": ("With all of", "only captions that have all of these tags, separated by commas"),
        "any": ("With any of", "only captions that have at least one of these tags"),
        "none": ("With none of", "only captions that have none of these tags"),
    }
    about = {"display_name": texts[name][0], "default": "", "advanced": True, "tooltip": texts[name][1]}
    return supported(io.String.Input, f"with_{name}", **about)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
