// The page "Data set": a folder's pictures and captions, which of them are meant, and edits that are shown before they are
// written and can be taken back.

window.atelier = window.atelier || {};

(function(atelier) {
    const {t, el} = atelier;
    const CHUNK = 100, TYPED_MS = 250;
    const TABS = {captions: "Captions", check: "Check", cut: "What is cut", prepare: "Prepare", caption: "Caption by a model", score: "Scores"};

    const field = (label, input, wide) => el("div", {class: "atelier-field" + (wide ? " atelier-wide" : "")},
        el("label", {class: "atelier-label", for: input.id}, label), el("div", {class: "atelier-box prompt"}, el("label", {}, input)));
    const box = (id, more) => el("input", {type: "text", id: "atelier_data_" + id, spellcheck: "false", ...more});
    atelier.dataField = field;

    // What an edit would change, caption by caption: difference(plan, apply, cancel) -> element
    atelier.difference = function(plan, apply, cancel) {
        const line = change => el("li", {},
            el("code", {}, atelier.raw(change.name)), " ",
            change.parts.map(([sign, word], i) => [i ? ", " : "", el({"-": "del", "+": "ins", " ": "span"}[sign], {}, atelier.raw(word))]),
            change.parts.every(([sign]) => sign === " ") ? el("small", {}, " ", t("encoding or spaces")) : null);
        const more = plan.num - plan.changes.length;
        return el("div", {class: "atelier-difference", id: "atelier_data_difference"},
            el("div", {class: "atelier-row"},
                el("b", {}, t("{n} of {m} captions would change", {n: plan.num, m: plan.num_meant})),
                plan.num ? atelier.button("Write the changes", apply, "primary", {id: "atelier_data_apply"}) : null,
                plan.num ? atelier.button("Discard", cancel, "", {id: "atelier_data_cancel"}) : atelier.button("Close", cancel, "", {id: "atelier_data_cancel"})),
            plan.num_left_out ? el("p", {class: "atelier-fault"}, t("{n} captions cannot be edited and are left out", {n: plan.num_left_out})) : null,
            el("ul", {}, plan.changes.map(line)),
            more > 0 ? el("p", {class: "atelier-note"}, t("and {n} more", {n: more})) : null);
    };

    // Which pictures are meant: filters(changed) -> {element, values(), set(values), tags(answer)}
    function filters(changed) {
        const inputs = {
            text: box("text", {placeholder: t("in the caption or the name")}),
            all: atelier.completed(box("all", {placeholder: t("tags, with commas")})),
            any: atelier.completed(box("any", {placeholder: t("tags, with commas")})),
            none: atelier.completed(box("none", {placeholder: t("tags, with commas")})),
            least: el("input", {type: "number", id: "atelier_data_least", min: 0, step: 1, placeholder: "–"}),
            most: el("input", {type: "number", id: "atelier_data_most", min: 0, step: 1, placeholder: "–"})
        };
        const faulty = el("input", {type: "checkbox", id: "atelier_data_faulty"});
        const labels = {text: "Text", all: "Has all of", any: "Has any of", none: "Has none of", least: "Tags, at least", most: "Tags, at most"};
        const list = el("div", {class: "atelier-taglist", id: "atelier_data_tags"});
        const head = el("h4", {}, t("Tags"));
        const search = box("tag_search", {placeholder: t("find a tag"), "aria-label": t("find a tag")});
        let tags = [], num = 0;
        const typed = atelier.later(changed, TYPED_MS);
        for (const input of [...Object.values(inputs), faulty]) input.addEventListener("input", typed);
        search.addEventListener("input", draw);

        const words = name => inputs[name].value.split(",").map(w => w.trim()).filter(Boolean);
        function toggle(name, tag) {
            const there = words(name);
            inputs[name].value = (there.includes(tag) ? there.filter(w => w !== tag) : [...there, tag]).join(", ");
            changed();
        }

        function draw() {
            const wanted = search.value.trim().toLowerCase(), has = words("all"), without = words("none");
            const found = tags.filter(([tag]) => tag.toLowerCase().includes(wanted));
            atelier.fill(head, t("Tags"), " ", el("small", {}, num.toLocaleString("en")));
            atelier.fill(list, found.map(([tag, count]) => el("div", {class: "atelier-tag" + (has.includes(tag) ? " atelier-tag-has" : "")},
                el("button", {type: "button", class: "atelier-tag-name", title: t("only pictures with it"), onclick: () => toggle("all", tag)}, el("span", {}, atelier.raw(tag)), el("b", {}, String(count))),
                el("button", {type: "button", class: "atelier-tag-not", title: t("only pictures without it"), "aria-pressed": without.includes(tag) ? "true" : "false", onclick: () => toggle("none", tag)}, "−"))),
            num > tags.length ? el("p", {class: "atelier-note"}, t("and {n} more", {n: num - tags.length})) : null);
        }

        const clear = atelier.button("Clear", () => {
            set({});
            changed();
        }, "small", {id: "atelier_data_clear"});

        function set(values) {
            for (const [name, input] of Object.entries(inputs)) input.value = values[name] || "";
            faulty.checked = false;
        }

        return {
            element: el("div", {class: "atelier-filters"},
                el("div", {class: "atelier-row"}, el("h4", {}, t("Which pictures")), clear),
                ["text", "all", "any", "none"].map(name => field(t(labels[name]), inputs[name])),
                el("div", {class: "atelier-pair"}, ["least", "most"].map(name => el("div", {class: "atelier-field"}, el("label", {class: "atelier-label", for: inputs[name].id}, t(labels[name])), inputs[name]))),
                el("label", {class: "atelier-check"}, faulty, el("span", {}, t("only with an error or a warning"))),
                head, search, list),
            values() {
                const given = Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.value.trim()]));
                return {...given, with_problems: faulty.checked};
            },
            set,
            tags(answer) {
                tags = answer.tags;
                num = answer.num_tags;
                draw();
            }
        };
    }

    // Edits of all the pictures that are meant: edits(set) -> element
    function edits(set) {
        const labels = {
            subsumed: "Merge subsumed tags", join: "Join verbs", remove: "Remove tags", replace: "Replace a tag", prepend: "Put in front",
            append: "Put behind", trigger: "Trigger word", first: "Move to the front", spaces: "Spaces for underscores"
        };
        const rows = el("div", {class: "atelier-edits"});

        function row() {
            const kind = el("select", {"aria-label": t("Edit")}, set.words.edits.map(e => el("option", {value: e.name}, t(labels[e.name] || e.name))));
            const help = el("p", {class: "atelier-help"});
            const words = atelier.completed(box("words_" + rows.childElementCount));
            const look = () => {
                const about = set.words.edits[kind.selectedIndex];
                words.parentElement.parentElement.hidden = !about.needs;
                help.textContent = t(about.help);
                words.placeholder = t(about.needs);
                words.setAttribute("aria-label", t(about.needs));
            };
            const element = el("div", {class: "atelier-edit"}, kind, help, el("div", {class: "atelier-box prompt"}, el("label", {}, words)));
            element.atelierEdit = () => ({name: kind.value, words: set.words.edits[kind.selectedIndex].needs ? words.value : ""});
            kind.addEventListener("change", look);
            kind.value = "remove";
            look();
            words.addEventListener("keydown", event => event.key === "Enter" && !event.defaultPrevented && preview());
            rows.append(element);
        }

        const given = () => [...rows.children].map(r => r.atelierEdit());
        const preview = () => set.attempt(async() => {
            const what = {filter: set.filter(), edits: given()};
            const plan = await set.ask("data_plan", what);
            set.review(atelier.difference(plan, () => set.attempt(async() => {
                const done = await set.ask("data_apply", {...what, digest: plan.digest});
                set.review(null);
                set.undoable(done.undo);
                await set.reload();
                set.message.ok(t("{n} captions were written; Undo takes them back.", {n: done.num}));
            }), () => set.review(null)));
        });

        row();
        return el("div", {}, el("h4", {}, t("Edit the captions of all of them")), rows,
            el("div", {class: "atelier-row"},
                atelier.button("Show what would change", preview, "primary", {id: "atelier_data_plan"}),
                atelier.button("And another edit", row, "small"),
                atelier.button("One less", () => rows.childElementCount > 1 && rows.lastElementChild.remove(), "small")));
    }

    // One picture and its caption: editor(set) -> {element, open(item, index), close()}
    function editor(set) {
        const element = el("div", {class: "atelier-editor", id: "atelier_data_editor"});
        const area = atelier.completed(el("textarea", {id: "atelier_data_caption", rows: 7}));
        const drafts = new Map();
        const save = atelier.button("Save", write, "primary", {id: "atelier_data_save", title: "Ctrl+Enter"});
        const back = atelier.button("As it was", () => {
            area.value = shown.caption;
            look();
        }, "", {id: "atelier_data_revert"});
        const head = el("div", {}), message = atelier.message();
        let shown = null, at = -1;

        function look() {
            const changed = shown !== null && area.value !== shown.caption;
            save.disabled = !changed || !shown.editable;
            back.disabled = !changed;
            if (!shown) return;
            if (changed) drafts.set(shown.name, area.value);
            else drafts.delete(shown.name);
        }

        function write() {
            if (save.disabled) return;
            const item = shown;
            atelier.attempt(message, async() => {
                const answer = await set.ask("data_save", {name: item.name, caption: area.value.replace(/[\s,]+$/, ""), before: item.caption});
                drafts.delete(item.name);
                set.undoable(answer.undo);
                set.updated(answer.item);
                if (shown === item) open(answer.item, at);
                message.ok(t("Saved."));
            });
        }

        function open(item, index) {
            message.clear();
            shown = item;
            at = index;
            const about = {folder: set.folder, name: item.name, v: item.version};
            const picture = el("button", {type: "button", class: "atelier-editor-picture", onclick: () => atelier.enlarge("data_thumbnail", {...about, side: 1024}, item.name)},
                atelier.picture("data_thumbnail", {...about, side: 512}, {alt: ""}));
            atelier.fill(head,
                el("div", {class: "atelier-row"}, el("b", {class: "atelier-name"}, atelier.raw(item.name)),
                    item.size ? el("span", {class: "atelier-chip"}, `${item.size[0]}×${item.size[1]}`) : null, el("span", {class: "atelier-chip"}, t("{n} tags", {n: item.tags}))),
                picture,
                item.problems.map(([severity, text]) => el("p", {class: severity === "note" ? "atelier-note" : "atelier-fault"}, text)));
            area.value = drafts.has(item.name) ? drafts.get(item.name) : item.caption;
            area.readOnly = !item.editable;
            look();
            atelier.fill(element, head, field(t("Caption"), area), el("div", {class: "atelier-row"}, save, back,
                atelier.button("Previous", () => set.select(at - 1), "small"), atelier.button("Next", () => set.select(at + 1), "small", {id: "atelier_data_next"})), message.element);
        }

        area.addEventListener("input", look);
        area.addEventListener("keydown", event => event.key === "Enter" && (event.ctrlKey || event.metaKey) && write());
        const close = () => {
            shown = null;
            atelier.fill(element, el("p", {class: "atelier-empty"}, t("Choose a picture to see and edit its caption.")));
        };
        close();
        return {element, open, close, name: () => shown && shown.name};
    }

    // dataSet(training) -> {element, open()}; `training` gives settings of the form of a run
    atelier.dataSet = function(training) {
        const message = atelier.message();
        const folder = box("folder", {placeholder: t("D:\\photos\\my toy"), value: atelier.kept("folder", "")});
        const head = el("div", {class: "atelier-row atelier-data-head"});
        const review = el("div", {class: "atelier-review"});
        const body = el("div", {});
        const element = el("div", {class: "atelier-data", id: "atelier_data"},
            el("div", {class: "atelier-row"}, folder, atelier.button("Open the folder", () => open(folder.value), "primary", {id: "atelier_data_open"})),
            message.element, head, body);
        let words = null, parts = null, about = null, asked = 0, tab = "captions";

        const set = {
            get folder() {
                return about.folder;
            },
            get words() {
                return words;
            },
            message,
            training,
            ask: (name, values) => atelier.post(name, {folder: about.folder, ...values}),
            attempt: action => atelier.attempt(message, action),
            filter: () => parts.filters.values(),
            count: () => parts.gallery.count(),
            page: (offset, limit) => set.ask("data_page", {filter: set.filter(), offset, limit}),
            select: index => parts.gallery.select(index),
            reload,
            review(what) {
                atelier.fill(review, what);
                if (what) review.scrollIntoView({block: "nearest"});
            },
            updated: item => parts.gallery.update(item),
            undoable(title) {
                about.undo = title;
                drawHead();
            },
            // Show one picture among all of them.
            goTo(name) {
                parts.filters.set({text: name.replace(/\.[^./]*$/, "")});
                go("captions");
                reload(true).then(() => parts.gallery.select(parts.gallery.find(name)));
            },
            openFolder(name) {
                folder.value = name;
                open(name);
            }
        };

        async function reload(fromTheTop) {
            const mine = ++asked;
            await set.attempt(async() => {
                const answer = await set.ask("data_page", {filter: set.filter(), offset: 0, limit: CHUNK, tags: true});
                if (mine !== asked) return;
                parts.gallery.show(answer, fromTheTop === true);
                parts.filters.tags(answer);
                about.shown = answer.num;
                about.num = answer.num_all;
                drawHead();
                shown();
                const open = answer.items.findIndex(item => item.name === parts.editor.name());
                if (open >= 0) parts.editor.open(answer.items[open], open);
                else if (parts.editor.name() !== null) parts.editor.close();
            });
        }

        function drawHead() {
            const num = about.num.toLocaleString("en");
            atelier.fill(head,
                el("h3", {}, atelier.raw(about.name)),
                el("span", {class: "atelier-chip", id: "atelier_data_count"}, about.shown === undefined || about.shown === about.num ? t("{n} pictures", {n: num}) : t("{n} of {m} pictures", {n: about.shown.toLocaleString("en"), m: num})),
                about.undo ? atelier.button("Undo", undo, "small", {id: "atelier_data_undo", title: about.undo}) : null,
                about.undo ? el("small", {}, atelier.raw(about.undo.slice(0, 80))) : null);
        }

        const undo = () => set.attempt(async() => {
            const done = await set.ask("data_undo");
            about.undo = done.undo;
            await reload();
            message.ok(t("{n} captions are as they were before: {title}", {n: done.num, title: done.title}));
        });

        function go(name) {
            message.clear();
            for (const [part, page] of Object.entries(parts.pages)) {
                page.hidden = part !== name;
                parts.tabs[part].setAttribute("aria-selected", part === name ? "true" : "false");
            }
            atelier.keep("data_tab", name);
            tab = name;
            shown();
        }

        // a part may say something of the pictures that are meant
        const shown = () => parts.shown[tab] && parts.shown[tab]();

        function build() {
            const own = filters(() => reload(true));
            const edit = editor(set);
            parts = {filters: own, editor: edit, gallery: atelier.gallery(set, edit.open), shown: {}};
            const captions = el("div", {class: "atelier-data-columns"},
                el("div", {class: "atelier-data-side"}, own.element, edits(set)),
                el("div", {class: "atelier-data-middle"}, review, parts.gallery.element),
                edit.element);
            const work = atelier.dataWork(set);
            parts.pages = {captions, ...Object.fromEntries(Object.entries(work).map(([name, part]) => [name, part.element]))};
            for (const [name, part] of Object.entries(work)) parts.shown[name] = part.shown;
            parts.tabs = Object.fromEntries(Object.keys(parts.pages).map(name => [name, el("button", {type: "button", role: "tab", id: "atelier_data_tab_" + name, onclick: () => go(name)}, t(TABS[name]))]));
            parts.work = work;
            atelier.fill(body, el("div", {class: "atelier-tabs atelier-data-tabs", role: "tablist"}, Object.values(parts.tabs)), Object.values(parts.pages));
        }

        async function open(name) {
            await set.attempt(async() => {
                const found = await atelier.post("data_open", {folder: name});
                const isNew = !about || about.folder !== found.folder;
                about = found;
                atelier.keep("folder", name);
                // models may have been put into their folders meanwhile
                const before = JSON.stringify(words);
                words = await atelier.get("data_words");
                if (isNew || JSON.stringify(words) !== before) {
                    build();
                    go(TABS[atelier.kept("data_tab")] ? atelier.kept("data_tab") : "captions");
                }
                for (const part of Object.values(parts.work)) part.jobs(found.jobs);
                await reload(isNew);
                if (found.problems.length) message.error(found.problems.join("\n"));
            });
        }

        folder.addEventListener("keydown", event => event.key === "Enter" && open(folder.value));
        return {
            element,
            // The first time the page is looked at: the folder that was open the last time.
            open() {
                if (!folder.value) folder.value = training.get("data.concepts[0].folder") || "";
                if (!about && folder.value) open(folder.value);
            }
        };
    };
})(window.atelier);
