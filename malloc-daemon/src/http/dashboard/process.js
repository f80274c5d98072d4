// One process whole: the funnel, what its numbers mean, sizes, threshold and stacks.

import { bars, histogram, steps } from "./charts.js";
import { NOT_MEASURED, bytes, clock, count, exactBytes, many, printable, share, span } from "./figures.js";
import { el } from "./dom.js";

const LEVELS = [["call", "calls"], ["arena", "_int_malloc"], ["sysmalloc", "sysmalloc"], ["brk", "brk"], ["mmap", "mmap"]];

/** The documents of /v1/processes/{pid}, /v1/raises and /v1/crossings?by=stack, as the parts of a section. */
export function process({ one, raises, stacks }) {
  const told = one.process;
  const own = raises.raises.filter((raise) => raise.start_time_ticks === told.start_time_ticks).reverse();
  const shares = stacks.processes.find((other) => other.start_time_ticks === told.start_time_ticks) ?? null;
  return [
    el("p", { class: "quiet" }, says(told, one.images)),
    said(told),
    el("div", { class: "two" },
      el("div", null, el("h3", null, "From call to kernel"), funnel(told), sizes(told)),
      el("div", null, threshold(told, own, one.window.end_unix_ms), heap(told), cost(told), facts(told))),
    crossings(told, shares),
  ];
}

function says(told, images) {
  const parts = [`observed for ${span(told.observed_ms)} at depth ${printable(told.depth)}`];
  if (!told.from_start) parts.push("from the middle of its life");
  if (told.ended !== null) parts.push(`ended: ${printable(told.ended)}`);
  parts.push(told.complete ? "nothing is missing" : "incomplete, or estimated");
  if (images > 1) parts.push(`the newest of ${count(images)} programs that this process ran`);
  for (const loss of told.losses) parts.push(`lost ${printable(loss.reason)} ${count(loss.count)}`);
  for (const lack of told.not_measured) parts.push(`depth ${printable(lack.depth)} is not measured: ${printable(lack.why, 200)}`);
  return parts.join("; ");
}

function said(told) {
  return [
    el("ul", { class: "said" }, told.explanation.map((one) => el("li", null, printable(one.text, 600)))),
    told.what_if.length === 0 ? null : el("h3", null, "What if"),
    told.what_if.map((one, index) => el("details", { "data-key": `if-${index}` },
      el("summary", null, el("code", null, printable(one.setting, 200))),
      el("p", null, printable(one.text, 600)),
      el("ul", { class: "said" }, one.assumptions.map((assumption) => el("li", null, printable(assumption, 300)))))),
  ];
}

function funnel(told) {
  const rows = LEVELS.map(([name, label]) => {
    const level = told.funnel[name];
    if (level === null) return { label, value: null, words: [NOT_MEASURED, ""] };
    const mark = "estimated" in level ? "≈ " : "";
    return { label, value: level.calls, words: [mark + count(level.calls), mark + bytes(level.bytes)] };
  });
  const guesses = LEVELS.map(([name, label]) => [label, told.funnel[name]])
    .filter(([, level]) => level !== null && "estimated" in level)
    .map(([label, level]) => el("p", { class: "quiet" }, `${label}: estimated, counted in ${share(level.coverage)} of the time; ` +
      (level.interval_95 === null ? "too few windows to tell how sure" :
        `95 times in 100 between ${count(level.interval_95[0])} and ${count(level.interval_95[1])}`)));
  return [bars("Calls by level", rows), guesses];
}

function sizes(told) {
  const functions = told.functions ?? [];
  const called = functions.filter((one) => one.sizes !== null).flatMap((one) => one.sizes);
  const sources = [[told.functions && called, "Sizes requested"], [told.arena_sizes, "Sizes asked of _int_malloc"],
    [told.sysmalloc_sizes, "Sizes asked of sysmalloc"]];
  const [buckets, title] = sources.find(([found]) => found !== null) ?? [null, "Sizes"];
  const list = functions.map((one) => `${"estimated" in one ? "≈ " : ""}${count(one.calls)} ${printable(one.name)}`);
  return [
    el("h3", null, title),
    buckets === null ? el("p", null, NOT_MEASURED) : buckets.length === 0 ? el("p", null, "none") : histogram(title, buckets),
    list.length === 0 ? null : el("p", { class: "quiet" }, list.join(", ")),
  ];
}

function threshold(told, raises, until) {
  const now = told.threshold;
  if (now === null) return [el("h3", null, "Threshold"), el("p", null, NOT_MEASURED)];
  const read = now.source === "memory" ? "the process's memory" : "the last slow-path event";
  return [
    el("h3", null, "Threshold"),
    el("p", null, `mmap from ${exactBytes(now.bytes)}, ${printable(now.mode)}, ` +
      `${now.raises === 0 ? "not seen to rise" : `raised ${many(now.raises, "time")}`}; trim from ` +
      `${exactBytes(now.trim_bytes)}; ${many(now.mmapped_chunks, "mapped chunk")} (${bytes(now.mmapped_bytes)}); read from ${read}`),
    raises.length === 0 ? null : steps(raises, until),
    [...raises].reverse().map((raise) => el("details", { "data-key": `raise-${raise.unix_ms}-${raise.to_bytes}` },
      el("summary", null, `${clock(raise.unix_ms)}  ${raise.from_bytes === null ? "not known" : bytes(raise.from_bytes)} → ` +
        `${bytes(raise.to_bytes)}, thread ${raise.thread} ${printable(raise.comm)}`),
      raise.chunk_bytes === null ? el("p", { class: "quiet" }, "seen only later: who raised it is not known") :
        el("p", null, `by the free of a chunk of ${exactBytes(raise.chunk_bytes)}`),
      stack(raise.freed_by), el("p", null, "the chunk was mapped by"), stack(raise.mapped_by))),
  ];
}

