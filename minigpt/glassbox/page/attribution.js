/* Why this one and not that one: which parts of the model the difference of two logits comes from. */

const attribution = {
  build() {
    const input = (name, words) =>
      h(
        "select",
        { id: name, onchange: (event) => go({ [name]: event.target.value }) },
        h("option", { value: "" }, words),
        contents.labels.map((label, id) => h("option", { value: String(id) }, visible(label))),
      );
    this.chosen = input("chosen", "the likeliest");
    this.against = input("against", "the second");
    this.rows = h("ol", { className: "parts" });
    this.sum = h("p", { className: "says" });
    return h(
      "div",
      { id: "attribution-panel" },
      h(
        "div",
        { className: "bar" },
        h("h3", {}, "Why this one?"),
        exports("attribution-panel", () => this.found),
      ),
      h(
        "p",
        { className: "choice" },
        h("label", { for: "chosen" }, "Why "),
        this.chosen,
        h("label", { for: "against" }, " rather than "),
        this.against,
        "?",
      ),
      this.sum,
      this.rows,
      h(
        "p",
        { className: "says" },
        "The parts add up to the difference of the two logits. The norms are held at what they are for this text.",
      ),
    );
  },

  async compute(base) {
    const position = expects.position();
    if (position < 0 || !base.ids.length) return this.rows.replaceChildren();
    const guesses = likeliest(view.read.logits, position, 3).map(([id]) => id);
    const valid = (value) => /^\d+$/.test(value) && Number(value) < contents.labels.length;
    const chosen = valid(state.chosen) ? Number(state.chosen) : guesses[0];
    const against = valid(state.against) ? Number(state.against) : guesses.find((id) => id !== chosen);
    this.chosen.value = valid(state.chosen) ? state.chosen : "";
    this.against.value = valid(state.against) ? state.against : "";
    if (against === undefined) return this.rows.replaceChildren();
    const found = await ask("attribute", { ...base, position, chosen, against });
    if (base !== view.base) return;
    this.found = { chosen: contents.labels[chosen], against: contents.labels[against], ...found };
    const parts = [
      ["the character itself", found.token],
      ["its place", found.place],
      ["final norm's bias", found.final_bias],
      ["what was put in", found.replaced],
    ];
    found.heads.forEach((row, i) => row.forEach((value, j) => parts.push([`head ${i}.${j}`, value, [i, j]])));
    found.feed_forwards.forEach((value, i) => parts.push([`feed-forward ${i}`, value]));
    found.biases.forEach((value, i) => parts.push([`biases of block ${i}`, value]));
    const shown = parts.filter(([, value]) => value).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])),
      most = Math.abs(shown[0]?.[1] ?? 1);
    const total = parts.reduce((sum, [, value]) => sum + value, 0);
    this.sum.replaceChildren(
      token(contents.labels[chosen]),
      " is ahead of ",
      token(contents.labels[against]),
      ` by ${signed(found.logit, 3)}: e^${found.logit.toFixed(2)} = ${Math.exp(found.logit).toPrecision(3)} times as likely. The parts sum to ${signed(total, 3)}.`,
    );
    this.rows.replaceChildren(
      ...shown.map(([name, value, head]) =>
        h(
          "li",
          {},
          head
            ? h("button", { className: "name", onclick: () => go({ head: head.join("."), panel: "heads" }) }, name)
            : h("span", { className: "name" }, name),
          h(
            "span",
            { className: "track signed" },
            h("i", {
              style: {
                width: `${(50 * Math.abs(value)) / most}%`,
                [value < 0 ? "right" : "left"]: "50%",
                backgroundColor: diverging(value, 0),
              },
            }),
          ),
          h("span", { className: "value" }, signed(value, 3)),
          head ? this.source(base, found.sources[head[0]][head[1]]) : h("span"),
        ),
      ),
    );
  },

  /** From which character a head took most of it. */
  source(base, sources) {
    const most = sources.reduce((best, value, i) => (Math.abs(value) > Math.abs(sources[best]) ? i : best), 0);
    return h(
      "span",
      { className: "source" },
      "from ",
      token(contents.labels[base.ids[most]]),
      ` ${sources.length - 1 - most} back`,
    );
  },
};
