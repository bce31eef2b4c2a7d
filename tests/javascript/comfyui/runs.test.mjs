import assert from "node:assert/strict";
import test from "node:test";
import { MOST_POINTS, Runs, allowed, mergedPoints } from "../../../javascript/comfyui/runs.js";

const head = { run: "a1", node: "4" };
const begun = () => {
  const runs = new Runs();
  runs.take({ ...head, state: "preparing", name: null, notes: [], schedule: [], num_steps: null });
  runs.take({ ...head, state: "running", name: "toys", num_steps: 100, first_step: 0, notes: ["n"], schedule: [[0, 1]] });
  return runs;
};

test("what is empty in a later event does not wipe out what is known", () => {
  const runs = begun();
  const run = runs.take({ ...head, state: "paused", name: "", notes: [], schedule: [], num_steps: null });
  assert.deepEqual([run.name, run.notes, run.schedule, run.num_steps, run.state], ["toys", ["n"], [[0, 1]], 100, "paused"]);
});

test("a run that has ended is not brought to life by a late event", () => {
  const runs = begun();
  runs.take({ ...head, state: "finished", file: "toys.safetensors" });
  assert.equal(runs.take({ ...head, state: "running", step: 9, points: [[9, 1, 1]] }).state, "finished");
  assert.equal(runs.ofNode("4").file, "toys.safetensors");
});

test("points come together in order, each step once, however events and answers interleave", () => {
  const one = mergedPoints([[1, 0.5, null], [2, 0.4, 0.45]], [[3, 0.3, 0.4]]);
  const two = mergedPoints(one, [[2, 0.4, 0.45], [3, 0.3, 0.4], [4, 0.2, 0.3]]);
  assert.deepEqual(two.map(([step]) => step), [1, 2, 3, 4]);
});

test("buttons are allowed only where they do something", () => {
  const runs = begun();
  const of = (run) => ["stop", "save", "sample", "pause", "go_on"].filter((what) => allowed(run, what));
  const run = runs.ofNode("4");
  assert.deepEqual(of(run), ["stop", "save", "sample", "pause"]);
  run.state = "paused";
  assert.deepEqual(of(run), ["stop", "save", "sample", "go_on"]);
  for (const state of ["preparing", "stopping", "finished", "stopped", "interrupted", "failed", "restored"]) {
    assert.deepEqual(of({ ...run, state }), [], state);
  }
  assert.deepEqual(of(null), []);
});

test("what was asked for is asked once, until it is done", () => {
  const runs = begun();
  const run = runs.ofNode("4");
  for (const [what, done] of [
    ["save", () => runs.take({ ...head, saved_step: 7 })],
    ["sample", () => runs.preview({ ...head, step: 7, prompt: "p", seed: 1, image: {} })],
    ["pause", () => runs.take({ ...head, state: "paused" })],
    ["go_on", () => runs.take({ ...head, state: "running" })],
  ]) {
    run.asked.add(what);
    assert.equal(allowed(run, what), false, what);
    done();
    assert.deepEqual([...run.asked], [], what);
  }
  run.asked.add("stop");
  assert.equal(allowed(run, "save"), false, "a run that is to stop is asked for nothing more");
});

test("the latest run of a node is shown, and one that goes on before one that has ended", () => {
  const runs = begun();
  runs.take({ run: "b2", node: "4", state: "finished" }); // known later, ended
  assert.equal(runs.ofNode("4").id, "a1");
  runs.take({ run: "a1", node: "4", state: "stopped" });
  runs.take({ run: "c3", node: "4", state: "preparing" });
  assert.equal(runs.ofNode("4").id, "c3");
  assert.equal(runs.ofNode(4).id, "c3");
  assert.equal(runs.ofNode("5"), null);
});

test("controlled loss is kept once for each time that it was measured", () => {
  const runs = begun();
  for (const [step, controlled] of [[1, null], [2, -0.01], [3, -0.01], [4, -0.02], [5, -0.02]]) {
    runs.take({ ...head, step, controlled });
  }
  assert.deepEqual(runs.ofNode("4").controlledPoints, [[2, -0.01], [4, -0.02]]);
});

test("an answer with the whole history replaces the previews instead of doubling them", () => {
  const runs = begun();
  const preview = { step: 5, prompt: "p", seed: 1, image: { filename: "f" } };
  runs.preview({ ...head, ...preview });
  const controlled_points = [[2, -0.01], [5, -0.02]];
  const run = runs.take({ ...head, step: 5, controlled: -0.02, previews: [preview], controlled_points });
  assert.equal(run.previews.length, 1);
  assert.deepEqual(run.controlledPoints, controlled_points);
});

test("a long run keeps its first, its last and its recent points, and not all of the others", () => {
  const runs = begun();
  const num = 10 * MOST_POINTS;
  for (let first = 1; first <= num; first += 500) {
    runs.take({ ...head, points: Array.from({ length: 500 }, (_, i) => [first + i, 0.1, 0.1]) });
  }
  const steps = runs.ofNode("4").points.map(([step]) => step);
  assert.ok(steps.length <= MOST_POINTS, `${steps.length}`);
  assert.deepEqual([steps[0], steps.at(-1), steps.at(-1000)], [1, num, num - 999]);
  assert.ok(steps.every((step, i) => i === 0 || step > steps[i - 1]));
});
