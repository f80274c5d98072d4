// Bars and steps. Pure but for the elements that dom.js makes.

import { bytes, clock, count, share } from "./figures.js";
import { el } from "./dom.js";

/** Rows of a label, a bar, and cells of words: [{label, value, words}]; lengths relative to the largest. */
export function bars(label, rows) {
  const largest = Math.max(1, ...rows.map((row) => row.value ?? 0));
  const lines = rows.map((row) => {
    const fill = row.value === null ? null : el("span", { class: "fill" });
    // A property, not an attribute: the page's policy has no inline style.
    if (fill) fill.style.width = row.value === 0 ? "0" : `${Math.max(row.value / largest * 100, 0.4)}%`;
    if (row.value === 0) fill.style.minWidth = "0";
    return el("tr", null, el("th", { scope: "row" }, row.label), el("td", { class: "track" }, fill), row.words.map((word) => el("td", null, word)));
  });
  return el("table", { class: "bars", "aria-label": label }, el("tbody", null, lines));
}

/** Buckets put together to powers of two, so that a histogram is at most some fifty rows. */
export function powers(buckets) {
  const sums = new Map();
  for (const { lo, calls } of buckets) {
    const power = lo < 1 ? 0 : 2 ** Math.floor(Math.log2(lo));
    sums.set(power, (sums.get(power) ?? 0) + calls);
  }
  return [...sums].sort(([a], [b]) => a - b);
}

/** A histogram of sizes. */
export function histogram(label, buckets, unit = bytes) {
  const rows = powers(buckets);
  const whole = rows.reduce((sum, [, calls]) => sum + calls, 0);
  return bars(label, rows.map(([lo, calls]) => ({
    label: `from ${unit(lo)}`, value: calls, words: [count(calls), share(whole === 0 ? 0 : calls / whole)],
  })));
}

const WIDTH = 600, HEIGHT = 120, EDGE = 8;

/** Steps of the threshold over time, on a logarithmic scale: raises oldest first, up to `until`. */
export function steps(raises, until) {
  const first = raises[0];
  const levels = [first.from_bytes ?? first.to_bytes, ...raises.map((raise) => raise.to_bytes)];
  const from = first.unix_ms, end = Math.max(until, from + 1);
  const start = from - (end - from) * 0.08;
  const low = Math.log2(Math.min(...levels)) - 0.3, high = Math.log2(Math.max(...levels)) + 0.3;
  const x = (ms) => (EDGE + (ms - start) / (end - start) * (WIDTH - 2 * EDGE)).toFixed(1);
  const y = (size) => (HEIGHT - EDGE - (Math.log2(size) - low) / (high - low) * (HEIGHT - 2 * EDGE)).toFixed(1);
  let level = levels[0];
  const points = [`${x(start)},${y(level)}`];
  for (const raise of raises) {
    points.push(`${x(raise.unix_ms)},${y(level)}`, `${x(raise.unix_ms)},${y(raise.to_bytes)}`);
    level = raise.to_bytes;
  }
  points.push(`${x(end)},${y(level)}`);
  const words = `from ${bytes(levels[0])} to ${bytes(level)} between ${clock(from)} and ${clock(end)}`;
  return el("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": words },
    el("polyline", { points: points.join(" ") }),
    raises.map((raise) => el("circle", { cx: x(raise.unix_ms), cy: y(raise.to_bytes), r: 3 })));
}
