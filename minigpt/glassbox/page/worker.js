/* Answers what the page asks: reads texts with the engine, keeps what it has read, and takes nothing on trust.

A request is {id, method, ...}, its answer {id, result} or {id, error: a sentence}. In the page all scripts are one and
share the engine's names; in Node, where the tests run, they have to be fetched. */
if (typeof module !== "undefined") Object.assign(globalThis, require("./engine.js"));

/** What is wrong with a request, in a sentence. */
class Refusal extends Error {}

function need(condition, sentence) {
  if (!condition) throw new Refusal(sentence);
}

const isIndex = (value, end) => Number.isInteger(value) && value >= 0 && value < end;

class Answerer {
  static methods = ["load", "read", "maps", "pattern", "lens", "attribute", "write", "probe"];

  /** @param room bytes of activations to keep; the texts that were read longest ago are forgotten first */
  constructor(room = 2 ** 27) {
    this.room = room;
    this.models = new Map(); // by their step
    this.kept = []; // what was read, the latest first: {gpt, ids, interventions, activations, bytes}
  }

  answer(request) {
    const { id, method } = request ?? {};
    try {
      need(Answerer.methods.includes(method), `${method} is none of ${Answerer.methods.join(", ")}.`);
      return { id, result: this[method](request) };
    } catch (error) {
      if (error instanceof Refusal) return { id, error: error.message };
      console.error(error);
      return { id, error: `The engine failed: ${error}` };
    }
  }

  load({ step, weights, config, tensors, precision }) {
    const values = unpack(weights, tensors, precision);
    for (const [name, size] of sizes(config))
      need(values[name]?.length === size, `The weights should hold ${name} with ${size} numbers.`);
    this.kept = this.kept.filter((it) => it.gpt !== this.models.get(step)); // if it is loaded anew
    this.models.set(step, new GPT(config, values));
    return {};
  }

  read(request) {
    const { ids, n, V, values } = this.look(request);
    const nats = Float32Array.from(ids, (id, t) => (t ? surprisal(values.logits, t - 1, V, id) : NaN));
    return { surprisal: nats, logits: values.logits.slice(0, n * V) };
  }

  maps(request) {
    const { n, L, H, S, values } = this.look(request), { size } = request;
    need(isIndex(size, Infinity) && size > 0, `size is ${size}; it must be a whole number above 0.`);
    const m = Math.min(n, size), largest = new Float32Array(L * H * m * m), cell = new Int32Array(n);
    for (let i = 0; i < m; i++) cell.fill(i, Math.floor((i * n) / m));
    for (let i = 0; i < L; i++) {
      const pattern_THS = values[`blocks.${i}.attention.softmax`];
      for (let t = 0; t < n; t++)
        for (let h = 0; h < H; h++)
          for (let s = 0, row = ((i * H + h) * m + cell[t]) * m; s <= t; s++)
            largest[row + cell[s]] = Math.max(largest[row + cell[s]], pattern_THS[(t * H + h) * S + s]);
    }
    return { size: m, maps: Uint8Array.from(largest, (weight) => Math.round(255 * Math.sqrt(weight))) };
  }

  pattern(request) {
    const { n, L, H, S, values } = this.look(request), { layer, head } = request;
    need(isIndex(layer, L) && isIndex(head, H), `There is no head ${layer}.${head}.`);
    const pattern_THS = values[`blocks.${layer}.attention.softmax`], pattern = new Float32Array(n * n);
    for (let t = 0; t < n; t++)
      for (let s = 0; s <= t; s++) pattern[t * n + s] = pattern_THS[(t * H + head) * S + s];
    return { pattern };
  }

  lens(request) {
    const { gpt, ids, n, V, activations } = this.look(request), { from, to } = request;
    need(isIndex(from, n) && isIndex(to, n + 1) && from < to, `There are no positions ${from} to ${to} in ${n}.`);
    const stages = gpt.stages(), cells = stages.length * (to - from), best = new Int32Array(cells);
    const probability = new Float32Array(cells), right = new Float32Array(cells);
    gpt.lens(activations, from, to).forEach((logits_TV, stage) => {
      for (let t = from; t < to; t++) {
        const cell = stage * (to - from) + t - from, at = t * V;
        for (let v = 0; v < V; v++) if (logits_TV[at + v] > logits_TV[at + best[cell]]) best[cell] = v;
        probability[cell] = Math.exp(-surprisal(logits_TV, t, V, best[cell]));
        right[cell] = t + 1 < n ? Math.exp(-surprisal(logits_TV, t, V, ids[t + 1])) : NaN;
      }
    });
    return { stages, best, probability, right };
  }

