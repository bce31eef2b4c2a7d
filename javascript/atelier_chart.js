// Charts as inline SVG: axes with round numbers, lines, and a reading under the pointer.

window.atelier = window.atelier || {};

(function(atelier) {
    const MARGIN = {left: 54, right: 14, top: 10, bottom: 24};

    function ticks(low, high, most) {
        const rough = (high - low) / most;
        const power = Math.pow(10, Math.floor(Math.log10(rough)));
        const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= rough) || power;
        const found = [];
        for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) {
            found.push(Math.abs(value) < step * 1e-6 ? 0 : value);
        }
        return found;
    }

    // The range of what is drawn; of noisy lines the middle 99 %, so that one spike does not flatten the rest.
    function range(lines, zero) {
        const all = [];
        for (const line of lines) {
            const values = line.y.filter(v => v !== null && Number.isFinite(v)).sort((a, b) => a - b);
            const cut = line.noisy ? Math.floor(values.length * 0.005) : 0;
            if (values.length) all.push(values[cut], values[values.length - 1 - cut]);
        }
        let low = Math.min(...all), high = Math.max(...all);
        if (!all.length) return [0, 1];
        if (zero) {
            low = Math.min(low, 0);
            high = Math.max(high, 0);
        }
        const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.01;
        if (low === high) return [low - room, high + room];
        return [zero && low === 0 ? 0 : low - room, zero && high === 0 ? 0 : high + room];
    }

    function path(xs, ys, x, y) {
        let text = "", pen = false;
        for (let i = 0; i < xs.length; i++) {
            if (ys[i] === null || !Number.isFinite(ys[i])) {
                pen = false;
                continue;
            }
            text += (pen ? "L" : "M") + x(xs[i]).toFixed(1) + " " + y(ys[i]).toFixed(1);
            pen = true;
        }
        return text;
    }

    // chart({title, lines: [{x, y, label, kind: "raw"|"smooth"|"second", points, noisy}], zero, format, width, height,
    //        last: right end of x, marks: [x of vertical lines]}) -> element
    atelier.chart = function(about) {
        const width = about.width || 560, height = about.height || 190;
        const inner = {w: width - MARGIN.left - MARGIN.right, h: height - MARGIN.top - MARGIN.bottom};
        const drawn = about.lines.filter(line => line.x.length);
        const format = about.format || (v => atelier.number(v, 3));
        const figure = atelier.el("figure", {class: "atelier-chart"});
        const legend = atelier.el("figcaption", {}, atelier.el("span", {class: "atelier-chart-title"}, about.title));
        for (const line of about.lines) {
            if (line.label) legend.append(atelier.el("span", {class: "atelier-key atelier-key-" + line.kind}, line.label));
        }
        const reading = atelier.el("span", {class: "atelier-reading"});
        legend.append(reading);
        figure.append(legend);
        if (!drawn.length) {
            figure.append(atelier.el("p", {class: "atelier-empty"}, about.empty || ""));
            return figure;
        }
        const first = Math.min(...drawn.map(l => l.x[0]));
        const last = Math.max(about.last || 0, ...drawn.map(l => l.x[l.x.length - 1]), first + 1);
        const [low, high] = range(drawn, about.zero);
        const x = v => MARGIN.left + (v - first) / (last - first) * inner.w;
        const y = v => MARGIN.top + (1 - (Math.min(Math.max(v, low), high) - low) / (high - low)) * inner.h;
        const picture = atelier.svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": about.title});
        for (const value of ticks(low, high, height < 130 ? 3 : 4)) {
            picture.append(
                atelier.svg("line", {class: "atelier-grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value)}),
                atelier.svg("text", {class: "atelier-tick", x: MARGIN.left - 7, y: y(value) + 4, "text-anchor": "end"}, format(value)));
        }
        for (const value of ticks(first, last, 6)) {
            if (value !== Math.round(value)) continue;
            picture.append(atelier.svg("text", {class: "atelier-tick", x: x(value), y: height - 6, "text-anchor": "middle"}, value.toLocaleString("en")));
        }
        for (const mark of about.marks || []) {
            picture.append(atelier.svg("line", {class: "atelier-mark", x1: x(mark), x2: x(mark), y1: MARGIN.top, y2: height - MARGIN.bottom}));
        }
        for (const line of drawn) {
            picture.append(atelier.svg("path", {class: "atelier-line atelier-line-" + line.kind, d: path(line.x, line.y, x, y)}));
            if (!line.points) continue;
            line.x.forEach((v, i) => {
                if (line.y[i] !== null) picture.append(atelier.svg("circle", {class: "atelier-dot atelier-dot-" + line.kind, cx: x(v), cy: y(line.y[i]), r: 3}));
            });
        }
        const cursor = atelier.svg("line", {class: "atelier-cursor", y1: MARGIN.top, y2: height - MARGIN.bottom, x1: 0, x2: 0, visibility: "hidden"});
        picture.append(cursor);
        picture.addEventListener("pointermove", event => {
            const box = picture.getBoundingClientRect();
            const at = first + ((event.clientX - box.left) / box.width * width - MARGIN.left) / inner.w * (last - first);
            const parts = [];
            let place = null;
            for (const line of drawn) {
                let best = 0;
                line.x.forEach((v, i) => {
                    if (Math.abs(v - at) < Math.abs(line.x[best] - at)) best = i;
                });
                place = place === null ? line.x[best] : place;
                if (line.label || drawn.length === 1) parts.push((line.label ? line.label + " " : "") + format(line.y[best]));
            }
            cursor.setAttribute("x1", x(place));
            cursor.setAttribute("x2", x(place));
            cursor.setAttribute("visibility", "visible");
            reading.textContent = atelier.t("step {step}", {step: place.toLocaleString("en")}) + ": " + parts.join(" · ");
        });
        picture.addEventListener("pointerleave", () => {
            reading.textContent = "";
            cursor.setAttribute("visibility", "hidden");
        });
        figure.append(picture);
        return figure;
    };

    // The two charts of a run, from the route `chart`.
    atelier.lossCharts = function(data, numSteps, height) {
        const found = [atelier.chart({
            title: atelier.t("Loss"),
            height,
            last: numSteps,
            empty: atelier.t("No loss recorded yet; rows are written every few steps."),
            lines: [
                {x: data.steps, y: data.loss, label: atelier.t("each step"), kind: "raw", noisy: true},
                {x: data.steps, y: data.smooth, label: atelier.t("smoothed"), kind: "smooth"}
            ]
        })];
        if (data.controlled.length) {
            found.push(atelier.chart({
                title: atelier.t("Controlled loss against the model without the network"),
                height: 140,
                last: numSteps,
                zero: true,
                format: atelier.percent,
                lines: [{x: data.controlled.map(p => p.step), y: data.controlled.map(p => p.change), label: "", kind: "second", points: true}]
            }));
        }
        return found;
    };
})(window.atelier);
