/* The text: it is edited in a transparent text area, over a mirror of it that has the colours. */

const text = {
  area: null,
  mirror: null,
  shown: [], // the characters of the mirror
  looked: null, // the token that the mouse rests on

  build() {
    this.mirror = h("div", { className: "mirror", "aria-hidden": "true" });
    this.area = h("textarea", {
      id: "text",
      spellcheck: false,
      rows: 1,
      maxLength: MOST,
      autocapitalize: "off",
      autocomplete: "off",
      "aria-describedby": "text-says text-help",
      oninput: () => go({ text: this.area.value, at: this.caret(), head: state.head }),
      onmousemove: (event) => this.point(event),
      onmouseleave: () => this.look(null),
    });
    document.addEventListener("selectionchange", () => {
      if (document.activeElement === this.area && this.caret() !== state.at) go({ at: this.caret() });
    });
    return h(
      "section",
      { id: "text-panel", "aria-labelledby": "text-name" },
      h(
        "div",
        { className: "bar" },
        h("h2", { id: "text-name" }, h("label", { for: "text" }, "The text: change it")),
        h("p", { id: "text-says", className: "says" }),
        h(
          "p",
          { className: "legend", "aria-hidden": "true" },
          "expected ",
          Array.from({ length: 10 }, (_, i) => h("i", { className: `s${i}` })),
          " a surprise of 8 bits",
        ),
        exports("text-panel", () => ({ text: state.text, surprisal_nats: Array.from(view.read?.surprisal ?? []) })),
      ),
      h(
        "p",
        { id: "text-help", className: "unseen" },
        `Each ${contents.unit} is coloured by how much it surprised the model.`,
      ),
      h("div", { className: "editor" }, this.mirror, this.area),
      h("p", { id: "text-warns", className: "warns", role: "status" }),
    );
  },

  /** Characters before the caret; the text area counts UTF-16 units. */
  caret() {
    return Array.from(this.area.value.slice(0, this.area.selectionEnd)).length;
  },

  put() {
    if (this.area.value !== state.text) this.area.value = state.text;
    if (this.caret() !== state.at) {
      const units = Array.from(state.text).slice(0, state.at).join("").length;
      this.area.setSelectionRange(units, units);
    }
  },

  /** The characters, those that the model sees and those before its window. */
  drawCharacters() {
    const { characters, unknown } = view.tokens;
    for (let i = 0; i < characters.length; i++) {
      const it = this.shown[i] ?? (this.shown[i] = this.mirror.appendChild(h("span")));
      if (it.textContent !== characters[i]) it.textContent = characters[i];
      const blank = { " ": "space", "\n": "line-end", "\t": "tab" }[characters[i]] ?? "";
      const isPast = tokenAt(view.tokens, i) < view.start && (view.start || !wordPieces);
      const place = isPast ? "past" : unknown.has(characters[i]) ? "strange" : "";
      it.dataset.i = i;
      it.dataset.kind = `${blank} ${place}`;
    }
    while (this.shown.length > characters.length) this.shown.pop().remove();
    if (!this.last) this.last = h("span", {}, "\u200b"); // holds a line open behind a line end
    this.mirror.append(this.last);
    const warnings = [];
    if (unknown.size)
      warnings.push(
        `The model doesn't know ${[...unknown].slice(0, 8).map(visible).join(" ")}: it was never in its training text, and is left out.`,
      );
    if (view.start > 0)
      warnings.push(
        `The model sees ${count(view.ids.length)} ${contents.unit}s at most: what is grey lies before its window.`,
      );
    if (state.text.length >= MOST) warnings.push(`The text is full: the page takes ${count(MOST)} characters.`);
    const warns = document.getElementById("text-warns");
    if (warns.textContent !== warnings.join(" ")) warns.textContent = warnings.join(" ");
  },

  /** The colours of surprise, as far as they are computed. The price of a piece of a word stands at its last character;
   * all of its characters have the colour of it, so that a word is as orange as it is dear. */
  drawSurprisal() {
    const { surprisal } = view.read,
      { characters, firstOf, ends } = view.tokens;
    let sum = 0,
      known = 0;
    for (let i = 0, t = 0; i < characters.length; i++) {
      let cost = 0,
        priced = t < ends[i]; // what the model doesn't know has no token
      let first = Math.min(i, firstOf[t] ?? i);
      for (; t < ends[i]; t++) {
        const nats = surprisal[t - view.start];
        if (Number.isFinite(nats)) ((cost += nats), (sum += nats), known++);
        else priced = false;
      }
      for (first = priced ? first : i; first <= i; first++) this.shown[first].className = priced ? level(cost) : "s0";
      this.shown[i].dataset.nats = priced ? cost : "";
    }
    const says = known ? `${bits(sum / known)} bits a ${contents.unit} on average` : "Type something.";
    const changed =
      view.base.interventions.length && view.plain && known
        ? `, ${signed((sum - view.plain) / known / BITS)} by your changes`
        : "";
    document.getElementById("text-says").textContent = says + changed;
    view.loss = known ? sum / known : null;
  },

  /** The character under the mouse: the text area lies over it. */
  point({ clientX, clientY }) {
    const under = document.elementsFromPoint(clientX, clientY).find((element) => element.parentNode === this.mirror);
    this.look(under?.dataset.i === undefined ? null : Number(under.dataset.i));
  },

  look(i) {
    if (i === this.looked) return;
    this.looked = i;
    tip.show(i === null ? null : this.shown[i], () => this.about(i));
    heads.look(i === null || !view.read ? null : tokenAt(view.tokens, i) - view.start);
  },

  /** What a character cost, and what was expected in its place. */
  about(i) {
    const { characters, characterOf, firstOf, unknown, ends } = view.tokens;
    if (unknown.has(characters[i])) return ["The model doesn't know this character: it is left out."];
    const first = i && ends[i - 1], // of the tokens of this character, or the piece around it
      t = first - view.start;
    if (wordPieces && !(firstOf[first] <= i)) return ["It belongs to no piece: the model doesn't see it."];
    const nats = this.shown[characterOf[first]]?.dataset.nats;
    if (t <= 0 || !nats) return ["Nothing comes before it in the window, so nothing predicts it."];
    const guesses = likeliest(view.read.logits, t - 1, 3);
    return [
      token(characters.slice(firstOf[first], characterOf[first] + 1).join("")),
      ` cost ${bits(Number(nats))} bits. Expected: `,
      guesses.flatMap(([id, p]) => [token(contents.labels[id]), ` ${percent(p)} `]),
    ];
  },
};

