// The gallery of a data set's folder: pictures, captions, filters, edits that are shown before they are written, and undo.

import { html, setText } from "./elements.js";
import * as format from "./format.js";
import { BatchEditor, CaptionEditor } from "./gallery_edits.js";
import { FilterFields } from "./gallery_filter.js";
import { Grid } from "./gallery_grid.js";
import { t } from "./text.js";

const PAGE = 100;
const RANGE_MS = 80; // scrolling has to rest so long before pictures are asked for
const SMALL_PX = 256;
const LARGE_PX = 512;

export class Gallery {
  /**
   * `request(what, values)`: the answer of the server. `thumbnailUrl(values)`: where it has a small picture. `folders()`: those
   * that nodes of the workflow name. `tell(severity, summary, detail)`: a message at the corner of the page.
   */
  constructor({ request, thumbnailUrl, folders, tell, language }) {
    Object.assign(this, { request, folders, tell, language });
    this.folder = ""; // the one that is open
    this.pages = new Map(); // number of a page -> its items, or null while they are on their way
    this.numFound = 0;
    this.generation = 0; // answers to what was asked before are dropped
    const url = (item, side) => thumbnailUrl({ folder: this.folder, name: item.name, side, v: item.version });

    this.choices = html("datalist", { id: "atelier-folders" });
    this.field = html("input", {
      type: "text",
      list: "atelier-folders",
      placeholder: t("gallery.folder"),
      "aria-label": t("gallery.folder"),
      title: t("gallery.folder_help"),
      onfocus: () => this.offerFolders(),
    });
    const form = html(
      "form",
      {
        class: "atelier-row",
        onsubmit: (event) => {
          event.preventDefault();
          this.open(this.field.value);
        },
      },
      this.field,
      this.choices,
      html("button", { type: "submit", class: "atelier-button", text: t("gallery.open") }),
    );
    this.error = html("p", { class: "atelier-message faulty", role: "alert", hidden: true });
    this.filter = new FilterFields({ onChange: () => this.filtered(), language });
    this.counts = html("span", { class: "atelier-counts", role: "status" });
    this.undoButton = html("button", { type: "button", class: "atelier-turn", text: t("gallery.undo"), hidden: true, onclick: () => this.undo() });
    this.grid = new Grid({
      label: t("gallery.pictures"),
      itemAt: (index) => this.itemAt(index),
      imageUrl: (item) => url(item, SMALL_PX),
      marks: (item) => [
        ...(item.problems.some(({ severity }) => severity !== "note") ? ["faulty"] : []),
        ...(this.caption.drafts.has(item.name) ? ["draft"] : []),
      ],
      onChoose: (index) => this.choose(index),
      onRange: (first, last) => this.wanted(first, last),
    });
    this.caption = new CaptionEditor({
      save: (item, text) => this.save(item, text),
      onStep: (step) => this.choose(Math.min(this.numFound - 1, Math.max(0, this.grid.chosen + step))),
      onClose: () => this.choose(-1),
      imageUrl: (item) => url(item, LARGE_PX),
    });
    this.batch = new BatchEditor({
      plan: (edits) => this.ask("plan", { filter: this.filter.value, edits }),
      apply: (edits, digest) => this.ask("apply", { filter: this.filter.value, edits, digest }),
      onApplied: ({ undo }) => {
        this.showUndo(undo);
        this.reload();
      },
      language,
    });
    this.body = html(
      "div",
      { class: "atelier-gallery-body", hidden: true },
      this.filter.element,
      html("div", { class: "atelier-row" }, this.counts, this.undoButton),
      this.grid.element,
      this.caption.element,
      this.batch.element,
    );
    this.hint = html("p", { class: "atelier-faint", text: t("gallery.hint") });
    this.element = html("div", { class: "atelier-panel atelier-gallery" }, form, this.error, this.hint, this.body);
    // what is typed here is no shortcut of ComfyUI's
    this.element.addEventListener("keydown", (event) => {
      if (event.target.matches("input, select, textarea")) event.stopPropagation();
    });
  }

  offerFolders() {
    this.choices.replaceChildren(...this.folders().map((value) => html("option", { value })));
  }

  ask(what, values = {}) {
    return this.request(what, { folder: this.folder, ...values });
  }

  say(error) {
    setText(this.error, error?.message ?? "");
    this.error.hidden = !error;
  }

