// Draws documents of the daemon with the page's own modules: `node check.mjs FOLDER`, where FOLDER has both.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { Element, Text, all, strict } from "./stub.mjs";
import { COLUMNS } from "./columns.js";
import { el } from "./dom.js";
import { bytes, printable, share } from "./figures.js";
import { health } from "./health.js";
import { List } from "./list.js";
import { process as drawn } from "./process.js";
import { ROWS, Table } from "./table.js";

const raw = (name) => JSON.parse(readFileSync(new URL(`./${name}.json`, import.meta.url), "utf8"));
const read = (name) => strict(raw(name), name);
const column = (id) => COLUMNS.find((one) => one.id === id);

// Every field that the modules read is there, or `strict` throws.
const list = new List();
list.take(read("list-1"));
const first = list.rows.size;
list.take(read("list-2"));
const view = { words: "", ended: true, column: column("pid"), descending: false };
const body = new Element("tbody"), head = new Element("thead");
const table = new Table(head, body, () => {});
assert.equal(table.draw(list.view(view), { ...view, chosen: 77 }), 0);
assert.equal(body.children.length, list.rows.size);

// What is not measured is shown as such; what is zero as zero.
const row = (pid) => list.view(view).find((one) => one.process.pid === pid);
const shown = (pid, id) => column(id).show(row(pid));
for (const id of ["calls", "bytes", "crossings", "mapped", "threshold", "mode", "raises", "retained", "top", "cost"]) {
  assert.deepEqual([shown(77, id).text, shown(77, id).title], ["–", "not measured"], id);
}
assert.equal(shown(4242, "raises").text, "0");
// 1,000 calls and 64,000 bytes more in 2 s.
assert.equal(shown(4242, "calls").text, "500");
assert.equal(shown(4242, "bytes").text, "32.0 KB");
assert.equal(shown(5, "calls").text.startsWith("≈ "), true);
assert.equal(row(8).callsPerS, undefined, "a process that was seen once");
assert.equal(shown(8, "calls").text, "…");
assert.equal([...list.rows.values()].some((one) => one.process.pid === 9), false, "an image that is gone");
assert.equal(first, list.rows.size);

// What is not known sorts last, whichever way.
for (const descending of [true, false]) {
  const sorted = list.view({ ...view, column: column("calls"), descending }).map((one) => column("calls").value(one));
  const unknown = sorted.findIndex((value) => value === null || value === undefined);
  assert.ok(sorted.slice(unknown).every((value) => value === null || value === undefined));
}
assert.deepEqual(list.view({ ...view, words: "JAVA 77" }).map((one) => one.process.pid), [77]);

// A whole process, exact, estimated, without anything measured, and with names chosen to harm.
const pages = [4242, 77, 666, 5].map((pid) => {
  const section = new Element("section");
  const documents = { one: read(`one-${pid}`), raises: read(`raises-${pid}`), stacks: read(`stacks-${pid}`) };
  section.append(...drawn(documents).flat(Infinity).filter((part) => part !== null));
  return [pid, section];
});
const text = Object.fromEntries(pages.map(([pid, section]) => [pid, section.textContent]));
assert.ok(text[4242].includes("618,427"));
assert.equal(text[77].split("not measured").length - 1 >= 7, true, text[77]);
assert.ok(text[5].includes("counted in 25.0 % of the time"));
assert.ok(text[5].includes("95 times in 100 between"));
assert.ok(text[666].includes("131.1 KB → 1.1 MB"));

const line = new Element("section");
const healths = [read("health"), read("health-lossy")];
line.append(...health(healths[0], null, list.cost()).filter((part) => part !== null));
line.append(...health(healths[1], healths[0], { sum: null, unknown: 0 }).filter((part) => part !== null));
assert.ok(line.textContent.includes("nothing is missing"));
assert.ok(line.textContent.includes("1 broken"));

// Names end as text, with what misleads escaped; no element and no attribute comes from one.
const elements = new Set(), attributes = new Set();
for (const root of [body, head, line, ...pages.map(([, section]) => section)]) {
  for (const node of all(root)) {
    if (node instanceof Text) {
      assert.ok(!/[\p{Cc}\u202e\u2028\u009b]/u.test(node.text), JSON.stringify(node.text));
      continue;
    }
    elements.add(node.name);
    for (const [key, value] of node.attributes) {
      attributes.add(key);
      assert.ok(key !== "href" || /^#pid=\d+$/.test(value), value);
    }
  }
}
assert.ok(body.textContent.includes("<script>"), "it is shown, as text");
assert.ok(text[666].includes("<img src=x onerror=alert(1)>"), "it is shown, as text");
assert.ok(!["script", "img", "iframe", "style"].some((name) => elements.has(name)));
assert.ok(![...attributes].some((key) => key.startsWith("on") || key === "style" || key === "src"));
assert.throws(() => el("script", null));
assert.throws(() => el("a", { href: "javascript:alert(1)" }));
assert.throws(() => el("a", { href: "//elsewhere.example/" }));
assert.throws(() => el("a", { onclick: "alert(1)" }));

// The same escapes and units as in the text report.
for (const [name, escaped] of raw("printable")) assert.equal(printable(name, 64), escaped, JSON.stringify(name));
for (const [value, words] of raw("bytes")) assert.equal(bytes(value), words);
assert.deepEqual([share(0), share(0.00001), share(0.5)], ["0.0 %", "<0.01 %", "50.0 %"]);

// Ten thousand processes: so many rows and no more, the rest counted.
const many = new List();
const one = raw("list-1").processes[0];
const crowd = Array.from({ length: 10000 }, (_, index) => ({ ...one, pid: index + 1 }));
const answer = (sequence, processes, whole) => ({
  schema_version: 1, sequence, window: { start_unix_ms: 0, end_unix_ms: sequence, duration_ms: sequence * 1000 }, processes, whole, gone: [],
});
many.take(answer(1, crowd, true));
many.take(answer(2, crowd.slice(0, 100), false));
const rows = new Element("tbody");
const large = new Table(new Element("thead"), rows, () => {});
assert.equal(large.draw(many.view(view), { ...view, chosen: null }), 10000 - ROWS);
assert.equal(rows.children.length, ROWS);
large.draw(many.view({ ...view, descending: true }), { ...view, chosen: null });
assert.equal(rows.children[0].children[0].textContent, "10000");
large.draw(many.view(view), { ...view, chosen: null });
assert.equal(rows.children.length, ROWS);
assert.equal(rows.children[0].children[0].textContent, "1");
assert.equal(new Set([...all(rows)].filter((node) => node.name === "tr")).size, ROWS);
console.log("drawn");
