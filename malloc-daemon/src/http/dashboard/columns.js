// The columns of the table: what each shows of a row, and by what it sorts. Pure.

import { bytes, count, perSecond, printable, share } from "./figures.js";

function number(id, title, about, value, shown, { wide = false, mark = () => "", guessed = "estimated" } = {}) {
  const show = (row) => {
    const known = value(row);
    if (known === null) return { text: "–", title: "not measured", unknown: true };
    if (known === undefined) return { text: "…", title: "known after the next look", unknown: true };
    const text = `${mark(row)}${shown(known)}`;
    return { text, title: text.startsWith("≈") ? guessed : null, unknown: false };
  };
  return { id, title, about, value, show, name: false, wide };
}

function name(id, title, about, value, shown = (text) => printable(text, 32), wide = false) {
  const show = (row) => {
    const known = value(row);
    if (known === null) return { text: "–", title: "not measured", unknown: true };
    return { text: shown(known), title: row.process.exe === null ? null : printable(row.process.exe, 256), unknown: false };
  };
  return { id, title, about, value, show, name: true, wide };
}

const guess = {
  mark: (row) => (row.estimated ? "≈ " : ""),
  guessed: "estimated from windows of time: the mean since it is observed",
};
const wide = { wide: true };

export const COLUMNS = [
  number("pid", "PID", "process id", ({ process }) => process.pid, String),
  name("comm", "name", "the name that the process gave itself", ({ process }) => process.comm),
  number("calls", "calls/s", "outermost calls that ask for bytes, a second", (row) => row.callsPerS, perSecond, guess),
  number("bytes", "bytes/s", "bytes that they ask for, a second", (row) => row.bytesPerS, bytes, guess),
  number("kernel", "syscalls/s", "mmap, munmap, mremap and brk of the whole process, a second", (row) => row.kernelPerS,
    perSecond, wide),
  number("crossings", "crossings", "chunks that malloc mapped one by one",
    ({ process }) => process.crossings && process.crossings.calls, count),
  number("mapped", "mapped", "bytes in such chunks when the threshold was read",
    ({ process }) => process.threshold && process.threshold.mmapped_bytes, bytes, wide),
  number("threshold", "threshold", "chunks from this size on are mapped one by one",
    ({ process }) => process.threshold && process.threshold.bytes, bytes),
  name("mode", "mode", "dynamic: the allocator moves the threshold; pinned: it does not",
    ({ process }) => process.threshold && process.threshold.mode, (mode) => mode, true),
  number("raises", "raises", "times the threshold was seen to rise",
    ({ process }) => process.threshold && process.threshold.raises, count, wide),
  number("retained", "retained", "bytes that the arenas hold and the program does not use",
    ({ process }) => process.heap && process.heap.retained_bytes, bytes,
    { mark: ({ process }) => (process.heap.complete ? "" : "≥ ") }),
  number("top", "top", "of these, in the chunks at the tops of the arenas",
    ({ process }) => process.heap && process.heap.top_bytes, bytes, wide),
  name("depth", "depth", "how deep the process is probed", ({ process }) => process.depth, (depth) => depth, true),
  number("cost", "cost", "part of the process's CPU time that observing it takes, estimated",
    ({ process }) => process.cost && process.cost.share, share, { wide: true, mark: () => "≈ " }),
];
