/* How long the page's engine takes in Node.js: the milliseconds that one waits for each request to its worker.

    node benchmarks/engine.js [ROUNDS]

Random weights; the quickstart's shape, and 6 x 384 with a window of 256. Each request in turn with the others. */
const { Answerer, sizes } = require("../minigpt/glassbox/page/worker.js");

/** The request that loads a model with random weights. */
function load(config) {
  const tensors = sizes(config).map(([name, size]) => [name, [size]]);
  const numbers = new Float32Array(tensors.reduce((sum, [, [size]]) => sum + size, 0));
  for (let i = 0; i < numbers.length; i++) numbers[i] = (Math.random() - 0.5) / 4;
  return { method: "load", step: 0, weights: numbers.buffer, config, tensors, precision: "float32" };
}

function measure(config, rounds) {
  const { block_size: T, vocab_size: V, n_layer } = config, answerer = new Answerer(), times = {};
  const random = (length) => Array.from({ length }, () => Math.floor(Math.random() * V));
  const ask = (name, request) => {
    const start = performance.now(), { error, result } = answerer.answer({ step: 0, ...request });
    (times[name] ??= []).push(performance.now() - start);
    if (error) throw new Error(error);
    return result;
  };
  const headOff = (layer) => [{ part: "head", layer, index: 1 }];
  ask("load", load(config));
  for (let round = 0; round < rounds; round++) {
    const ids = random(T), short = random(T >> 1), middle = ids.with(T >> 1, (ids[T >> 1] + 1) % V);
    ask("a whole window", { method: "read", ids });
    ask("the same again", { method: "read", ids });
    ask("a character in the middle changed", { method: "read", ids: middle });
    ask("a head off in the first block", { method: "read", ids, interventions: headOff(0) });
    ask("a head off in the last block", { method: "read", ids, interventions: headOff(n_layer - 1) });
    ask("all maps, 64 x 64", { method: "maps", ids, size: 64 });
    ask("the lens, 32 positions", { method: "lens", ids, from: T - 32, to: T });
    ask("attribution of a choice", { method: "attribute", ids, position: T - 1, chosen: 0, against: 1 });
    answerer.answer({ method: "read", step: 0, ids: short });
    for (let i = 0; i < 10; i++) ask("one more character typed", { method: "read", ids: (short.push(i), short) });
    for (let i = 0; i < 10; i++) {
      const draws = [Math.random()], next = { method: "write", ids: short, count: 1, draws };
      short.push(...ask("one more written", next).ids); // and the next request reads it
    }
  }
  return times;
}

const shape = { n_head: 4, norm: "post", positions: "learned" };
const rounds = Number(process.argv[2] ?? 20);
for (const [config, count] of [
  [{ ...shape, n_layer: 3, n_embd: 128, block_size: 128, vocab_size: 87 }, rounds],
  [{ ...shape, n_layer: 6, n_embd: 384, n_head: 6, block_size: 256, vocab_size: 65 }, Math.ceil(rounds / 5)],
]) {
  console.log(`\n| ${config.n_layer} x ${config.n_embd}, window ${config.block_size} | ms, median | least | most |`);
  console.log("|---|---|---|---|");
  for (const [name, all] of Object.entries(measure(config, count))) {
    const sorted = all.sort((a, b) => a - b), shown = [sorted[sorted.length >> 1], sorted[0], sorted.at(-1)];
    console.log(`| ${name} | ${shown.map((it) => it.toFixed(it < 10 ? 2 : 0)).join(" | ")} |`);
  }
}
