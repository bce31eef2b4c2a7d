import assert from "node:assert/strict";
import test from "node:test";
import { excerpt } from "../../../javascript/comfyui/schedule_panel.js";
import { setLanguage, t } from "../../../javascript/comfyui/text.js";

const tables = {
  en: { atelier: { state: { running: "Running", paused: "Paused" }, at: "step {step}" }, commands: { A: { label: "L" } } },
  zh: { atelier: { state: { running: "训练中" } } },
};

test("a language falls back to its family and then to English, word by word", () => {
  setLanguage("zh-TW", tables);
  assert.equal(t("state.running"), "训练中");
  assert.equal(t("state.paused"), "Paused");
  setLanguage("fr", tables);
  assert.equal(t("state.running"), "Running");
  assert.equal(t("commands.A.label"), "L");
});

test("blanks are filled in as they are, and a word that is missing shows its path", () => {
  setLanguage("en", tables);
  assert.equal(t("at", { step: "<b>{x}</b>" }), "step <b>{x}</b>");
  assert.equal(t("at"), "step {step}");
  assert.equal(t("no.such"), "no.such");
});

test("the excerpt shows the fault where it is, and the whole of it", () => {
  for (const [text, column, fault] of [
    ["1e-4:500, 5e-5:300", 11, "5e-5"],
    ["1e-4:10, cosin", 10, "cosin"],
    ["1e-4:", 6, " "],
    ["", 1, " "],
    [`${"1e-4:+10, ".repeat(40)}oops, 1e-5`, 401, "oops"],
  ]) {
    const parts = excerpt(text, column);
    assert.equal(parts.fault, fault, text);
    const shown = (parts.before + parts.fault + parts.after).replaceAll("…", "").trimEnd();
    assert.ok(text.includes(shown.trim()), shown);
    assert.ok(shown.length < 80);
  }
});
