/* The time machine: the loss curve, on it a slider over the ages of the model, and what its heads looked at. */

const WIDTH = 1000, HEIGHT = 90;

const time = {
  build() {
    this.plot = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "curve", role: "img" });
    this.spark = s("svg", { viewBox: `0 0 ${WIDTH} 30`, preserveAspectRatio: "none", class: "spark", role: "img" });
    this.slider = h("input", { id: "age", type: "range", min: 0, step: 1,
      oninput: () => go({ step: contents.models[this.slider.value].step }) });
    this.says = h("p", { id: "time-says", className: "says" });
    this.label = h("label", { for: "age" }, "How it learned: drag");
    return h("section", { id: "time-panel", "aria-labelledby": "time-name" },
      h("div", { className: "bar" }, h("h2", { id: "time-name" }, this.label), this.says, (this.sparkSays = h("p", { className: "says" })),
        exports("time-panel", () => ({ curves: contents.curves, history: contents.history }))),
      this.slider, h("div", { className: "plots" }, this.plot, this.spark));
  },

  /** Steps are spaced by logarithm, as the film is. */
  x(step) {
    const last = Math.max(1, ...contents.history.map((it) => it.step), ...contents.curves.train.map(([at]) => at), contents.main);
    return (WIDTH * Math.log2(step + 1)) / Math.log2(last + 1);
  },

  draw() {
    const { curves, history, models } = contents, i = models.findIndex(({ step }) => step === state.step);
    this.slider.max = models.length - 1;
    this.slider.value = i;
    this.slider.disabled = models.length < 2;
    this.slider.setAttribute("aria-valuetext", `after ${count(state.step)} steps`);
    const known = history.find(({ step }) => step === state.step);
    const says = [`after ${count(state.step)} steps`];
    if (known) says.push(`${known.loss.toFixed(3)} nats a ${contents.unit} on a fixed text`);
    if (models.length < 2) says.push(contents.history.length ? "" : "this run kept no film");
    this.says.textContent = says.filter(Boolean).join(", ");
    const all = [...curves.train, ...curves.val, ...history.map(({ step, loss }) => [step, loss])].filter(([, y]) => Number.isFinite(y));
    const top = Math.max(...all.map(([, y]) => y)), bottom = Math.min(...all.map(([, y]) => y));
    const y = (loss) => 4 + ((HEIGHT - 8) * (top - loss)) / (top - bottom || 1);
    const path = (points) => points.filter(([, v]) => Number.isFinite(v)).map(([step, v], j) => `${j ? "L" : "M"}${this.x(step).toFixed(1)} ${y(v).toFixed(1)}`).join("");
    const line = (points, name) => s("path", { d: path(points), class: name, "vector-effect": "non-scaling-stroke" });
    const now = (height) => s("path", { d: `M${this.x(state.step)} 0V${height}`, class: "now", "vector-effect": "non-scaling-stroke" });
    this.plot.replaceChildren(line(curves.train, "train"), line(curves.val, "val"), line(history.map((it) => [it.step, it.loss]), "film"),
      ...models.map(({ step }) => s("path", { d: `M${this.x(step)} ${HEIGHT - 5}V${HEIGHT}`, class: "frame", "vector-effect": "non-scaling-stroke" })), now(HEIGHT));
    this.plot.setAttribute("aria-label", all.length ? `Loss from ${top.toFixed(2)} to ${bottom.toFixed(2)} nats over ${count(contents.main)} steps` : "No curve is at hand");
    this.drawSpark(now);
  },

  /** How much of the chosen head's attention lay where each kind of head looks, over the film. */
  drawSpark(now) {
    const name = heads.chosen(), [layer, head] = name.split(".").map(Number), { history } = contents;
    const kinds = history.length ? Object.keys(history[0].scores ?? {}) : [];
    const last = (kind) => history.at(-1).scores[kind][layer][head] ?? 0;
    const kind = kinds.sort((a, b) => last(b) - last(a))[0];
    this.spark.parentNode.classList.toggle("bare", !kind);
    this.sparkSays.hidden = !kind;
    if (!kind) return;
    const points = history.map(({ step, scores }) => [this.x(step), 28 - 26 * (scores[kind][layer][head] ?? 0)]);
    this.spark.replaceChildren(s("path", { d: points.map(([x, y], j) => `${j ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join(""), class: "film", "vector-effect": "non-scaling-stroke" }), now(30));
    const says = `Head ${name}, attention on the ${kind}: ${percent(last(kind))} at the end`;
    this.spark.setAttribute("aria-label", says);
    this.sparkSays.textContent = says;
  },
};
