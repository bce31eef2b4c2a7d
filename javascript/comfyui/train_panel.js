// The panel in the Train node: state, numbers, loss curve, previews, and buttons that steer the run.

import { html, neededHeight, setText } from "./elements.js";
import * as format from "./format.js";
import { Plot } from "./plot.js";
import { ENDED, allowed } from "./runs.js";
import * as series from "./series.js";
import { t } from "./text.js";

const WIDE_PX = 560; // from here on the preview stands beside the curve
const CHART_PX = 160; // least heights
const PREVIEW_PX = 200;
const GAP_PX = 6;
const PLOT_COLUMNS = 300;
const BUTTONS = ["stop", "save", "sample", "pause"];

export class TrainPanel {
  /**
   * `ask(run, what)`: the user wants the run to stop, save, sample, pause or go_on. `imageUrl(image)`: where it is.
   * `onResize()`: the panel needs another height.
   */
  constructor({ ask, imageUrl, onResize, language }) {
    this.run = null;
    this.ask = ask;
    this.imageUrl = imageUrl;
    this.onResize = onResize;
    this.language = language;
    this.shown = null; // index of the preview that is looked at; null is the newest
    this.height = 0;
    this.build();
    this.render();
    new ResizeObserver(() => this.measure()).observe(this.element);
  }

  build() {
    this.state = html("span", { class: "atelier-state" });
    this.name = html("span", { class: "atelier-name" });
    this.steps = html("span", { class: "atelier-steps" });
    this.bar = html("div", { class: "atelier-bar-filled" });
    this.progress = html("div", { class: "atelier-bar", role: "progressbar", "aria-valuemin": 0 }, this.bar);
    this.legend = html("div", { class: "atelier-legend" });
    this.plot = new Plot(t("train.plot"), (x) => this.showLegend(x));
    this.chart = html(
      "div",
      { class: "atelier-chart" },
      this.legend,
      this.plot.element,
    );
    this.image = html("img", { loading: "lazy", draggable: "false" });
    this.image.addEventListener("load", () => this.measure());
    this.imageLink = html("a", { target: "_blank", rel: "noopener", title: t("preview.open") }, this.image);
    this.older = this.button("‹", t("preview.older"), () => this.turn(-1), "atelier-turn");
    this.newer = this.button("›", t("preview.newer"), () => this.turn(1), "atelier-turn");
    this.caption = html("span", { class: "atelier-prompt" });
    this.preview = html(
      "figure",
      { class: "atelier-preview" },
      this.imageLink,
      html("figcaption", {}, this.older, this.caption, this.newer),
    );
    this.figures = html("div", { class: "atelier-figures" }, this.chart, this.preview);
    this.strip = html("div", { class: "atelier-strip" });
    this.thumbs = new Map(); // picture -> its place in the strip
    this.drawn = ""; // what the strip shows
    this.numbers = html("dl", { class: "atelier-numbers" });
    this.cells = {};
    for (const key of ["loss", "controlled", "rate", "speed", "left", "memory", "saved"]) {
      const value = html("dd");
      const cell = html("div", { title: t(`numbers.${key}.help`) }, html("dt", { text: t(`numbers.${key}.name`) }), value);
      this.cells[key] = { cell, value };
      this.numbers.append(cell);
    }
    this.message = html("p", { class: "atelier-message", role: "status" });
    this.notesTitle = html("summary");
    this.notesList = html("ul");
    this.notes = html("details", { class: "atelier-notes" }, this.notesTitle, this.notesList);
    this.notes.addEventListener("toggle", () => this.measure());
    this.buttons = {};
    for (const what of BUTTONS) {
      this.buttons[what] = this.button(t(`button.${what}.name`), t(`button.${what}.help`), () => this.press(what));
    }
    this.footer = html("div", { class: "atelier-buttons" }, ...Object.values(this.buttons));
    this.body = html(
      "div",
      { class: "atelier-body" },
      html("div", { class: "atelier-head" }, this.state, this.name, this.steps),
      this.progress,
      this.figures,
      this.strip,
      this.numbers,
      this.message,
      this.notes,
      this.footer,
    );
    this.element = html("div", { class: "atelier-panel" }, this.body);
  }

