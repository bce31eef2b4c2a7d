// What takes long on the page "Data set": checking, what will be cut, preparing into a new folder, captions by a model. The
// work goes on when the page is closed, and is found again.

window.atelier = window.atelier || {};

(function(atelier) {
    const {t, el} = atelier;
    const POLL_MS = 700, MOST_LINES = 200, MOST_CUTS = 60;
    const PHASES = {working: "goes on", finished: "finished", stopped: "stopped", failed: "failed"};

    // A piece of work: job(set, route, draw) -> {element, start(values), jobs(list)}. `draw(result, status)` gives nodes.
    function job(set, kind, draw) {
        const message = atelier.message();
        const line = el("div", {class: "atelier-row"}), bar = el("div", {class: "atelier-live-bar"}), result = el("div", {class: "atelier-job-result"});
        const element = el("div", {class: "atelier-job", id: "atelier_job_" + kind}, message.element, line, bar, result);
        let id = null, drawn = "";
        bar.hidden = true;

        function show(status) {
            const part = status.total ? status.done / status.total : 0;
            bar.hidden = !status.live;
            atelier.fill(bar, el("div", {style: `width: ${(100 * part).toFixed(1)}%`}));
            atelier.fill(line,
                el("span", {class: "atelier-phase atelier-phase-" + (status.live ? "training" : status.phase)}, t(PHASES[status.phase])),
                status.total ? el("span", {}, `${status.done.toLocaleString("en")} / ${status.total.toLocaleString("en")}`) : null,
                status.note ? el("small", {}, status.note) : null,
                status.live ? atelier.button("Stop", () => atelier.attempt(message, () => atelier.post("data_stop", {id: status.id})), "stop", {id: `atelier_job_${kind}_stop`}) : null);
            if (status.error) message.error(status.error);
            const now = status.id + status.phase;
            if (drawn === now) return;
            drawn = now;
            atelier.fill(result, status.result ? draw(status.result, status) : null);
        }

        async function follow(status) {
            id = status.id;
            while (id === status.id) {
                show(status);
                if (!status.live) return;
                await new Promise(done => setTimeout(done, POLL_MS));
                try {
                    status = await atelier.get("data_job", {id: status.id});
                } catch (error) {
                    message.error(error.message);
                    return;
                }
            }
        }

        return {
            element,
            start: values => atelier.attempt(message, async() => {
                follow(await set.ask("data_" + kind, values));
            }),
            jobs(list) {
                const mine = list.find(j => j.kind === kind);
                if (mine && mine.id !== id) follow(mine);
            }
        };
    }

    const link = (set, name) => el("button", {type: "button", class: "atelier-link", onclick: () => set.goTo(name)}, atelier.raw(name || "·"));
    const shorter = (lines, most) => lines.length <= most ? lines : [lines.slice(0, most),
        el("details", {class: "atelier-more"}, el("summary", {}, t("and {n} more", {n: lines.length - most})), el("ul", {}, lines.slice(most)))];

    function check(set) {
        const labels = {error: "Errors: left out of training", warning: "Warnings: may not be as meant", note: "Notes"};
        // a folder's name leads nowhere, those of its files do
        const finding = f => {
            const own = !f.files.length || f.files.includes(f.name);
            return el("li", {}, own ? [link(set, f.name), " "] : null, f.text,
                own ? null : el("small", {}, " ", f.files.slice(0, 50).map((name, i) => [i ? ", " : "", link(set, name)])));
        };
        const sort = about => about.items.length === 1 ? el("ul", {}, finding(about.items[0])) :
            el("details", {class: "atelier-more"}, el("summary", {}, about.heading, " ", el("span", {class: "atelier-chip"}, about.num)),
                el("ul", {}, shorter(about.items.map(finding), MOST_LINES)));
        const findings = (severity, result) => result.findings[severity].length ? el("details", {class: "atelier-section", open: severity !== "note"},
            el("summary", {}, t(labels[severity]), " ", el("span", {class: "atelier-chip"}, result.findings[severity].reduce((sum, s) => sum + s.num, 0))),
            el("div", {class: "atelier-section-body atelier-findings"}, result.findings[severity].map(sort))) : null;
        const same = group => el("div", {class: "atelier-same"},
            el("small", {}, group.equal ? t("the same file") : t("nearly the same")),
            el("div", {class: "atelier-row"}, group.names.map(name => el("figure", {}, atelier.picture("data_thumbnail", {folder: set.folder, name, side: 128}), link(set, name)))));
        const work = job(set, "check", result => [
            el("p", {}, el("b", {}, t("{n} pictures", {n: result.num.toLocaleString("en")})), ", ", t("{n} left out", {n: result.num_left_out}), "; ",
                result.tokens ? t("tokens are counted by the loaded checkpoint") : t("tokens are not counted: no checkpoint is loaded")),
            ["error", "warning", "note"].map(severity => findings(severity, result)),
            result.groups.length ? el("details", {class: "atelier-section", open: true},
                el("summary", {}, t("Pictures that show the same"), " ", el("span", {class: "atelier-chip"}, result.num_groups)),
                el("div", {class: "atelier-section-body"}, result.groups.map(same))) : null
        ]);
        return {
            ...work,
            element: el("div", {class: "atelier-work"}, el("p", {class: "atelier-note"}, t("Looks at every file, every caption and every pixel, and for pictures that show the same. Nothing is changed.")),
                el("div", {class: "atelier-row"}, atelier.button("Check the folder", () => work.start({flip: Boolean(set.training.get("data.flip")), caption_from_name: Boolean(set.training.get("data.caption_from_name"))}), "primary", {id: "atelier_data_check"})), work.element)
        };
    }

    // Widgets by their declarations, with values of their own: settings(widgets, prefix, given) -> {element, values()}
    function settings(widgets, prefix, given) {
        const values = Object.fromEntries(widgets.map(w => [w.path, given && given[w.path] !== undefined ? given[w.path] : w.default]));
        const one = w => atelier.field({...w, path: `${prefix}_${w.path}`}, values[w.path], value => {
            values[w.path] = value;
        }).element;
        const later = widgets.filter(w => w.advanced);
        return {
            element: el("div", {}, el("div", {class: "atelier-grid2"}, widgets.filter(w => !w.advanced).map(one)),
                later.length ? el("details", {class: "atelier-more"}, el("summary", {}, t("More")), el("div", {class: "atelier-grid2"}, later.map(one))) : null),
            values: () => ({...values})
        };
    }

    function cut(set) {
        const message = atelier.message(), found = el("div", {id: "atelier_data_cuts"});
        const given = Object.fromEntries(set.words.cutting.map(w => [w.path, set.training.get("data." + w.path)]));
        const form = settings(set.words.cutting, "data_cut", given);

        const card = (settings, c) => {
            const about = {folder: set.folder, name: c.name, ...settings};
            return el("button", {type: "button", class: "atelier-cut", title: t("what is trained of it, pixel for pixel"), onclick: () => atelier.enlarge("data_cut", {...about, part: "trained"}, `${c.name} · ${c.bucket.join("×")}`)},
                atelier.picture("data_cut", about, {alt: ""}),
                el("span", {}, el("b", {}, t("{n} % is cut", {n: (100 * c.lost).toFixed(0)})), c.scale > 1 ? el("span", {class: "atelier-fault"}, " ", t("enlarged ×{n}", {n: c.scale.toFixed(2)})) : null),
                el("small", {}, `${c.size.join("×")} → ${c.bucket.join("×")}`),
                el("small", {class: "atelier-name"}, atelier.raw(c.name)));
        };
        const show = () => atelier.attempt(message, async() => {
            const answer = await set.ask("data_buckets", {settings: form.values()});
            const grid = el("div", {class: "atelier-cuts"}), more = el("div", {});
            let shown = 0;
            const further = () => {
                grid.append(...answer.cuts.slice(shown, shown + MOST_CUTS).map(c => card(answer.settings, c)));
                shown = Math.min(answer.cuts.length, shown + MOST_CUTS);
                atelier.fill(more, shown < answer.cuts.length ? atelier.button("More", further, "small") : null);
            };
            further();
            atelier.fill(found,
                el("p", {class: "atelier-chips"}, answer.buckets.map(b => el("span", {class: "atelier-chip"}, `${b.width}×${b.height} `, el("b", {}, b.pictures)))),
                el("p", {class: "atelier-note"}, t("The pictures that lose most come first. What is dark is cut away; a click shows what is trained.")), grid, more);
        });
        return {
            element: el("div", {class: "atelier-work atelier-work-wide"}, el("p", {class: "atelier-note"}, t("Which bucket each picture gets in training, and what is cut away from it.")),
                form.element, el("div", {class: "atelier-row"}, atelier.button("Show what is cut", show, "primary", {id: "atelier_data_buckets"})), message.element, found),
            jobs() {
                // what is asked for here is answered at once
            }
        };
    }

    function prepare(set) {
        const out = el("input", {type: "text", id: "atelier_data_out", spellcheck: "false", value: set.folder + "-prepared"});
        const places = set.words.segmenters;
        const segmenter = el("select", {id: "atelier_data_segmenter"}, el("option", {value: ""}, t("only the picture's own transparency")), places.names.map(name => el("option", {value: name}, name)));
        const upscaler = el("select", {id: "atelier_data_upscaler"}, set.words.upscalers.map(name => el("option", {value: name}, name)));
        const labels = {
            dedupe: "Leave out what is there twice", background: "Replace the background", split: "Split long pictures", faces: "Cut out faces",
            crop: "Crop to a size", bucket: "Crop into buckets", unsharp: "Sharpen", flip: "Add mirrored pictures",
            upscale: "Enlarge small pictures", copies: "Write copies"
        };
        const steps = set.words.steps.map(step => {
            const on = el("input", {type: "checkbox", id: "atelier_step_" + step.name});
            const form = settings(step.widgets, "data_" + step.name);
            const inner = el("div", {class: "atelier-step-settings"}, el("p", {class: "atelier-help"}, t(step.help)), form.element,
                step.name === "background" ? [el("label", {class: "atelier-label", for: segmenter.id}, t("Model that finds the subject")), segmenter,
                    places.names.length ? null : el("p", {class: "atelier-help"}, t("Put the .onnx file of a U2-Net or IS-Net into {folder}; nothing is downloaded.", {folder: places.folder}))] : null,
                step.name === "upscale" ? [el("label", {class: "atelier-label", for: upscaler.id}, t("Upscaler")), upscaler] : null,
                ["faces", "crop", "bucket"].includes(step.name) && !set.words.faces ? el("p", {class: "atelier-fault"}, t("There is no face detector here.")) : null);
            inner.hidden = true;
            on.addEventListener("input", () => {
                inner.hidden = !on.checked;
            });
            const element = el("div", {class: "atelier-prepare-step"}, el("label", {class: "atelier-check"}, on, el("span", {}, t(labels[step.name] || step.name))), inner);
            return {element, value: () => on.checked ? {step: step.name, ...form.values()} : null};
        });
        const work = job(set, "prepare", result => [
            el("p", {}, el("b", {}, result.dry_run ? t("{n} pictures would be made", {n: result.num_made}) : t("{n} pictures were made", {n: result.num_made})), ", ", t("{n} were there", {n: result.num_kept}), " ",
                el("code", {}, result.out)),
            result.dry_run || !(result.num_made + result.num_kept) ? null : atelier.button("Open the new folder", () => set.openFolder(result.out), "", {id: "atelier_data_open_out"}),
            result.notes.length ? el("ul", {class: "atelier-findings"}, shorter(result.notes.map(note => el("li", {}, note)), MOST_LINES)) : null,
            result.made.length ? el("ul", {class: "atelier-findings"}, shorter(result.made.map(m => el("li", {}, atelier.raw(m.from), " → ", m.to.map(([name, w, h]) => `${name} ${w}×${h}`).join(", "))), MOST_LINES)) : null
        ]);
        const begin = dryRun => work.start({
            out: out.value, steps: steps.map(s => s.value()).filter(Boolean), dry_run: dryRun,
            segmenter: segmenter.value, upscaler: upscaler.value
        });
        return {
            ...work,
            element: el("div", {class: "atelier-work"}, el("p", {class: "atelier-note"}, t("Every picture goes through the chosen steps, in this order, into a new folder with its caption. The originals stay as they are; what was stopped goes on where it was.")),
                el("div", {class: "atelier-steps"}, steps.map(s => s.element)),
                el("div", {class: "atelier-field"}, el("label", {class: "atelier-label", for: out.id}, t("New folder")), out),
                el("div", {class: "atelier-row"}, atelier.button("Prepare the pictures", () => begin(false), "primary", {id: "atelier_data_prepare"}),
                    atelier.button("Try it without writing", () => begin(true), "", {id: "atelier_data_dry_run"})), work.element)
        };
    }

    function caption(set) {
        const models = set.words.taggers;
        const select = el("select", {id: "atelier_data_model"}, models.map(m => el("option", {value: m.key}, m.title)));
        const missing = el("p", {class: "atelier-fault", id: "atelier_data_missing"});
        const which = el("p", {class: "atelier-note"});
        const form = settings(set.words.tagging, "data_tagging");
        const start = atelier.button("Find captions", () => work.start({model: select.value, tagging: form.values(), filter: set.filter()}), "primary", {id: "atelier_data_start"});
        const model = () => models[select.selectedIndex];
        const look = () => {
            missing.textContent = model().missing;
            missing.hidden = !model().missing;
            start.disabled = Boolean(model().missing);
        };
        const written = el("div", {});
        const work = job(set, "caption", (plan, status) => [
            el("p", {}, t("{n} pictures were looked at", {n: plan.num_looked_at}), plan.num_passed_over ? [", ", t("{n} have a caption already", {n: plan.num_passed_over})] : null),
            plan.problems.length ? el("ul", {class: "atelier-findings"}, shorter(plan.problems.map(p => el("li", {}, link(set, p.name), " ", p.text)), MOST_LINES)) : null,
            atelier.fill(written, atelier.difference(plan, () => set.attempt(async() => {
                const done = await set.ask("data_apply", {job: status.id, digest: plan.digest});
                atelier.fill(written);
                await set.reload();
                set.undoable(done.undo);
                set.message.ok(t("{n} captions were written; Undo takes them back.", {n: done.num}));
            }), () => atelier.fill(written)))
        ]);
        select.addEventListener("input", look);
        const there = models.findIndex(m => !m.missing);
        if (there > 0) select.selectedIndex = there;
        look();
        return {
            ...work,
            shown: () => {
                which.textContent = t("For the {n} pictures that the filters of Captions find. What is found is shown first, and written when you say so.", {n: set.count().toLocaleString("en")});
            },
            element: el("div", {class: "atelier-work"}, which, el("div", {class: "atelier-row"}, el("span", {class: "atelier-caption"}, t("Model")), select), missing, form.element,
                el("div", {class: "atelier-row"}, start), work.element)
        };
    }

    function score(set) {
        const places = set.words.predictors;
        const select = el("select", {id: "atelier_data_predictor"}, places.names.map(name => el("option", {value: name}, name)));
        const which = el("p", {class: "atelier-note"});
        const start = atelier.button("Score the pictures", () => work.start({model: select.value, filter: set.filter()}), "primary", {id: "atelier_data_score"});
        start.disabled = !places.names.length;

        const card = ([name, value]) => el("button", {type: "button", class: "atelier-cut", onclick: () => set.goTo(name)},
            atelier.picture("data_thumbnail", {folder: set.folder, name, side: 256}, {alt: ""}),
            el("span", {}, el("b", {}, value.toFixed(3))),
            el("small", {class: "atelier-name"}, atelier.raw(name)));
        const work = job(set, "score", result => {
            const grid = el("div", {class: "atelier-cuts", id: "atelier_data_scores"}), more = el("div", {});
            let scores = result.scores, shown = 0;
            const further = () => {
                grid.append(...scores.slice(shown, shown + MOST_CUTS).map(card));
                shown = Math.min(scores.length, shown + MOST_CUTS);
                atelier.fill(more, shown < scores.length ? atelier.button("More", further, "small") : null);
            };
            const turn = () => {
                scores = [...scores].reverse();
                shown = 0;
                atelier.fill(grid);
                further();
            };
            further();
            const table = URL.createObjectURL(new Blob([result.csv], {type: "text/csv"}));
            return [
                el("div", {class: "atelier-row"}, t("{n} pictures", {n: result.scores.length.toLocaleString("en")}),
                    atelier.button("The other way round", turn, "small", {id: "atelier_data_turn"}),
                    el("a", {href: table, download: "scores.csv", id: "atelier_data_csv"}, t("Save as CSV"))),
                result.problems.length ? el("ul", {class: "atelier-findings"}, shorter(result.problems.map(p => el("li", {}, link(set, p.name), " ", p.text)), MOST_LINES)) : null,
                grid, more
            ];
        });
        return {
            ...work,
            shown: () => {
                which.textContent = t("How pleasing the {n} pictures are that the filters of Captions find, the best first. No file is changed.", {n: set.count().toLocaleString("en")});
            },
            element: el("div", {class: "atelier-work atelier-work-wide"}, which,
                places.names.length ? el("div", {class: "atelier-row"}, el("span", {class: "atelier-caption"}, t("Model")), select) :
                    el("p", {class: "atelier-fault", id: "atelier_data_no_predictor"}, t("Put an .onnx file that gives a score for a picture, or a folder with image_encoder.onnx and predictor.onnx, into {folder}; nothing is downloaded.", {folder: places.folder})),
                el("div", {class: "atelier-row"}, start), work.element)
        };
    }

    // The parts of the page beside the captions, by their tabs.
    atelier.dataWork = set => ({check: check(set), cut: cut(set), prepare: prepare(set), caption: caption(set), score: score(set)});
})(window.atelier);
