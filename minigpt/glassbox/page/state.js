/* What the page is about at this moment, all of it in the link: whoever opens the link sees the same. */

const contents = typeof document === "undefined" ? null : JSON.parse(document.getElementById("contents").textContent);

const wordPieces = contents?.bpe ? new Pieces(contents.bpe, contents.labels, contents.unknown) : null;

/** The text as tokens: `ids`, of each token the character it belongs to, and of each character where its tokens end.
 * A piece of a word belongs to the last of its characters; `firstOf` is the first. */
function tokensOf(text) {
  if (wordPieces) return tokensOfPieces(text);
  const ids = [],
    characterOf = [],
    ends = [],
    unknown = new Set(),
    characters = Array.from(text);
  const bytes = contents.bytes && new TextEncoder();
  characters.forEach((character, i) => {
    const found = bytes ? [...bytes.encode(character)] : [idOf.get(character) ?? contents.unknown];
    if (found[0] === null || found[0] === undefined) unknown.add(character);
    else for (const id of found) (ids.push(id), characterOf.push(i));
    ends.push(ids.length);
  });
  return { ids, characterOf, firstOf: characterOf, ends, unknown, characters };
}

function tokensOfPieces(text) {
  const found = wordPieces.read(text),
    characters = Array.from(text),
    unknown = new Set();
  let end = 0,
    read = 0; // characters that a piece has taken in
  const ends = characters.map((character, i) => {
    for (; found[end]?.last === i; end++) read = i + 1;
    const taken = i < read || found[end]?.first <= i;
    if (!taken && contents.unknown === null && !/\p{White_Space}/u.test(character)) unknown.add(character);
    return end;
  });
  const of = (name) => found.map((piece) => piece[name]);
  return { ids: of("id"), characterOf: of("last"), firstOf: of("first"), ends, unknown, characters };
}

/** The token that a character belongs to: the piece around it, or else the last one that ends with it or before. */
const tokenAt = ({ ends, firstOf }, i) => (firstOf[ends[i]] <= i ? ends[i] : ends[i] - 1);

const idOf = new Map(contents?.labels.map((label, id) => [label, id]));

/** Where the window begins that the model sees of `length` tokens: it moves on by half, as when the model writes. */
function windowStart(length, block_size) {
  const stride = Math.max(1, Math.floor(block_size / 2));
  return length <= block_size ? 0 : Math.ceil((length - block_size) / stride) * stride;
}

const MOST = 5000; // UTF-16 units of the text: with more the page gets slow, and the model sees no more than its window

/** Text as a text area and a link keep it: lines end in \n, no half of a surrogate pair is alone, and it isn't too long. */
const tidy = (text) =>
  text
    .replaceAll(/\r\n?/g, "\n")
    .slice(0, MOST)
    .replaceAll(/\p{Surrogate}/gu, "\ufffd");

const DEPTHS = ["student", "projector", "researcher"];
const DEFAULTS = {
  text: tidy(contents?.text ?? ""),
  at: -1,
  head: "",
  off: [],
  patch: "",
  other: "",
  chosen: "",
  against: "",
  temperature: 0.8,
  top_k: 0,
  top_p: 1,
  min_p: 0,
  step: contents?.main,
  depth: "student",
  panel: "guide",
  card: 1,
};
const state = { ...DEFAULTS };

/** The state as the part of a link behind its #; what is as it was at first is left out. */
function asLink() {
  const link = new URLSearchParams();
  for (const [name, first] of Object.entries(DEFAULTS)) {
    const value = Array.isArray(first) ? state[name].join(",") : String(state[name]);
    if (value !== (Array.isArray(first) ? first.join(",") : String(first))) link.set(name, value);
  }
  return "#" + link;
}

/** Take the state from a link; what is not in it, or makes no sense, is as at first. */
function fromLink(hash) {
  const { n_layer, n_head } = contents.config;
  Object.assign(state, DEFAULTS, { off: [] });
  for (const [name, value] of new URLSearchParams(hash.slice(1))) {
    if (!Object.hasOwn(DEFAULTS, name)) continue;
    if (name === "off") state.off = [...new Set(value.split(","))].filter((part) => part && interventionOf(part));
    else if (typeof DEFAULTS[name] === "string") state[name] = value;
    else if (value !== "" && Number.isFinite(Number(value))) state[name] = Number(value);
  }
  const among = (name, values) => values.includes(state[name]) || (state[name] = DEFAULTS[name]);
  const head = state.head.match(/^(\d+)\.(\d+)$/);
  if (!head || head[1] >= n_layer || head[2] >= n_head) state.head = "";
  if (!/^\d+\.\d+$/.test(state.patch) || parseInt(state.patch, 10) > n_layer) state.patch = "";
  among("depth", DEPTHS);
  among("panel", PANELS);
  among("card", [0, 1, 2, 3, 4, 5]);
  among(
    "step",
    contents.models.map((model) => model.step),
  );
  for (const [name, least, most] of [
    ["temperature", 0, 2],
    ["top_p", 0.01, 1],
    ["min_p", 0, 0.99],
  ])
    state[name] = Math.min(most, Math.max(least, state[name]));
  state.top_k = Math.min(contents.labels.length, Math.max(0, Math.round(state.top_k)));
  state.text = tidy(state.text);
  state.other = tidy(state.other);
  const { length } = Array.from(state.text);
  if (!(Number.isInteger(state.at) && state.at >= 0 && state.at <= length)) state.at = length;
}

/** Those interventions that change something of the first n positions, and nothing behind them. */
const within = (interventions, n) => interventions.filter((it) => !it.positions || it.positions.every((t) => t < n));

/** What switches a part off, of its name in the link: h0.2 a head, f1 a feed-forward, a1 an attention, b1 a block. */
function interventionOf(name) {
  const parts = name.match(/^([hfab])(\d+)(?:\.(\d+))?$/);
  if (!parts || (parts[1] === "h") !== (parts[3] !== undefined)) return null;
  const layer = Number(parts[2]),
    index = parts[3] === undefined ? null : Number(parts[3]);
  if (layer >= contents.config.n_layer || index >= contents.config.n_head) return null;
  const part = { h: "head", f: "feed_forward", a: "attention", b: "block" }[parts[1]];
  return { part, layer, index, positions: null, scale: 0, mean_of: null, patch_from: null };
}
