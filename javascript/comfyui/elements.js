// Building pieces of the page. Text is always put in as text, so a name with HTML in it is shown and never run.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** `html("p", {class: "x", text: "words", onclick: f}, child, ...)` */
export function html(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for a part of a drawing. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Set the text of an element if it is another one. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** How high a column has to be so that nothing in it is cut, where `flexible` may shrink to `least` pixels. */
export function neededHeight(column, flexible, least) {
  const style = getComputedStyle(column);
  const parts = [...column.children].filter((child) => !child.hidden);
  const heights = parts.map((child) => (child === flexible ? least : child.offsetHeight));
  const gaps = Math.max(0, parts.length - 1) * parseFloat(style.rowGap);
  const padding = parseFloat(style.paddingTop) + parseFloat(style.paddingBottom);
  return Math.ceil(heights.reduce((sum, height) => sum + height, gaps + padding));
}
