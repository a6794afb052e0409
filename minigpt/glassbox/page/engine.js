"use strict";
/* GPT in plain JavaScript: model.py again, name by name, and what glassbox/trace.py and lens.py look at in it.

A trailing name such as x_TC tells an array's shape, as in model.py; every array is flat, row after row. Sums are
computed in float64 and stored as float32, so the values lie closer to the formulas than PyTorch's own float32.

Activations keep a row for each position of the window. A position sees no later one, so rows stay right while the text
before them stays the same: `forward` computes those from `start` on. That is the key-value cache, and all of it. */

/** y_TN = x_TK weight_NK^T + bias_N, for the rows from `start` to `end`: eight sums at a time stay in registers. */
function linear(x_TK, weight_NK, bias_N, y_TN, start, end, K, N) {
  const x_K4 = new Float64Array(4 * K); // four rows side by side
  let t = start;
  for (; t + 4 <= end; t += 4) {
    for (let k = 0; k < K; k++)
      for (let i = 0; i < 4; i++) x_K4[4 * k + i] = x_TK[(t + i) * K + k];
    let n = 0;
    for (; n + 2 <= N; n += 2) {
      const w0 = n * K, w1 = w0 + K;
      let a0 = 0, a1 = 0, b0 = 0, b1 = 0, c0 = 0, c1 = 0, d0 = 0, d1 = 0;
      for (let k = 0, i = 0; k < K; k++, i += 4) {
        const a = x_K4[i], b = x_K4[i + 1], c = x_K4[i + 2], d = x_K4[i + 3];
        const p = weight_NK[w0 + k], q = weight_NK[w1 + k];
        a0 += a * p; b0 += b * p; c0 += c * p; d0 += d * p;
        a1 += a * q; b1 += b * q; c1 += c * q; d1 += d * q;
      }
      const p = bias_N ? bias_N[n] : 0, q = bias_N ? bias_N[n + 1] : 0, y = t * N + n;
      y_TN[y] = a0 + p; y_TN[y + N] = b0 + p; y_TN[y + 2 * N] = c0 + p; y_TN[y + 3 * N] = d0 + p;
      y_TN[y + 1] = a1 + q; y_TN[y + N + 1] = b1 + q; y_TN[y + 2 * N + 1] = c1 + q; y_TN[y + 3 * N + 1] = d1 + q;
    }
    for (let i = t; n < N && i < t + 4; i++)
      y_TN[i * N + n] = dot(x_TK, i * K, weight_NK, n * K, K) + (bias_N ? bias_N[n] : 0);
  }
  for (; t < end; t++)
    for (let n = 0; n < N; n++) y_TN[t * N + n] = dot(x_TK, t * K, weight_NK, n * K, K) + (bias_N ? bias_N[n] : 0);
}

/** The sum of the products of `length` numbers of a, from i on, and of b, from j on. */
function dot(a, i, b, j, length) {
  let sum0 = 0, sum1 = 0, k = 0;
  for (; k + 2 <= length; k += 2) {
    sum0 += a[i + k] * b[j + k];
    sum1 += a[i + k + 1] * b[j + k + 1];
  }
  return k < length ? sum0 + sum1 + a[i + k] * b[j + k] : sum0 + sum1;
}

/** 1 / sqrt(variance + eps) and mean of one row of C numbers: the statistics of a LayerNorm. */
function statistics(x_TC, t, C) {
  let mean = 0, variance = 0;
  for (let c = 0; c < C; c++) mean += x_TC[t * C + c];
  mean /= C;
  for (let c = 0; c < C; c++) variance += (x_TC[t * C + c] - mean) ** 2;
  return [1 / Math.sqrt(variance / C + 1e-5), mean];
}

/** LayerNorm: (x - mean) / sqrt(variance + eps) * weight + bias. */
function layerNorm(x_TC, norm, y_TC, start, end, C) {
  for (let t = start; t < end; t++) {
    const [inverse, mean] = statistics(x_TC, t, C);
    for (let c = 0; c < C; c++) y_TC[t * C + c] = (x_TC[t * C + c] - mean) * inverse * norm.weight[c] + norm.bias[c];
  }
}

/** Gaussian error linear unit in the tanh form. */
function gelu(x) {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));
}

