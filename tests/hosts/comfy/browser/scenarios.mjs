// What a user does in the page, and what they then see. Python says which scenario; the last line that is printed is what
// was seen, as JSON.

import { createRequire } from "node:module";

const asked = JSON.parse(process.argv[2]);
const { chromium } = createRequire(import.meta.url)(asked.playwright);

const RUN = "00112233445566aa";
const faults = [];

async function openPage(browser) {
  const page = await browser.newPage({ viewport: { width: 1500, height: 1500 } });
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("dialog", (dialog) => {
    faults.push(`a dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && /extensions\/atelier|Atelier/.test(message.text())) {
      faults.push(message.text());
    }
  });
  await page.goto(asked.url, { waitUntil: "domcontentloaded", timeout: 120_000 });
  await ready(page);
  return page;
}

async function ready(page) {
  await page.waitForFunction(() => window.app?.extensionManager && window.LiteGraph?.registered_node_types?.AtelierTrain, null, {
    timeout: 120_000,
  });
  await page.waitForTimeout(1500);
}

/** A graph of one node of a class; its id. On a slow machine ComfyUI puts its first workflow over it: then once more. */
async function only(page, comfyClass, width = 420) {
  for (let attempt = 0; attempt < 10; attempt++) {
    const id = await add(page, comfyClass, width);
    await page.waitForTimeout(1000);
    if (await page.evaluate((id) => window.app.graph.getNodeById(Number(id)) != null, id)) return id;
  }
  throw new Error(`a graph of ${comfyClass} does not stay`);
}

function add(page, comfyClass, width) {
  return page.evaluate(
    ([name, width]) => {
      const { graph, canvas } = window.app;
      graph.clear();
      const node = window.LiteGraph.createNode(name);
      graph.add(node);
      node.pos = [150, 120];
      node.setSize([width, node.size[1]]);
      canvas.ds.scale = 1;
      canvas.ds.offset = [0, 0];
      canvas.setDirty(true, true);
      return String(node.id);
    },
    [comfyClass, width],
  );
}

const send = (page, event, detail) =>
  page.evaluate(
    ([event, detail]) =>
      window.comfyAPI.api.api.dispatchEvent(new CustomEvent(`atelier.${event}`, { detail })),
    [event, detail],
  );

const begun = (node, more = {}) => ({
  node,
  run: RUN,
  name: "toys <img src=x onerror=alert(1)>",
  folder: "output/atelier/toys",
  state: "running",
  message: "",
  num_steps: 100,
  first_step: 0,
  summary: "15 pictures",
  notes: ["<b>one picture has no caption</b>"],
  schedule: [[0, 0], [10, 1e-4], [100, 0]],
  ...more,
});

const progressed = (node, more = {}) => ({
  node,
  run: RUN,
  state: "running",
  step: 50,
  num_steps: 100,
  loss: 0.1234,
  step_loss: 0.2,
  controlled: -0.02,
  rate: 5e-5,
  seconds_per_step: 0.42,
  seconds_left: 21,
  memory_mb: 5213,
  saved_step: 40,
  note: "",
  points: Array.from({ length: 50 }, (_, i) => [i + 1, 0.1 + (i % 7) / 50, i > 3 ? 0.12 : null]),
  ...more,
});

/** What the panel of the Train node shows. */
const panel = (page) =>
  page.evaluate(() => {
    const root = document.querySelector(".atelier-panel[data-state]");
    const text = (name) => [...root.querySelectorAll(name)].filter((e) => e.offsetParent).map((e) => e.textContent);
    const inside = (element) => {
      const [a, b] = [root.getBoundingClientRect(), element.getBoundingClientRect()];
      return b.left >= a.left - 1 && b.right <= a.right + 1 && b.top >= a.top - 1 && b.bottom <= a.bottom + 1;
    };
    const parts = [...root.querySelectorAll("button, dd, dt, p, .atelier-plot, .atelier-name, img")];
    return {
      state: text(".atelier-state")[0],
      name: text(".atelier-name")[0],
      steps: text(".atelier-steps")[0],
      message: text(".atelier-message")[0] ?? "",
      numbers: text(".atelier-numbers dd"),
      notes: [...root.querySelectorAll(".atelier-notes li")].map((e) => e.textContent),
      buttons: [...root.querySelectorAll(".atelier-buttons button")].filter((e) => e.offsetParent && !e.disabled).map((e) => e.textContent),
      curves: [...root.querySelectorAll(".atelier-plot path")].map((e) => e.getAttribute("class")),
      legend: text(".atelier-legend span"),
      images: root.querySelectorAll("img").length,
      src: root.querySelector("img")?.getAttribute("src") ?? "",
      outside: parts.filter((e) => e.offsetParent && !inside(e)).map((e) => e.className || e.tagName),
      smallestText: Math.min(...parts.filter((e) => e.offsetParent).map((e) => parseFloat(getComputedStyle(e).fontSize))),
    };
  });

/** What the gallery beside the canvas shows. */
const gallery = (page) =>
  page.evaluate(() => {
    const root = document.querySelector(".atelier-gallery");
    const shown = (name) => [...root.querySelectorAll(name)].filter((e) => e.getClientRects().length).map((e) => e.textContent);
    const cells = [...root.querySelectorAll(".atelier-cell")];
    return {
      counts: shown(".atelier-counts")[0] ?? "",
      error: shown(".atelier-message.faulty")[0] ?? "",
      message: shown(".atelier-batch .atelier-message")[0] ?? "",
      changes: shown(".atelier-changes li"),
      buttons: [...root.querySelectorAll("button:not(.atelier-chip)")].filter((e) => e.getClientRects().length && !e.disabled).map((e) => e.textContent),
      chips: shown(".atelier-chip").slice(0, 3),
      numCells: cells.length,
      captions: cells.map((cell) => cell.querySelector(".atelier-cell-text").textContent),
      loaded: cells.filter((cell) => cell.querySelector("img").naturalWidth).length,
      faulty: cells.filter((cell) => cell.classList.contains("faulty")).length,
      elements: [...root.querySelectorAll("*")].filter((e) => ["B", "SCRIPT", "IFRAME"].includes(e.tagName)).length,
      caption: root.querySelector("textarea").value,
      file: shown(".atelier-caption-editor .atelier-file")[0] ?? "",
      notes: shown(".atelier-caption-editor li"),
    };
  });

/** The longest that the page did not answer while something goes on, in ms. */
async function longestPause(page, doing) {
  await page.evaluate(() => {
    window.pauses = { last: performance.now(), longest: 0, on: true };
    const look = () => {
      const now = performance.now();
      window.pauses.longest = Math.max(window.pauses.longest, now - window.pauses.last);
      window.pauses.last = now;
      if (window.pauses.on) setTimeout(look, 0);
    };
    look();
  });
  await doing();
  return page.evaluate(() => {
    window.pauses.on = false;
    return Math.round(window.pauses.longest);
  });
}

/** A Dataset node that names a folder, its gallery opened by the node's button; how long until pictures are there, in ms. */
async function openGallery(page, folder) {
  const id = await only(page, "AtelierDatasetFolder");
  return page.evaluate(
    async ([id, folder]) => {
      const node = window.app.graph.getNodeById(Number(id));
      node.pos = [700, 200];
      node.widgets.find(({ name }) => name === "folder").value = folder;
      const begin = performance.now();
      node.widgets.find(({ name }) => name === "atelier_gallery").callback();
      const isThere = () => {
        const images = [...document.querySelectorAll(".atelier-cell img")].slice(0, 6);
        return (images.length > 3 && images.every((image) => image.complete && image.src)) || document.querySelector(".atelier-gallery > .faulty:not([hidden])");
      };
      while (!isThere() && performance.now() - begin < 60_000) await new Promise((done) => setTimeout(done, 5));
      return Math.round(performance.now() - begin);
    },
    [id, folder],
  );
}

const scenarios = {
  async gallery(page) {
    const asks = [];
    page.on("request", (request) => {
      if (request.url().includes("/atelier/gallery/")) asks.push(request.url());
    });
    const seen = {};
    seen.openedAfterMs = await openGallery(page, asked.folder);
    await page.waitForTimeout(1000);
    seen.opened = await gallery(page);
    if (asked.pictures) await page.screenshot({ path: `${asked.pictures}/opened.png` });

    const grid = page.locator(".atelier-grid");
    seen.longestPauseMs = await longestPause(page, async () => {
      for (let part = 1; part <= 40; part++) {
        await grid.evaluate((element, part) => (element.scrollTop = (element.scrollHeight * part) / 40), part);
        await page.waitForTimeout(25);
      }
    });
    const begin = Date.now();
    await page.waitForFunction(() => {
      const cells = [...document.querySelectorAll(".atelier-cell")];
      return cells.length > 0 && cells.every((cell) => !cell.classList.contains("waiting") && cell.querySelector("img").complete);
    });
    seen.endThereAfterMs = Date.now() - begin;
    seen.end = await gallery(page);
    seen.numThumbnails = asks.filter((url) => url.includes("/thumbnail")).length;

    await page.locator(".atelier-filter summary").click();
    await page.locator(".atelier-chip").first().click();
    await page.waitForTimeout(800);
    seen.withTag = await gallery(page);
    await page.locator(".atelier-chip[data-state=all]").click();
    await page.waitForTimeout(800);
    seen.withoutTag = await gallery(page);
    await page.locator(".atelier-chip[data-state=none]").click();
    if (asked.pictures) await page.screenshot({ path: `${asked.pictures}/tags.png` });
    await page.locator(".atelier-filter summary").click();
    await page.locator(".atelier-filter > input").fill("onerror");
    await page.waitForTimeout(1000);
    await page.locator(".atelier-cell").first().click();
    await page.waitForTimeout(500);
    seen.hostile = await gallery(page);
    if (asked.pictures) await page.screenshot({ path: `${asked.pictures}/hostile.png` });
    seen.ran = await page.evaluate(() => window.ran ?? null);

    await page.locator(".atelier-gallery textarea").fill("a new caption, onerror");
    await page.keyboard.press("Control+Enter");
    await page.waitForTimeout(1000);
    seen.saved = await gallery(page);
    await page.locator(".atelier-gallery button", { hasText: "Undo" }).click();
    await page.waitForTimeout(1000);
    seen.savedUndone = await gallery(page);
    seen.toasts = await page.locator(".p-toast-message").allTextContents();

    await page.locator(".atelier-filter > input").fill("");
    await page.waitForTimeout(1000);
    await page.locator(".atelier-batch summary").click();
    await page.locator(".atelier-batch input").fill("hat -> <i>cap</i>");
    await page.keyboard.press("Enter");
    await page.waitForSelector(".atelier-changes:not([hidden])");
    seen.planned = await gallery(page);
    if (asked.pictures) await page.screenshot({ path: `${asked.pictures}/planned.png` });
    const written = Date.now();
    await page.locator(".atelier-button.primary").click();
    await page.waitForFunction(() => document.querySelector(".atelier-batch .atelier-message").textContent.includes("written"));
    seen.writtenAfterMs = Date.now() - written;
    await page.waitForTimeout(500);
    seen.applied = await gallery(page);
    if (asked.undo) {
      await page.locator(".atelier-gallery button", { hasText: "Undo" }).click();
      await page.waitForTimeout(1500);
      seen.undone = await gallery(page);
    }
    return seen;
  },

  async galleryFault(page) {
    await openGallery(page, asked.folder);
    return gallery(page);
  },

  async galleryAgain(page) {
    await openGallery(page, asked.folder);
    await page.waitForTimeout(500);
    await page.locator(".atelier-cell").nth(1).click();
    await page.locator(".atelier-gallery textarea").fill("not saved yet");
    const before = await gallery(page);
    const toggle = () => page.evaluate(() => window.app.extensionManager.sidebarTab.toggleSidebarTab("atelier-data-set"));
    await toggle();
    await page.waitForTimeout(500);
    const isGone = await page.evaluate(() => !document.querySelector(".atelier-gallery"));
    await toggle();
    await page.waitForTimeout(700);
    const inputs = await page.evaluate(async () => Object.values((await window.app.graphToPrompt()).output).map(({ inputs }) => Object.keys(inputs)));
    return { before, isGone, after: await gallery(page), inputs };
  },

  async progress(page) {
    const node = await only(page, "AtelierTrain", asked.width);
    const seen = { idle: await panel(page) };
    await send(page, "run", begun(node));
    await send(page, "progress", progressed(node));
    await page.waitForTimeout(700);
    seen.running = await panel(page);
    const plot = await page.locator(".atelier-chart .atelier-plot").boundingBox();
    await page.mouse.move(plot.x + plot.width / 2, plot.y + plot.height / 2);
    await page.waitForTimeout(200);
    seen.hovered = (await panel(page)).legend;
    await send(page, "preview", {
      node,
      run: RUN,
      step: 50,
      prompt: "a <i>toy</i>",
      seed: 1,
      image: { filename: "a b.png", subfolder: "x", type: "temp" },
    });
    await page.waitForTimeout(700);
    seen.preview = await panel(page);
    await send(page, "finished", { node, run: RUN, state: "finished", step: 100, num_steps: 100, message: "", file: "toys.safetensors" });
    await page.waitForTimeout(500);
    seen.finished = await panel(page);
    seen.toasts = await page.locator(".p-toast-message").allTextContents();
    return seen;
  },

  /** A run that has made previews of two prompts at steps 0, 40 and 80, one of the last being still to come. */
  async strip(page) {
    const node = await only(page, "AtelierTrain", asked.width);
    await send(page, "run", begun(node));
    await send(page, "progress", progressed(node));
    const seen = { counts: [] };
    for (const [step, seed] of [[0, 1], [0, 2], [40, 1], [40, 2], [80, 1]]) {
      const image = { filename: `${step}-${seed}.png`, subfolder: "x", type: "temp" };
      await send(page, "preview", { node, run: RUN, step, prompt: "a toy", seed, image });
      await page.waitForTimeout(300);
      seen.counts.push(await page.locator(".atelier-strip button").count());
    }
    seen.heads = await page.locator(".atelier-strip-step").allTextContents();
    const rows = await page.locator(".atelier-strip button").evaluateAll((all) => all.map((b) => b.getBoundingClientRect().top));
    seen.rows = new Set(rows.map(Math.round)).size;
    await page.locator(".atelier-strip button").first().click();
    await page.waitForTimeout(300);
    seen.first = await panel(page);
    seen.pressed = await page.locator('.atelier-strip button[aria-pressed="true"]').count();
    return seen;
  },

  async buttons(page) {
    const posted = [];
    await page.route("**/atelier/runs/**", async (route) => {
      posted.push([route.request().method(), new URL(route.request().url()).pathname, route.request().headers()["content-type"]]);
      const what = posted.at(-1)[1].split("/").at(-1);
      if (what === "sample") await route.fulfill({ status: 409, json: { error: "that run has <b>ended</b>" } });
      else await route.fulfill({ json: { run: RUN, state: "running" } });
    });
    const node = await only(page, "AtelierTrain");
    await send(page, "run", begun(node));
    await send(page, "progress", progressed(node));
    await page.waitForTimeout(700);
    const press = async (number) => {
      await page.locator(".atelier-buttons button").nth(number).click();
      await page.waitForTimeout(500);
      return panel(page);
    };
    const seen = { save: await press(1), sample: await press(2) };
    seen.toasts = await page.locator(".p-toast-message").allTextContents();
    await send(page, "run", begun(node, { state: "paused" }));
    await page.waitForTimeout(400);
    seen.paused = await panel(page);
    seen.go_on = await press(3);
    seen.stop = await press(0);
    return { ...seen, posted };
  },

  async reload(page) {
    const about = { ...begun("1"), ...progressed("1"), state: "paused" };
    await page.route("**/atelier/runs", (route) => route.fulfill({ json: { live: [about], runs: [] } }));
    await page.route("**/atelier/runs/*", (route) => route.fulfill({ json: { ...about, previews: [] } }));
    await page.reload({ waitUntil: "domcontentloaded" });
    await ready(page);
    await page.evaluate(() => window.app.loadApiJson({ 1: { class_type: "AtelierTrain", inputs: {} } }, "test.json"));
    await page.waitForSelector('.atelier-panel[data-state="paused"]', { state: "attached", timeout: 60_000 });
    await page.waitForTimeout(500);
    return panel(page);
  },

  async subgraph(page) {
    const node = await only(page, "AtelierTrain");
    const path = await page.evaluate((id) => {
      const { graph, canvas } = window.app;
      const { node: outer, subgraph } = graph.convertToSubgraph(new Set([graph.getNodeById(Number(id))]));
      canvas.openSubgraph ? canvas.openSubgraph(subgraph, outer) : canvas.setGraph(subgraph);
      return `${outer.id}:${subgraph.nodes[0].id}`;
    }, node);
    await page.waitForTimeout(1000);
    await send(page, "run", begun(path));
    await send(page, "progress", progressed(path));
    await page.waitForTimeout(700);
    return { path, panel: await panel(page) };
  },

  async schedule(page) {
    await only(page, "AtelierSchedule");
    const box = page.locator("textarea:visible").first();
    const look = async (text) => {
      await box.fill(text);
      await page.waitForTimeout(1200);
      return page.evaluate(() => {
        const root = document.querySelector(".atelier-schedule");
        const shown = (name) => [...root.querySelectorAll(name)].filter((e) => e.getClientRects().length).map((e) => e.textContent);
        return {
          readout: shown(".atelier-readout")[0] ?? "",
          error: shown(".atelier-message")[0] ?? "",
          place: shown("mark")[0] ?? "",
          curve: root.querySelector("path.line")?.getAttribute("d") ?? "",
          cycles: root.querySelectorAll("line.vertical").length,
        };
      });
    };
    const seen = {
      cosine: await look("0->1e-4:10%, 1e-4->0 cosine"),
      cycles: await look("4 x (1e-4->1e-6 cosine:+250)"),
      faulty: await look("1e-4:500, 5e-5:300, <img src=x onerror=alert(1)>"),
      again: await look("1e-4"),
    };
    await box.fill("0->1e-4");
    await page.waitForTimeout(1200);
    const plot = await page.locator(".atelier-schedule .atelier-plot").boundingBox();
    await page.mouse.move(plot.x + plot.width - 10, plot.y + plot.height / 2);
    await page.waitForTimeout(200);
    seen.hovered = await page.locator(".atelier-readout").textContent();
    return seen;
  },

  async stop(page) {
    await page.evaluate((graph) => window.app.loadApiJson(graph, "test.json"), asked.graph);
    await page.waitForTimeout(1500);
    await page.evaluate(() => {
      window.app.canvas.ds.scale = 1;
      const { pos } = window.app.graph.nodes.find((node) => node.type === "AtelierTrain");
      window.app.canvas.ds.offset = [150 - pos[0], 100 - pos[1]];
      window.app.canvas.setDirty(true, true);
      return window.app.queuePrompt(0);
    });
    await page.waitForFunction(() => document.querySelector(".atelier-plot path.dots"), null, { timeout: 400_000 });
    await page.evaluate(() => document.querySelector(".atelier-buttons button").click());
    await page.waitForTimeout(100);
    const asked_ = await panel(page);
    const hasEnded = () => document.querySelector('[data-state="stopped"] .atelier-message')?.textContent.includes(".safetensors");
    await page.waitForFunction(hasEnded, null, { timeout: 150_000 });
    return { asked: asked_, stopped: await panel(page) };
  },

  async folded(page) {
    const id = await only(page, "AtelierTrain");
    return page.evaluate(async (id) => {
      const { app } = window;
      const node = app.graph.getNodeById(Number(id));
      const button = node.widgets.find(({ name }) => name === "atelier_advanced");
      const look = () => ({ height: node.size[1], hidden: node.widgets.filter((widget) => widget.hidden).length, label: button.label });
      const inputs = async () => Object.keys((await app.graphToPrompt()).output[id].inputs).sort();
      const seen = { folded: look(), inputs: await inputs() };
      button.callback();
      seen.unfolded = look();
      seen.inputsUnfolded = await inputs();
      node.widgets.find(({ name }) => name === "accumulate").value = 7;
      button.callback();
      const { workflow, output } = await app.graphToPrompt();
      await app.loadGraphData(JSON.parse(JSON.stringify(workflow)));
      const again = (await app.graphToPrompt()).output;
      seen.same = JSON.stringify(again) === JSON.stringify(output) && again[id].inputs.accumulate === 7;
      return seen;
    }, id);
  },

  async help(page) {
    const missing = [];
    for (const name of asked.nodes) {
      for (const path of [`${name}.md`, `${name}/ja.md`, `${name}/zh.md`, `img/${name}.png`]) {
        const status = await page.evaluate(async (path) => (await fetch(`extensions/atelier/docs/${path}`)).status, path);
        if (status !== 200) missing.push(path);
      }
    }
    return { missing };
  },
};

const browser = await chromium.launch({
  executablePath: asked.chromium,
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});
try {
  const page = await openPage(browser);
  const seen = await scenarios[asked.scenario](page);
  if (asked.picture) await page.screenshot({ path: asked.picture });
  console.log(JSON.stringify({ ...seen, faults }));
} finally {
  await browser.close();
}
