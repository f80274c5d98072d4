// Runs the page's main module against answers of a daemon: `node flow.mjs` in a folder that has both.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { Element } from "./stub.mjs";

const file = (name) => readFileSync(new URL(`./${name}`, import.meta.url), "utf8");
const later = globalThis.setTimeout;
/** Until everything that was begun has come to its end. */
const settled = async () => { for (let turn = 0; turn < 20; turn += 1) await new Promise((done) => later(done)); };

// The elements of the page itself, by their ids: one that the module asks for and the page lacks is null, and fails.
const byId = new Map();
for (const [tag, name] of file("index.html").matchAll(/<(\w+)[^>]*>/g)) {
  const id = /\bid="(\w+)"/.exec(tag)?.[1];
  if (!id) continue;
  const element = new Element(name);
  element.hidden = /\shidden[\s>]/.test(tag);
  byId.set(id, element);
}
document.getElementById = (id) => byId.get(id) ?? null;
document.hidden = false;
document.addEventListener = (type, handler) => handlers.set(`document ${type}`, handler);
globalThis.HTMLInputElement = class {};
const handlers = new Map(), timers = [];
globalThis.addEventListener = (type, handler) => handlers.set(`window ${type}`, handler);
globalThis.location = { hash: "" };
globalThis.setTimeout = (handler, ms) => timers.push({ handler, ms });
globalThis.clearTimeout = () => { timers.length = 0; };
globalThis.requestAnimationFrame = (handler) => handler();
const kept = new Map();
globalThis.sessionStorage = {
  getItem: (key) => kept.get(key) ?? null,
  setItem: (key, value) => kept.set(key, value),
  removeItem: (key) => kept.delete(key),
};

const asked = [];
let reachable = true;
const documents = [
  [/^\/v1\/processes\?since=0$/, "list-1.json"], [/^\/v1\/processes\?since=42$/, "list-2.json"],
  [/^\/v1\/processes\?since=43$/, "list-2.json"], [/^\/v1\/health$/, "health.json"],
  [/^\/v1\/processes\/4242$/, "one-4242.json"], [/^\/v1\/raises\?pid=4242$/, "raises-4242.json"],
  [/^\/v1\/crossings\?by=stack&pid=4242&limit=20$/, "stacks-4242.json"],
];
globalThis.fetch = async (path, { headers, credentials }) => {
  asked.push({ path, token: headers.Authorization ?? null });
  assert.equal(credentials, "omit");
  if (!reachable) throw new TypeError("no answer");
  if (headers.Authorization !== "Bearer right") return { status: 401, ok: false };
  const found = documents.find(([pattern]) => pattern.test(path));
  if (!found) return { status: 404, ok: false, json: async () => ({ error: { code: "x", message: "<b>not there</b>" } }) };
  return { status: 200, ok: true, json: async () => JSON.parse(file(found[1])) };
};
const at = (id) => byId.get(id);
const next = async () => { const { handler, ms } = timers.pop(); await handler(); await settled(); return ms; };
const submit = async (value) => {
  at("secret").value = value;
  at("token").fire("submit", { preventDefault() {} });
  await settled();
};

await import("./main.js");
await settled();
assert.equal(at("token").hidden, false, "the page asks for a token");
assert.equal(at("state").textContent, "waiting for a token");
assert.equal(at("rows").children.length, 0);
const before = asked.length;
if (timers.length > 0) await next();
assert.equal(asked.length, before, "nothing is asked while the token is missing");
await submit("wrong");
assert.equal(asked.at(-1).token, "Bearer wrong");
assert.equal(at("refused").textContent, "that token was refused");
assert.equal(kept.size, 0);
await submit("right");
assert.equal(at("token").hidden, true);
assert.deepEqual([...kept.values()], ["right"]);
assert.equal(at("rows").children.length, 5);
assert.ok(at("health").textContent.includes("nothing is missing"));

// The next look asks for what changed, not before two seconds are over.
assert.ok(timers.at(-1).ms >= 2000);
await next();
assert.ok(asked.some((one) => one.path === "/v1/processes?since=42"));
assert.equal(at("counted").textContent, "5 processes of 5");
at("filter").value = "java";
at("filter").fire("input");
assert.equal(at("counted").textContent, "1 process of 5");
at("filter").value = "";
at("filter").fire("input");

// Nobody looks, nothing is asked.
document.hidden = true;
let count = asked.length;
await next();
assert.equal(asked.length, count);
document.hidden = false;
handlers.get("document visibilitychange")();
await settled();
assert.ok(asked.length > count);

// One process, by its link; what is no number is no process.
location.hash = "#pid=4242";
await handlers.get("window hashchange")();
await settled();
assert.equal(at("process").hidden, false);
assert.ok(at("process").textContent.includes("From call to kernel"));
location.hash = "#pid=1";
await handlers.get("window hashchange")();
await settled();
assert.ok(at("process").textContent.includes("<b>not there</b>"), "as text");
for (const hash of ["#pid=1<script>", "#pid=../../x", "#list"]) {
  location.hash = hash;
  await handlers.get("window hashchange")();
  assert.equal(at("process").hidden, true, hash);
}

// A daemon that is gone is told of, with the age of what is shown.
reachable = false;
await next();
assert.ok(at("state").textContent.startsWith("no answer; what is shown is of "), at("state").textContent);
assert.equal(at("rows").children.length, 5);
reachable = true;
await next();
assert.ok(at("state").textContent.startsWith("as of "));
at("pause").fire("click");
await settled();
count = asked.length;
while (timers.length > 0) await next();
assert.equal(asked.length, count, "paused");
console.log("flows");
