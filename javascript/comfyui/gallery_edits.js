// Editing captions: one picture's, and those of all pictures that the filter finds, which are shown before they are written.

import { html, setText } from "./elements.js";
import * as format from "./format.js";
import { t } from "./text.js";

/** The caption of one picture. */
export class CaptionEditor {
  /** `save(item, text)`: write it, which may fail. `onStep(1 or -1)`: to the next or previous picture. `imageUrl(item)`. */
  constructor({ save, onStep, onClose, imageUrl }) {
    this.imageUrl = imageUrl;
    this.drafts = new Map(); // name -> what was typed and not saved
    this.item = null;
    this.image = html("img", { alt: "" });
    this.name = html("strong", { class: "atelier-file" });
    this.about = html("span", { class: "atelier-faint" });
    this.problems = html("ul", { class: "atelier-note-list" });
    this.text = html("textarea", {
      rows: "4",
      spellcheck: "false",
      "aria-label": t("gallery.caption"),
      oninput: () => this.typed(),
      onkeydown: (event) => {
        event.stopPropagation(); // ComfyUI's shortcuts are not meant
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.saveButton.click();
      },
    });
    const button = (text, onclick, title = "") => html("button", { type: "button", class: "atelier-button", text, title, onclick });
    this.saveButton = button(t("gallery.save"), () => save(this.item, this.text.value), t("gallery.save_help"));
    this.backButton = button(t("gallery.revert"), () => {
      this.drafts.delete(this.item.name);
      this.show(this.item);
    });
    this.element = html(
      "section",
      { class: "atelier-caption-editor", hidden: true },
      html(
        "div",
        { class: "atelier-row" },
        html("span", { class: "atelier-names" }, this.name, this.about),
        html("button", { type: "button", class: "atelier-turn", text: "‹", title: t("gallery.previous"), onclick: () => onStep(-1) }),
        html("button", { type: "button", class: "atelier-turn", text: "›", title: t("gallery.next"), onclick: () => onStep(1) }),
        html("button", { type: "button", class: "atelier-turn", text: "×", title: t("gallery.close"), onclick: onClose }),
      ),
      html("div", { class: "atelier-caption-row" }, this.image, html("div", { class: "atelier-column" }, this.text, this.problems)),
      html("div", { class: "atelier-buttons" }, this.saveButton, this.backButton),
    );
  }

  show(item) {
    this.item = item;
    this.element.hidden = !item;
    if (!item) return;
    const url = this.imageUrl(item);
    if (this.image.getAttribute("src") !== url) this.image.src = url;
    setText(this.name, item.name);
    setText(this.about, item.size ? `${item.size[0]} × ${item.size[1]}` : "");
    const text = this.drafts.get(item.name) ?? item.caption;
    if (this.text.value !== text) this.text.value = text;
    this.text.readOnly = !item.editable;
    this.problems.replaceChildren(...item.problems.map(({ text, severity }) => html("li", { class: severity, text })));
    this.typed();
  }

  typed() {
    const isChanged = this.item.editable && this.text.value !== this.item.caption;
    if (isChanged) this.drafts.set(this.item.name, this.text.value);
    else this.drafts.delete(this.item.name);
    this.saveButton.disabled = this.backButton.disabled = !isChanged;
  }
}

/** An edit of all pictures that the filter finds. */
export class BatchEditor {
  /** `plan(edits)` and `apply(edits, digest)`: the answers of the server; both may fail. `onApplied(answer)`. */
  constructor({ plan, apply, onApplied, language }) {
    Object.assign(this, { plan, apply, onApplied, language });
    this.shown = null; // {edits, digest} of what is shown
    this.asked = 0;
    this.kinds = [];
    this.kind = html("select", { "aria-label": t("gallery.edit.label"), onchange: () => this.chosen() });
    this.words = html("input", {
      type: "text",
      oninput: () => this.forget(),
      onkeydown: (event) => {
        event.stopPropagation();
        if (event.key === "Enter") this.look();
      },
    });
    this.help = html("p", { class: "atelier-faint" });
    this.message = html("p", { class: "atelier-message", role: "status", hidden: true });
    this.changes = html("ol", { class: "atelier-changes", hidden: true });
    const button = (text, onclick) => html("button", { type: "button", class: "atelier-button", text, onclick });
    this.lookButton = button(t("gallery.edit.look"), () => this.look());
    this.applyButton = button("", () => this.write());
    this.applyButton.classList.add("primary");
    this.cancelButton = button(t("gallery.edit.cancel"), () => this.forget());
    this.element = html(
      "details",
      { class: "atelier-batch" },
      html("summary", { text: t("gallery.edit.title") }),
      html("div", { class: "atelier-row" }, this.kind, this.words),
      this.help,
      html("div", { class: "atelier-buttons" }, this.lookButton, this.applyButton, this.cancelButton),
      this.message,
      this.changes,
    );
    this.forget();
  }

