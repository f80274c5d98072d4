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
    const focused = document.activeElement;
    const shown = rows.slice(0, ROWS);
    const kept = new Map();
    let next = this.body.firstChild;
    for (const row of shown) {
      const held = this.#rows.get(row.key) ?? made();
      kept.set(row.key, held);
      fill(held, row, chosen);
      if (held.row === next) next = next.nextSibling;
      else this.body.insertBefore(held.row, next);
    }
    for (const [key, held] of this.#rows) if (!kept.has(key)) held.row.remove();
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
  return { row: el("tr", null, cells), cells, links };
}

function fill(held, row, chosen) {
  set(held.row, "class", row.process.ended === null ? null : "ended");
  set(held.row, "aria-current", row.process.pid === chosen ? "true" : null);
  COLUMNS.forEach((column, index) => {
    const shown = column.show(row);
    const cell = held.cells[index];
    say(held.links[index] ?? cell, shown.text);
    set(cell, "title", shown.title);
    set(cell, "class", shown.unknown ? `${classes(column)} unknown`.trim() : classes(column));
    if (held.links[index]) set(held.links[index], "href", `#pid=${row.process.pid}`);
  });
}
