// A grid of any number of pictures: only the cells that can be seen exist, and only their pictures are asked for.

import { html, setText } from "./elements.js";

const CELL_PX = 104; // least width
const TEXT_PX = 32; // two lines of the caption
const GAP_PX = 6;
const MARGIN_ROWS = 1; // above and below what is seen

export class Grid {
  /**
   * `itemAt(index)`: {name, caption, ...}, or null while it is not known; asked again after `draw`. `imageUrl(item)`: its small
   * picture. `marks(item)`: classes of its cell. `onChoose(index)`: a cell was clicked, or reached by the keyboard.
   * `onRange(first, last)`: what can be seen.
   */
  constructor({ label, itemAt, imageUrl, marks, onChoose, onRange }) {
    Object.assign(this, { itemAt, imageUrl, marks, onChoose, onRange });
    this.count = 0;
    this.chosen = -1;
    this.top = 0; // kept while the grid is not in the page
    this.cells = new Map(); // index -> cell
    this.space = html("div", { class: "atelier-grid-space" });
    this.element = html("div", {
      class: "atelier-grid",
      role: "listbox",
      "aria-label": label,
      tabindex: "0",
      onscroll: () => {
        this.top = this.element.scrollTop;
        this.drawSoon();
      },
      onkeydown: (event) => this.key(event),
    });
    this.element.append(this.space);
    new ResizeObserver(() => {
      if (this.element.clientWidth === 0) return;
      this.element.scrollTop = this.top;
      this.draw();
    }).observe(this.element);
  }

  /** So many pictures, from the first one on if `fromTop`. */
  show(count, fromTop) {
    this.count = count;
    if (fromTop) this.element.scrollTop = this.top = 0;
    this.draw();
  }

  choose(index) {
    this.chosen = index;
    if (index >= 0 && this.columns) {
      const top = Math.floor(index / this.columns) * this.rowPx;
      const { scrollTop, clientHeight } = this.element;
      if (top < scrollTop) this.element.scrollTop = top;
      else if (top + this.rowPx > scrollTop + clientHeight) this.element.scrollTop = top + this.rowPx - clientHeight;
    }
    this.draw();
  }

  drawSoon() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const width = this.element.clientWidth - GAP_PX;
    if (width <= 0) return;
    this.columns = Math.max(1, Math.floor(width / (CELL_PX + GAP_PX)));
    const cellPx = Math.floor(width / this.columns) - GAP_PX;
    this.rowPx = cellPx + TEXT_PX + GAP_PX;
    const numRows = Math.ceil(this.count / this.columns);
    this.space.style.height = `${numRows * this.rowPx + GAP_PX}px`;
    const firstRow = Math.max(0, Math.floor(this.element.scrollTop / this.rowPx) - MARGIN_ROWS);
    const lastRow = Math.ceil((this.element.scrollTop + this.element.clientHeight) / this.rowPx) + MARGIN_ROWS;
    const first = firstRow * this.columns;
    const last = Math.min(this.count, lastRow * this.columns) - 1;
    for (const [index, cell] of this.cells) {
      if (index >= first && index <= last) continue;
      cell.element.remove(); // the browser then drops a picture that has not come yet
      this.cells.delete(index);
    }
    for (let index = first; index <= last; index++) {
      let cell = this.cells.get(index);
      if (!cell) {
        cell = this.newCell(index);
        this.cells.set(index, cell);
        this.space.append(cell.element);
      }
      const { style } = cell.element;
      style.width = `${cellPx}px`;
      style.height = `${this.rowPx - GAP_PX}px`;
      style.transform = `translate(${GAP_PX + (index % this.columns) * (cellPx + GAP_PX)}px, ${GAP_PX + Math.floor(index / this.columns) * this.rowPx}px)`;
      cell.image.style.height = `${cellPx}px`;
      this.fill(cell, index);
    }
    if (last >= first) this.onRange(first, last);
  }

  newCell(index) {
    const image = html("img", { alt: "", draggable: "false", decoding: "async" });
    image.addEventListener("error", () => image.classList.add("missing"));
    const caption = html("span", { class: "atelier-cell-text" });
    const element = html("div", { class: "atelier-cell", role: "option", onclick: () => this.onChoose(index) }, image, caption);
    return { element, image, caption, url: "" };
  }

  fill(cell, index) {
    const item = this.itemAt(index);
    const url = item ? this.imageUrl(item) : "";
    if (cell.url !== url) {
      cell.url = url;
      cell.image.classList.remove("missing");
      if (url) cell.image.src = url;
      else cell.image.removeAttribute("src");
    }
    setText(cell.caption, item ? item.caption || item.name : "");
    cell.element.title = item ? `${item.name}\n${item.caption}` : "";
    cell.element.className = ["atelier-cell", ...(item ? this.marks(item) : ["waiting"])].join(" ");
    cell.element.setAttribute("aria-selected", String(index === this.chosen));
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
    if (!step || !this.count) return;
    event.preventDefault();
    event.stopPropagation();
    this.onChoose(Math.min(this.count - 1, Math.max(0, this.chosen < 0 ? 0 : this.chosen + step)));
  }
}
