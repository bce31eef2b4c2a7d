// Presets by family and memory, and the user's own: what would change is shown before it is changed.

window.atelier = window.atelier || {};

(function(atelier) {
    const {t, el} = atelier;

    // presets(form, message, onapply) -> {element, setFamily(family, isUntouched), touched()}
    atelier.presets = function(form, message, onapply) {
        const select = el("select", {id: "atelier_preset", "aria-label": t("Preset")});
        const changes = el("div", {class: "atelier-changes"});
        const name = el("input", {type: "text", placeholder: t("name of a preset of your own"), id: "atelier_preset_name"});
        const apply = atelier.button("Apply", use, "small", {id: "atelier_preset_apply"});
        const remove = atelier.button("Delete", removed, "small");
        const save = atelier.button("Save the settings", saved, "small", {id: "atelier_preset_save"});
        let known = [], family = null, defaultName = null;

        const chosen = () => known[select.selectedIndex - 1];

        async function list() {
            const answer = await atelier.get("presets", {family: family || ""});
            known = answer.presets;
            defaultName = answer.default;
            const kind = k => known.filter(p => p.kind === k).map(p => el("option", {value: p.name}, p.name));
            const own = kind("user");
            atelier.fill(select, el("option", {value: ""}, t("Choose a preset…")),
                kind("pack"), own.length ? el("optgroup", {label: t("Your own")}, own) : null);
            show();
        }

        async function show() {
            const preset = chosen();
            apply.disabled = !preset;
            remove.hidden = !preset || preset.kind !== "user";
            if (!preset) {
                atelier.fill(changes);
                return;
            }
            try {
                const answer = await atelier.post("preset", {...preset, values: form.values()});
                if (chosen() !== preset) return;
                apply.disabled = !answer.changes.length;
                atelier.fill(changes, answer.changes.length ?
                    [el("p", {}, t("Applying it changes {n} settings:", {n: answer.changes.length})), el("ul", {}, answer.changes.map(line))] :
                    el("p", {}, t("The settings are those of this preset.")));
            } catch (error) {
                message.error(error.message);
            }
        }

        // A preset has no data set of its own, and none of its empty lists stands for one.
        function without(values) {
            return Object.fromEntries(Object.entries(values).filter(([path]) => !path.startsWith("data.concepts")));
        }

        function line(text) {
            const [path, rest] = [text.slice(0, text.indexOf(": ")), text.slice(text.indexOf(": ") + 2)];
            const widget = form.widget(path);
            return el("li", {title: path}, widget ? t(widget.label) : path, " ", el("code", {}, rest));
        }

        async function use() {
            await atelier.attempt(message, async() => {
                const answer = await atelier.post("preset", {...chosen(), values: form.values()});
                form.set(without(answer.values));
                onapply();
                show();
            });
        }

        async function saved() {
            await atelier.attempt(message, async() => {
                if (!name.value.trim()) throw new Error(t("Give the preset a name first."));
                const answer = await atelier.post("save_preset", {name: name.value, values: form.values()});
                name.value = "";
                await list();
                select.value = answer.name;
                show();
                message.ok(t("Saved as {name}.", {name: answer.name}));
            });
        }

        async function removed() {
            await atelier.attempt(message, async() => {
                await atelier.post("remove_preset", {name: chosen().name});
                await list();
            });
        }

        select.addEventListener("change", show);
        const soon = atelier.later(show, 600);
        return {
            element: el("div", {class: "atelier-presets"},
                el("div", {class: "atelier-row"}, el("span", {class: "atelier-caption"}, t("Preset")), select, apply, remove),
                changes,
                el("details", {class: "atelier-more"}, el("summary", {}, t("Save these settings as a preset")), el("div", {class: "atelier-row"}, name, save))),
            changed: () => chosen() && soon(),
            // The first time, the form begins with the preset of the family for this memory.
            async setFamily(now, isUntouched) {
                family = now;
                await list();
                if (!isUntouched() || !defaultName) return;
                const answer = await atelier.post("preset", {name: defaultName, kind: "pack", values: form.values()});
                // what was typed while this was on its way stays
                if (!isUntouched()) return;
                select.value = defaultName;
                form.set(without(answer.values));
                onapply();
                show();
            }
        };
    };
})(window.atelier);
