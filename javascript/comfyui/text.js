// The panels' words in the language of the page. They come with the pack's translations: what is below `atelier` in
// locales/<language>/main.json, and `commands` and `settings` from the files of those names.

let words = {};

/** `tables`: language -> translations, as ComfyUI serves them. */
export function setLanguage(language, tables) {
  const of = (name) => ({
    ...tables[name]?.atelier,
    commands: tables[name]?.commands ?? {},
    settings: tables[name]?.settings ?? {},
  });
  const [family] = String(language).split("-");
  words = merged(of("en"), merged(of(family), of(language)));
}

/** The text at a path such as "state.running", with {names} filled in. A text that is missing shows its path. */
export function t(path, values = {}) {
  const text = path.split(".").reduce((at, key) => at?.[key], words);
  if (typeof text !== "string") return path;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

function merged(base, over) {
  const out = { ...base };
  for (const [key, value] of Object.entries(over)) {
    out[key] = value && typeof value === "object" ? merged(out[key] ?? {}, value) : value;
  }
  return out;
}