  button(text, help, press, name = "atelier-button") {
    return html("button", { type: "button", class: name, text, title: help, onclick: press });
  }

  press(what) {
    const wanted = what === "pause" && this.run?.state === "paused" ? "go_on" : what;
    if (allowed(this.run, wanted)) this.ask(this.run, wanted);
  }

  turn(by) {
    this.look((this.shown ?? this.run.previews.length - 1) + by);
  }

  /** Show one of the previews large. */
  look(index) {
    const last = this.run.previews.length - 1;
    const next = Math.min(last, Math.max(0, index));
    this.shown = next === last ? null : next;
    this.render();
  }

  /** Show a run, or that there is none. */
  show(run) {
    if (run !== this.run) {
      this.shown = null;
      this.drawn = "";
      this.thumbs.clear();
    }
    this.run = run;
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.render();
    });
  }

  render() {
    const run = this.run;
    this.element.dataset.state = run?.state ?? "idle";
    for (const part of [this.numbers, this.footer, this.progress]) part.hidden = !run;
    setText(this.state, t(`state.${run?.state ?? "idle"}`));
    setText(this.name, run?.name ?? "");
    this.name.title = [run?.name, run?.folder, run?.summary].filter(Boolean).join("\n");
    this.showMessage(run);
    this.showNotes(run?.notes ?? []);
    if (!run) {
      this.steps.textContent = "";
      this.figures.hidden = this.strip.hidden = true;
      this.measure();
      return;
    }
    const number = (value) => format.count(value, this.language());
    const hasEnd = format.isNumber(run.num_steps);
    setText(this.steps, hasEnd ? t("train.steps", { step: number(run.step ?? run.first_step ?? 0), steps: number(run.num_steps) }) : "");
    const share = hasEnd ? Math.min(1, (run.step ?? run.first_step ?? 0) / run.num_steps) : 0;
    this.bar.style.width = `${(share * 100).toFixed(2)}%`;
    this.progress.setAttribute("aria-valuenow", run.step ?? 0);
    this.progress.setAttribute("aria-valuemax", run.num_steps ?? 0);
    this.showNumbers(run, number);
    this.showPreview(run);
    this.showStrip(run);
    this.figures.hidden = run.points.length === 0 && run.previews.length === 0;
    this.chart.hidden = run.points.length === 0;
    this.drawCurves(run);
    this.showButtons(run);
    this.measure();
  }

  showMessage(run) {
    const lines = run ? this.linesOf(run) : [t("train.idle")];
    setText(this.message, lines.filter(Boolean).join("\n"));
    this.message.hidden = !this.message.textContent;
  }

  linesOf(run) {
    if (run.state === "failed") return [run.message];
    if (ENDED.has(run.state)) {
      return [
        run.state === "restored" ? t("train.restored") : "",
        run.file ? t("train.saved", { file: run.file }) : "",
        ["stopped", "interrupted"].includes(run.state) ? t("train.queue_again") : "",
      ];
    }
    const asked = run.asked.size ? t(`asked.${[...run.asked].at(-1)}`) : "";
    // While steps are taken, what was last said of the preparations is no longer true.
    const isUnderWay = run.step !== null && ["running", "paused"].includes(run.state);
    return [asked, isUnderWay ? "" : run.message, run.note];
  }

  showNotes(notes) {
    this.notes.hidden = notes.length === 0;
    setText(this.notesTitle, t(notes.length === 1 ? "train.note" : "train.notes", { count: notes.length }));
    if (notes.length === this.notesList.children.length && notes.every((n, i) => n === this.notesList.children[i].textContent)) return;
    this.notesList.replaceChildren(...notes.map((note) => html("li", { text: note })));
  }

  showNumbers(run, number) {
    const texts = {
      loss: format.loss(run.loss ?? run.step_loss),
      controlled: format.percent(run.controlled),
      rate: format.rate(run.rate),
      speed: format.significant(run.seconds_per_step),
      left: this.duration(run.seconds_left),
      memory: format.memory(run.memory_mb),
      saved: number(run.saved_step),
    };
    for (const [key, text] of Object.entries(texts)) setText(this.cells[key].value, text);
    const isLive = !ENDED.has(run.state);
    this.cells.left.cell.hidden = !isLive;
    this.cells.controlled.cell.hidden = !format.isNumber(run.controlled);
    this.cells.saved.cell.hidden = !format.isNumber(run.saved_step);
    this.cells.memory.cell.hidden = !format.isNumber(run.memory_mb);
    this.numbers.hidden = run.step === null;
  }

  duration(seconds) {
    const parts = format.duration(seconds);
    if (!parts) return format.significant(null);
    if (parts.seconds !== null) return t("time.seconds", parts);
    if (parts.hours === null) return t("time.minutes", parts);
    return t("time.hours", parts);
  }

  showPreview(run) {
    const last = run.previews.length - 1;
    this.preview.hidden = last < 0;
    if (last < 0) return;
    const index = Math.min(this.shown ?? last, last);
    const { step, prompt, seed, image } = run.previews[index];
    const url = this.imageUrl(image);
    if (this.image.getAttribute("src") !== url) {
      this.image.src = url;
      this.imageLink.href = url;
    }
    this.image.alt = prompt;
    setText(this.caption, t("preview.caption", { step: format.count(step, this.language()), prompt }));
    this.caption.title = t("preview.help", { step: format.count(step, this.language()), prompt, seed });
    this.older.hidden = this.newer.hidden = last < 1;
    this.older.disabled = index === 0;
    this.newer.disabled = index === last;
  }

  /** The previews side by side as they come: steps along X, the model without a network first, a row a prompt. */
  showStrip(run) {
    const inOrder = (values) => [...new Set(values)];
    const steps = inOrder(run.previews.map(({ step }) => step)).sort((a, b) => a - b);
    this.strip.hidden = steps.length < 2;
    const index = Math.min(this.shown ?? Infinity, run.previews.length - 1);
    const drawn = `${run.id} ${run.previews.length}`;
    if (!this.strip.hidden && drawn !== this.drawn) {
      const wasAtEnd = this.strip.scrollLeft + this.strip.clientWidth >= this.strip.scrollWidth - 8;
      const rows = inOrder(run.previews.map(({ seed, prompt }) => `${seed} ${prompt}`));
      const places = new Map(run.previews.map((preview, at) => [`${preview.step} ${preview.seed} ${preview.prompt}`, at]));
      const heads = steps.map((step) => html("span", { class: "atelier-strip-step", text: step ? format.count(step, this.language()) : t("preview.base") }));
      const cells = rows.flatMap((row) => steps.map((step) => this.thumb(run.previews, places.get(`${step} ${row}`))));
      this.strip.style.gridTemplateColumns = `repeat(${steps.length}, 64px)`;
      this.strip.replaceChildren(...heads, ...cells);
      this.drawn = drawn;
      if (wasAtEnd) this.strip.scrollLeft = this.strip.scrollWidth;
    }
    for (const thumb of this.strip.querySelectorAll("button")) thumb.ariaPressed = String(thumb.atelierIndex === index);
  }

  thumb(previews, index) {
    if (index === undefined) return html("span");
    const { step, prompt, seed, image } = previews[index];
    const url = this.imageUrl(image);
    if (!this.thumbs.has(url)) {
      const picture = html("img", { src: url, loading: "lazy", draggable: "false", alt: "" });
      const title = t("preview.help", { step: format.count(step, this.language()), prompt, seed });
      this.thumbs.set(url, html("button", { type: "button", title, onclick: ({ currentTarget }) => this.look(currentTarget.atelierIndex) }, picture));
    }
    const thumb = this.thumbs.get(url);
    thumb.atelierIndex = index;
    return thumb;
  }

  drawCurves(run) {
    if (!run.points.length) return;
    const first = run.points[0][0];
    const last = run.points.at(-1)[0];
    const to = ENDED.has(run.state) ? last : series.stepWindow(first, last, run.num_steps ?? Infinity);
    const x = [first, Math.max(to, first + 1)];
    const y = series.lossRange(run.points);
    const stepText = (value) => [value, format.count(value, this.language())];
    const xTicks = series.stepTicks(x[0], x[1]).map(stepText);
    const single = series.thinned(run.points, PLOT_COLUMNS);
    const layers = [{ kind: "dots", name: single.length < 200 ? "single few" : "single", points: single }];
    const rates = series.clipped(run.schedule, x[0], x[1]);
    if (rates.length > 1) {
      const highest = Math.max(...run.schedule.map(([, value]) => value)) || 1;
      layers.push({ kind: "line", name: "rate", points: rates, y: [0, highest * 1.05] });
    }
    const smooth = run.points.filter((point) => point[2] !== null).map(([step, , value]) => [step, value]);
    layers.push({ kind: "line", name: "smooth", points: series.thinned(smooth, PLOT_COLUMNS) });
    if (run.controlledPoints.length) {
      const values = run.controlledPoints.map(([, value]) => value);
      const reach = Math.max(0.01, ...values.map(Math.abs)) * 1.1;
      layers.push({ kind: "line", name: "controlled", points: run.controlledPoints, y: [-reach, reach] });
      layers.push({ kind: "dots", name: "controlled", points: run.controlledPoints, y: [-reach, reach] });
    }
    this.plot.draw({ x, y, xTicks, yTicks: series.ticks(y[0], y[1], this.plot.size[1] > 250 ? 8 : 4).map((v) => [v, format.significant(v)]), layers });
    this.showLegend(this.plot.hovered);
  }

  showLegend(x) {
    const run = this.run;
    if (!run?.points.length) return;
    const entries = [];
    if (x === null) {
      entries.push(["single", t("legend.single")], ["smooth", t("legend.smooth")]);
      if (run.schedule.length > 1) entries.push(["rate", t("legend.rate")]);
      if (run.controlledPoints.length) entries.push(["controlled", t("legend.controlled")]);
    } else {
      const [step, single, smooth] = run.points[series.nearest(run.points, x)];
      entries.push(["", t("legend.step", { step: format.count(step, this.language()) })]);
      entries.push(["single", format.loss(single)]);
      if (smooth !== null) entries.push(["smooth", format.loss(smooth)]);
      const rate = series.interpolated(run.schedule, step - 1);
      if (rate !== null) entries.push(["rate", format.rate(rate)]);
      const measured = run.controlledPoints.filter(([at]) => at <= step).at(-1);
      if (measured) entries.push(["controlled", format.percent(measured[1])]);
    }
    this.legend.replaceChildren(...entries.map(([name, text]) => html("span", { class: name, text })));
  }

  showButtons(run) {
    const isPaused = run.state === "paused";
    const pause = isPaused ? "go_on" : "pause";
    setText(this.buttons.pause, t(`button.${pause}.name`));
    this.buttons.pause.title = t(`button.${pause}.help`);
    for (const what of BUTTONS) {
      this.buttons[what].disabled = !allowed(run, what === "pause" ? pause : what);
    }
    this.footer.hidden = ENDED.has(run.state);
  }

  /** Find out how high the panel has to be at its width, and say so when that has changed. */
  measure() {
    const width = this.element.clientWidth;
    if (width === 0) return;
    this.figures.classList.toggle("wide", width >= WIDE_PX);
    const least = this.leastFigures(width >= WIDE_PX);
    this.figures.style.minHeight = `${least}px`;
    const needed = neededHeight(this.body, this.figures, least);
    if (Math.abs(needed - this.height) < 2) return;
    this.height = needed;
    this.onResize();
  }

  leastFigures(isWide) {
    const chart = this.chart.hidden ? 0 : CHART_PX;
    const preview = this.preview.hidden ? 0 : PREVIEW_PX;
    return isWide ? Math.max(chart, preview) : chart + preview + (chart && preview ? GAP_PX : 0);
  }
}
