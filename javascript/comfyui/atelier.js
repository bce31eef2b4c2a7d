// The pack in ComfyUI's page: which node gets which panel, and what the events of the server do to them.

import * as comfy from "./comfy.js";
import { Gallery } from "./gallery.js";
import { ENDED, Runs, allowed } from "./runs.js";
import { SchedulePanel } from "./schedule_panel.js";
import { setLanguage, t } from "./text.js";
import { TrainPanel } from "./train_panel.js";

const TRAIN = "AtelierTrain";
const SCHEDULE = "AtelierSchedule";
const FOLDER = "AtelierDatasetFolder";
const GALLERY_TAB = "atelier-data-set";
const SCHEDULE_WIDGETS = ["schedule", "text_encoder", "factor", "stop_at_end", "steps"];

const STEPS_DRAWN = 1000; // where their number comes by a link

const runs = new Runs();
const trainPanels = new WeakMap(); // node -> its panel
const schedulePanels = new WeakMap();
let gallery = null;

function showRun(run) {
  for (const [id, node] of comfy.nodesOf(TRAIN)) {
    if (id === run.node && runs.ofNode(id) === run) trainPanels.get(node)?.show(run);
  }
}

/** Another workflow may have a node of the same id: a run that has ended is shown only where the node has its name. */
function runOf(id, node) {
  const run = runs.ofNode(id);
  const plain = (text) => String(text ?? "").toLowerCase().replace(/[^\p{L}\p{N}]/gu, "");
  const isElsewhere = run && ENDED.has(run.state) && !plain(run.name).startsWith(plain(comfy.widgetOf(node, "name")?.value));
  return isElsewhere ? null : run;
}

function showAll() {
  for (const [id, node] of comfy.nodesOf(TRAIN)) trainPanels.get(node)?.show(runOf(id, node));
  for (const [, node] of comfy.nodesOf(SCHEDULE)) schedulePanels.get(node)?.changed();
}

async function ask(run, what) {
  run.asked.add(what);
  showRun(run);
  try {
    runs.take({ ...(await comfy.post(`/atelier/runs/${run.id}/${what}`)), node: run.node });
  } catch (error) {
    run.asked.delete(what);
    comfy.toast("error", t(`button.${what}.name`), error.message);
  }
  showRun(run);
}

/** Ask the server for its runs, oldest first: those that go on, and those that ended since it began. */
async function findRuns() {
  const { live } = await comfy.get("/atelier/runs");
  for (const { run } of live) runs.take(await comfy.get(`/atelier/runs/${run}`));
  showAll();
}

function lookForRuns() {
  findRuns().catch((error) => console.warn(`Atelier: the runs could not be asked for: ${error.message}`));
}

function tellTheEnd(run) {
  if (!comfy.setting("Atelier.TellTheEnd") || !["finished", "stopped"].includes(run.state)) return;
  comfy.toast("success", t(`toast.${run.state}`, { name: run.name }), run.file ? t("train.saved", { file: run.file }) : "");
}

function listen() {
  comfy.on("atelier.run", (detail) => showRun(runs.take(detail)));
  comfy.on("atelier.progress", (detail) => showRun(runs.take(detail)));
  comfy.on("atelier.preview", (detail) => showRun(runs.preview(detail)));
  comfy.on("atelier.finished", (detail) => {
    const run = runs.take(detail);
    showRun(run);
    tellTheEnd(run);
  });
  comfy.on("progress_text", () => {
    for (const [, node] of comfy.nodesOf(TRAIN)) comfy.hideProgressText(node);
  });
  comfy.onReconnected(lookForRuns);
}

function addTrainPanel(node) {
  const panel = new TrainPanel({
    ask,
    imageUrl: comfy.imageUrl,
    language: comfy.language,
    onResize: () => comfy.fit(node),
  });
  trainPanels.set(node, panel);
  comfy.addPanel(node, "atelier_progress", panel.element, () => panel.height || 64);
  comfy.onAdded(node, () => queueMicrotask(showAll));
  comfy.fit(node, 380);
}

