// A plot that fits itself into its element and tells what is under the pointer. Knows nothing of what it shows.

import { html, svg } from "./elements.js";

const LEFT = 46;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 18;

const identity = (value) => value;

export class Plot {
  /** `onHover(x or null)`: the pointer is over the step x, or has left. */
  constructor(label, onHover) {
    this.svg = svg("svg", { role: "img", "aria-label": label });
    this.element = html("div", { class: "atelier-plot" }, this.svg);
    this.content = null;
    this.onHover = onHover;
    this.size = [0, 0];
    this.hovered = null;
    new ResizeObserver(() => {
      const size = [this.element.clientWidth, this.element.clientHeight];
      if (size[0] === this.size[0] && size[1] === this.size[1]) return;
      this.size = size;
      this.redraw();
    }).observe(this.element);
    this.element.addEventListener("pointermove", (event) => this.hover(event));
    this.element.addEventListener("pointerleave", () => this.hover(null));
  }

  /**
   * content: {x: [from, to], y: [from, to], log: false, xTicks, yTicks: [[value, text], ...], verticals: [x, ...],
   * layers: [{kind: "line" | "dots" | "area", points: [[x, y], ...], name, y: [from, to] of its own, own: true}], now: x}
   */
  draw(content) {
    this.content = content;
    this.redraw();
  }

  redraw() {
    const [width, height] = this.size;
    this.svg.replaceChildren();
    if (!this.content || width < 60 || height < 40) return;
    const { x, y, xTicks = [], yTicks = [], verticals = [], layers, log = false, now = null } = this.content;
    const right = width - RIGHT;
    const bottom = height - BOTTOM;
    const form = log ? Math.log : identity;
    const across = (value) => LEFT + ((value - x[0]) / (x[1] - x[0] || 1)) * (right - LEFT);
    const up = (range, scale) => (value) => {
      const share = (scale(Math.max(value, log && scale === form ? range[0] : -Infinity)) - scale(range[0])) /
        (scale(range[1]) - scale(range[0]) || 1);
      return bottom - Math.min(1.02, Math.max(-0.02, share)) * (bottom - TOP);
    };
    this.across = across;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [];
    const main = up(y, form);
    for (const [value, text] of yTicks) {
      const at = main(value).toFixed(1);
      parts.push(svg("line", { class: "grid", x1: LEFT, x2: right, y1: at, y2: at }));
      parts.push(svg("text", { class: "tick", x: LEFT - 5, y: at, "text-anchor": "end", dy: "0.35em", text }));
    }
    let free = -Infinity;
    for (const [value, text] of xTicks) {
      const at = across(value);
      const half = text.length * 3.4;
      const middle = Math.min(right - half + 4, Math.max(LEFT + half - 12, at));
      if (middle - half < free) continue;
      free = middle + half + 8;
      parts.push(svg("line", { class: "axis", x1: at, x2: at, y1: bottom, y2: bottom + 3 }));
      parts.push(svg("text", { class: "tick", x: middle, y: height - 4, "text-anchor": "middle", text }));
    }
    for (const value of verticals) {
      const at = across(value).toFixed(1);
      parts.push(svg("line", { class: "vertical", x1: at, x2: at, y1: TOP, y2: bottom }));
    }
    parts.push(svg("line", { class: "axis", x1: LEFT, x2: right, y1: bottom, y2: bottom }));
    for (const layer of layers) {
      const own = layer.y ? up(layer.y, identity) : main;
      const path = pathOf(layer, across, own, bottom);
      if (path) parts.push(svg("path", { class: `${layer.kind} ${layer.name}`, d: path }));
    }
    if (now !== null && now >= x[0] && now <= x[1]) {
      const at = across(now).toFixed(1);
      parts.push(svg("line", { class: "now", x1: at, x2: at, y1: TOP, y2: bottom }));
    }
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: bottom, visibility: "hidden" });
    parts.push(this.cursor);
    this.svg.append(...parts);
    this.showCursor();
  }

  hover(event) {
    if (!this.content || !this.across) return;
    let at = null;
    if (event) {
      // The canvas may be zoomed: what the pointer says is in pixels of the screen, the plot is in its own.
      const box = this.element.getBoundingClientRect();
      const inside = ((event.clientX - box.left) / (box.width || 1)) * this.size[0];
      const [from, to] = this.content.x;
      const share = (inside - LEFT) / (this.size[0] - RIGHT - LEFT);
      if (share >= -0.03 && share <= 1.03) at = from + Math.min(1, Math.max(0, share)) * (to - from);
    }
    this.hovered = at;
    this.showCursor();
    this.onHover?.(at);
  }

  showCursor() {
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", this.hovered === null ? "hidden" : "visible");
    if (this.hovered === null) return;
    const at = this.across(this.hovered).toFixed(1);
    this.cursor.setAttribute("x1", at);
    this.cursor.setAttribute("x2", at);
  }
}

function pathOf({ kind, points }, across, up, bottom) {
  if (!points.length) return "";
  const at = points.map(([x, y]) => `${across(x).toFixed(1)},${up(y).toFixed(1)}`);
  if (kind === "dots") return at.map((place) => `M${place}h0`).join("");
  const line = `M${at.join("L")}`;
  if (kind === "line") return line;
  const first = across(points[0][0]).toFixed(1);
  const last = across(points[points.length - 1][0]).toFixed(1);
  return `${line}L${last},${bottom}L${first},${bottom}Z`;
}