  attribute(request) {
    const { gpt, ids, n, V, activations } = this.look(request), { position, chosen, against = null } = request;
    need(isIndex(position, n), `There is no position ${position}; the text has ${n}.`);
    for (const id of against === null ? [chosen] : [chosen, against])
      need(isIndex(id, V), `There is no id ${id}; there are ${V}.`);
    return gpt.attribute(ids, activations, position, chosen, against);
  }

  /** Write on as generation.py's `generate` does: a window that is full moves on by half. */
  write(request) {
    const { step, count, draws, never = null } = request, sampling = checkSampling(request);
    const { S, V } = this.look(request), written = { ids: [], surprisal: [] };
    need(isIndex(count, Infinity) && count > 0, `count is ${count}; it must be a whole number above 0.`);
    need(Array.isArray(draws) && draws.length === count && draws.every((it) => it >= 0 && it < 1),
      "To write, a number from 0 to less than 1 is needed for each token.");
    need(never === null || isIndex(never, V), `There is no id ${never}; there are ${V}.`);
    let window = Array.from(request.ids);
    for (const draw of draws) {
      if (window.length > S) window = window.slice(Math.max(1, S >> 1));
      const isThere = (t) => t < window.length; // a position beyond the window's end is not there yet
      const interventions = (request.interventions ?? []).map(
        (it) => (it.positions ? { ...it, positions: it.positions.filter(isThere) } : it));
      const { n, values } = this.look({ step, ids: window, interventions });
      const logits_V = values.logits.slice((n - 1) * V, n * V);
      need(!logits_V.some(Number.isNaN), "The model's output is not a number: its training diverged.");
      if (never !== null) logits_V[never] = -Infinity;
      const probs = probabilities(logits_V, sampling);
      const total = probs.reduce((a, b) => a + b);
      let id = -1, sum = 0; // the first at which the sum of the probabilities passes the draw
      while (sum <= draw * total) sum += probs[++id];
      written.ids.push(id);
      written.surprisal.push(surprisal(logits_V, 0, V, id));
      window.push(id);
    }
    return written;
  }

  /** How far the activations lie from stored ones, and the first that is beyond rounding. */
  probe(request) {
    const { values } = this.look(request), stored = request.values ?? {};
    need(Object.keys(stored).length, "The probe holds nothing.");
    for (const name in stored) need(values[name], `The probe holds ${name}, which nothing here computes.`);
    let worst = 0, first = null;
    for (const name in values) { // in the order of computation
      if (!stored[name]) continue;
      const { at, values: wanted, largest } = stored[name];
      at.forEach((place, i) => {
        const difference = Math.abs(values[name][place] - wanted[i]);
        const error = difference === 0 ? 0 : difference / largest;
        worst = error <= worst ? worst : Number.isNaN(error) ? Infinity : error;
        if (!(error <= 1e-4)) first ??= name;
      });
    }
    return { worst, first };
  }

  /** What the model of a request computes for its ids, with its interventions. */
  look({ step, ids, ...request }) {
    const interventions = request.interventions ?? [];
    const gpt = this.models.get(step);
    need(gpt, `There is no model of step ${step}; load it first.`);
    const { n_layer: L, n_head: H, vocab_size: V, block_size: S } = gpt.config;
    checkIds(ids, gpt.config);
    need(Array.isArray(interventions), "interventions must be a list.");
    for (const it of interventions) checkIntervention(it, gpt.config, ids.length);
    const activations = this.activations(gpt, ids, interventions);
    return { gpt, ids, n: ids.length, L, H, V, S, activations, values: activations.values };
  }

