/* The page: its parts, and what happens when something changes. */

// In the middle one of these is shown; "expects" and "time" have places of their own, but for the projector.
const PANELS = ["guide", "heads", "lens", "attribution", "patching", "occurrences", "copied", "expects", "time"];
const NAMES = { guide: "Guide", heads: "Head", lens: "Lens", attribution: "Why", patching: "Patching", occurrences: "Where", copied: "Copied", expects: "Next", time: "Training" };
const OF_DEPTH = {
  student: ["guide", "heads"],
  projector: ["expects", "heads", "lens", "time", "guide"],
  researcher: ["heads", "lens", "attribution", "patching", "occurrences", "copied", "guide"],
};

// A page that explain wrote has the weights inside; one that explore serves asks for them.
const served = typeof document !== "undefined" && !document.getElementById(`weights-${contents.main}`);
let backend = null, engine = null;

/** What is computed for the state as it is now. */
const view = { base: { ids: [], interventions: [] }, tokens: null, ids: [], start: 0, read: null, plain: null };

const ask = (method, parameters) => backend.ask(method, parameters);
const askLater = (method, parameters) => backend.ask(method, parameters, "later");
const painted = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
const shows = (panel) => current() === panel;

/** The panel in the middle. */
function current() {
  const panels = OF_DEPTH[state.depth];
  return panels.includes(state.panel) ? state.panel : panels[0];
}

/** Change the state; the page and its link follow. */
function go(changes) {
  Object.assign(state, changes);
  state.text = tidy(state.text);
  state.other = tidy(state.other);
  clearTimeout(go.timer); // browsers allow a link to change only so often
  go.timer = setTimeout(() => history.replaceState(null, "", asLink() === "#" ? location.pathname + location.search : asLink()), 250);
  return update();
}

/** Read the text again, show what is known first, then the rest. */
async function update() {
  view.tokens = tokensOf(state.text);
  view.start = windowStart(view.tokens.ids.length, contents.config.block_size);
  view.ids = view.tokens.ids.slice(view.start);
  const base = (view.base = { step: state.step, ids: view.ids, interventions: state.off.map(interventionOf) });
  base.interventions.push(...patching.intervention());
  document.body.dataset.depth = state.depth;
  document.body.dataset.panel = current();
  document.body.dataset.card = state.depth === "student" && shows("guide") ? state.card : "";
  text.put();
  text.drawCharacters();
  drawSwitches();
  drawTabs();
  expects.drawSliders();
  const key = JSON.stringify(base);
  try {
    if (update.key !== key) await readText(base);
    if (base !== view.base) return;
    update.key = key;
    text.drawSurprisal();
    expects.draw();
    guide.draw();
    time.draw();
    await painted();
    if (base !== view.base) return;
    await heads.compute(base);
    if (base !== view.base) return;
    if (prove.step !== state.step) await prove();
    if (shows("lens")) await lens.compute(base);
    if (shows("attribution")) await attribution.compute(base);
    if (shows("patching")) patching.draw();
    if (shows("occurrences")) await occurrences.compute();
    if (shows("copied")) copied.draw();
    clearTimeout(update.timer);
    update.timer = setTimeout(() => later(base).catch(failed), 400); // not while somebody types
  } catch (error) {
    failed(error);
  }
}

/** Whatever is not waited for: what the text costs unchanged, and without each head. */
async function later(base) {
  if (base !== view.base || expects.writing) return;
  const { surprisal } = base.interventions.length && base.ids.length ? await askLater("read", { ...base, interventions: [] }) : { surprisal: [] };
  if (base !== view.base) return;
  view.plain = surprisal.reduce((sum, nats) => (Number.isFinite(nats) ? sum + nats : sum), 0) || null;
  text.drawSurprisal();
  const key = JSON.stringify(base);
  if (later.key === key) return;
  later.key = undefined;
  await heads.ablate(base);
  if (base === view.base) later.key = key;
}

/** The surprisal of the text. Where a whole window would take long, it is shown as it comes. */
async function readText(base) {
  const ids = base.ids.length ? base.ids : [contents.start], pieces = slow() ? Math.ceil(ids.length / 32) : 1;
  for (let i = 1; i <= pieces; i++) {
    const upTo = Math.round((ids.length * i) / pieces), started = performance.now();
    const read = await ask("read", { ...base, ids: ids.slice(0, upTo), interventions: within(base.interventions, upTo) });
    if (base !== view.base) return;
    view.read = read;
    readText.rate = Math.max((performance.now() - started) / upTo, (readText.rate ?? 0) * 0.9);
    if (i < pieces) {
      text.drawSurprisal();
      await painted();
      if (base !== view.base) return;
    }
  }
}

