// The learning-rate curve beside its box as one types, with its value at the checkpoints; a fault with its place.

window.atelier = window.atelier || {};

(function(atelier) {
    const {t, el} = atelier;

    // scheduleView(form) -> {element, refresh(), setStepsPerEpoch(n)}
    atelier.scheduleView = function(form) {
        const element = el("div", {class: "atelier-schedule", "aria-live": "polite"});
        let stepsPerEpoch = null, asked = 0;

        function numSteps() {
            const steps = Number(form.get("loop.steps")), epochs = Number(form.get("loop.epochs"));
            if (steps > 0) return steps;
            return epochs > 0 && stepsPerEpoch ? epochs * stepsPerEpoch : null;
        }

        function fault(text, answer) {
            const column = answer.column;
            if (!column || column > text.length + 1) return el("p", {class: "atelier-fault"}, answer.error);
            const begin = column - 1, end = Math.min(text.length, begin + Math.max(1, (text.slice(begin).match(/^[^,]*/) || [""])[0].length));
            return [
                el("p", {class: "atelier-place"}, text.slice(0, begin), el("mark", {}, text.slice(begin, end) || "⏎"), text.slice(end)),
                el("p", {class: "atelier-fault"}, answer.error)
            ];
        }

        function drawn(answer) {
            const x = answer.points.map(p => p[0]), y = answer.points.map(p => p[1]);
            const values = answer.checkpoints.map(p => el("span", {class: "atelier-chip"}, t("step {step}", {step: p[0].toLocaleString("en")}), " ", el("b", {}, atelier.number(p[1], 3))));
            return [
                atelier.chart({
                    title: t("Learning rate"),
                    height: 120,
                    zero: true,
                    format: v => atelier.number(v, 2),
                    marks: answer.checkpoints.map(p => p[0]),
                    lines: [{x, y, label: "", kind: "smooth"}]
                }),
                values.length ? el("p", {class: "atelier-chips"}, t("At the checkpoints:"), " ", values) : null,
                answer.notes.map(note => el("p", {class: "atelier-note"}, note))
            ];
        }

        async function refresh() {
            const text = String(form.get("rate.schedule") || ""), steps = numSteps(), mine = ++asked;
            if (!text.trim()) {
                atelier.fill(element, el("p", {class: "atelier-fault"}, t("The schedule is empty; write a rate such as 1e-4.")));
                return;
            }
            if (!steps) {
                atelier.fill(element, el("p", {class: "atelier-note"}, Number(form.get("loop.epochs")) > 0 ?
                    t("Check the data set to see the curve: the number of steps comes from the pictures.") :
                    t("Give steps or epochs to see the curve.")));
                return;
            }
            try {
                const answer = await atelier.post("schedule", {
                    schedule: text, steps, steps_per_epoch: stepsPerEpoch, stop_at_end: Boolean(form.get("rate.stop_at_end")),
                    save_every: Number(form.get("save.every_steps")) || 0, factor: Number(form.get("rate.factor")) || 0
                });
                if (mine === asked) atelier.fill(element, answer.error ? fault(text, answer) : drawn(answer));
            } catch (error) {
                if (mine === asked) atelier.fill(element, el("p", {class: "atelier-fault"}, error.message));
            }
        }

        const WATCHED = ["rate.schedule", "loop.steps", "loop.epochs", "rate.stop_at_end", "rate.factor", "save.every_steps"];
        const soon = atelier.later(refresh, 200);
        return {
            element,
            refresh: soon,
            changed: path => WATCHED.includes(path) && soon(),
            setStepsPerEpoch(number) {
                stepsPerEpoch = number;
                soon();
            }
        };
    };
})(window.atelier);
