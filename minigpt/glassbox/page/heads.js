/* The blocks with a small map and a switch for each head, and the head that was chosen: in the text, and large. */

const MAP = 48; // pixels of a small map's side, at most

/** What a head does, in words. */
const KINDS = {
  "previous character": "looks at the character before",
  "first character": "looks at the first character of the window",
  "same character": "looks at earlier places with the same character",
  induction: "looks at what followed when this character stood here before",
  "last line end": "looks at the last line end",
  "last space": "looks at the last space",
  "last capital": "looks at the last capital",
};

const heads = {
  cells: new Map(), // by the head's name, "layer.head"
  at: null, // the position that is looked from, in the window; by default that of the cursor
  worth: new Map(), // nats a token that the text costs more without a head

  build() {
    const { n_layer, n_head } = contents.config,
      blocks = [];
    for (let i = n_layer - 1; i >= 0; i--) {
      const row = Array.from({ length: n_head }, (_, j) => this.cell(i, j));
      blocks.push(
        h(
          "li",
          { className: "block" },
          h(
            "div",
            { className: "halves" },
            partSwitch(`f${i}`, `feed-forward ${i}`),
            partSwitch(`a${i}`, `attention ${i}`),
          ),
          h("div", { className: "maps" }, row),
        ),
      );
    }
    this.list = h("ol", { className: "blocks", reversed: true, start: n_layer }, blocks);
    return h(
      "section",
      { id: "stack-panel", "aria-labelledby": "stack-name" },
      h(
        "div",
        { className: "bar" },
        h("h2", { id: "stack-name" }, "The model"),
        h("button", { id: "all-on", onclick: () => go({ off: [], patch: "" }) }, "All on"),
        exports("stack-panel", () => ({ without_nats: Object.fromEntries(this.worth) })),
      ),
      h("p", { className: "flow", "aria-hidden": "true" }, "▲ what comes next"),
      this.list,
      h("p", { className: "flow", "aria-hidden": "true" }, "▲ the text"),
    );
  },

  cell(layer, head) {
    const name = `${layer}.${head}`,
      canvas = h("canvas", { width: 1, height: 1, "aria-hidden": "true" });
    const worth = h("span", { className: "worth" });
    const says = contents.scores?.rows.find((row) => row.layer === layer && row.head === head);
    const button = h(
      "button",
      {
        className: "map",
        title: `Head ${name}${KINDS[says?.name] ? ` ${KINDS[says.name]}` : ""}`,
        onclick: () => go({ head: name, panel: "heads" }),
        onmouseenter: () => this.preview(name),
        onmouseleave: () => this.preview(null),
        onfocus: () => this.preview(name),
        onblur: () => this.preview(null),
        onkeydown: (event) => this.move(event, layer, head),
      },
      canvas,
      h("span", { className: "unseen" }, "Head "),
      name,
    );
    const cell = h("div", { className: "cell" }, button, partSwitch(`h${name}`, `head ${name}`, true), worth);
    this.cells.set(name, { canvas, button, worth });
    return cell;
  },

  /** Arrow keys go from head to head. */
  move(event, layer, head) {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    const next = by && this.cells.get(`${layer + by[0]}.${head + by[1]}`);
    if (!next) return;
    event.preventDefault();
    next.button.focus();
  },

  chosen() {
    return this.hovered ?? (state.head || this.featured());
  },

  /** The head to begin with: the one that looks most clearly at the character before, or else the first. */
  featured() {
    const named = (contents.scores?.rows ?? []).filter((row) => row.name !== "none");
    const best = named.filter((row) => row.name === "previous character").concat(named)[0];
    return best ? `${best.layer}.${best.head}` : "0.0";
  },

  preview(name) {
    if (name === this.hovered) return;
    this.hovered = name ?? undefined;
    this.drawChosen();
  },

  /** Look from another position: the mouse or the cursor is there. */
  look(t) {
    this.at = t;
    this.drawLinks();
  },

  async compute(base) {
    if (!base.ids.length) return this.clear();
    const found = await ask("maps", { ...base, size: MAP });
    if (base !== view.base) return;
    this.maps = found;
    this.drawMaps();
    await this.drawChosen();
  },

  /** Of an empty text there is nothing to show. */
  clear() {
    this.maps = this.pattern = undefined;
    for (const canvas of [this.canvas, ...[...this.cells.values()].map((cell) => cell.canvas)])
      canvas.width = canvas.height = 1;
    this.links.replaceChildren();
    this.looks.replaceChildren();
  },

  drawMaps() {
    const { size, maps } = this.maps;
    let i = 0;
    for (const [name, { canvas, button }] of this.sorted()) {
      paintMap(canvas, maps, i++ * size * size, size);
      button.setAttribute("aria-pressed", String(name === state.head));
      button.classList.toggle("chosen", name === (state.head || this.featured()));
    }
  },

  sorted() {
    const key = (name) => name.split(".").map(Number);
    return [...this.cells].sort(([a], [b]) => key(a)[0] - key(b)[0] || key(a)[1] - key(b)[1]);
  },

  buildPanel() {
    this.says = h("div", { className: "says" });
    this.links = h("div", {
      id: "links",
      className: "links",
      tabIndex: 0,
      role: "group",
      "aria-label": "The text as this head sees it: arrow keys move the place that looks",
      onkeydown: (event) => this.walk(event),
      onmouseover: (event) => event.target.dataset.t !== undefined && this.look(Number(event.target.dataset.t)),
      onmouseleave: () => this.look(null),
    });
    this.canvas = h("canvas", {
      id: "map",
      width: 1,
      height: 1,
      role: "img",
      onmousemove: (event) => this.pointMap(event),
      onmouseleave: () => (tip.show(null), this.look(null)),
    });
    this.looks = h("p", { className: "looks", "aria-live": "polite" });
    return h(
      "div",
      { id: "heads-panel" },
      h(
        "div",
        { className: "bar" },
        (this.name = h("h3")),
        exports("heads-panel", () => ({ head: this.chosen(), pattern: this.rows() })),
      ),
      this.says,
      this.looks,
      h(
        "div",
        { className: "head" },
        this.links,
        h(
          "figure",
          {},
          this.canvas,
          h(
            "figcaption",
            {},
            "Row: the place that looks. Column: where it looks. Both from the text's first character on.",
          ),
        ),
      ),
    );
  },

  rows() {
    const n = Math.round(Math.sqrt(this.pattern?.length ?? 0));
    return Array.from({ length: n }, (_, t) => Array.from(this.pattern.subarray(t * n, t * n + t + 1)));
  },

  async drawChosen() {
    const { base } = view,
      name = this.chosen(),
      [layer, head] = name.split(".").map(Number);
    if (!base.ids.length || !(shows("heads") || document.body.dataset.card > 2)) return;
    const { pattern } = await ask("pattern", { ...base, layer, head });
    if (base !== view.base || name !== this.chosen()) return;
    this.pattern = pattern;
    this.name.textContent = `Head ${head} of block ${layer}`;
    this.drawSays(name);
    const n = base.ids.length,
      bytes = Uint8Array.from(pattern, (weight) => Math.round(255 * Math.sqrt(weight)));
    paintMap(this.canvas, bytes, 0, n);
    this.canvas.setAttribute("aria-label", `Attention of head ${name}, ${n} by ${n}`);
    const labels = base.ids.map((id) => visible(contents.labels[id]));
    if (this.links.childElementCount !== n)
      this.links.replaceChildren(...labels.map((_, t) => h("span", { data: { t } })));
    labels.forEach((label, t) => {
      const it = this.links.children[t];
      if (it.textContent !== label) it.textContent = label;
      it.classList.toggle("line-end", label === "↵");
    });
    this.drawLinks();
  },

  drawSays(name) {
    const row = contents.scores?.rows.find((it) => `${it.layer}.${it.head}` === name),
      words = [];
    if (row && row.name !== "none")
      words.push(
        `It ${KINDS[row.name]}: ${percent(row.score)} of its attention is there, where evenly spread attention would put ${percent(row.null)}.`,
      );
    else if (row) words.push("It has no name: it does several things, or something that nobody has named.");
    if (row)
      words.push(
        ` Without it the model needs ${signed(row.bits, 3)} ± ${row.error.toFixed(3)} bits a ${contents.unit} more on text it never saw`,
      );
    const here = state.off.includes(`h${name}`) ? undefined : this.worth.get(name);
    if (here !== undefined)
      words.push(
        `${row ? ", and" : " Without it this text costs"} ${signed(here / BITS, 3)}${row ? " on this text" : ` bits a ${contents.unit} more`}`,
      );
    this.says.replaceChildren(
      words.join("") +
        (words.length && (row || here !== undefined) ? "." : "") +
        (state.off.includes(`h${name}`) ? " It is switched off now." : ""),
    );
  },

  /** In the running text, what the place that looks takes from each. */
  drawLinks() {
    const n = view.base.ids.length;
    if (!this.pattern || this.pattern.length !== n * n || this.links.childElementCount !== n) return;
    const t = Math.max(0, Math.min(n - 1, this.at ?? expects.position())),
      row = this.pattern.subarray(t * n, t * n + n);
    let most = 0;
    for (let i = 0; i < n; i++) {
      const it = this.links.children[i];
      it.style.backgroundColor = i <= t ? blue(row[i]) : "";
      it.className = `${i === t ? "looking" : i > t ? "later" : ""} ${it.textContent === "↵" ? "line-end" : ""}`;
      if (row[i] > row[most]) most = i;
    }
    const label = (i) => token(contents.labels[view.base.ids[i]]);
    this.looks.replaceChildren(
      "From ",
      label(t),
      " it looks ",
      ...(most === t ? ["mostly at that place itself"] : ["mostly at ", label(most), `, ${t - most} back`]),
      `: ${percent(row[most])}.`,
    );
  },

  walk(event) {
    const n = view.base.ids.length,
      t = Math.max(0, Math.min(n - 1, this.at ?? expects.position()));
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -n, End: n }[event.key];
    if (!by) return;
    event.preventDefault();
    this.look(Math.max(0, Math.min(n - 1, t + by)));
  },

  pointMap(event) {
    const box = this.canvas.getBoundingClientRect(),
      n = view.base.ids.length;
    const cell = (at, from, size) => Math.max(0, Math.min(n - 1, Math.floor((n * (at - from)) / size)));
    const t = cell(event.clientY, box.top, box.height),
      at = cell(event.clientX, box.left, box.width);
    this.look(t);
    const words =
      at > t
        ? ["A place sees no later one."]
        : [
            "from ",
            token(contents.labels[view.base.ids[t]]),
            " to ",
            token(contents.labels[view.base.ids[at]]),
            `: ${percent(this.pattern[t * n + at])}`,
          ];
    tip.show(this.links.children[t] && this.canvas, () => words);
  },

  /** Behind all that is waited for: what the text costs without each head. */
  async ablate(base) {
    this.worth.clear();
    for (const { worth } of this.cells.values()) worth.textContent = "";
    if (base.ids.length < 2) return;
    const mean = ({ surprisal }) =>
      surprisal.reduce((sum, nats) => (Number.isFinite(nats) ? sum + nats : sum), 0) / (base.ids.length - 1);
    const whole = mean(await askLater("read", base));
    for (const [name, { worth }] of this.sorted().reverse()) {
      if (base !== view.base) return;
      if (state.off.includes(`h${name}`)) continue;
      const off = interventionOf(`h${name}`);
      const without = mean(await askLater("read", { ...base, interventions: [...base.interventions, off] }));
      if (base !== view.base) return;
      this.worth.set(name, without - whole);
      worth.textContent = signed((without - whole) / BITS);
      worth.title = `Without head ${name} this text costs ${signed((without - whole) / BITS, 3)} bits a ${contents.unit} more`;
      if (name === this.chosen()) this.drawSays(name);
    }
  },
};

/** A switch for a part of the model, by its name in the link. */
function partSwitch(part, words, small = false) {
  const button = h(
    "button",
    {
      className: "switch",
      role: "switch",
      "aria-label": words,
      title: `Switch ${words} off or on`,
      data: { part },
      onclick: () =>
        go({ off: state.off.includes(part) ? state.off.filter((it) => it !== part) : [...state.off, part] }),
    },
    h("i", { "aria-hidden": "true" }),
    small ? null : h("span", {}, words.replace(/ \d+$/, "")),
  );
  switches.push(button);
  return button;
}

const switches = [];

function drawSwitches() {
  for (const button of switches) button.setAttribute("aria-checked", String(!state.off.includes(button.dataset.part)));
}
