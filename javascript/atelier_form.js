// The form of a run, built from the settings' own declarations: label, help, range, choices and default are the route's.

window.atelier = window.atelier || {};

(function(atelier) {
    const {t, el} = atelier;

    // What is seen at once in each section; every other setting of the section's groups comes behind "More".
    const SECTIONS = [
        {title: "Pictures", groups: ["data"], shown: ["data.resolution", "data.flip"], open: true, kind: "data"},
        {title: "Length and learning rate", groups: ["rate"], open: true, kind: "rate",
            shown: ["loop.steps", "loop.epochs", "loop.batch_size", "rate.schedule"]},
        {title: "Network", groups: ["trainable", "trainable.rules[]"], open: true,
            shown: ["trainable.algorithm", "trainable.rank", "trainable.alpha", "trainable.layers", "trainable.text_encoder"]},
        {title: "Previews", groups: ["preview"], open: true, kind: "preview",
            shown: ["preview.prompts", "preview.negative_prompt", "preview.every_steps", "preview.seed", "preview.steps"]},
        {title: "Checkpoints and records", groups: ["save", "record"],
            shown: ["save.every_steps", "save.keep_last", "record.probe_every_steps", "save.dtype"]},
        {title: "Optimizer", groups: ["optimizer"], shown: ["optimizer.name", "optimizer.weight_decay", "optimizer.clip_norm"]},
        {title: "Memory and precision", groups: ["loop"], shown: ["loop.block_checkpointing", "loop.accumulate", "loop.compute_dtype", "loop.ema_decay", "loop.seed"]},
        {title: "Noise, target and loss", groups: ["objective"], shown: ["objective.timesteps", "objective.weighting", "objective.noise_offset", "objective.loss"]}
    ];
    const CONCEPT = "data.concepts[]", RULE = "trainable.rules[]";

    // form(description, onchange) -> {element, values(), set(values), get(path), field(path), setFamily(family)}
    atelier.form = function(description, onchange) {
        const widgets = new Map(), fields = new Map(), values = {};
        const groups = new Map(description.groups.map(g => [g.path, g]));
        for (const group of description.groups) {
            for (const widget of group.widgets) widgets.set(widget.path, {...widget, group: group.path});
        }
        Object.assign(values, description.defaults);
        const lists = [
            atelier.rows(groups.get(CONCEPT), {first: "folder", least: 1, add: "Add a folder"}, () => changed(null)),
            atelier.rows(groups.get(RULE), {first: "layers", least: 0, add: "Add a rule"}, () => changed(null))
        ];
        const [concepts, rules] = lists;
        const placed = new Set(SECTIONS.flatMap(s => s.shown));
        const element = el("div", {class: "atelier-form"});

        function changed(path) {
            onchange(path);
        }

        function place(path) {
            const widget = widgets.get(path);
            const field = atelier.field(widget, values[path], value => {
                values[path] = value;
                changed(path);
            });
            fields.set(path, field);
            return field.element;
        }

        const name = place("name");
        name.classList.add("atelier-wide");

        function section(about) {
            const own = about.groups.flatMap(g => groups.get(g) ? groups.get(g).widgets.map(w => w.path) : []);
            const more = own.filter(p => !placed.has(p) && !p.includes("[]"));
            const body = el("div", {class: "atelier-section-body"});
            const extra = {};
            if (about.kind === "data") body.append(el("div", {class: "atelier-grid2"}, name), concepts.element);
            body.append(el("div", {class: "atelier-grid2"}, about.shown.filter(p => widgets.has(p)).map(place)));
            if (about.kind) {
                extra.slot = el("div", {class: "atelier-slot"});
                body.append(extra.slot);
                slots[about.kind] = extra.slot;
            }
            if (more.length) {
                body.append(el("details", {class: "atelier-more"},
                    el("summary", {}, t("More")), el("div", {class: "atelier-grid2"}, more.map(place)),
                    about.groups.includes(RULE) ? [el("p", {class: "atelier-label"}, t("Layer rules")), rules.element] : null));
            }
            const details = el("details", {class: "atelier-section", id: "atelier_section_" + about.title.toLowerCase().replace(/[^a-z]+/g, "_")},
                el("summary", {}, t(about.title)), body);
            details.open = Boolean(about.open);
            return details;
        }

        const slots = {};
        element.append(...SECTIONS.map(section));

        return {
            element,
            slots,
            get: path => values[path],
            widget: path => widgets.get(path),
            field: path => fields.get(path),
            // What the route `start` takes; settings at their default are given too.
            values() {
                const own = {};
                for (const [path, value] of Object.entries(values)) {
                    if (fields.has(path)) own[path] = value;
                }
                return Object.assign(own, ...lists.map(list => list.values()));
            },
            set(given) {
                for (const [path, value] of Object.entries(given)) {
                    if (!fields.has(path)) continue;
                    values[path] = value;
                    fields.get(path).set(value);
                }
                for (const list of lists) list.set(given);
            },
            setFamily(family) {
                for (const [path, field] of fields) {
                    const families = widgets.get(path).families;
                    field.element.hidden = Boolean(family && families && !families.includes(family));
                }
            },
            defaults: description.defaults
        };
    };

    // One setting: field(widget, value, onchange) -> {element, input, set(value)}
    atelier.field = function(widget, value, onchange, plain) {
        const id = "atelier_" + widget.path.replace(/[^a-z0-9]+/gi, "_");
        const label = t(widget.label) + (widget.unit ? ` (${widget.unit})` : "");
        const help = t(widget.help);
        let input, read, write, wrapper = null;
        if (widget.kind === "checkbox") {
            input = el("input", {type: "checkbox", id});
            read = () => input.checked;
            write = v => {
                input.checked = Boolean(v);
            };
        } else if (widget.kind === "dropdown") {
            input = el("select", {id}, widget.choices.map(c => el("option", {value: c}, c)));
            read = () => input.value;
            write = v => {
                input.value = v;
            };
        } else if (widget.kind === "list") {
            input = el("textarea", {id, rows: 2, placeholder: widget.item === "text" ? t("one a line") : ""});
            read = () => input.value;
            write = v => {
                input.value = Array.isArray(v) ? v.join(widget.item === "text" ? "\n" : ", ") : v || "";
            };
        } else if (["integer", "number", "slider"].includes(widget.kind)) {
            const number = {type: "number", id, min: widget.min, max: widget.max, step: widget.step || "any"};
            input = el("input", widget.optional ? {...number, placeholder: "–"} : number);
            read = () => input.value.trim() === "" ? (widget.optional ? null : "") : Number(input.value);
            write = v => {
                input.value = v === null || v === undefined ? "" : v;
            };
            if (widget.kind === "slider") {
                const range = el("input", {type: "range", min: widget.min, max: widget.max, step: widget.step || 0.01, tabindex: "-1", "aria-hidden": "true"});
                range.addEventListener("input", () => {
                    input.value = range.value;
                    input.dispatchEvent(new Event("input", {bubbles: true}));
                });
                input.addEventListener("input", () => {
                    range.value = input.value;
                });
                const plainWrite = write;
                write = v => {
                    plainWrite(v);
                    range.value = v;
                };
                wrapper = el("div", {class: "atelier-slider"}, range, input);
            }
        } else {
            input = el("input", {type: "text", id, spellcheck: widget.kind === "text" ? null : "false", placeholder: widget.optional ? "–" : null});
            if (widget.kind === "folder") input.placeholder = t("D:\\photos\\my toy");
            read = () => input.value;
            write = v => {
                input.value = v === null || v === undefined ? "" : v;
            };
        }
        write(value);
        input.addEventListener("input", () => onchange(read()));
        // the class is what tag completion looks for
        const isPrompt = /prompt|trigger|append/.test(widget.path);
        const box = el("div", {class: "atelier-box" + (isPrompt ? " prompt" : "")}, el("label", {}, wrapper || input));
        const wide = ["list", "schedule", "folder"].includes(widget.kind) || /negative/.test(widget.path);
        const caption = widget.kind === "checkbox" ?
            el("label", {class: "atelier-check", for: id}, input, el("span", {}, label)) :
            [el("label", {class: "atelier-label", for: id}, label), box];
        const element = el("div", {class: "atelier-field" + (wide ? " atelier-wide" : "")}, caption,
            plain ? null : el("p", {class: "atelier-help"}, help));
        if (plain) element.title = help;
        return {element, input, set: write};
    };

    // A list of tables, a row each: rows(group, {first, least, add}, onchange) -> {element, values(), set(values)}
    // `first` is the setting that stands alone on top, `least` how many rows there are at any time.
    atelier.rows = function(group, about, onchange) {
        const prefix = group.path.slice(0, -2);
        const rows = [];
        const list = el("div", {class: "atelier-concepts"});
        const widgets = new Map(group.widgets.map(w => [w.path.split(".").pop(), w]));
        const empty = () => Object.fromEntries([...widgets].map(([name, w]) => [name, w.default]));
        const others = [...widgets.keys()].filter(name => name !== about.first);

        function draw() {
            atelier.fill(list, rows.map((row, index) => {
                const field = name => atelier.field({...widgets.get(name), path: `${prefix}[${index}].${name}`}, row[name], value => {
                    row[name] = value;
                    onchange();
                }, name !== about.first).element;
                const remove = atelier.button("Remove", () => {
                    rows.splice(index, 1);
                    draw();
                    onchange();
                }, "small");
                return el("div", {class: "atelier-concept"},
                    el("div", {class: "atelier-concept-head"}, field(about.first), rows.length > about.least ? remove : null),
                    el("div", {class: "atelier-grid3"}, others.map(field)));
            }), atelier.button(about.add, () => {
                rows.push(empty());
                draw();
                onchange();
            }, "small"));
        }

        function fillUp() {
            while (rows.length < about.least) rows.push(empty());
            draw();
        }

        fillUp();
        return {
            element: list,
            values() {
                const out = {};
                rows.forEach((row, i) => {
                    for (const [name, value] of Object.entries(row)) out[`${prefix}[${i}].${name}`] = value;
                });
                return out;
            },
            // Only values that name this list change it; "prefix": [] empties it.
            set(given) {
                const own = Object.entries(given).filter(([path]) => path === prefix || path.startsWith(prefix + "["));
                if (!own.length) return;
                rows.length = 0;
                for (const [path, value] of own) {
                    const match = path.slice(prefix.length).match(/^\[(\d+)\]\.(\w+)$/);
                    if (!match || !widgets.has(match[2])) continue;
                    rows[Number(match[1])] = rows[Number(match[1])] || empty();
                    rows[Number(match[1])][match[2]] = value;
                }
                fillUp();
            }
        };
    };
})(window.atelier);
