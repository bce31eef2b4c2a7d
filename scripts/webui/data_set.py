"""The page "Data set": the gallery of a folder, edits that are shown before they are written, and what will be cut."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from PIL import Image

from ...lib.config import DataConfig, from_dict
from ...lib.data.bucket_preview import bucket_counts, bucket_cut, bucket_preview
from ...lib.data.buckets import LATENT_STEP, bucket_sizes, nearest_bucket
from ...lib.data.gallery import EditPlan, Gallery, Item, gallery_filter
from ...lib.data.image_steps import STEPS
from ...lib.data.sample import Sample
from ...lib.data.tag_edits import EDITS
from ...lib.data.tagger import TaggingConfig
from ...lib.data.thumbnails import MIME
from ...lib.forms import form
from ...lib.named_folders import is_below
from . import captioners, faces, jobs, looking, upscalers
from .fields import Picture, jpeg, png, table, text, whole
from .folders import is_local
from .galleries import gallery_of, shown, which_of
from .model import loaded_now
from .page_values import PIXELS_PER_LATENT

MOST_TAGS = 500  # of the list beside the gallery
MOST_CUTS = 1000
_PREVIEW_PX = 768
# what of a data set's settings decides where a picture is cut
_CUTTING = ("resolution", "bucket_step", "bucket_min_px", "bucket_max_px", "bucket_upscale")


def words(values: dict[str, Any]) -> Any:
    """What the page is built from: edits, steps and settings by their declarations, and the models that are there."""
    return {
        "edits": [{"name": name, "help": kind.help, "needs": kind.needs} for name, kind in EDITS.items()],
        "steps": [
            {"name": name, "help": _first(kind.__doc__), "widgets": _widgets(kind)} for name, kind in STEPS.items()
        ],
        "tagging": _widgets(TaggingConfig),
        "cutting": [w for w in _widgets(DataConfig) if w["path"] in _CUTTING],
        "taggers": captioners.offered(),
        "segmenters": captioners.segmenters(),
        "predictors": captioners.predictors(),
        "upscalers": upscalers.names(),
        "faces": faces.name(),
        "local": is_local(),
    }


def open_folder(values: dict[str, Any]) -> Any:
    """Read a folder, or what changed in it since."""
    gallery = gallery_of(values)
    gallery.refresh()
    return {
        "folder": str(gallery.folder),
        "name": gallery.folder.name,
        "num": len(gallery),
        "problems": [str(problem) for problem in gallery.problems],
        "undo": gallery.newest_edit(),
        "jobs": [job.status() for job in jobs.jobs_of(gallery.folder)],
    }


def page(values: dict[str, Any]) -> Any:
    """Some of the pictures that a filter finds; with `tags` their tags too."""
    gallery, which = gallery_of(values), gallery_filter(table(values, "filter"))
    found = gallery.page(which, whole(values, "offset"), whole(values, "limit"))
    answer: dict[str, Any] = {
        "items": [_item(item) for item in found.items],
        "offset": found.offset,
        "num": found.num_found,
        "num_all": found.num_all,
    }
    if values.get("tags"):
        tags = gallery.tag_counts(which)
        answer |= {"tags": [[tag.tag, tag.num_captions] for tag in tags[:MOST_TAGS]], "num_tags": len(tags)}
    return answer


def plan(values: dict[str, Any]) -> Any:
    """What an edit would change."""
    gallery = gallery_of(values)
    return shown(gallery, _plan(gallery, values))


def apply(values: dict[str, Any]) -> Any:
    """Write what was shown, and nothing else."""
    gallery = gallery_of(values)
    num = gallery.apply(_plan(gallery, values), text(values, "digest"))
    if values.get("job"):
        jobs.find(text(values, "job")).result = None  # it is written: nothing is left to be shown
    return {"num": num, "undo": gallery.newest_edit()}


def save(values: dict[str, Any]) -> Any:
    """Write the caption of one picture, where it still is what was shown."""
    gallery = gallery_of(values)
    caption, before = (str(values.get(name) or "") for name in ("caption", "before"))
    item = gallery.set_caption(text(values, "name"), caption, before)
    return {"item": _item(item), "undo": gallery.newest_edit()}


def undo(values: dict[str, Any]) -> Any:
    """Take back the newest edit."""
    gallery = gallery_of(values)
    title, num = gallery.undo()
    return {"title": title, "num": num, "undo": gallery.newest_edit()}


def thumbnail(values: dict[str, Any]) -> Picture:
    """A small picture. The page asks for it with its version, so that a browser may keep it."""
    gallery, name = gallery_of(values), text(values, "name")
    _check_shown(gallery, gallery.item(name))
    return Picture(gallery.thumbnail(name, _digits(values, "side")), MIME)


def buckets(values: dict[str, Any]) -> Any:
    """Which bucket each picture gets, and how much of it is cut away, by the settings of a run."""
    samples = _samples(gallery_of(values), config := _cutting(values))
    cuts = sorted((bucket_cut(sample) for sample in samples), key=lambda cut: (-cut.lost, cut.sample.name))
    return {
        "buckets": [{"width": w, "height": h, "pictures": n} for (w, h), n in bucket_counts(samples).items()],
        "num": len(samples),
        "settings": {name: getattr(config, name) for name in _CUTTING},
        "cuts": [
            {
                "name": cut.sample.name,
                "lost": cut.lost,
                "scale": cut.scale,
                "size": cut.sample.size,
                "bucket": cut.sample.bucket,
            }
            for cut in cuts[:MOST_CUTS]
        ],
    }


def cut(values: dict[str, Any]) -> Picture:
    """A picture with what is cut away darkened; or, as `part=trained`, what is trained of it, pixel for pixel."""
    gallery, config = gallery_of(values), _cutting({"settings": _settings_of_query(values)})
    item = gallery.item(text(values, "name"))
    _check_shown(gallery, item)
    sample = _sample(item, config)
    if sample is None:
        raise ValueError(f"{item.name} cannot be used: {'; '.join(p.text for p in item.problems)}")
    preview = bucket_preview(sample, config.max_megapixels, _PREVIEW_PX)
    if values.get("part") == "trained":
        return png(Image.fromarray(preview.trained))
    return jpeg(preview.whole, 90)


def _plan(gallery: Gallery, values: dict[str, Any]) -> EditPlan:
    if values.get("job"):
        return looking.words_of(text(values, "job"), gallery)
    edits = values.get("edits")
    if not isinstance(edits, list) or not all(isinstance(edit, dict) for edit in edits):
        raise ValueError('edits must be a list such as [{"name": "remove", "words": "blurry"}]')
    pairs = [(text(edit, "name"), str(edit.get("words") or "")) for edit in edits]
    return gallery.plan(pairs, which_of(values))


def _item(item: Item) -> dict[str, Any]:
    return {
        "name": item.name,
        "caption": item.caption,
        "tags": len(item.tags),
        "size": item.size,
        "version": item.version,
        "editable": item.is_editable,
        "problems": [[problem.severity, problem.text] for problem in item.problems],
    }


def _check_shown(gallery: Gallery, item: Item) -> None:
    """Errors: `ValueError` where others reach this WebUI and a link leads out of the folder."""
    if not is_local() and not is_below(item.path.resolve(), [gallery.folder]):
        raise ValueError("pictures outside the known folders are not shown to other machines")


def _cutting(values: dict[str, Any]) -> DataConfig:
    given = table(values, "settings")
    return from_dict(DataConfig, {name: given[name] for name in _CUTTING if name in given}, "data")


def _settings_of_query(values: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {n: _digits(values, n) for n in _CUTTING[:-1] if n in values}
    if "bucket_upscale" in values:
        given["bucket_upscale"] = values["bucket_upscale"] == "true"
    return given


def _digits(values: dict[str, Any], name: str) -> int:
    value = str(values.get(name) or "")
    if not (value.isdecimal() and value.isascii() and len(value) < 9):
        raise ValueError(f'{name} must be a whole number, got "{value[:40]}"')
    return int(value)


def _samples(gallery: Gallery, config: DataConfig) -> list[Sample]:
    found = (_sample(gallery.item(name), config) for name in gallery.names())
    return [sample for sample in found if sample is not None]


def _sample(item: Item, config: DataConfig) -> Sample | None:
    """A picture as a scan of the folder makes it; None where it cannot be used."""
    if item.size is None:
        return None
    model = loaded_now()
    latent_step = PIXELS_PER_LATENT * LATENT_STEP.get((model or {}).get("family") or "", 1)
    step = -(-config.bucket_step // latent_step) * latent_step
    sizes = bucket_sizes(config.resolution, step, config.bucket_min_px, config.bucket_max_px)
    bucket = nearest_bucket(item.size, sizes, config.bucket_upscale, step)
    return Sample(name=item.name, path=item.path, caption=item.caption, size=item.size, bucket=bucket)


def _widgets(kind: type) -> list[dict[str, Any]]:
    return [asdict(widget) for group in form(kind) for widget in group.widgets if not group.path]


def _first(doc: str | None) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((doc or "").split("\n\n")[0].split())
