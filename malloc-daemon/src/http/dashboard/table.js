// Draws the rows into the page: at most so many, each element kept as long as its process is shown.

import { COLUMNS } from "./columns.js";
import { el, say, set } from "./dom.js";

/** Rows drawn; the others are told in words. */
export const ROWS = 500;

export class Table {
  #rows = new Map();
  #heads = [];

  constructor(head, body, sort) {
    this.body = body;
    const cells = COLUMNS.map((column) => {
      const button = el("button", { type: "button", title: column.about }, column.title);
      button.addEventListener("click", () => sort(column));
      const cell = el("th", { scope: "col", class: classes(column) }, button);
      this.#heads.push(cell);
      return cell;
    });
    head.append(el("tr", null, cells));
  }

  /** Draws the first rows; returns how many were left out. */
  draw(rows, { column, descending, chosen }) {
    COLUMNS.forEach((one, index) => {
      set(this.#heads[index], "aria-sort", one === column ? (descending ? "descending" : "ascending") : null);
    });
    const shown = rows.slice(0, ROWS);
    const wanted = new Set(shown.map((row) => row.key));
    // Elements of rows that are no longer shown serve those that are new: making them is what takes time.
    const spare = [...this.#rows].filter(([key]) => !wanted.has(key)).map(([, held]) => held);
    if (spare.some((held) => held.row.contains(document.activeElement))) document.activeElement.blur();
    const focused = document.activeElement;
    const kept = new Map();
    let next = this.body.firstChild;
    for (const row of shown) {
      const held = this.#rows.get(row.key) ?? spare.pop() ?? made();
      kept.set(row.key, held);
      fill(held, row, chosen);
      if (held.row === next) next = next.nextSibling;
      else this.body.insertBefore(held.row, next);
    }
    for (const held of spare) held.row.remove();
    this.#rows = kept;
    // An element that moves loses the focus.
    if (focused !== document.activeElement && focused !== null && this.body.contains(focused)) {
      focused.focus({ preventScroll: true });
    }
    return rows.length - shown.length;
  }
}

function classes(column) {
  return [column.name ? "name" : "", column.wide ? "wide" : ""].join(" ").trim();
}

/** An empty row: its cells, and a link in the first two. */
function made() {
  const links = [el("a", null), el("a", null)];
  const cells = COLUMNS.map((column, index) => el("td", { class: classes(column) }, links[index] ?? null));
  return { row: el("tr", null, cells), cells, links, whose: null, seen: [] };
}

/** Touches what is another than before: the page is slower to ask than to remember. */
function fill(held, row, chosen) {
  const { pid, ended } = row.process;
  const whose = `${pid} ${ended} ${pid === chosen}`;
  if (held.whose !== whose) {
    held.whose = whose;
    set(held.row, "class", ended === null ? null : "ended");
    set(held.row, "aria-current", pid === chosen ? "true" : null);
    for (const link of held.links) set(link, "href", `#pid=${pid}`);
  }
  COLUMNS.forEach((column, index) => {
    const { text, title, unknown } = column.show(row);
    const seen = `${unknown} ${text}\n${title}`;
    if (held.seen[index] === seen) return;
    held.seen[index] = seen;
    const cell = held.cells[index];
    say(held.links[index] ?? cell, text);
    set(cell, "title", title);
    set(cell, "class", unknown ? `${classes(column)} unknown`.trim() : classes(column));
  });
}