/** The likeliest tokens of a row of logits, each with its probability. */
function likeliest(logits_TV, t, most) {
  const V = contents.labels.length,
    row = logits_TV.subarray(t * V, (t + 1) * V);
  const probs = probabilities(row);
  return Array.from(row.keys())
    .sort((a, b) => row[b] - row[a])
    .slice(0, most)
    .map((id) => [id, probs[id]]);
}

/** A few words beside what the mouse rests on. */
const tip = {
  build() {
    return (this.box = h("div", { id: "tip", role: "presentation", hidden: true }));
  },
  show(element, words) {
    this.box.hidden = !element;
    if (!element) return;
    this.box.replaceChildren(...words().flat(9));
    const at = element.getBoundingClientRect(),
      { width, height } = this.box.getBoundingClientRect();
    const below = at.bottom + 6 + height < innerHeight;
    this.box.style.left = `${Math.max(4, Math.min(innerWidth - width - 4, at.left - 20))}px`;
    this.box.style.top = `${below ? at.bottom + 6 : at.top - height - 6}px`;
  },
};

/** Buttons that give a part of the page away: as a drawing, and its numbers. */
function exports(id, numbers) {
  const name = (ending) => `${contents.name.replaceAll(/[^\w.-]+/g, "-")}-${id.replace("-panel", "")}.${ending}`;
  return h(
    "span",
    { className: "exports" },
    h(
      "button",
      {
        "aria-label": "Save this figure as SVG",
        title: "Save this figure as SVG",
        onclick: () => save(name("svg"), asSVG(document.getElementById(id)), "image/svg+xml"),
      },
      "SVG",
    ),
    h(
      "button",
      {
        "aria-label": "Save these numbers as JSON",
        title: "Save these numbers as JSON",
        onclick: () => save(name("json"), JSON.stringify({ ...about(), ...numbers() }, null, 1), "application/json"),
      },
      "JSON",
    ),
  );
}

/** What numbers that leave the page are about. */
const about = () => ({
  model: contents.name,
  step: state.step,
  text: state.text,
  interventions: view.base.interventions,
});
