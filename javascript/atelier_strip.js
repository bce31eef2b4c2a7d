// Checkpoint strips: what to draw, and the grid as it grows.

window.atelier = window.atelier || {};

(function(atelier) {
    const {t, el} = atelier;

    // strip() -> {element, open(key, about), refresh(runs, strips), grow(runs)}
    atelier.strip = function() {
        const message = atelier.message();
        const source = el("select", {id: "atelier_strip_source"});
        const folder = el("input", {type: "text", id: "atelier_strip_folder", placeholder: t("folder, file or glob; relative to the LoRA or the checkpoint folder")});
        const input = (id, type, value, more) => el(type === "textarea" ? "textarea" : "input", {id: "atelier_strip_" + id, type: type === "textarea" ? null : type, value, ...more});
        const fields = {
            prompts: input("prompts", "textarea", "", {rows: 3, placeholder: t("one a line; a row each")}),
            negative_prompt: input("negative", "text", ""),
            seeds: input("seeds", "text", "1"),
            strengths: input("strengths", "text", "1"),
            every: input("every", "number", 1, {min: 1, step: 1}),
            steps: input("steps", "number", 20, {min: 1, step: 1}),
            guidance: input("guidance", "number", 7, {min: 0, step: "any"}),
            width: input("width", "number", 512, {min: 64, step: 8}),
            height: input("height", "number", 512, {min: 64, step: 8})
        };
        const labels = {
            prompts: "Prompts", negative_prompt: "Negative prompt", seeds: "Seeds", strengths: "Strengths", every: "Every n-th checkpoint",
            steps: "Sampling steps", guidance: "Guidance", width: "Width", height: "Height"
        };
        const grid = el("div", {class: "atelier-stripgrid", id: "atelier_stripgrid"});
        const head = el("div", {class: "atelier-row"});
        const growing = el("div", {id: "atelier_strip_growing"}), grown = new Map();
        let growingId = null, growingKey = "";
        let id = null, timer = null, cells = new Map(), pages = el("div", {});

        function choices(runs, key) {
            atelier.fill(source, el("option", {value: ""}, t("LoRA files or checkpoints…")), runs.filter(r => r.steps && r.steps.length).map(r => el("option", {value: r.key}, r.name)));
            source.value = key || (source.options.length > 1 ? source.options[1].value : "");
            folder.parentElement.hidden = Boolean(source.value);
        }

        async function begin() {
            await atelier.attempt(message, async() => {
                const values = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.value]));
                const status = await atelier.post("strip", {...values, source: source.value || folder.value});
                follow(status.id);
            });
        }

        async function follow(stripId) {
            clearTimeout(timer);
            if (id !== stripId) {
                id = stripId;
                cells = new Map();
                atelier.fill(grid);
            }
            try {
                const status = await atelier.get("strip", {id});
                draw(status);
                if (status.live) timer = setTimeout(() => follow(stripId), 1200);
            } catch (error) {
                message.error(error.message);
            }
        }

        function draw(status) {
            if (!cells.size) {
                const place = (c, r) => {
                    const cell = el("td", {style: `aspect-ratio: ${status.size[0]} / ${status.size[1]}`});
                    cells.set(`${c} ${r}`, cell);
                    return cell;
                };
                pages = el("div", {});
                atelier.fill(grid, el("div", {class: "atelier-scroll"}, el("table", {},
                    el("thead", {}, el("tr", {}, el("th", {}), status.columns.map((c, i) => el("th", {title: c}, i ? ending(c) : t(c))))),
                    el("tbody", {}, status.rows.map((row, r) => el("tr", {},
                        el("th", {}, row.split("\n").map((line, i) => el(i ? "small" : "span", {}, line))), status.columns.map((_, c) => place(c, r))))))), pages);
            }
            for (const cell of status.cells) {
                const place = cells.get(`${cell.column} ${cell.row}`);
                if (place.dataset.done) continue;
                place.dataset.done = "1";
                const caption = `${status.columns[cell.column]} · ${status.rows[cell.row].replace("\n", " · ")}`;
                if (cell.error || !cell.key) atelier.fill(place, el("span", {class: "atelier-fault"}, cell.error));
                else {
                    atelier.fill(place, el("button", {type: "button", onclick: () => atelier.enlarge("strip_picture", {id: status.id, cell: cell.key}, caption)},
                        atelier.picture("strip_picture", {id: status.id, cell: cell.key}, {alt: caption})));
                }
            }
            const stop = atelier.button("Stop", () => atelier.attempt(message, () => atelier.post("stop_strip", {id: status.id})), "stop", {id: "atelier_strip_stop"});
            atelier.fill(head, el("h3", {}, status.title), el("span", {class: "atelier-phase atelier-phase-" + (status.live ? "training" : status.phase)},
                status.live ? `${status.cells.length} / ${status.total}` : atelier.phase(status.phase)), status.live ? stop : el("small", {}, status.folder));
            if (status.error) message.error(status.error);
            if (!status.live && !pages.childElementCount) {
                atelier.fill(pages, status.pages.map(page => el("button", {type: "button", class: "atelier-strip-page", onclick: () => atelier.enlarge("strip_picture", {id: status.id, page}, status.title)},
                    atelier.picture("strip_picture", {id: status.id, page}))));
            }
        }

        function ending(label) {
            const match = label.match(/^(.*?)(\d[\d-]*)$/);
            return match ? [el("span", {class: "atelier-front"}, match[1]), el("b", {}, match[2].replace(/^0+(?=\d)/, ""))] : label;
        }

        // the previews of the run that goes on, or of the one that did
        async function grow(runs) {
            const run = runs.find(r => r.live && r.key && r.previews.length) || runs.find(r => r.id === growingId);
            const wanted = run ? `${run.key} ${run.previews.length} ${run.phase}` : "";
            if (!run || wanted === growingKey) return;
            if (run.id !== growingId) grown.clear();
            growingId = run.id;
            growingKey = wanted;
            const answer = await atelier.get("previews", {run: run.key});
            if (!answer.previews.length) return;
            atelier.fill(growing, el("div", {class: "atelier-row"}, el("h3", {}, run.title), el("span", {class: "atelier-phase atelier-phase-" + run.phase}, atelier.phase(run.phase)),
                el("small", {}, run.live ? t("grows while the run goes on") : "")), atelier.previewGallery(run.key, answer.previews, grown));
        }

        const field = (name, wide) => el("div", {class: "atelier-field" + (wide ? " atelier-wide" : "")},
            el("label", {class: "atelier-label", for: fields[name].id}, t(labels[name])), el("div", {class: "atelier-box" + (/prompt/.test(name) ? " prompt" : "")}, el("label", {}, fields[name])));
        source.addEventListener("change", () => {
            folder.parentElement.hidden = Boolean(source.value);
        });
        const form = el("div", {class: "atelier-form"},
            el("h3", {}, t("Checkpoint strip")),
            el("p", {class: "atelier-note"}, t("Checkpoints side by side at fixed seeds, the model without a network first. Finished cells are kept and never made twice.")),
            el("div", {class: "atelier-grid2"},
                el("div", {class: "atelier-field atelier-wide"}, el("label", {class: "atelier-label", for: source.id}, t("Run to draw")), source),
                el("div", {class: "atelier-field atelier-wide"}, folder),
                field("prompts", true), field("negative_prompt", true), ["seeds", "strengths", "every", "steps", "guidance"].map(n => field(n)), field("width"), field("height")),
            el("div", {class: "atelier-row"}, atelier.button("Make the strip", begin, "primary", {id: "atelier_strip_start"})), message.element);
        return {
            element: el("div", {class: "atelier-columns"}, form, el("div", {}, growing, head, grid)),
            grow,
            refresh: (runs, strips) => {
                choices(runs, source.value);
                const live = strips.find(s => s.live) || strips[strips.length - 1];
                if (live && id === null) follow(live.id);
            },
            open(runs, about) {
                choices(runs, about.key);
                const preview = about.config.preview, prompts = preview.prompts.length ? preview.prompts : [about.trigger || about.name];
                fields.prompts.value = prompts.join("\n");
                fields.negative_prompt.value = preview.negative_prompt;
                fields.seeds.value = preview.seed;
                fields.steps.value = preview.steps;
                fields.guidance.value = preview.guidance;
                fields.width.value = preview.width || about.config.data.resolution;
                fields.height.value = preview.height || about.config.data.resolution;
            }
        };
    };
})(window.atelier);