  /** Activations of ids, computed only from the first id, and from the first block, that nothing kept has. */
  activations(gpt, ids, interventions) {
    const L = gpt.config.n_layer, n = ids.length;
    let best = null, start = 0, layer = 0; // rows before start, and in them blocks before layer, are in best
    for (const it of this.kept.filter((it) => it.gpt === gpt)) {
      const blocks = sameBlocks(it.interventions, interventions, L);
      let rows = 0;
      while (rows < n && ids[rows] === it.ids[rows]) rows++;
      if (rows * blocks > start * layer) [best, start, layer] = [it, rows, blocks];
    }
    if (!(start === n && layer === L)) {
      const read = (text) => text && { length: text.length, activations: this.activations(gpt, text, []) };
      const source = (it) => ({ mean_of: read(it.mean_of), patch_from: read(it.patch_from) });
      const changes = interventions.map((it) => ({ ...it, ...source(it) }));
      const goesOn = layer === L && start === best.ids.length; // the kept text has grown: its rows stay as they are
      const entry = goesOn ? best : { gpt, interventions, activations: new Activations(gpt.config), bytes: 0 };
      for (const [name, value] of goesOn ? [] : Object.entries(entry.activations.values)) {
        entry.bytes += value.byteLength;
        if (best) value.set(best.activations.values[name].subarray(0, (start * value.length) / gpt.config.block_size));
      }
      if (layer < L && start) gpt.forward(ids.slice(0, start), entry.activations, { layer, interventions: changes });
      if (start < n) gpt.forward(ids, entry.activations, { start, interventions: changes });
      entry.ids = Array.from(ids);
      best = entry;
    }
    let bytes = 0;
    this.kept = [best, ...this.kept.filter((it) => it !== best)];
    this.kept = this.kept.filter((it, i) => (bytes += it.bytes) <= this.room || i < 4);
    return best.activations;
  }
}

/** How many blocks, from below, two lists of interventions leave with the same values. */
function sameBlocks(these, those, L) {
  const lowest = (it) => (it.part === "residual" ? Math.max(0, it.layer - 1) : it.layer ?? 0);
  const within = (list, blocks) => JSON.stringify(list.filter((it) => lowest(it) < blocks));
  let blocks = 0;
  while (blocks < L && within(these, blocks + 1) === within(those, blocks + 1)) blocks++;
  return blocks;
}

function checkIds(ids, { block_size: S, vocab_size: V }) {
  const isList = Array.isArray(ids) || ArrayBuffer.isView(ids);
  need(isList && ids.length >= 1 && ids.length <= S, `A text is a list of 1 to ${S} ids; this has ${ids?.length}.`);
  const wrong = ids.findIndex((id) => !isIndex(id, V));
  need(wrong === -1, `Id ${ids[wrong]} at position ${wrong} is none of the vocabulary's, 0 to ${V - 1}.`);
}

/** Refuse an intervention that names something that isn't there, or says two things at once, as trace.py does. */
function checkIntervention(it, config, n) {
  const { n_layer: L, n_head: H, n_embd: C } = config;
  const layers = { embedding: null, residual: L + 1, position: it?.layer == null && it?.index == null ? null : L };
  for (const part of ["residual_middle", "block", "attention", "head", "feed_forward", "neuron"]) layers[part] = L;
  need(Object.hasOwn(layers, it?.part), `${it?.part} is none of the parts ${Object.keys(layers).join(", ")}.`);
  const { part, layer = null, index = null, positions = null, scale = 0, ...others } = it;
  const { mean_of = null, patch_from = null, ...unknown } = others;
  for (const name in unknown) throw new Refusal(`An intervention has no ${name}.`);
  const counts = { head: H, neuron: 4 * C, position: index === null ? null : H };
  for (const [name, value, end] of [["layer", layer, layers[part]], ["index", index, counts[part] ?? null]])
    need(end === null ? value === null : isIndex(value, end),
      `${name} is ${value}; for the part ${part} it must be ${end === null ? "left out" : `from 0 to ${end - 1}`}.`);
  need(Number.isFinite(scale), `scale is ${scale}; it must be a finite number.`);
  need((scale !== 0) + (mean_of !== null) + (patch_from !== null) <= 1,
    "An intervention has a scale, the mean of a text, or a text to patch from: one of the three.");
  need(part !== "position" || (positions && scale >= 0 && mean_of === null && patch_from === null),
    "Positions are switched off, or scaled by more than 0; say which.");
  need(positions === null || (Array.isArray(positions) && positions.every((t) => isIndex(t, n))),
    `Positions ${positions} are to be changed, but the text has ${n}, numbered from 0 to ${n - 1}.`);
  for (const text of [mean_of, patch_from]) if (text !== null) checkIds(text, config);
  need(patch_from === null || (positions ? Math.max(-1, ...positions) : n - 1) < patch_from.length,
    `The text to patch from has only ${patch_from?.length} positions; name those to patch, or take a longer one.`);
}

