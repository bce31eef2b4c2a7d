"""The ComfyUI adapter: nodes, events and routes. Importing this package needs no host; `extension.py` does.

    extension.py  what ComfyUI is given           host.py       `ComfyHost`: the loaded model as the core sees it, with
    schema.py     settings -> widgets                           loaded, text, latents, sampling, prediction, conditions,
    sockets.py    what travels between our nodes                families, blocks
    paths.py      which folders may be named      data.py       data set nodes
    graph.py      the graph that is being queued  options.py    captions, schedule, optimizer, objective, network
    live.py       runs that go on: events, control  settings.py   the train node's widgets and what they come to
    routes.py     HTTP: curve.py, gallery.py      session.py    one execution of the train node, train.py the node
    progress_text.py  the text below a node
    keeping.py    what is kept of runs            results.py    Run, Loss Report; lora.py: Save LoRA, Load LoRA
    checkpoints.py, strip.py, painting.py         checkpoint strips
    captioning.py, scoring.py, preparing.py, dataset_views.py   data sets before training, with dataset_work.py and
                                                  model_files.py

Nodes (category `Atelier`; * optional). Sockets of our own: ATELIER_DATASET, ATELIER_SCHEDULE, ATELIER_OPTIONS,
ATELIER_RUN, ATELIER_CHECKPOINTS.

    AtelierDatasetFolder  folder repeats weight trigger append regularization flip alpha_mask caption_from_name
                          -> dataset
    AtelierDatasetImages  images (IMAGE, list) captions* (STRING, list) name repeats weight trigger regularization
                          flip -> dataset
    AtelierDatasetLatents  latents (LATENT, list) conditioning (CONDITIONING, list) name repeats weight -> dataset
    AtelierConcepts       dataset_1 dataset_2 dataset_3* dataset_4* -> dataset
    AtelierCheckDataset   dataset clip* -> dataset, STRING report, IMAGE duplicates
    AtelierEditCaptions   dataset edits with_all with_any with_none write -> dataset, STRING diff
    AtelierTagPictures    dataset tagger, the settings of `TaggingConfig`, write -> dataset, STRING diff
    AtelierDatasetPictures  dataset longest_px first most without_caption -> lists: IMAGE, STRING captions, STRING names
    AtelierWriteCaptions  dataset captions (STRING, list) names* (STRING, list) existing write -> dataset, STRING diff
    AtelierScorePictures  dataset predictor most -> dataset, STRING scores, IMAGE preview
    AtelierPrepareDataset  dataset upscale_model* and widgets -> dataset, IMAGE preview, STRING report, STRING folder
    AtelierRemoveBackground  images (IMAGE) segmenter -> IMAGE on white, MASK
    AtelierBucketPreview  dataset, settings of `data.*` -> dataset, IMAGE preview, IMAGE trained (list), STRING report
    AtelierCaptions       dataset trigger append shuffle_tags keep_tags tag_dropout caption_dropout -> dataset
    AtelierSchedule       schedule text_encoder factor stop_at_end steps (for the drawing only) -> schedule
    AtelierOptimizer      the settings of `optimizer.*` -> options
    AtelierObjective      the settings of `objective.*` -> options
    AtelierLora           the settings of `trainable.*`, rules* -> options
    AtelierTrain          model dataset clip* vae* schedule* optimizer* objective* lora* run* and widgets
                          -> MODEL, CLIP, LORA_MODEL, LOSS_MAP, ATELIER_RUN run, IMAGE strip
    AtelierRun            run (one of output/atelier) folder* step* -> run, STRING folder
    AtelierLossReport     run -> IMAGE charts, STRING csv_path, STRING report_path
    AtelierSaveLora       run* or LORA_MODEL*, name step, metadata* -> STRING file
    AtelierLoadLora       MODEL CLIP* file strength_model strength_clip -> MODEL, CLIP, LORA_MODEL, STRING metadata
    AtelierCheckpoints    run* sources every first_step last_step -> checkpoints
    AtelierCheckpointStrip  checkpoints and what is sampled -> IMAGE and files
    AtelierLinkCheckpoints  checkpoints name -> STRING names

Events (`api.addEventListener("atelier.run", ({detail}) => ...)`), sent to every browser. Each has `node` (the id of the
train node as the graph shows it) and `run` (the id of the live run, 16 hexadecimal digits; it names the run in routes).

    atelier.run         a run begins, or changes its state: {node, run, name, folder, state, message, num_steps,
                        first_step, summary, notes: [text], schedule: [[step, rate], ...], file: as in atelier.finished}
                        state: "preparing" | "running" | "paused" | "stopping" | "finished" | "stopped" |
                        "interrupted" | "failed" | "restored" (an unchanged finished run was returned at once). name,
                        folder, num_steps, first_step, summary, notes and schedule are null or empty while it is
                        preparing.
    atelier.progress    at most four a second: {node, run, state, step, num_steps, loss (smoothed or null), step_loss,
                        controlled (-0.02 is 2 % below the base; null where none is measured), rate, seconds_per_step,
                        seconds_left, memory_mb, saved_step (null before the first), note,
                        points: [[step, step_loss, smoothed or null], ...] of the steps since the last event}
    atelier.preview     a preview was made: {node, run, step, prompt, seed, image: {filename, subfolder, type}}, the
                        last as /view takes it
    atelier.finished    the last word of a run: {node, run, state, step, num_steps, message, file (in output/loras, or
                        "")}

Routes. Answers are JSON; an error is {"error": "one sentence"} with status 400, 403, 404 or 409.

    GET  /atelier/runs               {live: [the last atelier.run + atelier.progress of each that goes on or ended since
                                     the server began, merged; oldest first], runs: [names of the run folders]}
    GET  /atelier/runs/{run}         {..., points: [[step, step_loss, smoothed], ...], previews: [as in
                                     atelier.preview], controlled_points: [[step, controlled], ...]} of one of
                                     these: what redraws a chart
    POST /atelier/runs/{run}/{what}  what: stop | save | sample | pause | go_on -> {run, state}. {run} may also be
                                     "node:ID" for the live run of the node with that id. Content-Type
                                     application/json and the page's own origin, or 403; a run that has ended: 409
    POST /atelier/schedule           {schedule, steps, steps_per_epoch*, text_encoder*, factor*, stop_at_end*} ->
                                     {points: [[step, rate], ...] (at most 400, corners kept), highest, cycle_ends,
                                     num_steps, notes, text_encoder (the same of its own schedule, where it has one)}
                                     or {error: {message, column (from 1, or null), setting}}, both with status 200
    POST /atelier/gallery/{what}     what: page | tags | edits | plan | apply | caption | undo; nodes/gallery.py says
                                     what each takes and answers. The folder is named as in Dataset from a folder,
                                     pictures by their path in it
    GET  /atelier/gallery/thumbnail  ?folder= name= side* -> a JPEG; a page of another server gets none
"""
