"""The adapter for AUTOMATIC1111's WebUI.

    loaded.py         what the loaded checkpoint is: family, prediction, parts; refusals, each with what to change
    patched.py        setting attributes of the host's objects, and putting them back in every case
    builtin_lora.py   the built-in LoRA extension: its networks out of the weights, and into them for a preview
    open_clip.py      OpenCLIP's fused attention as layers that can be trained
    readiness.py      the model ready for training, and put back
    text.py           captions to conditioning, literally
    autoencoder.py    pictures to latents and back
    sampler.py        previews by the host's own txt2img
    host.py           `WebuiHost`: all of this as the core's host
    runs.py           runs: each a thread of its own that holds the host's queue lock; the registry of live runs
    publish.py        a checkpoint of a run as a LoRA that txt2img offers
    tab.py            where pages, routes and hooks are put into the host
    page.py           our elements in the host's page; the rest of it is in javascript/
    api.py            the routes below /atelier/v1
    access.py         who may use them
    folders.py        which folders a page may name
    page_values.py    the form of a run: from the settings' declarations, and back to them
    saved_presets.py  presets of the pack and of the user
    curves.py         a schedule as it is drawn
    catalogue.py      the runs on the disk, as they are shown
    model.py          the loaded checkpoint, as it is shown
    data_set.py       a data set: gallery, edits, what will be cut
    data_work.py      what takes long on it: checking, preparing
    looking.py        models that look at its pictures: captions, scores
    jobs.py           work in the background, found again by a page
    galleries.py      the galleries that requests name
    captioners.py     models in our folder, and the host's own BLIP and DeepDanbooru
    upscalers.py      the host's upscalers whose models are here
    faces.py          faces by the host's OpenCV
    fields.py         the fields of a request, and pictures as answers
    strip.py          checkpoint strips; painting.py: their cells by the host's own sampling
    borrowed_names.py LoRA files under names for prompts, for a while
    grid.py           the axis of the X/Y/Z plot
    stock.py          the host's own training: rows of every picture, our schedules
    settings.py       our section in Settings

Pages, routes and the grid build on `runs` and `publish` only:

    run = runs.start(config)                     a new run (`lib.config.RunConfig`), returns at once
    run = runs.resume(folder, changes)           go on with a run folder; `changes` nested as in `config.from_dict`
    run = runs.fork(folder, step, changes)       a branch from a step (None: the newest)
                                                 all three take `txt2img={...}`: further fields of txt2img for previews,
                                                 such as sampler_name and scheduler ("as txt2img"); start and fork
                                                 also `parent=`, the folder to make the run folder in
    run.stop(); run.save(); run.sample(); run.pause(); run.go_on()
    run.status()                                 a dict of JSON values, see `Run.status`; cheap, from any thread
    run.is_live                                  waiting, preparing, training or paused
    runs.all_runs()                              live and ended runs of this program, oldest first; also those started
                                                 before Reload UI
    runs.find(id)                                the one with `status()["id"]`, or None
    runs.live_run()                              the live run that was started last, or None
    runs.default_parent()                        the folder that run folders are made in
    publish.publish(run_folder, step, name)      "Use in txt2img": see there

Nothing is wrapped for good: whatever is set on the host's objects is put back when the run that needed it ends. What a
page has to keep over Reload UI goes into `runs.registry().wrapped`, a dict that stays.
"""

from __future__ import annotations


def register() -> None:
    """Register the pages; called at each start and each *Reload UI*."""
    from importlib import import_module
    from importlib.util import find_spec

    # the pages are a module of their own, so that the adapter can be tested without them
    if find_spec(__name__ + ".tab") is not None:
        import_module(__name__ + ".tab").register()
