// The only maker of elements: what comes from a document ends as a text node or as a value of one of these attributes.

const SVG = "http://www.w3.org/2000/svg";
const ELEMENTS = new Set(["a", "b", "button", "code", "dd", "details", "div", "dl", "dt", "h2", "h3", "li", "ol", "p",
  "span", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul"]);
const DRAWN = new Set(["svg", "polyline", "circle"]);
const ATTRIBUTES = new Set(["aria-current", "aria-label", "aria-sort", "class", "colspan", "cx", "cy", "data-key", "href",
  "id", "points", "preserveAspectRatio", "r", "role", "scope", "title", "type", "viewBox"]);

/** An element; children are nodes, texts, or null for nothing. */
export function el(name, attributes, ...children) {
  if (!ELEMENTS.has(name) && !DRAWN.has(name)) throw new Error(`no element of this page: ${name}`);
  const made = DRAWN.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) set(made, key, value);
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined) continue;
    made.append(typeof child === "object" ? child : document.createTextNode(String(child)));
  }
  return made;
}

/** Sets an attribute if it is another; null takes it away. */
export function set(element, key, value) {
  if (!ATTRIBUTES.has(key)) throw new Error(`no attribute of this page: ${key}`);
  if (key === "href" && !/^(#|\/v1\/)/.test(value)) throw new Error("a link leads within this daemon");
  if (value === null || value === undefined) {
    if (element.hasAttribute(key)) element.removeAttribute(key);
  } else if (element.getAttribute(key) !== String(value)) element.setAttribute(key, String(value));
}

/** Sets the text of an element if it is another. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
