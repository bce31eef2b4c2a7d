"""The training core. It knows no host.

A file imports its own layer and below; tests/test_layers.py reads the imports and enforces it.

    L0  registry.py      name -> class or function, folder discovery, one wording for an unknown name
        config.py        the tree of settings <-> dict; unknown keys and wrong values are errors
        forms.py         settings -> neutral widget specs; every user interface is built from them
        presets.py       where to begin: recipes by family, memory and purpose, each number with its source
        control.py        what a user asks of a run while it goes on: stop, save, sample, pause
        host.py          protocols: Host, Denoiser, TextEncoder, Autoencoder, Sampler
        files.py         durable writes: temporary name, fsync of file and folder, rename, SHA-256
        manifest.py      JSON files that carry their own SHA-256
        named_folders.py  which folders a graph, a page or a route may name
        owner.py         one program at a time writes in a folder
    L1  noise.py         noise schedules and prediction types
        timesteps.py     distributions of t, stratification, loss weights
        draws.py         the noise and the t of a sample, keyed by (seed, id, visit)
        objective.py     target and per-sample loss
        convolution.py   convolution and its gradient to the input where the weight is larger than the picture
        forwards.py      replacing the forward of module instances, and putting it back in every case
        frozen.py        autograd through frozen layers without keeping or copying their weights
        lengths.py       captions of several lengths in one batch, each run by itself
        recompute.py     gradient checkpointing by blocks
        storage.py       weights in fewer bits than the arithmetic has, and back
        block_fetching.py  blocks in main memory, fetched to the device one ahead
        base_weights.py  how the frozen weights of a model of our own are kept and given to each layer
        fingerprint.py   which base model this is, from 16 values of each layer
        checksum.py      a hash of every bit of tensors
        means.py         exact means of losses, the same after any interruption
        memory.py        how much is used, and whether an error means that it ran out
        loss_scaler.py   the loss scale that keeps fp16 gradients from vanishing
        optimizers.py    names -> optimizers, state by file name
        ema.py           the moving average of the weights
        lr_schedule/     the schedule grammar and its curves; a pure function step -> rate
        keys/            module names <-> names in files, per model family; the layers that get one adapter each
        network_keys.py  the layers of any network file, told by keys and shapes
        trainables/      what can be trained, one algorithm a file
    L2  data/            scan, headers, captions, buckets, pictures, shards, encode, cache, loader, conditioner; tag
                         rules and edits, caption files with undo; a survey of all pixels, duplicates, findings, the
                         pool of threads; focal points, pieces, image steps, preparing, bucket previews; ONNX models:
                         taggers, segmentation, aesthetic scores; the gallery of a folder, thumbnails
        diffusion_loss.py  the loss of a batch: from clean latents to one number a sample
    L3  records.py       the files of the records: rows, offsets, reading
        recorder.py      per-sample loss rows and the three means
        probe.py         controlled loss: fixed noise, fixed t, network on against off
        comparison.py    comparing losses fairly: in pairs, and at matched timesteps
        charts.py        plots from the records (matplotlib, imported late)
        verdicts.py      what the records say, in words
        report.py        the report page of a run
        checkpoints.py   the network and the full training state, each with its SHA-256
        run_folder.py    where one run keeps everything: settings, owner, resume, fork
        strip/           checkpoint strips: which checkpoints, cells, metrics, pages
        inspection.py    what a network file is, and what of a model it matches
        previews.py      pictures at fixed seeds from the model as it is trained
        network_metadata.py  what a published network says of itself
        trainer.py       the loop
        preparation.py   from a host and a configuration to a trainer: start, resume, fork
        preflight.py     two steps before a run: memory, hours, money, and what to change if it does not fit
    L4  standalone/      a third host over diffusers: command line, headless runs, demo
"""
