// The line that says how far the figures can be believed and what they cost.

import { bytes, count, many, printable, share, span } from "./figures.js";
import { el } from "./dom.js";

const TONE = { ok: "good", incomplete: "warn", broken: "bad" };

/** `before` is the document of the look before, or null; `cost` what observing costs the programs. */
export function health(told, before, cost) {
  const { daemon, window, calibration } = told;
  const lost = told.losses.filter((loss) => loss.count > 0);
  const verdicts = (verdict) => told.probes.filter((probe) => probe.verdict === verdict);
  const [ok, unsupported, broken] = ["ok", "unsupported", "broken"].map(verdicts);
  const ms = before === null ? window.duration_ms : window.duration_ms - before.window.duration_ms;
  const cpu = before === null ? daemon.cpu_ms : daemon.cpu_ms - before.daemon.cpu_ms;
  const own = ms > 0 && cpu >= 0 ? `${share(cpu / ms)} of a processor` : "not known yet";
  const line = [
    el("span", null, el("b", { class: TONE[told.status] ?? "bad" }, printable(told.status)),
      told.complete ? ": nothing is missing" : ": something is missing"),
    el("span", { class: lost.length === 0 ? null : "warn" }, lost.length === 0 ? "no losses" :
      `lost: ${lost.map((loss) => `${printable(loss.reason)} ${count(loss.count)}`).join(", ")}`),
    el("span", { class: broken.length > 0 ? "bad" : null },
      `${many(ok.length, "probe")} ok, ${count(unsupported.length)} unsupported, ${count(broken.length)} broken`),
    el("span", { title: "CPU time that hits of probes take in the observed programs, estimated from the price of a hit" },
      "observing costs the programs ", el("b", null, programs(cost, calibration))),
    el("span", { title: `in ${span(ms)}` }, "the daemon itself ", el("b", null, own),
      `, ${bytes(daemon.resident_bytes)} resident, kernel maps up to ${bytes(daemon.kernel_bytes)}, ` +
      `last collection ${(daemon.collect_us / 1000).toFixed(1)} ms`),
    el("span", null, `version ${printable(daemon.version)}, observing for ${span(window.duration_ms)}`),
    told.history === null ? null : el("span", { class: told.history.state === "recording" ? null : "warn" },
      `history: ${printable(told.history.state)}, ${bytes(told.history.bytes)} of ${bytes(told.history.max_bytes)}`),
  ];
  const bad = [...broken, ...unsupported];
  const refused = told.configuration.refused;
  return [
    el("div", null, line),
    refused === null ? null : el("p", { class: "warn" }, `the last reload was refused: ${printable(refused.why, 300)}`),
    bad.length === 0 ? null : el("details", { "data-key": "probes" },
      el("summary", null, many(bad.length, "probe that does", "probes that do"), " not count"),
      el("ul", { class: "said" }, bad.map((probe) => el("li", null, el("b", null, printable(probe.verdict)),
        ` ${printable(probe.name, 160)} (depth ${printable(probe.depth)}): ${printable(probe.why ?? "", 300)}`)))),
  ];
}

function programs(cost, calibration) {
  if (calibration.not_measured !== null) return `not measured: ${printable(calibration.not_measured, 200)}`;
  if (cost.sum === null) return "not known yet";
  const some = cost.unknown === 0 ? "" : ` (not known of ${many(cost.unknown, "process", "processes")})`;
  return `≈ ${share(cost.sum / 1000)} of a processor${some}`;
}