/** The settings of sampling.py in a request to write. */
function checkSampling({ temperature = 1, top_k = null, top_p = null, min_p = null }) {
  need(Number.isFinite(temperature) && temperature >= 0, `temperature is ${temperature}; it must be at least 0.`);
  need(top_k === null || (isIndex(top_k, Infinity) && top_k > 0), `top_k is ${top_k}; it must be at least 1.`);
  for (const [name, value] of [["top_p", top_p], ["min_p", min_p]])
    need(value === null || (value > 0 && value <= 1), `${name} is ${value}; it must be above 0 and at most 1.`);
  return { temperature, top_k, top_p, min_p };
}

/** How many numbers each of a model's weights has, by its name in the state dict. */
function sizes({ n_layer, n_embd: C, block_size: S, vocab_size: V, norm }) {
  const all = [["token_embedding.weight", V * C], ["position_embedding.weight", S * C]];
  const add = (name, outputs, inputs) => all.push([`${name}.weight`, outputs * inputs], [`${name}.bias`, outputs]);
  for (let i = 0; i < n_layer; i++) {
    for (const name of ["norm_1", "norm_2"]) add(`blocks.${i}.${name}`, C, 1);
    add(`blocks.${i}.attention.qkv`, 3 * C, C);
    add(`blocks.${i}.attention.projection`, C, C);
    add(`blocks.${i}.feed_forward.expand`, 4 * C, C);
    add(`blocks.${i}.feed_forward.contract`, C, 4 * C);
  }
  if (norm === "pre") add("final_norm", C, 1);
  return all;
}

/** Weights as Float32Arrays by name, from little-endian numbers one tensor behind the other, or from their base64. */
function unpack(weights, tensors, precision) {
  const size = { float16: 2, float32: 4 }[precision];
  need(size, `precision is ${precision}; it must be float16 or float32.`);
  const lengths = tensors.map(([, shape]) => shape.reduce((a, b) => a * b, 1));
  const view = new DataView(typeof weights === "string" ? fromBase64(weights) : weights), values = {};
  const wanted = size * lengths.reduce((a, b) => a + b, 0);
  need(view.byteLength === wanted, `The weights have ${view.byteLength} bytes; they should have ${wanted}.`);
  const widened = Float32Array.from({ length: size === 2 ? 2 ** 16 : 0 }, (_, bits) => widen(bits));
  let at = 0;
  tensors.forEach(([name], i) => {
    const value = (values[name] = new Float32Array(lengths[i]));
    for (let j = 0; j < value.length; j++, at += size)
      value[j] = size === 2 ? widened[view.getUint16(at, true)] : view.getFloat32(at, true);
  });
  return values;
}

function fromBase64(text) {
  let binary;
  try {
    binary = atob(text);
  } catch {
    throw new Refusal("The weights are no base64.");
  }
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes.buffer;
}

/** The number that 16 bits are: a sign, five bits of exponent, ten of fraction (IEEE 754 binary16). */
function widen(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

/** Answer the messages of a worker's scope; the arrays of an answer are handed over, not copied. */
function serve(scope, room) {
  const answerer = new Answerer(room);
  scope.onmessage = ({ data }) => {
    const answer = answerer.answer(data), arrays = Object.values(answer.result ?? {}).filter(ArrayBuffer.isView);
    scope.postMessage(answer, arrays.map((array) => array.buffer));
  };
}

if (typeof module !== "undefined") module.exports = { Answerer, serve, sizes };