/** exp(x) / sum(exp(x)) over `length` numbers from `from` on, in place. */
function softmax(x, from, length) {
  let max = -Infinity, sum = 0;
  for (let i = from; i < from + length; i++) max = Math.max(max, x[i]);
  for (let i = from; i < from + length; i++) sum += x[i] = Math.exp(x[i] - max);
  for (let i = from; i < from + length; i++) x[i] /= sum;
}

/** -log(softmax(logits)[id]) in nats, of the row `t` of logits_TV. */
function surprisal(logits_TV, t, V, id) {
  let max = -Infinity, sum = 0;
  for (let v = 0; v < V; v++) max = Math.max(max, logits_TV[t * V + v]);
  for (let v = 0; v < V; v++) sum += Math.exp(logits_TV[t * V + v] - max);
  return max + Math.log(sum) - logits_TV[t * V + id];
}

/** Every activation of one window, by the names of trace.py. Rows of positions that were not computed are stale. */
class Activations {
  constructor(config) {
    const { block_size: T, n_layer, n_head: H, n_embd: C, vocab_size: V } = config;
    const rows = { embedding_dropout: C }; // in the order of computation
    for (let i = 0; i < n_layer; i++) {
      for (const [name, width] of [
        ["attention.qkv", 3 * C], ["attention.scores", H * T], ["attention.softmax", H * T], ["attention.heads", C],
        ["attention", C], ["residual_middle", C], ["feed_forward.gelu", 4 * C], ["feed_forward", C],
      ]) rows[`blocks.${i}.${name}`] = width;
      rows[`blocks.${i}`] = C;
    }
    rows.logits = V;
    this.values = {};
    for (const name in rows) this.values[name] = new Float32Array(T * rows[name]);
  }
}

class GPT {
  /** @param config the fields of GPTConfig @param weights Float32Arrays by the names of the state dict */
  constructor(config, weights) {
    const { n_layer, n_embd: C, block_size: T } = config;
    const at = (name) => ({ weight: weights[name + ".weight"], bias: weights[name + ".bias"] });
    this.config = config;
    this.token_embedding = at("token_embedding");
    this.position_embedding = at("position_embedding"); // learned, or the table of sines
    this.final_norm = config.norm === "pre" ? at("final_norm") : null;
    this.blocks = Array.from({ length: n_layer }, (_, i) => ({
      norm_1: at(`blocks.${i}.norm_1`),
      qkv: at(`blocks.${i}.attention.qkv`),
      projection: at(`blocks.${i}.attention.projection`),
      norm_2: at(`blocks.${i}.norm_2`),
      expand: at(`blocks.${i}.feed_forward.expand`),
      contract: at(`blocks.${i}.feed_forward.contract`),
    }));
    this.scratch = new Float32Array(T * C);
  }

  /** Compute the rows from `start` on, of the blocks from `layer` on; what lies before must be right already.
   *
   * `interventions` are those of trace.py as JSON, but that texts are given as Activations: mean_of as
   * {activations, length}, patch_from as {activations}. */
  forward(ids, activations, { start = 0, layer = 0, interventions = [] } = {}) {
    const { n_layer, n_embd: C, vocab_size: V, norm, positions } = this.config;
    const { values } = activations, end = ids.length, scratch = this.scratch;
    const changed = (name, width) => {
      for (const it of interventions)
        if (places(it, this.config).includes(name)) change(it, name, values[name], start, end, width, this.config);
      return values[name];
    };
    if (layer === 0) {
      const scale = positions === "sinusoidal" ? Math.sqrt(C) : 1, x_TC = values.embedding_dropout;
      const token_VC = this.token_embedding.weight, position_TC = this.position_embedding.weight;
      for (let t = start; t < end; t++)
        for (let c = 0; c < C; c++)
          x_TC[t * C + c] = token_VC[ids[t] * C + c] * scale + position_TC[t * C + c];
      changed("embedding_dropout", C);
    }
    const add = (x_TC, y_TC, z_TC) => {
      for (let i = start * C; i < end * C; i++) z_TC[i] = x_TC[i] + y_TC[i];
      return z_TC;
    };
    for (let i = layer; i < n_layer; i++) {
      const block = this.blocks[i], name = `blocks.${i}`;
      const x_TC = i ? values[`blocks.${i - 1}`] : values.embedding_dropout;
      const middle_TC = values[`${name}.residual_middle`], out_TC = values[name];
      if (norm === "pre") layerNorm(x_TC, block.norm_1, scratch, start, end, C);
      this.attention(i, norm === "pre" ? scratch : x_TC, values, start, end, changed);
      add(x_TC, values[`${name}.attention`], middle_TC);
      if (norm === "post") layerNorm(middle_TC, block.norm_1, middle_TC, start, end, C);
      changed(`${name}.residual_middle`, C);
      if (norm === "pre") layerNorm(middle_TC, block.norm_2, scratch, start, end, C);
      this.feedForward(i, norm === "pre" ? scratch : middle_TC, values, start, end, changed);
      add(middle_TC, values[`${name}.feed_forward`], out_TC);
      if (norm === "post") layerNorm(out_TC, block.norm_2, out_TC, start, end, C);
      changed(name, C);
    }
    this.decode(values[`blocks.${n_layer - 1}`], values.logits, start, end);
    return activations;
  }

