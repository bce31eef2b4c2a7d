// The only file that calls ComfyUI's page: extension, widgets, events, requests, toasts, and finding nodes.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

/** Register the pack. `extension` is what `app.registerExtension` takes. */
export function register(extension) {
  app.registerExtension(extension);
}

/** Add the pack's style sheet to the page, once. */
export function addStyles(file) {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL(file, import.meta.url).href;
  document.head.append(link);
}

const MARGIN_PX = 10; // around an element in a node that the canvas draws

/** Put an element into a node, below its widgets. `minHeight()` is in pixels; nothing of it is saved or sent. */
export function addPanel(node, name, element, minHeight) {
  const widget = node.addDOMWidget(name, "atelier", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => minHeight() + 2 * MARGIN_PX,
    margin: MARGIN_PX,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  // Where the canvas draws the nodes, an element above it would swallow zooming and dragging.
  element.addEventListener("wheel", (event) => {
    if (isCanvasRenderer()) app.canvas.processMouseWheel(event);
  });
  for (const [type, forward] of [
    ["pointerdown", "processMouseDown"],
    ["pointermove", "processMouseMove"],
    ["pointerup", "processMouseUp"],
  ]) {
    element.addEventListener(type, (event) => {
      const isMiddle = type === "pointermove" ? (event.buttons & 4) === 4 : event.button === 1;
      if (isMiddle && isCanvasRenderer()) app.canvas[forward](event);
    });
  }
  return widget;
}

function isCanvasRenderer() {
  return !globalThis.LiteGraph?.vueNodesMode;
}

/** Put a button below the widgets of a node; nothing of it is saved or sent. */
export function addButton(node, name, label, onClick) {
  const button = node.addWidget("button", name, null, onClick);
  button.label = label;
  button.serialize = button.options.serialize = false;
}

/** A tab beside the canvas that holds an element. */
export function addSidebarTab({ id, icon, title, tooltip, element }) {
  app.extensionManager.registerSidebarTab({
    id,
    icon,
    title,
    tooltip,
    type: "custom",
    render: (container) => {
      container.style.height = "100%";
      container.replaceChildren(element);
    },
  });
}

export function openSidebarTab(id) {
  app.extensionManager.sidebarTab.activeSidebarTabId = id;
}

/** Hide the line of text that ComfyUI adds to a node in progress, where a panel of ours says the same. */
export function hideProgressText(node) {
  const widget = node.widgets?.find(({ name }) => name === "$$node-text-preview");
  if (!widget || widget.hidden) return;
  widget.hidden = true;
  widget.options.hidden = true;
  widget.computeLayoutSize = () => ({ minHeight: 0, maxHeight: 0, minWidth: 0 });
}

/**
 * Make a node at least as large as its widgets need, and at least so wide. Where the page lays the nodes out itself, their
 * height follows what is in them.
 */
export function fit(node, minWidth = 0) {
  const [width, height] = isCanvasRenderer() ? node.computeSize() : [0, 0];
  const wanted = [Math.max(node.size[0], width, minWidth), Math.max(node.size[1], height)];
  if (wanted[0] > node.size[0] || wanted[1] > node.size[1]) node.setSize(wanted);
  node.setDirtyCanvas?.(true, true);
}

/** Listen to an event of the server. */
export function on(event, listener) {
  api.addEventListener(event, ({ detail }) => listener(detail));
}

/** Call back whenever the page has found the server again. */
export function onReconnected(listener) {
  api.addEventListener("reconnected", () => listener());
}

/** A request that failed with a sentence for the user. */
export class RequestError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function answer(path, options) {
  const response = await api.fetchApi(path, options);
  const isJson = (response.headers.get("content-type") ?? "").includes("json");
  const body = isJson ? await response.json() : null;
  if (!response.ok) throw new RequestError(response.status, body?.error ?? `${response.status} ${response.statusText}`);
  return body;
}

export const get = (path) => answer(path, { cache: "no-store" });

export const post = (path, body = {}) =>
  answer(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** Where the page finds an image of the server's. */
export function imageUrl({ filename, subfolder = "", type = "output" }) {
  return url("/view", { filename, subfolder, type });
}

/** A request that the browser makes by itself, as for a picture. */
export const url = (path, values) => api.apiURL(`${path}?${new URLSearchParams(values)}`);

/** severity: "success", "info", "warn" or "error". */
export function toast(severity, summary, detail = "") {
  app.extensionManager.toast.add({ severity, summary, detail, life: severity === "error" ? 12000 : 6000 });
}

export const setting = (id) => app.extensionManager.setting.get(id);

export const language = () => setting("Comfy.Locale") || "en";

/** The translations of all packs: language -> tables. */
export const translations = () => api.getCustomNodesI18n();

/** Every node of a class, also inside subgraphs, with its id as the server sees it, such as "12" or "5:12". */
export function nodesOf(comfyClass) {
  const found = [];
  const walk = (graph, path) => {
    for (const node of graph?.nodes ?? graph?._nodes ?? []) {
      const id = `${path}${node.id}`;
      if (node.comfyClass === comfyClass) found.push([id, node]);
      // A subgraph cannot contain itself, so this ends.
      if (node.subgraph) walk(node.subgraph, `${id}:`);
    }
  };
  walk(app.rootGraph ?? app.graph, "");
  return found;
}

/** The selected node of a class, or the only one that there is. */
export function selectedNode(comfyClass) {
  const selected = Object.values(app.canvas?.selected_nodes ?? {}).filter((node) => node.comfyClass === comfyClass);
  const all = nodesOf(comfyClass);
  if (selected.length === 1) return all.find(([, node]) => node === selected[0]) ?? null;
  return selected.length === 0 && all.length === 1 ? all[0] : null;
}

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name) ?? null;

/** Whether an input gets its value by a link rather than from its widget. */
export function isLinked(node, name) {
  const input = node.inputs?.find((input) => input.name === name);
  return input?.link !== null && input?.link !== undefined;
}

/** Call back when one of the widgets of a node changes, also while something is typed into it. */
export function onWidgets(node, names, listener) {
  for (const name of names) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    const before = widget.callback;
    widget.callback = function (...values) {
      const result = before?.apply(this, values);
      listener();
      return result;
    };
    widget.element?.addEventListener?.("input", listener);
  }
}

