// Asks at a modest pace while the page is looked at, and draws.

import { Missing, Unauthorized, ask, forgetToken, hasToken, keepToken } from "./ask.js";
import { COLUMNS } from "./columns.js";
import { el, say } from "./dom.js";
import { clock, count, many, printable } from "./figures.js";
import { health } from "./health.js";
import { List } from "./list.js";
import { process } from "./process.js";
import { Table } from "./table.js";

/** Milliseconds between two looks at least; a look that takes long is followed by a rest of ten times as long. */
const PACE = 2000, SLOWEST = 30000, REST = 10;
/** Stacks of one process that are asked for. */
const STACKS = 20;

const at = (id) => document.getElementById(id);
const list = new List();
const view = { words: "", ended: false, column: COLUMNS.find((column) => column.id === "retained"), descending: true, chosen: null };
const table = new Table(at("columns"), at("rows"), (column) => {
  view.descending = column === view.column ? !view.descending : !column.name;
  view.column = column;
  draw();
});

let before = null, paused = false, timer = null, running = false, again = false, last = null;

function draw() {
  const rows = list.view(view);
  const left = table.draw(rows, view);
  say(at("counted"), `${many(rows.length, "process", "processes")} of ${count(list.rows.size)}` +
    (left === 0 ? "" : `; ${count(left)} more are not drawn: filter, or sort otherwise`));
}

/** Puts new parts in a section; what was opened stays open, what had the focus keeps it. */
function replace(section, parts) {
  const keyed = (root, also = "") => [...root.querySelectorAll(`details[data-key]${also}`)];
  const open = new Set(keyed(section, "[open]").map((part) => part.getAttribute("data-key")));
  const focused = document.activeElement?.closest?.("details[data-key]")?.getAttribute("data-key");
  const inside = focused !== undefined && section.contains(document.activeElement);
  section.replaceChildren(...parts.flat(Infinity).filter((part) => part !== null));
  for (const part of keyed(section)) {
    part.open = open.has(part.getAttribute("data-key"));
    if (inside && part.getAttribute("data-key") === focused) part.querySelector("summary").focus({ preventScroll: true });
  }
}

function head(words) {
  const close = el("a", { href: "#list", role: "button" }, "close");
  return el("div", { class: "head" }, el("h2", null, words), close);
}

async function drawProcess() {
  const section = at("process"), pid = view.chosen;
  section.hidden = pid === null;
  if (pid === null) { section.replaceChildren(); return; }
  const raw = [`/v1/processes/${pid}`, `/v1/raises?pid=${pid}`, `/v1/crossings?by=stack&pid=${pid}&limit=${STACKS}`];
  let parts, words = `Process ${pid}`;
  try {
    const [one, raises, stacks] = await Promise.all(raw.map(ask));
    words = `${printable(one.process.comm, 32)} (${pid})`;
    parts = process({ one, raises, stacks });
  } catch (error) {
    if (!(error instanceof Missing)) throw error;
    parts = [el("p", null, printable(error.message, 300))];
  }
  const links = el("p", { class: "quiet" }, "documents: ", raw.map((path) => [el("a", { href: path }, path), " "]));
  if (pid === view.chosen) replace(section, [head(words), parts, links]);
}

async function look() {
  const [answer, told] = await Promise.all([ask(list.path), ask("/v1/health")]);
  list.take(answer);
  draw();
  replace(at("health"), health(told, before !== null && before.sequence < told.sequence ? before : null, list.cost()));
  if (before === null || told.window.duration_ms - before.window.duration_ms > PACE * 2 || told.sequence < before.sequence) before = told;
  await drawProcess();
  last = answer.window.end_unix_ms;
}

async function turn() {
  if (running) { again = true; return; }
  clearTimeout(timer);
  if (document.hidden || paused || !at("token").hidden) return;
  running = true;
  const begun = performance.now();
  try {
    await look();
    say(at("state"), `as of ${clock(last)}`);
  } catch (error) {
    if (error instanceof Unauthorized) askForToken();
    else say(at("state"), `${printable(error.message, 200)}${last === null ? "" : `; what is shown is of ${clock(last)}`}`);
  }
  running = false;
  const rest = again ? 0 : Math.min(Math.max(PACE, (performance.now() - begun) * REST), SLOWEST);
  again = false;
  timer = setTimeout(turn, rest);
}

function askForToken() {
  say(at("refused"), hasToken() ? "that token was refused" : "");
  say(at("state"), "waiting for a token");
  forgetToken();
  at("token").hidden = false;
  at("secret").focus();
}

at("token").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(at("secret").value);
  at("secret").value = "";
  at("token").hidden = true;
  turn();
});

// However fast one types, the table is drawn once a picture.
let due = false;
function drawSoon() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; draw(); });
}

at("filter").addEventListener("input", () => { view.words = at("filter").value; drawSoon(); });
at("ended").addEventListener("change", () => { view.ended = at("ended").checked; draw(); });
at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  say(at("pause"), paused ? "go on" : "pause");
  say(at("state"), paused ? `paused${last === null ? "" : ` at ${clock(last)}`}` : "asking the daemon");
  turn();
});

document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !typing) { event.preventDefault(); at("filter").focus(); }
  if (event.key === "Escape" && view.chosen !== null) { location.hash = "#list"; at("filter").focus(); }
});

async function choose() {
  const pid = /^#pid=(\d{1,10})$/.exec(location.hash);
  view.chosen = pid === null ? null : Number(pid[1]);
  draw();
  try {
    await drawProcess();
  } catch (error) {
    if (error instanceof Unauthorized) askForToken();
    else say(at("state"), printable(error.message, 200));
  }
  if (view.chosen !== null) at("process").focus({ preventScroll: false });
}

addEventListener("hashchange", choose);
await choose();
turn();
