/* What the model expects after the cursor: bars for all tokens, how one is drawn from them, and writing. */

const SLIDERS = [
  ["temperature", "temperature", 0, 2, 0.05, "below 1 the likely gets likelier; 0 always takes the likeliest"],
  ["top_k", "top-k", 0, null, 1, "only the k likeliest are left; 0 leaves all"],
  ["top_p", "top-p", 0.01, 1, 0.01, "only the likeliest that together have this much"],
  ["min_p", "min-p", 0, 0.99, 0.01, "only those with this part of the likeliest's probability"],
];

const MOST_BARS = 200; // of pieces of words, of which there may be 40,000
const MOST_PIECES = 20; // of a word that is written

const expects = {
  bars: [], // of each token of the vocabulary that was shown
  writing: null,
  pending: { ids: [] }, // bytes that are not yet a character, or pieces that are not yet a word, and of which state

  build() {
    const shown = wordPieces ? "The likeliest pieces" : "All characters";
    this.list = h("ol", { className: "bars", "aria-label": `${shown} by probability`, tabIndex: 0 });
    this.sliders = SLIDERS.map(([name, label, least, most, step, title]) => {
      const output = h("output", { for: `slider-${name}` });
      const input = h("input", {
        id: `slider-${name}`,
        type: "range",
        min: least,
        max: most ?? contents.labels.length,
        step,
        "aria-describedby": `slider-${name}-help`,
        oninput: () => go({ [name]: Number(input.value) }),
      });
      return {
        name,
        input,
        output,
        row: h(
          "div",
          { className: "slider", title },
          h("label", { for: input.id }, label),
          input,
          output,
          h("span", { id: `slider-${name}-help`, className: "unseen" }, title),
        ),
      };
    });
    this.stepButton = h("button", { id: "step", onclick: () => this.write(1) }, "Step");
    this.writeButton = h(
      "button",
      { id: "write", onclick: () => (this.writing ? this.stop() : this.write(Infinity)) },
      "Write",
    );
    return h(
      "section",
      { id: "expects-panel", "aria-labelledby": "expects-name" },
      h(
        "div",
        { className: "bar" },
        h("h2", { id: "expects-name" }, "What comes next?"),
        exports("expects-panel", () => ({ after: this.after(), expected: this.numbers() })),
      ),
      h("p", { id: "expects-says", "aria-live": "polite" }),
      h("div", { className: "buttons" }, this.stepButton, this.writeButton),
      this.list,
      h(
        "p",
        { id: "key" },
        h("span", {}, h("i", { className: "model" }), "the model"),
        h("span", {}, h("i", { className: "drawn" }), "what is drawn from"),
      ),
      h(
        "details",
        { id: "sliders", open: true },
        h("summary", {}, "How it is drawn"),
        this.sliders.map(({ row }) => row),
      ),
    );
  },

  /** The bar of a token. */
  barOf(id) {
    if (this.bars[id]) return this.bars[id];
    const bar = h("i", { className: "model" }),
      drawn = h("i", { className: "drawn" });
    const value = h("span", { className: "value" });
    const row = h(
      "li",
      { onclick: () => this.add([id]), title: "Write this one" },
      h("code", {}, visible(contents.labels[id])),
      h("span", { className: "track" }, bar, drawn),
      value,
    );
    return (this.bars[id] = { bar, drawn, value, row });
  },

  /** The position whose logits the bars show, in the window; below 0 where there is none. */
  position() {
    return (state.at ? view.tokens.ends[state.at - 1] : 0) - 1 - view.start;
  },

  after: () => Array.from(state.text).slice(0, state.at).join(""),

  numbers() {
    const logits = this.logits(),
      plain = probabilities(logits),
      drawn = probabilities(logits, this.sampling());
    return contents.labels.map((label, id) => ({ token: label, probability: plain[id], drawn_with: drawn[id] }));
  },

  /** The logits after the cursor; of an empty text those after what stands before every text. */
  logits() {
    const V = contents.labels.length,
      t = view.tokens.ids.length ? this.position() : 0;
    return view.read.logits.subarray(t * V, (t + 1) * V);
  },

  sampling() {
    return {
      temperature: state.temperature,
      top_k: state.top_k || null,
      top_p: state.top_p < 1 ? state.top_p : null,
      min_p: state.min_p || null,
    };
  },

  drawSliders() {
    for (const { name, input, output } of this.sliders) {
      if (Number(input.value) !== state[name]) input.value = state[name];
      const says = name === "top_k" && !state.top_k ? "all" : String(state[name]);
      if (output.value !== says) output.value = says;
    }
  },

  draw() {
    this.drawSliders();
    const says = document.getElementById("expects-says"),
      t = this.position();
    const ready = !view.tokens.ids.length || (t >= 0 && t < view.read.surprisal.length);
    this.list.hidden = !ready;
    if (!ready) {
      says.textContent =
        t < 0 ? "Nothing that the model sees stands before the cursor. Put it behind a character." : "…";
      return;
    }
    const logits = this.logits(),
      plain = probabilities(logits),
      drawn = probabilities(logits, this.sampling());
    const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b),
      most = Math.max(plain[order[0]], drawn[order[0]]); // what is drawn from has the same likeliest
    if (wordPieces) order.length = Math.min(order.length, MOST_BARS);
    const [first] = order;
    const after = view.tokens.ids.length
      ? contents.labels[view.tokens.ids[t + view.start]]
      : contents.labels[contents.start];
    says.replaceChildren(
      "After ",
      token(after),
      " the model expects ",
      token(contents.labels[first]),
      ` (${percent(plain[first])}).`,
    );
    order.forEach((id, i) => {
      const { bar, drawn: other, value, row } = this.barOf(id);
      if (this.list.children[i] !== row) this.list.insertBefore(row, this.list.children[i] ?? null);
      bar.style.width = `${(100 * plain[id]) / most}%`;
      other.style.width = `${(100 * drawn[id]) / most}%`;
      const says = percent(plain[id]);
      if (value.textContent !== says) value.textContent = says;
      row.classList.toggle("never", drawn[id] === 0);
    });
    while (this.list.children.length > order.length) this.list.lastChild.remove();
  },

  /** The bytes that wait for the rest of their character, or the pieces for that of their word, if the cursor still
   * stands where they belong. */
  waiting() {
    const { ids, text, at } = this.pending;
    return text === state.text && at === state.at ? ids : [];
  },

  /** Put tokens in at the cursor. */
  add(more) {
    if (wordPieces) return this.addPieces([...this.waiting(), ...more]);
    const ids = [...this.waiting(), ...more];
    const written = contents.bytes
      ? new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(ids))
      : ids.map((id) => contents.labels[id]).join("");
    // A byte alone may be a part of a character: it waits for the rest, of which there are at most three.
    const waits = contents.bytes && written.endsWith("\ufffd") && ids.length < 4;
    this.pending = { ids: waits ? ids : [], text: state.text, at: state.at };
    if (!waits) this.insert(written);
  },

  insert(written) {
    const characters = Array.from(state.text);
    characters.splice(state.at, 0, ...Array.from(written));
    go({ text: characters.join(""), at: state.at + Array.from(written).length });
  },

  /** Whole words are put in. The pieces of one that has no end yet wait for it: alone they would be read as a word. */
  addPieces(more) {
    const ids = more.filter((id) => id !== contents.unknown), // which is no text
      words = ids.findLastIndex((id) => contents.labels[id].endsWith(WORD_END)) + 1,
      whole = ids.length - words < MOST_PIECES ? words : ids.length;
    const written = ids.slice(0, whole).map((id) => pieceText(contents.labels[id]));
    // A piece begins a new word, for what stands before the cursor is read as whole ones.
    if (whole) this.insert((/\S$/u.test(this.after()) ? " " : "") + written.join(""));
    this.pending = { ids: ids.slice(whole), text: state.text, at: state.at };
  },

  /** Write so many tokens, or until it is stopped; a few at a time, as many as a frame of the screen leaves time for. */
  async write(tokens) {
    this.stop();
    const mine = (this.writing = {});
    this.writeButton.textContent = tokens > 1 ? "Stop" : "Write";
    let chunk = 1;
    try {
      const { block_size } = contents.config;
      for (
        let left = tokens;
        (left > 0 || this.waiting().length) && this.writing === mine && state.text.length < MOST;
      ) {
        const before = [...tokensOf(this.after()).ids, ...this.waiting()],
          started = performance.now();
        const ids = (before.length ? before : [contents.start]).slice(windowStart(before.length, block_size));
        // Not beyond the window at once: where it moves on, a patch has another place.
        const size = Math.min(Math.max(left, 1), chunk, block_size - ids.length + 1),
          draws = Array.from({ length: size }, Math.random);
        const base = { ...view.base, interventions: within(view.base.interventions, ids.length) };
        const answer = await ask("write", {
          ...base,
          ids,
          ...this.sampling(),
          never: contents.unknown,
          count: size,
          draws,
        });
        if (this.writing !== mine) return;
        this.add(answer.ids);
        left -= size;
        await painted();
        if (tokens > 1 && performance.now() - started < 25) chunk = Math.min(16, chunk + 1);
        else chunk = Math.max(1, chunk - 1);
      }
    } catch (error) {
      failed(error);
    } finally {
      if (this.writing === mine) this.stop();
    }
  },

  stop() {
    this.writing = null;
    this.writeButton.textContent = "Write";
  },
};