  /** Multi-head self-attention: softmax(Q K^T / sqrt(D)) V for each head, then the output projection. */
  attention(i, x_TC, values, start, end, changed) {
    const { n_head: H, n_embd: C, block_size: S } = this.config, D = C / H, name = `blocks.${i}.attention`;
    linear(x_TC, this.blocks[i].qkv.weight, this.blocks[i].qkv.bias, values[`${name}.qkv`], start, end, C, 3 * C);
    const qkv_T3C = values[`${name}.qkv`], scores_THS = values[`${name}.scores`];
    const pattern_THS = values[`${name}.softmax`], heads_TC = values[`${name}.heads`], scale = 1 / Math.sqrt(D);
    for (let t = start; t < end; t++)
      for (let h = 0; h < H; h++)
        for (let s = 0; s <= t; s++)
          scores_THS[(t * H + h) * S + s] = scale * dot(qkv_T3C, t * 3 * C + h * D, qkv_T3C, s * 3 * C + C + h * D, D);
    changed(`${name}.scores`, H * S);
    const y_D = new Float64Array(D);
    for (let t = start; t < end; t++)
      for (let h = 0; h < H; h++) {
        const row = (t * H + h) * S;
        for (let s = 0; s <= t; s++) pattern_THS[row + s] = scores_THS[row + s];
        softmax(pattern_THS, row, t + 1);
      }
    changed(`${name}.softmax`, H * S);
    for (let t = start; t < end; t++)
      for (let h = 0; h < H; h++) {
        y_D.fill(0);
        for (let s = 0; s <= t; s++) {
          const weight = pattern_THS[(t * H + h) * S + s], value = s * 3 * C + 2 * C + h * D;
          for (let d = 0; d < D; d++) y_D[d] += weight * qkv_T3C[value + d];
        }
        heads_TC.set(y_D, t * C + h * D);
      }
    changed(`${name}.heads`, C);
    linear(heads_TC, this.blocks[i].projection.weight, this.blocks[i].projection.bias, values[name], start, end, C, C);
    changed(name, C);
  }

  /** Two linear maps with a GELU between, at each position alone. */
  feedForward(i, x_TC, values, start, end, changed) {
    const C = this.config.n_embd, name = `blocks.${i}.feed_forward`, neurons_TN = values[`${name}.gelu`];
    const { expand, contract } = this.blocks[i];
    linear(x_TC, expand.weight, expand.bias, neurons_TN, start, end, C, 4 * C);
    for (let j = start * 4 * C; j < end * 4 * C; j++) neurons_TN[j] = gelu(neurons_TN[j]);
    changed(`${name}.gelu`, 4 * C);
    linear(neurons_TN, contract.weight, contract.bias, values[name], start, end, 4 * C, C);
    changed(name, C);
  }

  /** The residual stream to logits: the final norm, where there is one, and the token embedding. */
  decode(x_TC, logits_TV, start, end) {
    const { n_embd: C, vocab_size: V } = this.config;
    if (this.final_norm) layerNorm(x_TC, this.final_norm, this.scratch, start, end, C);
    linear(this.final_norm ? this.scratch : x_TC, this.token_embedding.weight, null, logits_TV, start, end, C, V);
  }

  /** The names of the residual stream at the bottom and after each half block, 2L + 1. */
  stages() {
    return ["embedding_dropout", ...this.blocks.flatMap((_, i) => [`blocks.${i}.residual_middle`, `blocks.${i}`])];
  }

