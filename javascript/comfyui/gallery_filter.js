// Which pictures of the gallery are meant: words, tags that are there or not, how many, and the tags to choose from.

import { html, setText } from "./elements.js";
import * as format from "./format.js";
import { t } from "./text.js";

const DEBOUNCE_MS = 300;
const MOST_TAGS = 80; // to choose from at once
const TAGS = ["all", "any", "none"];

const split = (text) => text.split(",").map((tag) => tag.trim()).filter(Boolean);
const plain = (tag) => tag.replaceAll("\\", "").replaceAll("_", " ").toLowerCase().split(/\s+/).filter(Boolean).join(" ");

export class FilterFields {
  /** `onChange()`: another filter; it comes once the typing pauses. */
  constructor({ onChange, language }) {
    this.language = language;
    this.onChange = onChange;
    this.tags = [];
    const later = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(onChange, DEBOUNCE_MS);
      this.drawTags();
    };
    this.text = html("input", { type: "search", "aria-label": t("gallery.text"), placeholder: t("gallery.text"), oninput: later });
    this.fields = Object.fromEntries(
      TAGS.map((name) => [name, html("input", { type: "text", title: t(`gallery.${name}.help`), oninput: later })]),
    );
    this.least = html("input", { type: "number", min: "0", title: t("gallery.least"), "aria-label": t("gallery.least"), oninput: later });
    this.most = html("input", { type: "number", min: "0", title: t("gallery.most"), "aria-label": t("gallery.most"), oninput: later });
    this.problems = html("input", { type: "checkbox", onchange: later });
    this.find = html("input", {
      type: "search",
      "aria-label": t("gallery.find_tag"),
      placeholder: t("gallery.find_tag"),
      oninput: () => this.drawTags(),
    });
    this.chips = html("div", { class: "atelier-chips" });
    const labelled = (text, input) => html("label", {}, html("span", { text }), input);
    this.summary = html("summary", { text: t("gallery.tags") });
    this.element = html(
      "div",
      { class: "atelier-filter" },
      this.text,
      html(
        "details",
        {},
        this.summary,
        ...TAGS.map((name) => labelled(t(`gallery.${name}.name`), this.fields[name])),
        html("div", { class: "atelier-row" }, html("span", { text: t("gallery.number") }), this.least, html("span", { text: "–" }), this.most),
        html("label", { class: "atelier-check" }, this.problems, html("span", { text: t("gallery.with_problems") })),
        this.find,
        this.chips,
      ),
    );
  }

  /** As the server takes it; what is empty is left out. */
  get value() {
    const value = {};
    if (this.text.value.trim()) value.text = this.text.value.trim();
    for (const name of TAGS) if (split(this.fields[name].value).length) value[name] = split(this.fields[name].value);
    for (const name of ["least", "most"]) if (this[name].value) value[name] = this[name].value;
    if (this.problems.checked) value.with_problems = true;
    return value;
  }

  clear() {
    for (const input of [this.text, this.least, this.most, ...Object.values(this.fields)]) input.value = "";
    this.problems.checked = false;
    this.drawTags();
  }

  /** Tags to choose from: [[tag, number of captions], ...] */
  showTags(tags, count) {
    this.tags = tags;
    setText(this.summary, t("gallery.tags_counted", { count: format.count(count, this.language()) }));
    this.drawTags();
  }

  drawTags() {
    const sought = plain(this.find.value);
    const has = (name, tag) => split(this.fields[name].value).some((other) => plain(other) === plain(tag));
    // those that are asked for stay, also where no caption that is found has them
    const asked = [...split(this.fields.all.value), ...split(this.fields.none.value)];
    const known = new Set(this.tags.map(([tag]) => plain(tag)));
    const chosen = [
      ...asked.filter((tag) => !known.has(plain(tag))).map((tag) => [tag, 0]),
      ...this.tags.filter(([tag]) => has("all", tag) || has("none", tag)),
    ];
    const others = this.tags.filter(([tag]) => (!sought || plain(tag).includes(sought)) && !has("all", tag) && !has("none", tag));
    const found = [...chosen, ...others].slice(0, MOST_TAGS);
    this.chips.replaceChildren(
      ...found.map(([tag, count]) => {
        const state = has("all", tag) ? "all" : has("none", tag) ? "none" : "";
        return html(
          "button",
          { type: "button", class: "atelier-chip", "data-state": state, title: t("gallery.chip"), onclick: () => this.turn(tag, state) },
          html("span", { text: tag }),
          html("small", { text: format.count(count, this.language()) }),
        );
      }),
    );
  }

  /** A tag that is asked for is next left out, and then no matter. */
  turn(tag, state) {
    const without = (name) => split(this.fields[name].value).filter((other) => plain(other) !== plain(tag));
    this.fields.all.value = [...without("all"), ...(state === "" ? [tag] : [])].join(", ");
    this.fields.none.value = [...without("none"), ...(state === "all" ? [tag] : [])].join(", ");
    this.drawTags();
    this.onChange();
  }
}