/**
 * Hide a node's advanced inputs until the user asks for them. Where the page lays the nodes out it does so itself; the canvas
 * shows them all, so there a button is added. `label(isShown)` is what it says.
 */
export function foldAdvanced(node, label) {
  const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
  if (!advanced.length) return;
  const button = node.addWidget("button", "atelier_advanced", null, () => {
    const before = node.computeSize()[1];
    node.showAdvanced = !node.showAdvanced;
    show();
    node.setSize([node.size[0], node.size[1] + node.computeSize()[1] - before]);
    node.setDirtyCanvas(true, true);
  });
  // `hidden` of a widget counts on the canvas, that of its options where the page lays the nodes out.
  Object.assign(button.options, { serialize: false, hidden: true });
  button.serialize = false;
  const show = () => {
    for (const widget of advanced) widget.hidden = !node.showAdvanced && !isLinked(node, widget.name);
    button.label = label(!!node.showAdvanced);
  };
  onConfigured(node, show);
  show();
  node.setSize([node.size[0], node.computeSize()[1]]);
}

/** Call back when a node was put into a graph, where it has its id. */
export function onAdded(node, listener) {
  const before = node.onAdded;
  node.onAdded = function (...values) {
    const result = before?.apply(this, values);
    listener();
    return result;
  };
}

/** Call back when a node was read from a workflow, or its links change. */
export function onConfigured(node, listener) {
  for (const name of ["onConfigure", "onConnectionsChange"]) {
    const before = node[name];
    node[name] = function (...values) {
      const result = before?.apply(this, values);
      listener();
      return result;
    };
  }
}
