// The run that goes on: status line, charts, previews by step, and what can be asked of it. It looks itself up again
// whenever the page is opened.

window.atelier = window.atelier || {};

(function(atelier) {
    const {t, el} = atelier;
    const PHASES = {
        waiting: "waits for the model", preparing: "prepares", training: "trains", paused: "paused",
        finished: "finished", stopped: "stopped", failed: "failed"
    };
    const CHART_MS = 2500;

    // live(openRun) -> {element, update(status)}
    atelier.live = function(openRun) {
        const element = el("div", {class: "atelier-live", id: "atelier_live"});
        const message = atelier.message();
        const parts = Object.fromEntries(["head", "bar", "line", "buttons", "notes", "charts", "after", "previews", "others"].map(
            name => [name, el("div", {class: "atelier-live-" + name})]));
        parts.line.id = "atelier_status_line";
        parts.line.setAttribute("role", "status");
        let shown = null, chartKey = "", chartAt = 0, previewKey = "", buttonKey = "", noteKey = "", afterKey = "";
        const cells = new Map();

        function idle() {
            shown = null;
            atelier.fill(element, el("div", {class: "atelier-idle"},
                el("h3", {}, t("No run goes on")),
                el("p", {}, t("Name a folder of pictures, choose a preset and start. The run goes on when this page is closed, and is found again here.")),
                el("p", {}, t("Pictures that you ask for meanwhile wait until the run has ended or is stopped."))));
        }

        function frame() {
            atelier.fill(element, parts.head, parts.bar, parts.line, parts.buttons, message.element, parts.notes,
                parts.after, parts.charts, parts.previews, parts.others);
            chartKey = previewKey = buttonKey = noteKey = afterKey = "";
            for (const name of ["charts", "previews", "notes", "after", "buttons"]) atelier.fill(parts[name]);
            cells.clear();
            message.clear();
        }

        const act = (name, id, label, kind) => atelier.button(label, () => atelier.attempt(message, () => atelier.post(name, {id})), kind, {id: "atelier_" + name});

        function buttons(run) {
            const wanted = `${run.id} ${run.phase} ${run.has_previews}`;
            if (wanted === buttonKey) return;
            buttonKey = wanted;
            if (!run.live) {
                atelier.fill(parts.buttons);
                return;
            }
            const trains = run.phase === "training" || run.phase === "paused";
            atelier.fill(parts.buttons,
                trains ? (run.phase === "paused" ? act("go_on", run.id, "Go on", "primary") : act("pause", run.id, "Pause")) : null,
                trains ? act("save", run.id, "Save now") : null,
                trains && run.has_previews ? act("sample", run.id, "Sample now") : null,
                act("stop", run.id, trains ? "Stop and save" : "Cancel", "stop"));
        }

        function line(run) {
            const p = run.progress;
            if (!p) {
                parts.line.textContent = run.note || (run.phase === "training" ? t("measures and makes the previews of step 0") : run.live ? "" : t(PHASES[run.phase]));
                return;
            }
            const item = (label, value, title) => el("span", {class: "atelier-figure", title}, el("small", {}, label), el("b", {}, value));
            atelier.fill(parts.line,
                item(t("Step"), `${p.step.toLocaleString("en")} / ${p.num_steps.toLocaleString("en")}`),
                item(t("Loss"), atelier.number(p.loss === null ? p.step_loss : p.loss, 4), t("mean over the window; the loss of single steps is mostly noise")),
                p.controlled === null ? null : item(t("Controlled"), atelier.percent(p.controlled), t("loss at fixed noise against the model without the network")),
                item(t("Rate"), atelier.number(p.rate, 3)),
                item(t("s / step"), atelier.number(p.seconds_per_step, 3)),
                run.live ? item(t("Time left"), atelier.duration(p.seconds_left)) : null,
                item(t("Memory"), p.memory_mb >= 10240 ? (p.memory_mb / 1024).toFixed(1) + " GiB" : Math.round(p.memory_mb) + " MiB", t("peak of this program")),
                p.note && run.live ? el("span", {class: "atelier-figure"}, el("small", {}, t("Doing")), el("b", {}, p.note)) : null);
        }

        function notes(run) {
            const wanted = JSON.stringify([run.notes, run.summary, run.error]);
            if (wanted === noteKey) return;
            noteKey = wanted;
            const said = run.notes.map(note => el("li", {}, note));
            atelier.fill(parts.notes,
                run.error ? el("div", {class: "atelier-message atelier-error", id: "atelier_run_error"}, run.error) : null,
                run.summary ? el("p", {class: "atelier-note"}, run.summary) : null,
                said.length > 3 ? el("details", {class: "atelier-more"}, el("summary", {}, t("{n} notes", {n: said.length})), el("ul", {}, said)) :
                    said.length ? el("ul", {class: "atelier-note"}, said) : null);
        }

        async function charts(run) {
            const wanted = `${run.key} ${run.step} ${run.phase}`;
            if (!run.key || wanted === chartKey || (run.live && Date.now() - chartAt < CHART_MS)) return;
            chartKey = wanted;
            chartAt = Date.now();
            const data = await atelier.get("chart", {run: run.key});
            if (parts.charts.matches(":hover")) {
                chartKey = "";
                return;
            }
            atelier.fill(parts.charts, atelier.lossCharts(data, run.progress ? run.progress.num_steps : 0));
        }

        async function previews(run) {
            const wanted = `${run.key} ${run.previews.length} ${run.phase}`;
            if (!run.key || wanted === previewKey) return;
            previewKey = wanted;
            const answer = await atelier.get("previews", {run: run.key});
            atelier.fill(parts.previews, answer.previews.length ? atelier.previewGallery(run.key, answer.previews, cells) : null);
        }

        function after(run) {
            const wanted = `${run.id} ${run.phase} ${run.key}`;
            if (wanted === afterKey) return;
            afterKey = wanted;
            if (run.live || !run.key) {
                atelier.fill(parts.after);
                return;
            }
            const open = atelier.button("Open in Runs", () => openRun(run.key), "", {id: "atelier_open_run"});
            const use = atelier.button("Use in txt2img", () => atelier.useInTxt2img(message, run.key, null, ""), "primary", {id: "atelier_use"});
            const goOn = run.phase === "stopped" || run.phase === "failed" ?
                atelier.button("Resume", () => atelier.attempt(message, () => atelier.post("resume", {run: run.key})), "", {id: "atelier_resume"}) : null;
            atelier.fill(parts.after, run.step ? use : null, goOn, open);
        }

        function others(status, run) {
            const waiting = status.runs.filter(r => r.live && r.id !== run.id);
            atelier.fill(parts.others, waiting.length ? [el("h4", {}, t("Also live")), waiting.map(r => el("p", {class: "atelier-row"},
                el("span", {}, `${r.title}: `, t(PHASES[r.phase])), atelier.button("Cancel", () => atelier.attempt(message, () => atelier.post("stop", {id: r.id})), "small")))] : null);
        }

        idle();
        return {
            element,
            async update(status) {
                const runs = status.runs;
                // the one that trains, not one that waits behind it; and the one that was looked at last, once it has ended
                const live = runs.filter(r => r.live);
                const run = live.find(r => r.phase !== "waiting") || live[0] || runs.find(r => r.id === atelier.kept("run")) || runs[runs.length - 1];
                if (!run) {
                    idle();
                    return;
                }
                if (shown !== run.id) {
                    shown = run.id;
                    atelier.keep("run", run.id);
                    frame();
                }
                const p = run.progress, part = p ? p.step / p.num_steps : 0;
                atelier.fill(parts.head, el("h3", {}, run.title), el("span", {class: "atelier-phase atelier-phase-" + run.phase}, t(PHASES[run.phase])),
                    p ? el("span", {class: "atelier-part"}, Math.floor(100 * part) + " %") : null);
                atelier.fill(parts.bar, el("div", {style: `width: ${(100 * part).toFixed(2)}%`}));
                line(run);
                buttons(run);
                notes(run);
                after(run);
                others(status, run);
                await charts(run);
                await previews(run);
            }
        };
    };

    // The previews of a run as a strip: steps along X, the model without a network first, a row for each prompt. `cells`
    // keeps what is drawn, by file, so that a strip that grows loads only what is new; it is scrolled to its end.
    atelier.previewGallery = function(key, previews, cells) {
        const of = name => [...new Set(previews.map(p => p[name]))].sort((a, b) => a - b);
        const steps = of("step"), places = new Map(previews.map(p => [`${p.step} ${p.number}`, p]));
        const words = p => p.name.replace(/^\d+-\d+-/, "").replace(/\.png$/, "");
        const caption = step => step ? t("step {step}", {step: step.toLocaleString("en")}) : t("no network");
        const cell = p => {
            const about = {run: key, name: "previews/" + p.name}, what = `${caption(p.step)} · ${words(p)}`;
            return el("td", {}, el("button", {type: "button", class: "atelier-preview", title: words(p), onclick: () => atelier.enlarge("picture", about, what)},
                atelier.picture("picture", about, {alt: what})));
        };
        const drawn = p => {
            if (!cells) return cell(p);
            if (!cells.has(p.name)) cells.set(p.name, cell(p));
            return cells.get(p.name);
        };
        const rows = of("number").map(number => {
            const found = steps.map(step => places.get(`${step} ${number}`));
            return el("tr", {}, el("th", {}, el("span", {}, words(found.find(Boolean)))), found.map(p => p ? drawn(p) : el("td", {})));
        });
        const box = el("div", {class: "atelier-scroll"}, el("table", {},
            el("thead", {}, el("tr", {}, el("th", {}), steps.map(step => el("th", {}, step ? el("b", {}, step.toLocaleString("en")) : t("no network"))))),
            el("tbody", {}, rows)));
        if (cells) requestAnimationFrame(() => {
            box.scrollLeft = box.scrollWidth;
        });
        return el("section", {class: "atelier-previews atelier-stripgrid"}, el("h4", {}, t("Previews by step")), box);
    };

    atelier.phase = phase => t(PHASES[phase] || phase);
})(window.atelier);
