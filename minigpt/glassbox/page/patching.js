/* Patching: put into this text what the model computed at the same place of another, and see where that matters. */

const patching = {
  build() {
    this.other = h("input", { id: "other", type: "text", spellcheck: false, autocomplete: "off",
      oninput: () => go({ other: this.other.value, patch: "" }) });
    this.button = h("button", { id: "grid", onclick: () => this.grid() }, "Compute the grid");
    this.table = h("table", { className: "grid" });
    this.says = h("p", { className: "says", role: "status" });
    return h("div", { id: "patching-panel" },
      h("div", { className: "bar" }, h("h3", {}, "Where is it decided?"), exports("patching-panel", () => this.found)),
      h("p", { className: "says" }, "Write another text in which something differs, such as one name. Each cell puts what the model holds there (between two blocks, at one place) in the other text into this one. Orange: the answer after the last character moves towards that of the other text."),
      h("p", { className: "choice" }, h("label", { for: "other" }, "The other text "), this.other, this.button,
        h("button", { onclick: () => go({ patch: "" }) }, "Take the patch out")),
      this.says, h("div", { className: "wide", tabIndex: 0, role: "region", "aria-label": "The grid as a table" }, this.table));
  },

  ids: () => tokensOf(state.other).ids.slice(0, contents.config.block_size),

  /** The intervention of the state, or none. */
  intervention() {
    const ids = state.other ? this.ids() : [], [layer, position] = state.patch.split(".").map(Number);
    if (!state.patch || position >= ids.length || position >= view.ids.length) return [];
    return [{ part: "residual", layer, index: null, positions: [position], scale: 0, mean_of: null, patch_from: ids }];
  },

  draw() {
    if (this.other.value !== state.other) this.other.value = state.other;
    const ids = this.ids(), n = view.ids.length, differ = view.ids.filter((id, i) => ids[i] !== id).length;
    this.button.disabled = !ids.length || ids.length !== n || !differ;
    const key = JSON.stringify([view.base.ids, ids, state.step, state.off]);
    if (this.key !== key) this.table.replaceChildren(), (this.found = undefined);
    this.says.textContent = !state.other ? "" : ids.length !== n ? `The texts must have the same length: this one has ${n} tokens, the other ${ids.length}.`
      : !differ ? "The two texts are the same." : `They differ at ${differ} ${differ === 1 ? "place" : "places"}.${state.patch ? ` The patch at block ${state.patch.split(".")[0]}, place ${state.patch.split(".")[1]} is in.` : ""}`;
  },

  /** For each place in the stream: how far the answer moves, from 0, this text's, to 1, the other's. */
  async grid() {
    const base = { ...view.base, interventions: state.off.map(interventionOf) }, ids = this.ids(), n = base.ids.length, V = contents.labels.length;
    const key = (this.key = JSON.stringify([base.ids, ids, state.step, state.off])), { n_layer } = contents.config;
    const last = ({ logits }) => logits.subarray((n - 1) * V, n * V);
    const [here, there] = [last(await askLater("read", base)), last(await askLater("read", { ...base, ids }))];
    const top = (row) => row.reduce((best, value, i) => (value > row[best] ? i : best), 0);
    let [a, b] = [top(here), top(there)];
    // If both answer alike: what the other text makes likelier most, beside that answer.
    if (a === b) b = there.reduce((best, value, i) => (i !== a && (best === a || value - here[i] > there[best] - here[best]) ? i : best), a);
    const towards = (row) => row[b] - row[a], from = towards(here), whole = towards(there) - from;
    const first = base.ids.findIndex((id, i) => id !== ids[i]);
    this.found = { from: contents.labels[a], to: contents.labels[b], first, moved: [] };
    const places = Array.from({ length: n - first }, (_, i) => first + i);
    this.table.replaceChildren(h("thead", {}, h("tr", {}, h("th", { scope: "row" }, "before"), places.map((t) => h("th", { scope: "col" }, visible(contents.labels[base.ids[t]])))))), this.table.append(h("tbody"));
    for (let layer = n_layer; layer >= 0; layer--) {
      const row = h("tr", {}, h("th", { scope: "row" }, layer < n_layer ? `block ${layer}` : "the end"));
      this.table.lastChild.append(row);
      this.found.moved.push([]);
      for (const position of places) {
        const patch = { part: "residual", layer, index: null, positions: [position], scale: 0, mean_of: null, patch_from: ids };
        const moved = (towards(last(await askLater("read", { ...base, interventions: [...base.interventions, patch] }))) - from) / whole;
        if (this.key !== key) return;
        this.found.moved.at(-1).push(moved);
        row.append(h("td", {}, h("button", { style: { backgroundColor: diverging(Math.max(-1, Math.min(1, moved)), 1.6) }, title: `${(100 * moved).toFixed(0)} % of the way`,
          "aria-label": `before block ${layer} at place ${position}: ${(100 * moved).toFixed(0)} percent`, onclick: () => go({ patch: `${layer}.${position}` }) },
          shown(moved))));
      }
    }
    this.says.replaceChildren("0 is the answer ", token(contents.labels[a]), " of this text, 1 the answer ", token(contents.labels[b]), " of the other. Click a cell to put that patch in.");
  },
};

const shown = (moved) => (Math.abs(moved) < 0.005 ? "" : moved.toFixed(2).replace("-", "−").replace(/^(−?)0\./, "$1."));