  /** The logit lens: what the stream would give at each half block, 2L + 1 arrays of logits_TV. */
  lens(activations, start, end) {
    const V = this.config.vocab_size;
    return this.stages().map((name) => {
      const logits_TV = new Float32Array(end * V);
      this.decode(activations.values[name], logits_TV, start, end);
      return logits_TV;
    });
  }

  /** Which parts the logit of `chosen` after position t comes from, or its distance from that of `against`. */
  attribute(ids, activations, t, chosen, against = null) {
    const { n_layer, n_head: H, n_embd: C, vocab_size: V, block_size: S, norm, positions } = this.config, D = C / H;
    const { values } = activations, decoder_VC = this.token_embedding.weight;
    const row = (x_TC, i = t) => new Float64Array(x_TC.subarray(i * C, (i + 1) * C));
    const minus = (x, i, size) => x[i + size * chosen] - (against === null ? 0 : x[i + size * against]);
    const zeros = () => new Array(n_layer).fill(0);
    const parts = { logit: minus(values.logits, t * V, 1), token: 0, place: 0, final_bias: 0, replaced: 0 };
    Object.assign(parts, { heads: zeros().map(() => new Array(H).fill(0)), feed_forwards: zeros(), biases: zeros() });
    parts.sources = parts.heads.map((heads) => heads.map(() => new Array(t + 1).fill(0)));
    const stream = this.stages().map((name) => row(values[name]));
    // From the output down, half block by half block: `to_C` is the direction in the stream that the logit reads.
    let to_C = Float64Array.from({ length: C }, (_, c) => minus(decoder_VC, c, C)), half = 2 * n_layer;
    [, to_C, parts.final_bias] = through(this.final_norm, stream[half], to_C);
    for (; half > 0; half--) {
      const i = (half - 1) >> 1, isAttention = half % 2 === 1, block = this.blocks[i];
      const name = `blocks.${i}.${isAttention ? "attention" : "feed_forward"}`, written_C = row(values[name]);
      const frozen = norm === "post" ? (isAttention ? block.norm_1 : block.norm_2) : null;
      const sum_C = written_C.map((value, c) => stream[half - 1][c] + value);
      const [after_C, beforeNorm_C, bias] = through(frozen, sum_C, to_C);
      if (differ(stream[half], after_C)) break;
      to_C = beforeNorm_C;
      parts.biases[i] += bias;
      if (!isAttention) {
        parts.feed_forwards[i] = product(to_C, written_C);
        continue;
      }
      const { weight: weight_CC, bias: bias_C } = block.projection, heads_C = row(values[`${name}.heads`]);
      const projected_C = written_C.map((_, c) => product(heads_C, row(weight_CC, c)) + bias_C[c]);
      if (differ(written_C, projected_C)) {
        parts.replaced += product(to_C, written_C);
        continue;
      }
      parts.biases[i] += product(to_C, bias_C);
      for (let h = 0; h < H; h++) {
        const to_D = new Float64Array(D), taken_D = new Float64Array(D), head_D = heads_C.subarray(h * D, (h + 1) * D);
        for (let c = 0; c < C; c++) // through the projection, into what this head collects
          for (let d = 0; d < D; d++) to_D[d] += to_C[c] * weight_CC[c * C + h * D + d];
        parts.heads[i][h] = product(to_D, head_D);
        const sources = parts.sources[i][h].map((_, s) => {
          const weight = values[`${name}.softmax`][(t * H + h) * S + s], value = s * 3 * C + 2 * C + h * D;
          const weighted_D = new Float64Array(values[`${name}.qkv`].subarray(value, value + D)).map((x) => weight * x);
          for (let d = 0; d < D; d++) taken_D[d] += weighted_D[d];
          return product(to_D, weighted_D);
        });
        if (!differ(head_D, taken_D)) parts.sources[i][h] = sources;
      }
    }
    const scale = positions === "sinusoidal" ? Math.sqrt(C) : 1, place_C = row(this.position_embedding.weight);
    const token_C = row(decoder_VC, ids[t]).map((value) => value * scale);
    if (half > 0 || differ(stream[0], token_C.map((value, c) => value + place_C[c])))
      parts.replaced += product(to_C, stream[half]);
    else [parts.token, parts.place] = [product(to_C, token_C), product(to_C, place_C)];
    return parts;
  }
}

