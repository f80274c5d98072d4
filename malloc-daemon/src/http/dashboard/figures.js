// Numbers and names as people read them: the units of the text report. Pure.

export const NOT_MEASURED = "not measured";

const UNITS = ["KB", "MB", "GB", "TB", "PB", "EB"];

/** 618427 as "618,427". */
export function count(value) {
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** Bytes with one decimal place from 1 KB (1,000 bytes) on. */
export function bytes(value) {
  const size = Math.abs(value);
  if (size < 999.5) return `${Math.round(value)} B`;
  let scaled = size, unit = "B";
  for (const next of UNITS) {
    scaled /= 1000;
    unit = next;
    if (Math.round(scaled * 10) < 10000) break;
  }
  return `${value < 0 ? "-" : ""}${scaled.toFixed(1)} ${unit}`;
}

/** Bytes that matter to the last one. */
export function exactBytes(value) {
  return value < 1000 ? bytes(value) : `${bytes(value)} (${count(value)} B)`;
}

/** A number a second: small ones with a decimal place. */
export function perSecond(value) {
  return value > 0 && value < 9.95 ? Math.max(value, 0.1).toFixed(1) : count(value);
}

/** A part of 1 in per cent; above zero it never reads zero. */
export function share(part) {
  const percent = part * 100;
  if (percent > 0 && percent < 0.01) return "<0.01 %";
  return `${percent.toFixed(percent >= 0.995 || percent === 0 ? 1 : 2)} %`;
}

/** Milliseconds as a span that one remembers. */
export function span(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${(ms / 1000).toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
}

/** The time of day of this browser. */
export function clock(unixMs) {
  return new Date(unixMs).toLocaleTimeString([], { hour12: false });
}

/** "1 chunk", "2 chunks". */
export function many(n, one, more = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : more}`;
}

// Those by which a name could move, hide or reorder what stands around it; the daemon's own table.
const UNSAFE = /[\p{Cc}\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\u{e0000}-\u{e0fff}]/u;

/** A name that a process chose, with what could mislead a reader written as an escape. */
export function printable(text, limit = 64) {
  let out = "", index = 0;
  for (const letter of text) {
    if (index++ === limit) return `${out}…`;
    const code = letter.codePointAt(0);
    if (letter === "\\") out += "\\\\";
    else if (!UNSAFE.test(letter)) out += letter;
    else if (code <= 0xff) out += `\\x${code.toString(16).padStart(2, "0")}`;
    else out += `\\u{${code.toString(16)}}`;
  }
  return out;
}
