// Every run in the known folders, also those of the other host; one of them in full: charts, verdicts, pictures by loss,
// checkpoints, and what can be done with each.

window.atelier = window.atelier || {};

(function(atelier) {
    const {t, el} = atelier;

    // runs({openStrip, openTrain, useSettings}) -> {element, refresh(), open(key)}
    atelier.runs = function(actions) {
        const message = atelier.message();
        const list = el("div", {class: "atelier-runlist", id: "atelier_runlist"});
        const page = el("div", {class: "atelier-runpage", id: "atelier_runpage"});
        let chosen = null, known = [];

        async function refresh() {
            await atelier.attempt(message, async() => {
                known = (await atelier.get("runs")).runs;
                draw();
            });
        }

        function draw() {
            atelier.fill(list, known.length ? known.map(item) : el("p", {class: "atelier-empty"}, t("No runs yet. What you train appears here.")));
        }

        function item(run) {
            const last = run.steps && run.steps.length ? run.steps[run.steps.length - 1] : 0;
            return el("button", {type: "button", class: "atelier-run" + (run.key === chosen ? " atelier-chosen" : ""), onclick: () => open(run.key)},
                run.picture ? atelier.picture("picture", {run: run.key, name: "previews/" + run.picture, small: 1}) : el("span", {class: "atelier-nopicture"}),
                el("span", {class: "atelier-run-text"},
                    el("b", {}, run.name, run.live ? el("i", {class: "atelier-phase atelier-phase-training"}, t("live")) : null),
                    el("small", {}, run.error ? t("cannot be read") : [t("{n} steps", {n: last.toLocaleString("en")}), run.base ? " · " + run.base : "", run.host && run.host !== "webui" ? ` · ${run.host}` : ""]),
                    el("small", {}, atelier.when(run.created), run.lineage ? " · " + t("from {name} at step {step}", run.lineage) : "")));
        }

        async function open(key) {
            chosen = key;
            draw();
            const run = known.find(r => r.key === key);
            if (run && run.error) {
                atelier.fill(page, el("h3", {}, run.name), el("div", {class: "atelier-message atelier-error"}, run.error));
                return;
            }
            atelier.fill(page, el("p", {class: "atelier-note"}, t("reads the records…")));
            await atelier.attempt(message, async() => {
                const [about, chart] = await Promise.all([atelier.get("run", {run: key}), atelier.get("chart", {run: key})]);
                if (chosen === key) show(about, chart);
            });
        }

        function show(about, chart) {
            const say = atelier.message();
            const frame = el("div", {class: "atelier-report"});
            const resume = atelier.button("Resume", () => atelier.attempt(say, async() => {
                await atelier.post("resume", {run: about.key});
                actions.openTrain();
            }), "primary", {id: "atelier_runs_resume"});
            const settings = atelier.button("Settings into the form", () => atelier.attempt(say, async() => {
                actions.useSettings((await atelier.get("run_values", {run: about.key})).values);
            }));
            const strip = atelier.button("Strip…", () => actions.openStrip(about.key, about), "", {id: "atelier_runs_strip"});
            const report = atelier.button("Report", () => atelier.attempt(say, async() => {
                await atelier.post("report", {run: about.key});
                const sheet = el("iframe", {sandbox: "", title: t("Report"), srcdoc: await atelier.text("report", {run: about.key})});
                atelier.fill(frame, sheet);
                sheet.scrollIntoView({block: "nearest"});
            }), "", {id: "atelier_report"});
            atelier.fill(page,
                el("div", {class: "atelier-row atelier-run-head"}, el("h3", {}, about.name), el("small", {}, about.folder)),
                el("div", {class: "atelier-row"}, about.live || isWhole(about) ? null : resume, strip, report, settings), say.element,
                el("dl", {class: "atelier-facts"}, about.summary.map(([name, text]) => el("div", {}, el("dt", {}, t(name)), el("dd", {}, text)))),
                about.verdicts.map(verdict => el("p", {class: "atelier-verdict"}, t(verdict.words, verdict.values))),
                el("div", {class: "atelier-charts"}, atelier.lossCharts(chart, about.num_steps || 0)),
                checkpoints(about, say),
                about.previews.length ? atelier.previewGallery(about.key, about.previews) : null,
                strips(about), pictures(about), frame);
        }

        const isWhole = about => about.num_steps !== null && about.steps.includes(about.num_steps);

        function checkpoints(about, say) {
            if (!about.checkpoints.length) return el("p", {class: "atelier-note"}, t("No checkpoint yet."));
            const rows = about.checkpoints.slice().reverse().map(point => el("tr", {},
                el("td", {class: "atelier-right"}, point.step.toLocaleString("en")),
                el("td", {}, el("code", {}, point.file)),
                el("td", {class: "atelier-right"}, point.size === null ? t("missing") : (point.size / 1e6).toFixed(1) + " MB"),
                el("td", {class: "atelier-right"}, atelier.percent(point.change)),
                el("td", {class: "atelier-actions"},
                    atelier.button("Use in txt2img", () => atelier.useInTxt2img(say, about.key, point.step, ""), "small"),
                    atelier.button("Branch…", event => branch(event.target.closest("td"), about, point.step, say), "small"))));
            return el("section", {}, el("h4", {}, t("Checkpoints")), el("table", {class: "atelier-table"},
                el("thead", {}, el("tr", {}, ["Step", "File", "Size", "Controlled", ""].map((h, i) => el("th", {class: i === 1 || i === 4 ? "" : "atelier-right"}, t(h))))),
                el("tbody", {}, rows)));
        }

        // Go on from a checkpoint at a lower rate, in a run of its own.
        function branch(cell, about, step, say) {
            const factor = el("input", {type: "number", min: 0, step: "any", value: 0.3, id: "atelier_branch_factor"});
            const steps = el("input", {type: "number", min: 1, step: 1, value: about.num_steps || "", placeholder: t("as before"), id: "atelier_branch_steps"});
            const go = atelier.button("Begin the branch", () => atelier.attempt(say, async() => {
                await atelier.post("branch", {run: about.key, step, factor: Number(factor.value), steps: steps.value ? Number(steps.value) : null});
                actions.openTrain();
            }), "primary", {id: "atelier_branch_go"});
            const box = el("div", {class: "atelier-branch"}, el("label", {}, t("rate times"), factor), el("label", {}, t("steps in all"), steps), go);
            const open = cell.querySelector(".atelier-branch");
            if (open) open.remove();
            else cell.append(box);
        }

        function strips(about) {
            if (!about.strips.length) return null;
            return el("section", {}, el("h4", {}, t("Strip")), about.strips.map(name => el("button", {type: "button", class: "atelier-strip-page",
                onclick: () => atelier.enlarge("picture", {run: about.key, name}, about.name)}, atelier.picture("picture", {run: about.key, name}))));
        }

        function pictures(about) {
            if (!about.pictures.length) return null;
            const most = Math.max(...about.pictures.map(p => p.mean || 0)) || 1;
            const rows = about.pictures.map(p => el("tr", {},
                el("td", {}, atelier.picture("trained", {run: about.key, image: p.image}, {class: "atelier-trained"})),
                el("td", {class: "atelier-name"}, p.image),
                el("td", {class: "atelier-bar"}, el("span", {style: `width: ${100 * (p.mean || 0) / most}%`}), el("b", {}, atelier.number(p.mean, 3))),
                el("td", {class: "atelier-right"}, atelier.number(p.latest, 3)),
                el("td", {class: "atelier-right"}, atelier.number(p.relative, 3), p.relative_error === null ? "" : " ± " + p.relative_error.toFixed(2)),
                el("td", {class: "atelier-right"}, p.num_rows),
                el("td", {}, p.flags.map(flag => el("span", {class: "atelier-flag atelier-flag-" + flag.replace(/ /g, "-")}, t(flag))))));
            return el("section", {}, el("h4", {}, t("Pictures by loss")),
                el("p", {class: "atelier-note"}, t("Relative compares each loss with all pictures at the same timesteps: 1 is like the others. High alone is no fault: look at picture and caption.")),
                el("table", {class: "atelier-table"},
                    el("thead", {}, el("tr", {}, ["", "Picture", "Mean loss", "Latest", "Relative", "Rows", ""].map((h, i) => el("th", {class: i > 2 && i < 6 ? "atelier-right" : ""}, t(h))))),
                    el("tbody", {}, rows)),
                about.num_pictures > about.pictures.length ? el("p", {class: "atelier-note"}, t("The {shown} highest of {all} are shown.", {shown: about.pictures.length, all: about.num_pictures})) : null);
        }

        atelier.fill(page, el("p", {class: "atelier-empty"}, t("Choose a run.")));
        return {
            element: el("div", {class: "atelier-columns atelier-columns-runs"},
                el("div", {}, el("div", {class: "atelier-row"}, el("h3", {}, t("Runs")), atelier.button("Refresh", refresh, "small")), message.element, list), page),
            refresh,
            open,
            all: () => known
        };
    };
})(window.atelier);
