/* Who computes: the engine, in workers of this page, or PyTorch behind it. Either answers the requests of worker.js. */

class Engine {
  /** @param source the text of the page's script, which is the worker's too */
  constructor(source) {
    this.url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    this.lines = {};
  }

  /** A worker, and what it was given and still has to answer: one is for what is waited for, one for the rest. */
  line(name) {
    if (this.lines[name]) return this.lines[name];
    const line = { worker: new Worker(this.url), models: new Map(), waiting: new Map(), number: 0 };
    line.worker.onmessage = ({ data: { id, result, error } }) => {
      const { resolve, reject } = line.waiting.get(id);
      line.waiting.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    };
    line.worker.onerror = (event) => {
      for (const { reject } of line.waiting.values()) reject(new Error(event.message));
      line.waiting.clear();
    };
    return (this.lines[name] = line);
  }

  send(line, request, transfer = []) {
    return new Promise((resolve, reject) => {
      const id = line.number++;
      line.waiting.set(id, { resolve, reject });
      line.worker.postMessage({ id, ...request }, transfer);
    });
  }

  async ask(method, parameters, name = "first") {
    const line = this.line(name), { step } = parameters;
    if (!line.models.has(step)) line.models.set(step, this.load(line, step));
    await line.models.get(step);
    return this.send(line, { method, ...parameters });
  }

  async load(line, step) {
    const { config, tensors, precision } = contents;
    if (!served && document.readyState === "loading") // the weights of the film stand behind the script
      await new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve));
    const element = document.getElementById(`weights-${step}`);
    const weights = element ? element.textContent : await (await got(`weights/${step}`)).arrayBuffer();
    return this.send(line, { method: "load", step, weights, config, tensors, precision }, element ? [] : [weights]);
  }
}

const ARRAYS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };

class Server {
  async ask(method, parameters) {
    const answer = await (await got("compute", { id: 0, method, ...parameters })).json();
    if (answer.error !== undefined) throw new Error(answer.error);
    return decoded(answer.result);
  }
}

/** An answer in which arrays are arrays again. */
function decoded(value) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(decoded);
  for (const [name, kind] of Object.entries(ARRAYS))
    if (typeof value[name] === "string") return new kind(Uint8Array.from(atob(value[name]), (c) => c.charCodeAt(0)).buffer);
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, decoded(item)]));
}

/** What the server gives for a path, or for a body sent there. */
async function got(path, body) {
  const asked = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, asked);
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Error(error ?? `The server answered ${response.status}.`);
}
