// The curve in the LR Schedule node, drawn while the schedule is typed; a fault is marked where it is.

import { html, neededHeight, setText } from "./elements.js";
import * as format from "./format.js";
import { Plot } from "./plot.js";
import * as series from "./series.js";
import { t } from "./text.js";

const DEBOUNCE_MS = 250;
const PLOT_PX = 120; // least height
const AROUND = 22; // characters shown on each side of a fault

export class SchedulePanel {
  /**
   * `read()`: {schedule, text_encoder, factor, stop_at_end, steps}, or null where the schedule comes by a link.
   * `request(values)`: the answer of the server. `onResize()`: the panel needs another height.
   */
  constructor({ read, request, onResize, language }) {
    this.read = read;
    this.request = request;
    this.onResize = onResize;
    this.language = language;
    this.answer = null;
    this.asked = "";
    this.number = 0;
    this.log = false;
    this.height = 0;
    this.plot = new Plot(t("schedule.plot"), (x) => this.showReadout(x));
    this.readout = html("span", { class: "atelier-readout" });
    this.scale = html("button", {
      type: "button",
      class: "atelier-turn",
      title: t("schedule.log_help"),
      onclick: () => {
        this.log = !this.log;
        this.draw();
      },
    });
    this.place = html("code", { class: "atelier-place" });
    this.error = html("p", { class: "atelier-message", role: "status" });
    this.notes = html("ul", { class: "atelier-note-list" });
    this.head = html("div", { class: "atelier-head" }, this.readout, this.scale);
    this.body = html(
      "div",
      { class: "atelier-body" },
      this.place,
      this.error,
      this.head,
      this.plot.element,
      this.notes,
    );
    this.element = html("div", { class: "atelier-panel atelier-schedule" }, this.body);
    this.draw();
    new ResizeObserver(() => this.measure()).observe(this.element);
  }

  /** One of the values may have changed: ask again once the typing pauses. */
  changed() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.update(), DEBOUNCE_MS);
  }

  async update() {
    const values = this.read();
    const asked = JSON.stringify(values);
    if (asked === this.asked) return;
    this.asked = asked;
    this.number += 1;
    const number = this.number;
    if (!values) {
      this.take({ linked: true });
      return;
    }
    let answer;
    try {
      answer = await this.request(values);
    } catch (error) {
      this.asked = ""; // the same may be asked again
      answer = { error: { message: error.message, column: null, setting: "" } };
    }
    // An answer to what was typed earlier may come later.
    if (number === this.number) this.take(answer, values);
  }

  take(answer, values = null) {
    this.values = values;
    this.problem = answer.error ?? null;
    this.linked = answer.linked === true;
    if (!this.problem) this.answer = answer.linked ? null : answer;
    this.draw();
  }

  draw() {
    const { problem, answer } = this;
    this.element.classList.toggle("faulty", !!problem);
    const text = problem && this.values ? this.values[problem.setting?.endsWith("text_encoder") ? "text_encoder" : "schedule"] : "";
    this.place.hidden = !problem?.column;
    if (problem?.column) this.place.replaceChildren(...marked(text, problem.column));
    setText(this.error, problem ? problem.message : this.linked ? t("schedule.linked") : "");
    this.error.hidden = !this.error.textContent;
    const notes = problem || !answer ? [] : answer.notes;
    this.notes.replaceChildren(...notes.map((note) => html("li", { text: note })));
    this.notes.hidden = notes.length === 0;
    this.head.hidden = this.plot.element.hidden = !answer;
    setText(this.scale, t(this.log ? "schedule.log" : "schedule.linear"));
    if (answer?.points.length) this.plot.draw(this.content(answer));
    else this.plot.draw(null);
    this.showReadout(this.plot.hovered);
    this.measure();
  }

  content({ points, highest, cycle_ends, num_steps }) {
    const positive = points.map(([, value]) => value).filter((value) => value > 0);
    const isLog = this.log && positive.length > 0;
    const x = [0, Math.max(1, num_steps)];
    const top = highest > 0 ? highest : 1;
    let y = [0, top * 1.06];
    let yTicks = series.ticks(0, top, 4);
    if (isLog) {
      const low = Math.max(Math.min(...positive), top * 1e-4);
      y = [low === top ? low / 10 : low / 1.15, top * 1.15];
      yTicks = series.decades(y[0], y[1]);
      if (yTicks.length < 2) yTicks = [low, top];
    }
    // The rate of the last step holds until the end of the run.
    const drawn = [...points, [num_steps, points[points.length - 1][1]]];
    return {
      x,
      y,
      log: isLog,
      xTicks: series.stepTicks(x[0], x[1]).map((step) => [step, format.count(step, this.language())]),
      yTicks: yTicks.map((value) => [value, format.rate(value)]),
      verticals: cycle_ends.length <= 200 ? cycle_ends : [],
      layers: [
        { kind: "area", name: "rate", points: drawn },
        { kind: "line", name: "rate", points: drawn },
      ],
    };
  }

  showReadout(x) {
    const { answer } = this;
    if (!answer) {
      setText(this.readout, "");
      return;
    }
    const steps = (value) => format.count(value, this.language());
    if (x === null) {
      const cycles = answer.cycle_ends.length;
      const about = { highest: format.rate(answer.highest), steps: steps(answer.num_steps), cycles };
      setText(this.readout, t(cycles > 1 ? "schedule.summary_cycles" : "schedule.summary", about));
      return;
    }
    const step = Math.min(answer.num_steps - 1, Math.max(0, Math.round(x)));
    const value = series.interpolated(answer.points, step);
    setText(this.readout, t("schedule.at", { step: steps(step), rate: format.rate(value) }));
  }

  measure() {
    if (this.element.clientWidth === 0) return;
    const needed = neededHeight(this.body, this.plot.element, PLOT_PX);
    if (Math.abs(needed - this.height) < 2) return;
    this.height = needed;
    this.onResize();
  }
}

/** The neighbourhood of a fault with its place marked; `column` counts from 1 and may be one past the end. */
export function excerpt(text, column) {
  const at = Math.min(column - 1, text.length);
  const from = Math.max(0, at - AROUND);
  const to = Math.min(text.length, at + AROUND);
  const end = /[\w.+%-]/.test(text[at] ?? "") ? at + /^[\w.+%-]+/.exec(text.slice(at))[0].length : at + 1;
  return {
    before: (from > 0 ? "…" : "") + text.slice(from, at),
    fault: text.slice(at, Math.min(end, to)) || " ",
    after: text.slice(Math.min(end, to), to) + (to < text.length ? "…" : ""),
  };
}

function marked(text, column) {
  const { before, fault, after } = excerpt(text.replace(/\s/g, " "), column);
  return [html("span", { text: before }), html("mark", { text: fault }), html("span", { text: after })];
}
