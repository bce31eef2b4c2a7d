// What is known of each run, put together from the events and from what the server tells when it is asked.
//
// A run goes through states; events only ever add to what is known. Nothing here touches the page.

export const ENDED = new Set(["finished", "stopped", "interrupted", "failed", "restored"]);

export const MOST_POINTS = 8000;

/** Which of the buttons do something in a state. */
const ALLOWED = {
  running: ["stop", "save", "sample", "pause"],
  paused: ["stop", "save", "sample", "go_on"],
};

export function allowed(run, what) {
  return !!run && (ALLOWED[run.state] ?? []).includes(what) && !run.asked.has(what) && !run.asked.has("stop");
}

function newRun(id, node) {
  return {
    id,
    node,
    name: "",
    folder: "",
    state: "preparing",
    message: "",
    note: "",
    num_steps: null,
    first_step: 0,
    summary: "",
    notes: [],
    schedule: [],
    step: null,
    loss: null,
    step_loss: null,
    controlled: null,
    rate: null,
    seconds_per_step: null,
    seconds_left: null,
    memory_mb: null,
    saved_step: null,
    file: "",
    points: [], // [step, loss of the step, smoothed or null], rising steps
    controlledPoints: [], // [step, controlled], one each time that it was measured
    previews: [],
    asked: new Set(), // what a button asked for and the run has not done yet
  };
}

/** Two lists of points as one: those of `newer` count where both have a step. */
export function mergedPoints(older, newer) {
  if (!newer.length) return older;
  if (!older.length || newer[0][0] > older[older.length - 1][0]) {
    older.push(...newer);
    return older;
  }
  const bySteps = new Map(older.map((point) => [point[0], point]));
  for (const point of newer) bySteps.set(point[0], point);
  return [...bySteps.values()].sort((a, b) => a[0] - b[0]);
}

/** Long runs: every second of the older points, so that neither memory nor the time for a redraw grows without end. */
function fewer(points) {
  if (points.length <= MOST_POINTS) return points;
  const recent = points.length - MOST_POINTS / 4;
  return points.filter((_, i) => i >= recent || i % 2 === 0);
}

const PLAIN = [
  "name",
  "folder",
  "state",
  "message",
  "note",
  "num_steps",
  "first_step",
  "summary",
  "notes",
  "schedule",
  "step",
  "loss",
  "step_loss",
  "rate",
  "seconds_per_step",
  "seconds_left",
  "memory_mb",
  "saved_step",
  "controlled",
  "file",
];
// Empty while a run is being prepared, and then not to replace what is known already.
const KEPT = new Set(["name", "folder", "summary", "notes", "schedule", "num_steps", "first_step"]);

const isEmpty = (value) => value === null || value === "" || (Array.isArray(value) && value.length === 0);

export class Runs {
  constructor() {
    this.byId = new Map();
    this.latest = new Map(); // id of a node -> id of its latest run
  }

  ofNode(node) {
    return this.byId.get(this.latest.get(String(node))) ?? null;
  }

  get live() {
    return [...this.byId.values()].filter((run) => !ENDED.has(run.state));
  }

  /** Take in what an event or an answer says of a run; the run as it is then known. */
  take(detail) {
    const { run: id, node } = detail;
    const run = this.byId.get(id) ?? newRun(id, String(node));
    const isNew = !this.byId.has(id);
    this.byId.set(id, run);
    // A run that has ended does not take the place of one that goes on, in whatever order they become known.
    const other = this.ofNode(run.node);
    if (isNew && (!other || ENDED.has(other.state) || !ENDED.has(detail.state))) this.latest.set(run.node, id);
    const before = { state: run.state, saved: run.saved_step };
    const hadEnded = !isNew && ENDED.has(run.state);
    for (const key of PLAIN) {
      if (!(key in detail) || (KEPT.has(key) && isEmpty(detail[key]) && !isEmpty(run[key]))) continue;
      // An event that was on its way when the run ended must not bring it to life again.
      if (key === "state" && hadEnded && !ENDED.has(detail.state)) continue;
      run[key] = detail[key] ?? (typeof run[key] === "string" ? "" : Array.isArray(run[key]) ? [] : null);
    }
    if (detail.points) run.points = fewer(mergedPoints(run.points, detail.points));
    if (detail.previews) run.previews = [...detail.previews];
    if (detail.controlled_points) run.controlledPoints = [...detail.controlled_points];
    if (typeof detail.controlled === "number" && run.step !== null) {
      const last = run.controlledPoints.at(-1);
      if (!last || (last[1] !== detail.controlled && last[0] < run.step)) {
        run.controlledPoints.push([run.step, detail.controlled]);
      }
    }
    if (run.saved_step !== before.saved) run.asked.delete("save");
    if (run.state !== "running") run.asked.delete("pause");
    if (run.state !== "paused") run.asked.delete("go_on");
    if (ENDED.has(run.state)) run.asked.clear();
    return run;
  }

  /** Take in a preview. */
  preview(detail) {
    const run = this.take({ run: detail.run, node: detail.node });
    run.asked.delete("sample");
    run.previews.push({ step: detail.step, prompt: detail.prompt, seed: detail.seed, image: detail.image });
    return run;
  }
}
