// What every part of the page uses: words, numbers, elements, our routes, pictures. Text of others only ever becomes a
// text node or an attribute, never markup.

window.atelier = window.atelier || {};

(function(atelier) {
    const ROOT = "./atelier/v1/";
    const SVG = "http://www.w3.org/2000/svg";

    // The host's translation of a sentence of ours, with {names} filled in.
    atelier.t = function(sentence, values) {
        const translated = (window.localization && window.localization[sentence]) || sentence;
        return translated.replace(/\{(\w+)\}/g, (whole, name) => (values && name in values) ? String(values[name]) : whole);
    };

    function append(element, children) {
        for (const child of children.flat(3)) {
            if (child === null || child === undefined || child === false) continue;
            element.append(child instanceof Node ? child : document.createTextNode(String(child)));
        }
        return element;
    }

    function create(element, attributes, children) {
        for (const [name, value] of Object.entries(attributes || {})) {
            if (value === null || value === undefined || value === false) continue;
            if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
            else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
            else element.setAttribute(name, value === true ? "" : value);
        }
        return append(element, children);
    }

    atelier.el = (tag, attributes, ...children) => create(document.createElement(tag), attributes, children);
    atelier.svg = (tag, attributes, ...children) => create(document.createElementNS(SVG, tag), attributes, children);
    atelier.fill = (element, ...children) => {
        element.replaceChildren();
        return append(element, children);
    };

    // Text of others: the host translates every text node that is one of its words, and a tag may be one. In two parts it is none.
    atelier.raw = function(text) {
        const first = text.codePointAt(0) > 0xffff ? 2 : 1;
        return text.length > first ? [text.slice(0, first), text.slice(first)] : text;
    };

    // Tag completion, where that extension is there. It looks once, at the start, for text areas such as ".prompt > label > textarea"
    // and knows other pages by a list of its own; what comes later has to be handed to its function, once its settings are read.
    atelier.completed = function(input) {
        input.addEventListener("focus", () => {
            if (typeof addAutocompleteToArea === "function" && typeof TAC_CFG !== "undefined" && TAC_CFG) addAutocompleteToArea(input);
        });
        return input;
    };

    atelier.button = (label, onclick, kind, attributes) => atelier.el("button", {
        type: "button", class: "atelier-button" + (kind ? " atelier-" + kind : ""), onclick, ...attributes
    }, atelier.t(label));

    atelier.number = function(value, digits) {
        if (value === null || value === undefined || !Number.isFinite(value)) return "–";
        if (value === 0) return "0";
        const size = Math.abs(value);
        if (size < 1e-3 || size >= 1e7) return value.toExponential((digits || 3) - 1).replace(/\.?0+e/, "e").replace("e+", "e");
        return String(Number(value.toPrecision(digits || 3)));
    };

    atelier.percent = value => (value === null || value === undefined) ? "–" :
        (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(100 * value).toFixed(1) + " %";

    atelier.duration = function(seconds) {
        if (!Number.isFinite(seconds) || seconds < 0) return "–";
        const s = Math.round(seconds), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
        if (h) return atelier.t("{h} h {m} min", {h, m: String(m).padStart(2, "0")});
        return m ? atelier.t("{m} min {s} s", {m, s: String(s % 60).padStart(2, "0")}) : atelier.t("{s} s", {s});
    };

    atelier.when = iso => iso ? new Date(iso).toLocaleString() : "";

    function key() {
        const root = document.getElementById("atelier_root");
        return root ? root.dataset.key : "";
    }

    async function ask(name, options) {
        let response;
        try {
            response = await fetch(ROOT + name, {...options, headers: {...options.headers, "X-Atelier-Key": key()}});
        } catch (error) {
            throw new Error(atelier.t("The WebUI does not answer; it may be starting again."));
        }
        if (response.ok) return response;
        let sentence = "";
        try {
            sentence = (await response.json()).error;
        } catch (error) {
            // not an answer of ours
        }
        throw new Error(sentence || atelier.t("The WebUI answered with the error {status}; its console says more.", {status: response.status}));
    }

    const query = values => values ? "?" + new URLSearchParams(values) : "";
    atelier.get = async(name, values) => (await ask(name + query(values), {method: "GET"})).json();
    atelier.post = async(name, values) => (await ask(name, {
        method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(values || {})
    })).json();
    atelier.text = async(name, values) => (await ask(name + query(values), {method: "GET"})).text();

    atelier.blob = async(name, values) => (await ask(name + query(values), {method: "GET"})).blob();

    // Pictures need our key too, which an address cannot carry: they are fetched when they come into view.
    const pictures = new Map();
    const watcher = new IntersectionObserver(entries => {
        for (const entry of entries) {
            if (!entry.isIntersecting) continue;
            watcher.unobserve(entry.target);
            show(entry.target);
        }
    }, {rootMargin: "300px"});

    function address(name, values) {
        const whole = name + query(values);
        if (!pictures.has(whole)) {
            if (pictures.size > 1500) pictures.clear();
            pictures.set(whole, ask(whole, {method: "GET"}).then(r => r.blob()).then(b => URL.createObjectURL(b)));
        }
        return pictures.get(whole);
    }

    async function show(image) {
        try {
            image.src = await address(image.atelierSource[0], image.atelierSource[1]);
        } catch (error) {
            image.classList.add("atelier-missing");
            image.title = error.message;
        }
    }

    atelier.picture = function(name, values, attributes) {
        const image = atelier.el("img", {alt: "", ...attributes});
        image.atelierSource = [name, values];
        watcher.observe(image);
        return image;
    };

    // A picture in full size over the page; any click or key closes it.
    atelier.enlarge = async function(name, values, caption) {
        const image = atelier.el("img", {alt: caption || ""});
        const over = atelier.el("div", {class: "atelier-over", tabindex: "-1", role: "dialog"}, image, atelier.el("p", {}, caption || ""));
        const close = () => over.remove();
        over.addEventListener("click", close);
        over.addEventListener("keydown", close);
        document.body.append(over);
        over.focus();
        image.src = await address(name, values);
    };

    // Our own place for errors: the host's script empties its own.
    atelier.message = function() {
        const element = atelier.el("div", {class: "atelier-message", role: "alert"});
        element.hidden = true;
        const say = (kind, sentence) => {
            element.hidden = !sentence;
            element.className = "atelier-message atelier-" + kind;
            element.textContent = sentence || "";
        };
        return {element, error: s => say("error", s), ok: s => say("ok", s), clear: () => say("ok", "")};
    };

    // Do what a button is for; what goes wrong is said in one sentence.
    atelier.attempt = async function(message, action) {
        message.clear();
        try {
            return await action();
        } catch (error) {
            message.error(error.message);
            return undefined;
        }
    };

    atelier.later = function(action, milliseconds) {
        let timer = null;
        return (...args) => {
            clearTimeout(timer);
            timer = setTimeout(() => action(...args), milliseconds);
        };
    };

    atelier.keep = (name, value) => localSet("atelier_" + name, JSON.stringify(value));
    atelier.kept = function(name, fallback = null) {
        try {
            const text = localGet("atelier_" + name, null);
            return text === null || text === undefined ? fallback : JSON.parse(text);
        } catch (error) {
            return fallback;
        }
    };
})(window.atelier);
