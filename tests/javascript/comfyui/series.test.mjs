import assert from "node:assert/strict";
import test from "node:test";
import * as series from "../../../javascript/comfyui/series.js";

const wave = (length) => Array.from({ length }, (_, i) => [i + 1, Math.sin(i / 7) + (i % 911 === 5 ? 3 : 0)]);

test("thinning keeps the first, the last, the lowest and the highest point", () => {
  const points = wave(20_000);
  const kept = series.thinned(points, 300);
  assert.ok(kept.length <= 1200);
  assert.deepEqual([kept[0], kept.at(-1)], [points[0], points.at(-1)]);
  for (const pick of [Math.min, Math.max]) {
    assert.equal(pick(...kept.map(([, y]) => y)), pick(...points.map(([, y]) => y)));
  }
});

test("thinned points stay in order and are points that were given", () => {
  const points = wave(5000);
  const kept = series.thinned(points, 100);
  assert.ok(kept.every((point, i) => points.includes(point) && (i === 0 || kept[i - 1][0] < point[0])));
});

test("few points are all kept, and those without a value are left out", () => {
  assert.deepEqual(series.thinned([[1, 2], [2, null], [3, NaN], [4, 1]], 100), [[1, 2], [4, 1]]);
});

test("the range of losses holds the whole smoothed line and shrugs at a single wild step", () => {
  const points = Array.from({ length: 500 }, (_, i) => [i, 0.1 + (i % 10) / 100, 0.14]);
  points[250][1] = 40;
  const [low, high] = series.lossRange(points);
  assert.ok(low <= 0.1 && high >= 0.19 && high < 1, `${low} ${high}`);
});

test("a range is never empty", () => {
  for (const points of [[], [[1, 0.5, null]], [[1, 0, 0]], [[1, null, null]]]) {
    const [low, high] = series.lossRange(points);
    assert.ok(low < high, JSON.stringify(points));
  }
});

test("the steps axis holds the last step, doubles as it goes, and ends with the run", () => {
  let before = 0;
  let changes = 0;
  for (let last = 1; last <= 1600; last += 1) {
    const end = series.stepWindow(1, last, 1600);
    assert.ok(end >= last && end <= 1600 && end >= before);
    changes += end !== before;
    before = end;
  }
  assert.ok(changes <= 8, `the axis moved ${changes} times`);
  assert.equal(before, 1600);
  assert.ok(series.stepWindow(500, 510, null) >= 510);
});

test("ticks are round, rising and within the range", () => {
  for (const [low, high] of [[0, 1e-4], [0.03, 0.37], [-0.2, 0.1], [1, 1600], [5, 5.001]]) {
    const found = series.ticks(low, high);
    assert.ok(found.length >= 2 && found.length <= 6, `${low} ${high}: ${found}`);
    assert.ok(found.every((tick, i) => tick >= low - 1e-12 && tick <= high * (1 + 1e-9) && (!i || tick > found[i - 1])));
  }
  assert.deepEqual(series.ticks(0, 1e-4), [0, 2.5e-5, 5e-5, 7.5e-5, 1e-4]);
  assert.deepEqual(series.ticks(1, 1), []);
});

test("decades are the powers of ten within the range", () => {
  assert.deepEqual(series.decades(1e-7, 1e-4), [1e-7, 1e-6, 1e-5, 1e-4]);
  assert.deepEqual(series.decades(2e-7, 9e-6), [1e-6]);
});

test("the nearest point is the nearest point", () => {
  const points = [[1, 0], [4, 0], [5, 0], [9, 0]];
  for (let x = 0; x <= 10; x += 0.25) {
    const best = Math.min(...points.map(([at]) => Math.abs(at - x)));
    assert.equal(Math.abs(points[series.nearest(points, x)][0] - x), best);
  }
  assert.equal(series.nearest([], 3), -1);
});

test("between two points the line is read, at a jump what comes after it, and outside nothing", () => {
  const points = [[0, 0], [10, 1], [10, 5], [20, 5]];
  assert.equal(series.interpolated(points, 5), 0.5);
  assert.equal(series.interpolated(points, 10), 5);
  assert.equal(series.interpolated(points, 20), 5);
  assert.equal(series.interpolated(points, 21), null);
  assert.equal(series.interpolated([], 1), null);
});

test("a clipped line begins and ends where it is cut, on the line", () => {
  const points = [[0, 0], [10, 1], [100, 0]];
  assert.deepEqual(series.clipped(points, 5, 55), [[5, 0.5], [10, 1], [55, 0.5]]);
  assert.deepEqual(series.clipped(points, -5, 500), points);
  assert.deepEqual(series.clipped(points, 200, 300), []);
  assert.deepEqual(series.clipped([], 0, 1), []);
});