  /** [{name, needs}, ...] */
  offer(kinds) {
    this.kinds = kinds;
    this.kind.replaceChildren(...kinds.map(({ name }) => html("option", { value: name, text: this.word(name, "name") })));
    const first = kinds.findIndex(({ name }) => name === "replace");
    this.kind.selectedIndex = Math.max(0, first);
    this.chosen();
  }

  word(name, part) {
    const path = `gallery.edit.${name}.${part}`;
    return t(path) === path ? (part === "name" ? name : "") : t(path);
  }

  chosen() {
    const kind = this.kinds.find(({ name }) => name === this.kind.value);
    this.words.hidden = !kind?.needs;
    this.words.placeholder = kind?.needs ? this.word(kind.name, "words") || kind.needs : "";
    setText(this.help, kind ? this.word(kind.name, "help") : "");
    this.forget();
  }

  /** What was shown counts no longer. */
  forget() {
    this.asked += 1;
    this.shown = null;
    this.message.hidden = this.changes.hidden = true;
    this.applyButton.hidden = this.cancelButton.hidden = true;
    this.lookButton.hidden = false;
    this.lookButton.disabled = false;
  }

  say(text, isFault) {
    setText(this.message, text);
    this.message.hidden = !text;
    this.message.classList.toggle("faulty", isFault);
  }

  async look() {
    const edits = [[this.kind.value, this.words.hidden ? "" : this.words.value]];
    this.forget();
    const number = this.asked;
    this.lookButton.disabled = true;
    try {
      const made = await this.plan(edits);
      if (number === this.asked) this.showPlan(edits, made);
    } catch (error) {
      if (number === this.asked) this.say(error.message, true);
    }
    if (number === this.asked) this.lookButton.disabled = false;
  }

  showPlan(edits, made) {
    const count = (number) => format.count(number, this.language());
    const leftOut = made.num_left_out ? ` ${t("gallery.edit.left_out", { count: count(made.num_left_out) })}` : "";
    this.say(t("gallery.edit.would", { count: count(made.num), of: count(made.num_meant) }) + leftOut, false);
    if (!made.num) return;
    this.shown = { edits, digest: made.digest };
    const more = made.num - made.changes.length;
    this.changes.replaceChildren(
      ...made.changes.map(({ name, parts }) => html("li", {}, html("span", { class: "atelier-file", text: name }), ...shortened(parts))),
      ...(more > 0 ? [html("li", { class: "atelier-faint", text: t("gallery.edit.more", { count: count(more) }) })] : []),
    );
    this.changes.scrollTop = 0;
    this.changes.hidden = false;
    this.applyButton.disabled = false;
    setText(this.applyButton, t("gallery.edit.apply", { count: count(made.num) }));
    this.applyButton.hidden = this.cancelButton.hidden = false;
    this.lookButton.hidden = true;
  }

  async write() {
    if (!this.shown || this.applyButton.disabled) return;
    const { edits, digest } = this.shown;
    this.applyButton.disabled = true;
    try {
      const answer = await this.apply(edits, digest);
      this.forget();
      this.say(t("gallery.edit.done", { count: format.count(answer.num, this.language()) }), false);
      this.onApplied(answer);
    } catch (error) {
      this.forget();
      this.say(error.message, true);
    }
  }
}

/** What changes of a caption; what stays is a dot for each run of tags. */
function shortened(parts) {
  const shown = [];
  let stays = false;
  for (const [sign, word] of parts) {
    if (sign === " ") {
      if (!stays) shown.push(html("span", { class: "atelier-faint", text: " … " }));
      stays = true;
      continue;
    }
    stays = false;
    shown.push(html(sign === "+" ? "ins" : "del", { text: word }), " ");
  }
  return shown;
}