/** Whether a window takes a quarter of a second or more here: about 20 million multiplications take 10 ms. */
const slow = () => backend === engine && contents.parameters * contents.config.block_size > 2.5e8;

function failed(error) {
  document.getElementById("badge").className = "bad";
  document.getElementById("badge").textContent = error.message;
  console.error(error);
}

/** Recompute what PyTorch computed when the page was made, and show how far the two lie apart. */
async function prove() {
  const badge = document.getElementById("badge"), step = (prove.step = state.step), { probe } = contents.models.find((it) => it.step === step);
  if (backend !== engine) {
    badge.className = "good";
    badge.textContent = "computed by PyTorch";
    badge.title = "This model is large, so PyTorch computes it, behind the page.";
    return;
  }
  const { worst, first } = await ask("probe", { step, ...probe });
  if (step !== state.step) return;
  badge.className = first === null ? "good" : "bad";
  badge.textContent = first === null ? `agrees with PyTorch to ${worst.toExponential(0).replace("e-", "e−")}` : `differs from PyTorch, first in ${first}: by ${worst.toPrecision(2)}`;
  badge.title = "The page has just recomputed a text whose activations PyTorch had computed: the largest difference, as a part of the largest value.";
}

const tabs = new Map();

function drawTabs() {
  for (const [name, tab] of tabs) {
    tab.setAttribute("aria-pressed", String(name === current()));
    tab.hidden = !OF_DEPTH[state.depth].includes(name);
  }
  for (const depth of DEPTHS) document.getElementById(`depth-${depth}`).setAttribute("aria-pressed", String(depth === state.depth));
}

function build() {
  for (const name of PANELS) tabs.set(name, h("button", { "data-panel": name, onclick: () => go({ panel: name }) }, NAMES[name]));
  const depths = DEPTHS.map((depth) => h("button", { id: `depth-${depth}`, onclick: () => go({ depth }) }, depth[0].toUpperCase() + depth.slice(1)));
  const link = h("button", { id: "link", title: "Copy a link to what is shown now", onclick: async () => {
    history.replaceState(null, "", asLink());
    await navigator.clipboard?.writeText(location.href).catch(() => {});
    link.textContent = "Link is in the address";
    setTimeout(() => (link.textContent = "Link"), 1500);
  } }, "Link");
  const facts = [`${count(contents.parameters)} parameters`, `${contents.config.n_layer} blocks of ${contents.config.n_head} heads`, `${contents.config.n_embd} channels`, `a window of ${contents.config.block_size}`];
  document.getElementById("page").replaceChildren(
    h("header", {}, h("h1", {}, contents.name), h("p", { className: "facts", title: facts.join(", ") }, facts[0]),
      h("p", { id: "badge", role: "status" }, "checking …"),
      h("nav", { "aria-label": "For whom" }, depths), link),
    text.build(), heads.build(),
    h("section", { id: "middle", "aria-label": "A closer look" }, h("nav", { className: "tabs", "aria-label": "A closer look" }, [...tabs.values()]),
      guide.build(), heads.buildPanel(), lens.build(), attribution.build(), patching.build(), occurrences.build(), copied.build()),
    expects.build(), time.build(),
    h("footer", {}, h("details", {}, h("summary", {}, "What this page holds, and what is missing"),
      h("ul", {}, [...contents.embeds, ...contents.missing].map((it) => h("li", {}, it)))), h("p", {}, `The first text: ${contents.text_from}`)),
    tip.build());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") expects.stop(), tip.show(null);
    if (state.depth !== "projector" || event.target.matches("textarea, input, select, .map, .links")) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key], panels = OF_DEPTH.projector;
    if (by) go({ panel: panels[(panels.indexOf(current()) + by + panels.length) % panels.length] });
  });
  addEventListener("hashchange", () => {
    fromLink(location.hash);
    update();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => heads.maps && (heads.drawMaps(), heads.drawChosen()));
}

/** Follow a run that is still training: its new frames and its curves, as they appear; and what takes the server long. */
async function follow() {
  while (contents.live || contents.pending) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    const newest = state.step === contents.models.at(-1).step;
    Object.assign(contents, await (await got("contents")).json());
    if (newest && state.step !== contents.models.at(-1).step) await go({ step: contents.models.at(-1).step });
    else time.draw();
  }
}

function start(source) {
  engine = new Engine(source);
  backend = contents.compute === "page" ? engine : new Server();
  build();
  fromLink(location.hash);
  update();
  follow().catch(failed);
}

if (typeof document === "undefined") serve(self);
else start(document.currentScript.textContent);
