/* Five cards for whoever looks for the first time. Each is a link into a state of the page. */

const guide = {
  /** The cards: a title, what to see, what to try, and the state that it is about. */
  cards() {
    const head = heads.featured(), unit = contents.unit, filmed = contents.models.length > 1;
    const row = contents.scores?.rows.find((it) => `${it.layer}.${it.head}` === head);
    const clearest = contents.scores?.rows.reduce((best, it) => (it.bits > best.bits ? it : best));
    const worst = clearest ? `${clearest.layer}.${clearest.head}` : head;
    const ages = contents.models.map(({ step }) => step), early = ages[Math.floor(ages.length / 2)];
    return [
      ["What it reads", [
        `This is a GPT, trained to do one thing: to say which ${unit} comes next. It reads the text above from left to right, and on the right is what it expects after the cursor, with a probability for each of the ${contents.labels.length} ${unit}s that it knows.`,
        "Try it: put the cursor somewhere else in the text. Type. Then press Step: it draws one of them by these probabilities, and writes it.",
      ], {}],
      [`Each ${unit} has a price`, [
        `A ${unit} that it gave one half costs 1 bit, one that it gave a quarter 2 bits, and one that it gave 1/1000 some 10. The more orange, the dearer. The mean of all is its loss: the one number that training makes small.`,
        "Try it: rest the mouse on an orange place to see what it expected there. Then misspell a word. What gets dearer: the wrong letter, or what comes after?",
      ], {}],
      ["Where a head looks", [
        `How does it know? Every place asks the places before it, through ${contents.config.n_layer * contents.config.n_head} attention heads. Each small map is one: a row for each place, blue where it looks.`,
        `Head ${head} is open below${row && row.name !== "none" ? `: it ${KINDS[row.name]}` : ""}. Try it: move the mouse over its text. What lights up?`,
      ], { head }],
      ["What happens without it", [
        `A map shows where a head looks, not that it matters. So head ${worst} is switched off here. The text is read again without it: see the price of each ${unit}, and how many bits it costs you.`,
        "Try it: switch it on again, and others off. The number below each map says how much dearer the text gets without that head. Some don't matter at all.",
      ], { head: worst, off: [`h${worst}`] }],
      ["How it learned", [
        filmed ? `This is the same model after ${count(early)} steps of training. It has the same parts, but other weights. Drag the slider below from the left end to the right.`
          : "This run kept no film, so only its end can be seen. A run with --film.per_doubling 3 keeps one.",
        "Try it: find the age at which it knows that a space ends a word; that names begin with a capital; that lines end. Press Step at each age.",
      ], filmed ? { step: early } : {}],
    ];
  },

  /** The link of a card: the text and the depth stay as they are. */
  link(card) {
    const [, , it] = this.cards()[card - 1], kept = { ...state };
    Object.assign(state, DEFAULTS, { off: [], text: kept.text, at: kept.at, depth: kept.depth, card, panel: "guide" }, it);
    const link = asLink();
    Object.assign(state, kept);
    return link;
  },

  build() {
    this.words = h("div", { "aria-live": "polite" });
    this.dots = Array.from({ length: 5 }, () => h("a"));
    [this.back, this.next] = ["Back", "Next"].map((name) => h("a", { className: "button" }, name));
    const dots = h("ol", { className: "dots" }, this.dots.map((dot) => h("li", {}, dot)));
    return h("div", { id: "guide-panel" },
      h("div", { className: "card" }, this.words, h("div", { className: "foot" }, dots, this.back, this.next)));
  },

  /** The links stay the same elements: whoever goes on by keyboard keeps the place. */
  draw() {
    const cards = this.cards(), card = state.card || 1, [title, words] = cards[card - 1];
    this.dots.forEach((dot, i) => {
      dot.href = this.link(i + 1);
      dot.setAttribute("aria-label", `${i + 1}: ${cards[i][0]}`);
      dot.setAttribute("aria-current", i + 1 === card ? "step" : "false");
    });
    for (const [link, to, other] of [[this.back, card - 1, this.next], [this.next, card + 1, this.back]]) {
      const focused = link === document.activeElement;
      link.hidden = !cards[to - 1];
      if (!link.hidden) link.href = this.link(to);
      else if (focused) other.focus();
    }
    const key = JSON.stringify([card, title, words]);
    if (this.key === key) return;
    this.key = key;
    this.words.replaceChildren(h("h3", {}, `${card}. ${title}`), ...words.map((it) => h("p", {}, it)));
  },
};
