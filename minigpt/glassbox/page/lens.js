/* The logit lens: what the model would say if it ended after each half of each block; a column for each character. */

const COLUMNS = 32;

const lens = {
  build() {
    this.table = h("table", { className: "glyphs" });
    return h(
      "div",
      { id: "lens-panel" },
      h(
        "div",
        { className: "bar" },
        h("h3", {}, "How the guess forms"),
        exports("lens-panel", () => this.found && this.numbers()),
      ),
      h(
        "p",
        { className: "says" },
        "Read a column downwards: below each character what the model would expect after it if it stopped there. The bluer, the surer; underlined is right. The last row is the model's answer.",
      ),
      h("div", { className: "wide", tabIndex: 0, role: "region", "aria-label": "The lens as a table" }, this.table),
    );
  },

  numbers() {
    const { stages, best, probability } = this.found,
      width = best.length / stages.length;
    return {
      from: this.from,
      stages: stages.map((name, i) => ({
        name,
        expected: Array.from({ length: width }, (_, t) => ({
          token: contents.labels[best[i * width + t]],
          probability: probability[i * width + t],
        })),
      })),
    };
  },

  async compute(base) {
    const n = base.ids.length,
      at = Math.max(0, Math.min(n - 1, expects.position()));
    if (!n) return this.table.replaceChildren();
    const from = Math.max(0, Math.min(at - COLUMNS + 4, n - COLUMNS)),
      to = Math.min(n, from + COLUMNS);
    const found = await ask("lens", { ...base, from, to });
    if (base !== view.base) return;
    this.found = found;
    this.from = from;
    const { stages, best, probability } = found,
      width = to - from,
      { ids } = base;
    const column = (t) => ({ className: from + t === at ? "cursor" : "", scope: "col" });
    this.table.replaceChildren(
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "row" }, "the text"),
          Array.from({ length: width }, (_, t) => h("th", column(t), visible(contents.labels[ids[from + t]]))),
        ),
      ),
      h(
        "tbody",
        {},
        stages.map((name, i) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, stageName(name, i)),
            Array.from({ length: width }, (_, t) => {
              const id = best[i * width + t],
                p = probability[i * width + t];
              return h(
                "td",
                {
                  className: `${ids[from + t + 1] === id ? "right" : ""} ${from + t === at ? "cursor" : ""}`,
                  style: { backgroundColor: blue(p) },
                  title: `${visible(contents.labels[id])} ${percent(p)}`,
                  onclick: () => go({ at: characterEnd(from + t) }),
                },
                visible(contents.labels[id]),
              );
            }),
          ),
        ),
      ),
    );
  },
};

/** What a place in the residual stream is called. */
function stageName(name, i) {
  if (!i) return "embedding";
  const layer = Math.floor((i - 1) / 2);
  return name.endsWith("residual_middle") ? `block ${layer}, attention` : `block ${layer}`;
}

/** Where the cursor stands behind the token at a position of the window. */
const characterEnd = (t) => view.tokens.characterOf[t + view.start] + 1;