/** What a norm makes of x_C, the direction that leads through it, frozen, to `to_C`, and its bias's part. */
function through(norm, x_C, to_C) {
  if (!norm) return [x_C, to_C, 0];
  const C = x_C.length, [inverse, mean] = statistics(x_C, 0, C);
  const y_C = x_C.map((value, c) => (value - mean) * inverse * norm.weight[c] + norm.bias[c]);
  const scaled_C = to_C.map((value, c) => value * norm.weight[c]), middle = scaled_C.reduce((a, b) => a + b) / C;
  return [y_C, scaled_C.map((value) => (value - middle) * inverse), product(to_C, norm.bias)];
}

/** Whether two vectors differ by more than float32's rounding explains. */
function differ(x, y) {
  const size = (vector) => Math.sqrt(product(vector, vector));
  return size(x.map((value, c) => value - y[c])) > 1e-4 * (size(x) + size(y));
}

/** The dot product of two whole vectors. (`dot`, which must be fast, stays with arrays of float32.) */
function product(x, y) {
  return x.reduce((sum, value, c) => sum + value * y[c], 0);
}

/** The names of the values that an intervention changes. */
function places(it, config) {
  const block = `blocks.${it.layer}`;
  switch (it.part) {
    case "embedding": return ["embedding_dropout"];
    case "residual": return [it.layer ? `blocks.${it.layer - 1}` : "embedding_dropout"];
    case "head": return [`${block}.attention.heads`];
    case "neuron": return [`${block}.feed_forward.gelu`];
    case "block": return [`${block}.attention`, `${block}.feed_forward`];
    case "position": return Array.from({ length: config.n_layer }, (_, i) => i)
      .filter((i) => it.layer == null || it.layer === i).map((i) => `blocks.${i}.attention.scores`);
    default: return [`${block}.${it.part}`];
  }
}

/** Change one value as an intervention says, at its positions among `start` to `end`. */
function change(it, name, value, start, end, width, config) {
  const { n_head: H, n_embd: C, block_size: S } = config, i = it.index ?? 0, scale = it.scale ?? 0;
  if (it.part === "position") {
    const more = scale > 0 ? Math.log(scale) : -Infinity, heads = it.index == null ? [...Array(H).keys()] : [i];
    for (let t = start; t < end; t++)
      for (const h of heads) for (const s of it.positions) if (s < t) value[(t * H + h) * S + s] += more;
    return;
  }
  const some = { head: [(i * C) / H, ((i + 1) * C) / H], neuron: [i, i + 1] };
  const [from, to] = some[it.part] ?? [0, width];
  const mean = it.mean_of && Float64Array.from({ length: to - from }, (_, c) => {
    let sum = 0;
    for (let t = 0; t < it.mean_of.length; t++) sum += it.mean_of.activations.values[name][t * width + from + c];
    return sum / it.mean_of.length;
  });
  for (let t = start; t < end; t++) {
    if (it.positions != null && !it.positions.includes(t)) continue;
    for (let c = from; c < to; c++) {
      const j = t * width + c;
      value[j] = mean ? mean[c - from] : it.patch_from ? it.patch_from.activations.values[name][j] : value[j] * scale;
    }
  }
}

/** What the next token is drawn from: generation.py's `probabilities` for one row of logits, without its penalty. */
function probabilities(logits_V, { temperature = 1, top_k = null, top_p = null, min_p = null } = {}) {
  const V = logits_V.length, order = Array.from(logits_V.keys()).sort((a, b) => logits_V[b] - logits_V[a] || a - b);
  const probs = new Float64Array(V), max = logits_V[order[0]];
  if (temperature === 0) {
    probs[order[0]] = 1;
    return probs;
  }
  let kept = order.slice(0, top_k ?? V), sum = 0;
  for (const v of kept) sum += probs[v] = Math.exp((logits_V[v] - max) / temperature);
  for (const v of kept) probs[v] /= sum;
  if (top_p !== null) {
    let mass = 0;
    kept = kept.filter((v) => {
      const keep = mass < top_p;
      mass += probs[v];
      if (!keep) probs[v] = 0;
      return keep;
    });
  }
  const least = min_p === null ? 0 : min_p * probs[order[0]];
  sum = 0;
  for (const v of kept) sum += probs[v] = probs[v] >= least ? probs[v] : 0;
  return probs.map((p) => p / sum);
}

if (typeof module !== "undefined") module.exports = { GPT, Activations, probabilities, surprisal };
