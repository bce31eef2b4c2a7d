// Numbers as people read them. Pure functions; `null` stands for "not known" and gives an en dash.

const UNKNOWN = "–";

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Three significant digits without trailing zeros: 0.0931, 12.3, 1230. */
export function significant(value, digits = 3) {
  if (!isNumber(value)) return UNKNOWN;
  const text = String(Number(value.toPrecision(digits)));
  return text.includes("e") ? value.toExponential(digits - 1) : text;
}

/** A loss keeps its width while it changes: 0.0931, 0.1200, 1.235. */
export function loss(value) {
  if (!isNumber(value)) return UNKNOWN;
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(2);
  return value.toFixed(Math.abs(value) < 1 ? 4 : 3);
}

/** A learning rate as it is written in a schedule: 1e-4, 5.25e-7, 0. */
export function rate(value) {
  if (!isNumber(value)) return UNKNOWN;
  if (value === 0) return "0";
  if (value >= 0.01 && value < 1000) return significant(value);
  return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
}

/** 12,345 with the separators of `language`. */
export function count(value, language) {
  return isNumber(value) ? value.toLocaleString(language) : UNKNOWN;
}

/** -0.02 is "−2.0 %". */
export function percent(value) {
  if (!isNumber(value)) return UNKNOWN;
  const shown = Math.abs(value * 100).toFixed(1);
  if (shown === "0.0") return "0.0 %";
  return `${value < 0 ? "−" : "+"}${shown} %`;
}

/** Megabytes: "840 MB", "5.1 GB". */
export function memory(megabytes) {
  if (!isNumber(megabytes)) return UNKNOWN;
  return megabytes < 1000 ? `${Math.round(megabytes)} MB` : `${(megabytes / 1024).toFixed(1)} GB`;
}

/** What is left of a run, in the two largest units: {hours, minutes, seconds} of which the unused are null. */
export function duration(seconds) {
  if (!isNumber(seconds) || seconds < 0) return null;
  const whole = Math.ceil(seconds);
  if (whole < 60) return { hours: null, minutes: null, seconds: whole };
  const minutes = Math.round(whole / 60);
  if (minutes < 60) return { hours: null, minutes, seconds: null };
  return { hours: Math.floor(minutes / 60), minutes: minutes % 60, seconds: null };
}
