// As much of a document as the page's modules need, and no way to make markup of text.

class Node {
  parent = null;
  children = [];
  get firstChild() { return this.children[0] ?? null; }
  get nextSibling() { return this.parent.children[this.parent.children.indexOf(this) + 1] ?? null; }
  get textContent() { return this.children.map((child) => child.textContent).join(""); }
  set textContent(text) { this.replaceChildren(new Text(text)); }
  contains(other) { return other === this || this.children.some((child) => child.contains(other)); }
  append(...nodes) { for (const node of nodes) this.insertBefore(typeof node === "string" ? new Text(node) : node, null); }
  insertBefore(node, next) {
    node.remove();
    this.children.splice(next === null ? this.children.length : this.children.indexOf(next), 0, node);
    node.parent = this;
  }
  remove() {
    if (this.parent !== null) this.parent.children.splice(this.parent.children.indexOf(this), 1);
    this.parent = null;
  }
  replaceChildren(...nodes) { for (const child of [...this.children]) child.remove(); this.append(...nodes); }
}

export class Text extends Node {
  constructor(text) { super(); this.text = text; }
  get textContent() { return this.text; }
}

export class Element extends Node {
  attributes = new Map();
  style = {};
  hidden = false;
  value = "";
  open = false;
  #handlers = new Map();
  constructor(name) { super(); this.name = name; }
  getAttribute(key) { return this.attributes.get(key) ?? null; }
  hasAttribute(key) { return this.attributes.has(key); }
  setAttribute(key, value) { this.attributes.set(key, value); }
  removeAttribute(key) { this.attributes.delete(key); }
  addEventListener(type, handler) { this.#handlers.set(type, handler); }
  /** What a browser does when something happened to the element. */
  fire(type, event) { return this.#handlers.get(type)(event); }
  focus() { document.activeElement = this; }
  blur() { document.activeElement = null; }
  closest(selector) { return this.#is(selector) ? this : this.parent?.closest(selector) ?? null; }
  querySelectorAll(selector) { return [...all(this)].filter((node) => node !== this && node instanceof Element && node.#is(selector)); }
  querySelector(selector) { return this.querySelectorAll(selector)[0] ?? null; }
  /** `name`, `name[attribute]`, and `[open]`. */
  #is(selector) {
    const [name, ...conditions] = selector.split(/[[\]]+/).filter((part) => part !== "");
    return this.name === name && conditions.every((key) => (key === "open" ? this.open : this.attributes.has(key)));
  }
  get innerHTML() { throw new Error("innerHTML"); }
  set innerHTML(_) { throw new Error("innerHTML"); }
  set outerHTML(_) { throw new Error("outerHTML"); }
  insertAdjacentHTML() { throw new Error("insertAdjacentHTML"); }
}

globalThis.document = {
  activeElement: null,
  createElement: (name) => new Element(name),
  createElementNS: (_, name) => new Element(name),
  createTextNode: (text) => new Text(text),
};

/** Every node below, itself first. */
export function* all(node) {
  yield node;
  for (const child of node.children) yield* all(child);
}

/** A document in which reading a field that it does not have is an error. */
export function strict(value, path = "") {
  if (value === null || typeof value !== "object") return value;
  return new Proxy(value, {
    get(target, key) {
      const found = Reflect.get(target, key);
      if (typeof key === "symbol") return found;
      if (!(key in target) && !(key === "toJSON")) throw new Error(`no such field: ${path}.${key}`);
      return typeof found === "function" ? found : strict(found, `${path}.${key}`);
    },
  });
}
