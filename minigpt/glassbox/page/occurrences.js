/* Where a head is strongest in text that the model never trained on, and what its writing shares with what it did. */

const occurrences = {
  build() {
    this.says = h("p", { className: "says", role: "status" });
    this.list = h("ol", { className: "occurrences" });
    return h("div", { id: "occurrences-panel" },
      h("div", { className: "bar" }, h("h3", {}, "Where does it fire?"), exports("occurrences-panel", () => ({ head: heads.chosen(), occurrences: this.found ?? null }))),
      this.says, this.list);
  },

  async compute() {
    const name = heads.chosen(), [layer, head] = name.split(".").map(Number);
    if (this.name === name) return;
    this.name = name;
    this.found = contents.fires?.[name];
    this.list.replaceChildren();
    if (!this.found && served) {
      this.says.textContent = "Looking through the text …";
      try {
        this.found = await (await got("where", { layer, head })).json();
      } catch (error) {
        this.says.textContent = error.message;
        return;
      }
      if (name !== heads.chosen()) return;
    }
    this.says.textContent = this.found
      ? `Where head ${name} adds most, in text that the model never trained on. In bold the character at which it does, in blue the one that it looks at.`
      : "This page has no excerpts of the text. The program was told to leave them out, or the text was not at hand.";
    this.list.replaceChildren(...(this.found ?? []).map((place) => {
      const before = Array.from(place.before), at = before.length - place.distance;
      const shown = (characters) => characters.map(visible).join("");
      const looks = place.distance > 0 && at >= 0;
      return h("li", {}, h("button", { title: "Look at it there",
        onclick: () => go({ text: place.before + place.token + place.after, at: before.length + 1, head: name, panel: "heads" }) }, h("code", {}, ...(looks ? [shown(before.slice(0, at)), h("mark", {}, shown(before.slice(at, at + 1))), shown(before.slice(at + 1))] : [shown(before)]),
          h("b", {}, visible(place.token)), shown(Array.from(place.after))),
        h("span", { className: "value" }, place.value.toFixed(2))));
    }));
  },
};

const copied = {
  build() {
    this.says = h("p", { className: "says", role: "status" });
    this.list = h("div", { className: "samples" });
    this.button = !served ? null : h("button", { id: "copied", onclick: () => this.look() }, "Look for the text above");
    return h("div", { id: "copied-panel" },
      h("div", { className: "bar" }, h("h3", {}, "Is it copying?"), exports("copied-panel", () => ({ samples: this.samples() }))),
      h("p", { className: "says" }, "Texts that this model wrote. Marked is what stands word for word in its training text, 20 characters or more. Text that nobody copied shares runs with it too: only what is much longer is copying."),
      this.button, this.says, this.list);
  },

  samples() {
    return [...(this.found ? [this.found] : []), ...contents.samples];
  },

  async look() {
    const { text } = state;
    this.says.textContent = "Looking through the training text …";
    try {
      this.found = { text, ...(await (await got("copied", { text })).json()) };
      this.says.textContent = "";
    } catch (error) {
      this.says.textContent = error.message;
    }
    this.draw();
  },

  draw() {
    if (!this.samples().length) this.says.textContent = "The text that the model was trained on was not at hand.";
    this.list.replaceChildren(...this.samples().map((sample) => {
      const characters = Array.from(sample.text), pieces = [];
      let at = 0;
      for (const [start, end] of sample.passages ?? []) {
        const from = Math.max(start, at); // passages may overlap
        pieces.push(characters.slice(at, from).join(""), h("mark", {}, characters.slice(from, end).join("")));
        at = Math.max(at, end);
      }
      const held = sample.held_out?.length ? ` In held-out text of that length it is ${Math.min(...sample.held_out)} to ${Math.max(...sample.held_out)}.` : "";
      return h("figure", {}, h("blockquote", {}, ...pieces, characters.slice(at).join("")),
        h("figcaption", {}, sample.longest === undefined || sample.longest === null ? "" : `The longest run that it shares has ${count(sample.longest)} ${contents.unit}s.${held}`));
    }));
  },
};