function addSchedulePanel(node) {
  const read = () => {
    if (comfy.isLinked(node, "schedule")) return null;
    const known = SCHEDULE_WIDGETS.filter((name) => comfy.widgetOf(node, name) && !comfy.isLinked(node, name));
    return { steps: STEPS_DRAWN, ...Object.fromEntries(known.map((name) => [name, comfy.widgetOf(node, name).value])) };
  };
  const panel = new SchedulePanel({
    read,
    request: (values) => comfy.post("/atelier/schedule", values),
    language: comfy.language,
    onResize: () => comfy.fit(node),
  });
  schedulePanels.set(node, panel);
  comfy.addPanel(node, "atelier_curve", panel.element, () => panel.height || 150);
  comfy.onWidgets(node, SCHEDULE_WIDGETS, () => panel.changed());
  comfy.onConfigured(node, () => panel.changed());
  comfy.fit(node, 380);
  panel.changed();
}

const folderOf = (node) => (comfy.isLinked(node, "folder") ? "" : String(comfy.widgetOf(node, "folder")?.value ?? "").trim());

function addGallery() {
  gallery = new Gallery({
    request: (what, values) => comfy.post(`/atelier/gallery/${what}`, values),
    thumbnailUrl: (values) => comfy.url("/atelier/gallery/thumbnail", values),
    folders: () => [...new Set(comfy.nodesOf(FOLDER).map(([, node]) => folderOf(node)).filter(Boolean))],
    tell: comfy.toast,
    language: comfy.language,
  });
  comfy.addSidebarTab({
    id: GALLERY_TAB,
    icon: "pi pi-images",
    title: t("gallery.title"),
    tooltip: t("gallery.tooltip"),
    element: gallery.element,
  });
}

function openGallery(node) {
  const folder = node ? folderOf(node) : "";
  comfy.openSidebarTab(GALLERY_TAB);
  if (folder) gallery.open(folder);
  else if (node) comfy.toast("info", t("gallery.no_folder"), t("gallery.no_folder_help"));
}

/** A command for what a button does, on the selected Train node or the only one that there is. */
function command(id, what) {
  return {
    id: `Atelier.${id}`,
    label: t(`commands.Atelier_${id}.label`),
    function: () => {
      const found = comfy.selectedNode(TRAIN);
      const run = found && runs.ofNode(found[0]);
      if (!run || ENDED.has(run.state)) comfy.toast("warn", t("command.none"), t("command.none_help"));
      else if (!allowed(run, what)) comfy.toast("info", t("command.not_now", { state: t(`state.${run.state}`) }));
      else ask(run, what);
    },
  };
}

const tables = await comfy.translations();
setLanguage(comfy.language(), tables);

comfy.addStyles("atelier.css");
comfy.addStyles("gallery.css");
comfy.register({
  name: "atelier",
  settings: [
    {
      id: "Atelier.TellTheEnd",
      name: t("settings.Atelier_TellTheEnd.name"),
      tooltip: t("settings.Atelier_TellTheEnd.tooltip"),
      category: ["Atelier", "Runs", "TellTheEnd"],
      type: "boolean",
      defaultValue: true,
    },
  ],
  commands: [
    command("Stop", "stop"),
    command("Save", "save"),
    command("Sample", "sample"),
    command("Pause", "pause"),
    command("GoOn", "go_on"),
    {
      id: "Atelier.DataSet",
      label: t("commands.Atelier_DataSet.label"),
      function: () => openGallery(comfy.selectedNode(FOLDER)?.[1]),
    },
  ],
  setup() {
    addGallery();
    listen();
    lookForRuns();
  },
  nodeCreated(node) {
    if (node.comfyClass?.startsWith("Atelier")) comfy.foldAdvanced(node, (isShown) => t(isShown ? "advanced.hide" : "advanced.show"));
    if (node.comfyClass === FOLDER) comfy.addButton(node, "atelier_gallery", t("gallery.button"), () => openGallery(node));
    if (node.comfyClass === TRAIN) addTrainPanel(node);
    if (node.comfyClass === SCHEDULE) addSchedulePanel(node);
  },
  afterConfigureGraph: showAll,
});