function stack(told) {
  if (told === null) return el("p", { class: "quiet" }, "stack: not known, or not named yet");
  return [
    el("ol", { class: "stack" }, told.frames.map((frame) => el("li", null,
      el("code", null, frame.function === null ? "?" : printable(frame.function, 200)), frame.inlined ? " (inlined)" : null,
      " ", el("span", { class: "where path" }, place(frame))))),
    told.cut === null ? null : el("p", { class: "quiet" }, `the stack ends here: ${printable(told.cut, 200)}`),
  ];
}

function place(frame) {
  if (frame.file !== null) return printable(frame.file, 200) + (frame.line === null ? "" : `:${frame.line}`);
  if (frame.module === null) return "";
  return printable(frame.module, 200) + (frame.offset === null ? "" : `+0x${frame.offset.toString(16)}`);
}

function heap(told) {
  const held = told.heap;
  if (held === null) {
    const why = told.heap_unread === null ? "" : `: ${printable(told.heap_unread, 200)}`;
    return [el("h3", null, "Heap"), el("p", null, `not read${why}`)];
  }
  const least = held.complete ? "" : "at least ";
  return [el("h3", null, "Heap"), list([
    ["held of the kernel", bytes(held.system_bytes)],
    ["retained, not used", least + bytes(held.retained_bytes)],
    ["at the tops", bytes(held.top_bytes)],
    ["in free chunks", held.free_bytes === null ? "not counted" : least + bytes(held.free_bytes)],
    ["retained and resident", held.retained_resident_bytes === null ? "not read" : bytes(held.retained_resident_bytes)],
    ["arenas", told.arenas === null ? "not read" : count(told.arenas.length)],
    ["read", `${span(held.age_ms)} before the end of the counts`],
  ])];
}

function cost(told) {
  if (told.cost === null) return [el("h3", null, "Cost of observing it"), el("p", null, NOT_MEASURED)];
  const { ms, share: part, cpu_ms: cpu, hits } = told.cost;
  const all = hits.syscall + hits.sysmalloc + hits.arena + hits.call;
  return [el("h3", null, "Cost of observing it"), el("p", null, `≈ ${count(ms)} ms for ${count(all)} hits of probes; ` +
    (cpu === null ? "its CPU time was not read" :
      `its CPU time was ${count(cpu)} ms, so ${part === null ? "no part of it is told" : `≈ ${share(part)} of it`}`))];
}

function facts(told) {
  const served = told.allocator;
  return [el("h3", null, "Where it is"), list([
    ["executable", told.exe === null ? "not read" : printable(told.exe, 256)],
    ["control group", told.cgroup === null ? "not read" : printable(told.cgroup, 256)],
    ["allocator", served === null ? "not known" :
      `${printable(served.kind)} ${served.version === null ? "" : printable(served.version)} in ${printable(served.path, 256)}`],
    ["found by", served === null ? "not known" : printable(served.located_by)],
    ["build id", served === null || served.build_id === null ? "not known" : printable(served.build_id)],
    ...(served?.not_counted ?? []).map((one) => ["not counted", printable(one, 200)]),
    ...(served?.also_mapped ?? []).map((one) => ["also mapped", printable(one, 200)]),
  ])];
}

function list(pairs) {
  return el("dl", { class: "facts" }, pairs.map(([term, words]) => [el("dt", null, term), el("dd", null, words)]));
}

function crossings(told, shares) {
  const all = told.crossings;
  if (all === null) return [el("h3", null, "Crossings"), el("p", null, NOT_MEASURED)];
  const churned = all.churned === null ? "" : `; ${count(all.churned.calls)} of them unmapped again within a second`;
  const head = [el("h3", null, "Crossings"),
    el("p", null, `${many(all.calls, "chunk")} mapped, ${bytes(all.bytes)}${churned}`),
    all.sizes.length === 0 ? null : histogram("Sizes of crossings", all.sizes)];
  if (shares === null) return [head, el("p", { class: "quiet" }, "no stack of one was sampled")];
  const mark = shares.estimated ? "≈ " : "";
  const rows = shares.stacks.map((one, index) => el("details", { "data-key": `stack-${index}` },
    el("summary", null, `${mark}${many(one.calls, "crossing")}, ${mark}${bytes(one.bytes)}: `, el("code", null, asker(one.stack))),
    stack(one.stack)));
  return [head, el("h3", null, "Crossings by stack"), rows,
    shares.other.calls === 0 ? null : el("p", { class: "quiet" },
      `${many(shares.other.calls, "crossing")} (${bytes(shares.other.bytes)}) in other stacks, or without one`),
    el("p", { class: "quiet" }, `${count(shares.samples)} of ${count(shares.calls)} were sampled`)];
}

/** The first function that is not the allocator's own. */
function asker(told) {
  const own = /^(_*libc_)?(malloc|calloc|realloc|memalign|_int_malloc|sysmalloc\w*|_mid_memalign|operator new.*)$/;
  const frame = told.frames.find((one) => one.function !== null && !own.test(one.function));
  return frame ? printable(frame.function, 120) : "?";
}
