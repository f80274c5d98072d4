// All processes as the daemon told them, kept up to date by differences, with how fast their counts grow. Pure.

function key(image) {
  return `${image.pid}-${image.start_time_ticks}-${image.image_ns}`;
}

/** The difference of two counts a second; null: not measured; undefined: not known yet. */
function speed(before, now, ms) {
  if (now === null) return null;
  if (before === null || before === undefined || ms <= 0 || now < before) return undefined;
  return (now - before) * 1000 / ms;
}

function kernelCalls(process) {
  const { mmap, munmap, mremap, brk } = process.syscalls;
  return mmap.calls + munmap.calls + mremap.calls + brk.calls;
}

/** A row of the table: the process as it was told and its speeds. */
function row(process, before, ms) {
  const calls = process.funnel.call;
  const cost = process.cost;
  const estimated = calls !== null && "estimated" in calls;
  // An estimate grows in leaps, when a window of time was counted: its speed is the mean.
  const [since, time] = estimated ? [{ calls: 0, bytes: 0 }, process.observed_ms] : [before?.funnel.call, ms];
  return {
    key: key(process),
    process,
    estimated,
    callsPerS: speed(since?.calls, calls === null ? null : calls.calls, time),
    bytesPerS: speed(since?.bytes, calls === null ? null : calls.bytes, time),
    kernelPerS: speed(before === undefined ? undefined : kernelCalls(before), kernelCalls(process), ms),
    costMsPerS: speed(before?.cost?.ms, cost === null ? null : cost.ms, ms),
    // Between the last two looks nothing was counted.
    still: before === process,
    words: null,
  };
}

/** What the filter looks in, made when first asked for. */
function wordsOf(row) {
  const { pid, comm, exe, cgroup } = row.process;
  row.words ??= [pid, comm, exe ?? "", cgroup ?? ""].join("\n").toLowerCase();
  return row.words;
}

export class List {
  rows = new Map();
  sequence = 0;
  #durationMs = null;

  /** Where to ask for what changed since the last answer. */
  get path() {
    return `/v1/processes?since=${this.sequence}`;
  }

  take(answer) {
    if (answer.sequence === this.sequence && !answer.whole) return;
    const ms = this.#durationMs === null ? 0 : answer.window.duration_ms - this.#durationMs;
    const before = ms > 0 ? this.rows : new Map();
    const now = answer.whole ? new Map() : new Map(this.rows);
    for (const gone of answer.gone) now.delete(key(gone));
    const changed = new Set();
    for (const process of answer.processes) {
      const id = key(process);
      changed.add(id);
      now.set(id, row(process, before.get(id)?.process, ms));
    }
    // In the others nothing was counted.
    for (const [id, held] of now) {
      if (!changed.has(id) && !(held.still && ms > 0)) now.set(id, row(held.process, held.process, ms));
    }
    this.rows = now;
    this.sequence = answer.sequence;
    this.#durationMs = answer.window.duration_ms;
  }

  /** What observing costs all of them now, milliseconds of CPU time a second, and of how many it is not known. */
  cost() {
    let sum = 0, known = 0, unknown = 0;
    for (const { process, costMsPerS } of this.rows.values()) {
      if (process.ended !== null) continue;
      if (costMsPerS === null || costMsPerS === undefined) unknown += 1;
      else { sum += costMsPerS; known += 1; }
    }
    return { sum: known === 0 ? null : sum, unknown };
  }

  /** The rows that fit a filter, in order; those whose value is not known come last. */
  view({ words, ended, column, descending }) {
    const wanted = words.toLowerCase().split(/\s+/).filter((word) => word !== "");
    const fits = (row) => (ended || row.process.ended === null) && wanted.every((word) => wordsOf(row).includes(word));
    const keyed = [...this.rows.values()].filter(fits).map((row) => [column.value(row), row]);
    const known = (value) => value !== null && value !== undefined;
    const turn = descending ? -1 : 1;
    keyed.sort(([a, x], [b, y]) => {
      if (known(a) !== known(b)) return known(a) ? -1 : 1;
      if (known(a) && a !== b) return a < b ? -turn : turn;
      return x.process.pid - y.process.pid;
    });
    return keyed.map(([, row]) => row);
  }
}