  /** Open a folder, named as in a Dataset node. */
  async open(folder) {
    this.field.value = folder;
    this.folder = folder;
    this.generation += 1;
    this.pages.clear();
    this.numFound = 0;
    this.grid.show(0, true);
    this.filter.clear();
    this.caption.drafts.clear();
    this.batch.forget();
    this.choose(-1);
    if (!this.batch.kinds.length) {
      try {
        this.batch.offer((await this.request("edits", {})).edits);
      } catch (error) {
        return this.say(error);
      }
    }
    await this.reload(true);
  }

  filtered() {
    this.batch.forget();
    this.choose(-1);
    this.reload(true);
  }

  /** Ask again for what is shown. */
  async reload(fromTop = false) {
    const generation = ++this.generation;
    const filter = this.filter.value;
    const first = fromTop ? 0 : Math.floor((this.grid.seen?.[0] ?? 0) / PAGE);
    try {
      const answer = await this.ask("page", { filter, offset: first * PAGE, limit: PAGE });
      if (generation !== this.generation) return;
      this.say(null);
      this.hint.hidden = true;
      this.body.hidden = false;
      this.pages = new Map([[first, answer.items]]);
      this.numFound = answer.num_found;
      const count = (number) => format.count(number, this.language());
      setText(
        this.counts,
        answer.num_found === answer.num_all
          ? t("gallery.all_pictures", { count: count(answer.num_all) })
          : t("gallery.found", { count: count(answer.num_found), of: count(answer.num_all) }),
      );
      this.counts.title = answer.problems.join("\n");
      this.showUndo(answer.undo);
      this.grid.show(answer.num_found, fromTop);
      if (this.grid.chosen >= 0) this.choose(Math.min(this.grid.chosen, this.numFound - 1));
      const { tags, num_tags } = await this.ask("tags", { filter });
      if (generation === this.generation) this.filter.showTags(tags, num_tags);
    } catch (error) {
      if (generation !== this.generation) return;
      this.say(error);
      if (!this.pages.size) this.body.hidden = true; // the folder was not opened
    }
  }

  itemAt(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE] ?? null;
  }

  /** These can be seen: ask for those that are not there, once the scrolling rests. */
  wanted(first, last) {
    this.grid.seen = [first, last];
    const missing = () => {
      const [from, to] = this.grid.seen;
      const numbers = [];
      for (let page = Math.floor(from / PAGE); page <= Math.floor(to / PAGE); page++) if (!this.pages.has(page)) numbers.push(page);
      return numbers;
    };
    if (!missing().length) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => missing().forEach((page) => this.load(page)), RANGE_MS);
  }

  async load(page) {
    const generation = this.generation;
    this.pages.set(page, null);
    try {
      const answer = await this.ask("page", { filter: this.filter.value, offset: page * PAGE, limit: PAGE });
      if (generation !== this.generation) return;
      if (answer.num_found !== this.numFound) return this.reload(); // the folder was changed meanwhile
      this.pages.set(page, answer.items);
      this.grid.draw();
      if (Math.floor(this.grid.chosen / PAGE) === page) this.choose(this.grid.chosen);
    } catch (error) {
      if (generation !== this.generation) return;
      this.pages.delete(page);
      this.say(error);
    }
  }

  choose(index) {
    this.caption.show(index < 0 ? null : this.itemAt(index));
    this.grid.choose(index);
  }

  async save(item, text) {
    try {
      const answer = await this.ask("caption", { name: item.name, caption: text, before: item.caption });
      this.caption.drafts.delete(item.name);
      this.showUndo(answer.undo);
      this.batch.forget();
      for (const items of this.pages.values()) {
        const at = items?.findIndex(({ name }) => name === item.name) ?? -1;
        if (at >= 0) items[at] = answer.item;
      }
      if (this.caption.item?.name === item.name) this.caption.show(answer.item);
      this.grid.draw();
      const { tags, num_tags } = await this.ask("tags", { filter: this.filter.value });
      this.filter.showTags(tags, num_tags);
    } catch (error) {
      this.tell("error", t("gallery.not_saved"), error.message);
      this.reload();
    }
  }

  showUndo(title) {
    this.undoButton.hidden = !title;
    this.undoButton.title = title ? t("gallery.undo_help", { title }) : "";
  }

  async undo() {
    this.undoButton.disabled = true;
    try {
      const answer = await this.ask("undo");
      this.tell("success", t("gallery.undone", { count: format.count(answer.num, this.language()) }), answer.title);
      this.batch.forget();
      await this.reload();
    } catch (error) {
      this.tell("error", t("gallery.not_undone"), error.message);
    }
    this.undoButton.disabled = false;
  }
}
