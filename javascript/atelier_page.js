// The page as a whole: its parts, the poll of the run that goes on, and what it does in the host's own page.

window.atelier = window.atelier || {};

(function(atelier) {
    const {t, el} = atelier;
    const LIVE_MS = 1000, IDLE_MS = 4000;
    let built = null, lastLive = null;

    // The fields of txt2img as the host holds them: a hidden button of ours writes them into a hidden box.
    async function txt2imgFields() {
        const app = gradioApp(), box = app.querySelector("#atelier_txt2img textarea"), before = box.value;
        app.querySelector("#atelier_read_txt2img").click();
        for (let i = 0; i < 100; i++) {
            await new Promise(done => setTimeout(done, 100));
            if (box.value !== before) return JSON.parse(box.value).fields;
        }
        throw new Error(t("The fields of txt2img could not be read."));
    }

    // Copy a checkpoint into the LoRA folder, and put it and its trigger words into the prompt of txt2img.
    atelier.useInTxt2img = (message, run, step, name) => atelier.attempt(message, async() => {
        const published = await atelier.post("publish", {run, step, name});
        const box = gradioApp().querySelector("#txt2img_prompt textarea");
        const rest = box.value.replace(/\s+$/, "");
        box.value = rest ? `${rest}, ${published.prompt}` : published.prompt;
        updateInput(box);
        message.ok(t("{file} is in the LoRA folder and in the prompt of txt2img.", {file: published.file}));
        if (typeof switch_to_txt2img === "function") switch_to_txt2img();
    });

    function sound() {
        const audio = gradioApp().querySelector("#audio_notification audio");
        if (!audio || opts.atelier_sound === false) return;
        audio.volume = (opts.notification_volume || 100) / 100;
        audio.play().catch(() => {
            // the browser plays nothing before the page was touched
        });
    }

    function build(root, description) {
        const message = atelier.message();
        const checked = el("div", {class: "atelier-checked"});
        let touched = atelier.kept("form") !== null, family = null, told = false;
        const keepForm = atelier.later(() => atelier.keep("form", {values: form.values(), mode: mode.value}), 400);
        const form = atelier.form(description, path => {
            touched = true;
            schedule.changed(path);
            presets.changed();
            keepForm();
            showMode();
        });
        const schedule = atelier.scheduleView(form);
        const presets = atelier.presets(form, message, () => {
            schedule.refresh();
            keepForm();
            showMode();
        });
        const mode = el("select", {id: "atelier_preview_mode"},
            el("option", {value: "own"}, t("Prompts of its own")), el("option", {value: "txt2img"}, t("As txt2img")));
        const start = atelier.button("Start training", begin, "primary", {id: "atelier_start"});
        const model = el("p", {class: "atelier-model", id: "atelier_model"});
        const live = atelier.live(key => {
            go("Runs");
            runs.refresh().then(() => runs.open(key));
        });
        const strip = atelier.strip();
        const runs = atelier.runs({
            openTrain: () => go("Train"),
            openStrip: (key, about) => {
                go("Strip");
                strip.open(runs.all(), about);
            },
            useSettings: values => {
                form.set(values);
                keepForm();
                schedule.refresh();
                go("Train");
            }
        });

        function showMode() {
            const asTxt2img = mode.value === "txt2img";
            for (const path of ["preview.prompts", "preview.negative_prompt", "preview.steps", "preview.guidance", "preview.width", "preview.height"]) {
                form.field(path).element.hidden = asTxt2img;
            }
            atelier.fill(modeNote, asTxt2img ?
                t("Prompt, sampler, size, hires fix and styles are taken from txt2img when the run starts; a seed of -1 becomes the seed below.") :
                (Number(form.get("preview.every_steps")) > 0 && !String(form.get("preview.prompts") || "").trim() ? t("Without a prompt no preview is made.") : ""));
        }

        const modeNote = el("p", {class: "atelier-note"});
        form.slots.rate.append(schedule.element);
        form.slots.preview.append(modeNote);
        form.slots.preview.parentElement.prepend(el("div", {class: "atelier-row"}, el("span", {class: "atelier-caption"}, t("Previews")), mode));
        form.slots.data.append(el("div", {class: "atelier-row"}, atelier.button("Check the data set", check, "small", {id: "atelier_check"})), checked);
        mode.addEventListener("change", () => {
            showMode();
            keepForm();
        });

        async function check() {
            await atelier.attempt(message, async() => {
                const found = await atelier.post("check", {values: form.values()});
                schedule.setStepsPerEpoch(found.steps_per_epoch);
                const steps = found.num_steps ? t("{steps} steps are {epochs} epochs of {n} steps", {steps: found.num_steps.toLocaleString("en"), epochs: found.epochs, n: found.steps_per_epoch}) :
                    t("an epoch has {n} steps", {n: found.steps_per_epoch});
                atelier.fill(checked,
                    el("p", {}, el("b", {}, t("{n} pictures", {n: found.num_pictures})), ", ", t("{n} buckets", {n: found.buckets.length}), "; ", steps,
                        found.steps_by_formula !== found.steps_per_epoch ? " " + t("({n} if buckets could share batches)", {n: found.steps_by_formula}) : ""),
                    el("p", {class: "atelier-chips"}, found.buckets.slice(0, 12).map(b => el("span", {class: "atelier-chip"}, `${b.width}×${b.height} `, el("b", {}, b.pictures)))),
                    found.num_without_caption ? el("p", {class: "atelier-fault"}, t("{n} pictures have no caption", {n: found.num_without_caption})) : null,
                    found.captions.map(c => el("p", {class: "atelier-note"}, el("code", {}, c.image), " ", c.caption)),
                    found.problems.length ? el("details", {class: "atelier-more", open: found.problems.length < 4}, el("summary", {}, t("{n} notes", {n: found.problems.length})), el("ul", {}, found.problems.map(p => el("li", {}, p)))) : null,
                    el("p", {class: "atelier-note"}, t("Memory and speed are not measured before the run begins.")));
            });
        }

        async function begin() {
            start.disabled = true;
            await atelier.attempt(message, async() => {
                const wanted = mode.value === "txt2img" ? await txt2imgFields() : null;
                await atelier.post("start", {values: form.values(), txt2img: wanted});
                await poll();
            });
            start.disabled = false;
        }

        const train = el("div", {class: "atelier-columns"},
            el("div", {}, model, presets.element, form.element, el("div", {class: "atelier-start"}, message.element, start)),
            live.element);
        const dataSet = atelier.dataSet({get: path => form.values()[path]});
        const pages = {Data: dataSet.element, Train: train, Runs: runs.element, Strip: strip.element};
        const titles = {Data: "Data set", Train: "Train", Runs: "Runs", Strip: "Strips"};
        const tabs = Object.keys(pages).map(name => el("button", {type: "button", role: "tab", id: "atelier_tab_" + name.toLowerCase(), onclick: () => go(name)}, t(titles[name])));

        function go(name) {
            Object.entries(pages).forEach(([page, element], i) => {
                element.hidden = page !== name;
                tabs[i].setAttribute("aria-selected", page === name ? "true" : "false");
            });
            atelier.keep("page", name);
            if (name === "Data") dataSet.open();
            if (name === "Runs") runs.refresh();
            if (name === "Strip") runs.refresh().then(() => atelier.get("status")).then(status => strip.refresh(runs.all(), status.strips));
        }

        atelier.fill(root, el("div", {class: "atelier-tabs", role: "tablist"}, tabs), Object.values(pages));
        const kept = atelier.kept("form");
        if (kept) {
            form.set(kept.values);
            mode.value = kept.mode || "own";
        }
        showMode();
        go(pages[atelier.kept("page")] ? atelier.kept("page") : "Train");
        schedule.refresh();

        return async function(status) {
            const now = status.model ? status.model.family : null;
            if (now !== family || !told) {
                const first = !told;
                told = true;
                if (now && (now !== family || first)) {
                    family = now;
                    form.setFamily(family);
                    await presets.setFamily(family, () => !touched);
                } else if (first) {
                    await presets.setFamily("", () => false);
                }
            }
            atelier.fill(model, status.model ?
                (status.model.refusal ? el("span", {class: "atelier-fault"}, status.model.refusal) :
                    [el("small", {}, t("Trains on the loaded checkpoint")), " ", el("b", {}, status.model.name), " ", el("span", {class: "atelier-chip"}, FAMILIES[family] || family), el("span", {class: "atelier-chip"}, status.model.prediction)]) :
                el("small", {}, t("No checkpoint is loaded yet; the chosen one is loaded when the run starts.")));
            await live.update(status);
            if (!strip.element.hidden) await strip.grow(status.runs);
        };
    }

    const FAMILIES = {sd1: "SD 1.x", sd2: "SD 2.x", sdxl: "SDXL", sd3: "SD 3", flux: "Flux"};

    async function poll() {
        const status = await atelier.get("status");
        const live = status.runs.filter(r => r.live).map(r => r.id);
        if (lastLive && lastLive.some(id => !live.includes(id))) sound();
        lastLive = live;
        await built(status);
        return live.length;
    }

    async function polls() {
        let wait = IDLE_MS;
        try {
            // nothing is asked while nobody looks; a run does not mind
            if (!document.hidden || (lastLive && lastLive.length)) wait = await poll() ? LIVE_MS : IDLE_MS;
        } catch (error) {
            const line = document.getElementById("atelier_status_line");
            if (line) line.textContent = error.message;
        }
        setTimeout(polls, wait);
    }

    // The stock output column has nothing of ours: our page gets its room.
    function watchTrainTab() {
        const tabs = gradioApp().querySelector("#train_tabs"), tab = gradioApp().querySelector("#atelier_tab");
        if (!tabs || !tab) return;
        const row = tabs.parentElement;
        const look = () => row.classList.toggle("atelier-alone", tab.style.display !== "none");
        new MutationObserver(look).observe(tab, {attributes: true, attributeFilter: ["style"]});
        look();
    }

    async function begin() {
        const root = document.getElementById("atelier_root");
        if (!root || root.dataset.built) return;
        root.dataset.built = "1";
        watchTrainTab();
        try {
            built = build(root, await atelier.get("form"));
        } catch (error) {
            atelier.fill(root, el("div", {class: "atelier-message atelier-error"}, error.message));
            return;
        }
        polls();
    }

    onUiLoaded(begin);
})(window.atelier);
