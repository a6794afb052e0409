/* Elements, colours and files. Text reaches the page as text only: nothing here, or elsewhere, parses markup. */

/** An element with properties, attributes (names with a hyphen, and role), listeners (on...) and children. */
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** An SVG element with attributes and children. */
function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat());
  return element;
}

const WHITE = { " ": "·", "\n": "↵", "\t": "→", "\\x0a": "↵" };

/** A token as it is shown: white space can be seen, and what has no picture of its own shows its number. */
function visible(label) {
  if (label in WHITE) return WHITE[label];
  if (contents.bpe && label.endsWith(WORD_END)) return visible(label.slice(0, -WORD_END.length)) + "·";
  if (/^\p{M}+$/u.test(label)) return "◌" + label;
  if (!/^[\p{C}\p{Z}]+$/u.test(label)) return label;
  return Array.from(label, (c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")).join(" ");
}

/** A token in a sentence. */
const token = (label) => h("code", { className: "token" }, visible(label));

const BITS = Math.LN2; // nats of a bit
const bits = (nats) => (nats / BITS).toFixed(2);
const percent = (p) =>
  p >= 0.9995 ? "100 %" : p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : `${(100 * p).toFixed(1)} %`;
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const count = (value) => value.toLocaleString("en");

/** The class of a surprisal: s0 costs nothing, s9 costs 8 bits or more. */
const level = (nats) => (Number.isFinite(nats) ? `s${Math.min(9, Math.round((9 * nats) / (8 * BITS)))}` : "s0");

/** A colour for a weight from 0 to 1; square roots, so that small ones can be seen, and never so full that text isn't. */
const blue = (weight) => `rgb(var(--blue) / ${(0.55 * Math.sqrt(Math.max(0, Math.min(1, weight)))).toFixed(3)})`;

/** A colour for a signed value, of which `most` is full: orange above 0, blue below. */
function diverging(value, most) {
  const strength = Math.min(1, Math.abs(value) / (most || 1));
  return `rgb(var(${value < 0 ? "--blue" : "--orange"}) / ${(0.9 * strength).toFixed(3)})`;
}

/** A square map of bytes, rows × rows from `from` on, on a canvas of as many pixels. */
function paintMap(canvas, bytes, from, rows) {
  if (canvas.width !== rows) canvas.width = canvas.height = rows;
  const context = canvas.getContext("2d"),
    image = context.createImageData(rows, rows);
  const [r, g, b] = getComputedStyle(document.documentElement)
    .getPropertyValue("--blue")
    .trim()
    .split(/\s+/)
    .map(Number);
  for (let i = 0; i < rows * rows; i++) {
    image.data[4 * i] = r;
    image.data[4 * i + 1] = g;
    image.data[4 * i + 2] = b;
    image.data[4 * i + 3] = bytes[from + i];
  }
  context.putImageData(image, 0, 0);
}

/** Offer text as a file. */
function save(name, text, type) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Controls; but what is drawn in a button belongs to the figure.
const NOT_DRAWN = "input, select, textarea, .unseen, button:not(.map, .grid *, .parts *, .occurrences *)";

/** Whatever a part of the page shows, as one SVG: its backgrounds, borders below, texts, canvases and drawings. */
function asSVG(part) {
  const page = part.getBoundingClientRect(),
    rest = { width: page.width, height: page.height };
  // In a document of its own, which loads nothing: the page's policy allows no images.
  const drawing = document.implementation
    .createDocument(null, null)
    .adoptNode(s("svg", { viewBox: `0 0 ${page.width} ${page.height}`, ...rest }));
  const at = (box) => ({ x: box.left - page.left, y: box.top - page.top, width: box.width, height: box.height });
  const seen = (colour) => !/^(transparent|rgba\(.*, 0\))$|\/ 0\)$/.test(colour);
  drawing.append(s("rect", { ...rest, fill: getComputedStyle(document.body).backgroundColor }));
  const walk = (element) => {
    const style = getComputedStyle(element),
      box = element.getBoundingClientRect();
    if (style.display === "none" || style.visibility === "hidden" || element.matches(NOT_DRAWN)) return;
    if (element instanceof HTMLCanvasElement) {
      const image = s("image", { ...at(box), "image-rendering": "pixelated" });
      drawing.append(image);
      image.setAttribute("href", element.toDataURL());
      return;
    }
    if (element instanceof SVGElement) {
      const copy = element.cloneNode(true),
        originals = element.querySelectorAll("*");
      for (const [i, node] of copy.querySelectorAll("*").entries()) {
        const look = getComputedStyle(originals[i]);
        for (const name of [
          "fill",
          "stroke",
          "stroke-width",
          "font-size",
          "font-family",
          "text-anchor",
          "fill-opacity",
        ])
          node.setAttribute(name, look.getPropertyValue(name));
      }
      for (const [name, value] of Object.entries(at(box))) copy.setAttribute(name, value);
      drawing.append(copy);
      return;
    }
    if (seen(style.backgroundColor)) drawing.append(s("rect", { ...at(box), fill: style.backgroundColor }));
    for (const child of element.childNodes) {
      if (child.nodeType === Node.ELEMENT_NODE) walk(child);
      if (child.nodeType !== Node.TEXT_NODE || !child.data.trim()) continue;
      for (const match of child.data.matchAll(/\S+/g)) {
        // what XML can't hold is shown as it is elsewhere
        const range = document.createRange();
        range.setStart(child, match.index);
        range.setEnd(child, match.index + match[0].length);
        const word = at(range.getBoundingClientRect()),
          size = parseFloat(style.fontSize);
        const look = {
          fill: style.color,
          "font-size": size,
          "font-family": style.fontFamily,
          "font-weight": style.fontWeight,
        };
        const y = word.y + word.height / 2 + 0.35 * size;
        drawing.append(
          s(
            "text",
            { x: word.x, y, textLength: word.width || 1, ...look },
            match[0].replaceAll(/[\p{Cc}\p{Cs}\ufffe\uffff]/gu, visible),
          ),
        );
      }
    }
  };
  walk(part);
  return new XMLSerializer().serializeToString(drawing);
}
