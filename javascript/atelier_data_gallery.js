// The pictures of a data set: only those in view are elements of the page, and only what is looked at is asked for, so
// that a thousand pictures scroll like ten.

window.atelier = window.atelier || {};

(function(atelier) {
    const {t, el} = atelier;
    const LEAST_WIDTH = 164, CARD_HEIGHT = 250, GAP = 10, ROWS_BEYOND = 2;
    const CHUNK = 100, AT_ONCE = 4, KEPT = 800, REST_MS = 60, THUMBNAIL_PX = 256;

    // Small pictures: the newest wish first, a few at a time, and none for a card that has left the view.
    const kept = new Map(), wished = [];
    let underway = 0;

    function keep(address, url) {
        kept.set(address, url);
        if (kept.size <= KEPT) return;
        const [oldest, old] = kept.entries().next().value;
        kept.delete(oldest);
        URL.revokeObjectURL(old);
    }

    async function next() {
        if (underway >= AT_ONCE) return;
        const wish = wished.pop();
        if (!wish) return;
        if (!wish.image.isConnected) {
            next();
            return;
        }
        underway++;
        try {
            if (!kept.has(wish.address)) keep(wish.address, URL.createObjectURL(await atelier.blob("data_thumbnail", wish.values)));
            wish.image.src = kept.get(wish.address);
        } catch (error) {
            wish.image.classList.add("atelier-missing");
            wish.image.title = error.message;
        }
        underway--;
        next();
    }

    function thumbnail(folder, item) {
        const values = {folder, name: item.name, side: THUMBNAIL_PX, v: item.version}, address = JSON.stringify(values);
        const image = el("img", {alt: "", draggable: "false"});
        if (kept.has(address)) image.src = kept.get(address);
        else image.atelierWish = {image, address, values};
        return image;
    }

    // gallery(set, onselect) -> {element, show(answer, fromTheTop), update(item), select(index), find(name), count()}
    // `set.page(offset, limit)` asks for items.
    atelier.gallery = function(set, onselect) {
        const space = el("div", {class: "atelier-gallery-space"});
        const element = el("div", {class: "atelier-gallery", id: "atelier_gallery", tabindex: "0"}, space);
        const cards = new Map(), items = new Map();
        let num = 0, columns = 1, cardWidth = LEAST_WIDTH, chosen = -1, asked = new Set(), showing = 0;

        function layout() {
            const width = element.clientWidth;
            if (!width) return;
            columns = Math.max(1, Math.floor((width + GAP) / (LEAST_WIDTH + GAP)));
            cardWidth = Math.floor((width + GAP) / columns) - GAP;
            space.style.height = `${Math.ceil(num / columns) * (CARD_HEIGHT + GAP)}px`;
            for (const [index, card] of cards) place(card, index);
            draw();
        }

        function place(card, index) {
            const x = (index % columns) * (cardWidth + GAP), y = Math.floor(index / columns) * (CARD_HEIGHT + GAP);
            card.style.transform = `translate(${x}px, ${y}px)`;
            card.style.width = `${cardWidth}px`;
        }

        function inView(beyond) {
            const height = CARD_HEIGHT + GAP, top = element.scrollTop;
            const first = Math.max(0, Math.floor(top / height) - beyond) * columns;
            return [first, Math.min(num, (Math.ceil((top + element.clientHeight) / height) + beyond) * columns)];
        }

        function draw() {
            const [first, last] = inView(ROWS_BEYOND);
            for (const [index, card] of cards) {
                if (index < first || index >= last) {
                    card.remove();
                    cards.delete(index);
                }
            }
            for (let index = first; index < last; index++) {
                if (cards.has(index)) continue;
                const card = el("button", {type: "button", class: "atelier-card", tabindex: "-1", onclick: () => select(index)});
                cards.set(index, card);
                place(card, index);
                fill(card, index);
                space.append(card);
            }
            rested();
        }

        function fill(card, index) {
            const item = items.get(index);
            card.classList.toggle("atelier-card-chosen", index === chosen);
            if (!item) return;
            const faults = item.problems.filter(p => p[0] !== "note");
            card.title = [item.name, ...faults.map(p => p[1])].join("\n");
            atelier.fill(card,
                el("span", {class: "atelier-card-picture"}, thumbnail(set.folder, item),
                    faults.length ? el("i", {class: "atelier-card-fault" + (faults.some(p => p[0] === "error") ? " atelier-card-error" : "")}, String(faults.length)) : null),
                el("span", {class: "atelier-card-name"}, atelier.raw(item.name)),
                item.caption ? el("span", {class: "atelier-card-caption"}, atelier.raw(item.caption)) : el("span", {class: "atelier-card-caption atelier-fault"}, t("no caption")));
        }

        const rested = atelier.later(() => {
            const [first, last] = inView(1);
            for (let chunk = Math.floor(first / CHUNK); chunk * CHUNK < last; chunk++) ask(chunk);
            // the pictures in view, the first of them on top of the pile
            for (let index = last - 1; index >= first; index--) {
                const image = cards.has(index) ? cards.get(index).querySelector("img") : null;
                if (!image || !image.atelierWish) continue;
                wished.push(image.atelierWish);
                image.atelierWish = null;
            }
            for (let i = 0; i < AT_ONCE; i++) next();
        }, REST_MS);

        async function ask(chunk) {
            if (asked.has(chunk)) return;
            asked.add(chunk);
            const mine = showing;
            try {
                const answer = await set.page(chunk * CHUNK, CHUNK);
                if (mine !== showing) return;
                if (answer.num !== num) set.reload();
                else take(answer);
            } catch (error) {
                asked.delete(chunk);
                set.message.error(error.message);
            }
        }

        function take(answer) {
            answer.items.forEach((item, i) => {
                items.set(answer.offset + i, item);
                const card = cards.get(answer.offset + i);
                if (card) fill(card, answer.offset + i);
            });
            rested();
        }

        function select(index) {
            if (index < 0 || index >= num) return;
            const before = chosen;
            chosen = index;
            for (const i of [before, chosen]) if (cards.has(i)) cards.get(i).classList.toggle("atelier-card-chosen", i === chosen);
            const top = Math.floor(index / columns) * (CARD_HEIGHT + GAP);
            if (top < element.scrollTop) element.scrollTop = top;
            else if (top + CARD_HEIGHT > element.scrollTop + element.clientHeight) element.scrollTop = top + CARD_HEIGHT - element.clientHeight;
            if (items.has(index)) onselect(items.get(index), index);
            else ask(Math.floor(index / CHUNK)).then(() => items.has(index) && chosen === index && onselect(items.get(index), index));
        }

        element.addEventListener("scroll", () => requestAnimationFrame(draw), {passive: true});
        element.addEventListener("keydown", event => {
            const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -num, End: num}[event.key];
            if (!step) return;
            event.preventDefault();
            select(Math.min(num - 1, Math.max(0, chosen + step)));
        });
        new ResizeObserver(() => requestAnimationFrame(layout)).observe(element);

        return {
            element,
            // The first chunk of what a filter finds; the place in the list stays where it can.
            show(answer, fromTheTop) {
                const name = items.has(chosen) ? items.get(chosen).name : null;
                showing++;
                num = answer.num;
                items.clear();
                asked = new Set([0]);
                for (const card of cards.values()) card.remove();
                cards.clear();
                if (fromTheTop) element.scrollTop = 0;
                answer.items.forEach((item, i) => items.set(i, item));
                chosen = answer.items.findIndex(item => item.name === name);
                layout();
                rested();
            },
            update(item) {
                for (const [index, known] of items) {
                    if (known.name !== item.name) continue;
                    items.set(index, item);
                    if (cards.has(index)) fill(cards.get(index), index);
                    rested();
                }
            },
            select,
            // where a picture is, by the start of its name: captions are named as their pictures
            find(name) {
                const stem = name.replace(/\.[^./]*$/, ".");
                const places = [...items].filter(([, item]) => item.name === name || item.name.startsWith(stem));
                return places.length ? (places.find(([, item]) => item.name === name) || places[0])[0] : -1;
            },
            count: () => num
        };
    };
})(window.atelier);
