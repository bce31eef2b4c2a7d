import assert from "node:assert/strict";
import test from "node:test";
import * as format from "../../../javascript/comfyui/format.js";

test("what is not known is a dash, never NaN or null", () => {
  for (const name of ["significant", "loss", "rate", "count", "percent", "memory"]) {
    for (const value of [null, undefined, NaN, Infinity]) assert.equal(format[name](value), "–", name);
  }
  assert.equal(format.duration(null), null);
  assert.equal(format.duration(-1), null);
});

test("rates read as they are written in a schedule", () => {
  const texts = [[1e-4, "1e-4"], [5.25e-7, "5.25e-7"], [1.5e-3, "1.5e-3"], [0, "0"], [1, "1"], [0.02, "0.02"]];
  for (const [value, text] of texts) assert.equal(format.rate(value), text);
});

test("losses of one size have one width", () => {
  assert.equal(format.loss(0.0931), "0.0931");
  assert.equal(format.loss(0.12), "0.1200");
  assert.equal(format.loss(1.2345), "1.234");
  assert.equal(format.loss(1e-5), "1.00e-5");
});

test("a change in percent has its sign, and a change that rounds to nothing has none", () => {
  assert.equal(format.percent(-0.02), "−2.0 %");
  assert.equal(format.percent(0.134), "+13.4 %");
  assert.equal(format.percent(-0.0001), "0.0 %");
});

test("times are in the one or two largest units, and never 60 of the smaller", () => {
  assert.deepEqual(format.duration(4.2), { hours: null, minutes: null, seconds: 5 });
  assert.deepEqual(format.duration(59.5), { hours: null, minutes: 1, seconds: null });
  assert.deepEqual(format.duration(3599), { hours: 1, minutes: 0, seconds: null });
  assert.deepEqual(format.duration(7500), { hours: 2, minutes: 5, seconds: null });
});

test("memory is in megabytes or gigabytes", () => {
  assert.equal(format.memory(840.4), "840 MB");
  assert.equal(format.memory(5213), "5.1 GB");
});
