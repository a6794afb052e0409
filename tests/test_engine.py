"""The page's engine and worker compute what the glass box computes: every activation, and the answer to every request.

They run in Node.js as they run in the page: concatenated, as one script. Python computes the same in float64.
"""

import base64
import copy
import dataclasses
import itertools
import json
import math
import random
import shutil
import string
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ROOT
from minigpt.generation import generate, probabilities
from minigpt.glassbox.lens import attribute, lens
from minigpt.glassbox.trace import Intervention, Trace, trace
from minigpt.model import GPT, GPTConfig
from minigpt.sampling import Sampling
from minigpt.text.tokenizer import CharTokenizer

PAGE = ROOT / "minigpt" / "glassbox" / "page"
LETTERS = "abcdefghijklmnopqrst"
TEXT, OTHER = "abacadabraqrst", "bcdefghijklmno"
# Runs the script of the page on requests from standard input. Each is answered by one worker, through `serve`, and by a
# new one, which knows nothing but the models; so is counted how many blocks were computed at how many positions.
# `activations`, `typed` and `widened` are for these tests alone.
DRIVER = """
const fs = require("fs"), script = process.argv.slice(1).map((path) => fs.readFileSync(path, "utf8")).join("");
const { Answerer, GPT, Activations, serve, widen } = require("vm").runInNewContext(
  script + "; ({ Answerer, GPT, Activations, serve, widen })", { atob, console });
Answerer.methods.push("activations", "typed", "widened");
Answerer.prototype.activations_of = Answerer.prototype.activations;
Answerer.prototype.activations = function (...args) {
  return args.length === 1 ? this.look(args[0]).values : this.activations_of(...args);
};
Answerer.prototype.typed = function ({ step, ids }) {  // a row at a time, and once more from the middle
  const gpt = this.models.get(step), rows = new Activations(gpt.config);
  ids.forEach((_, t) => gpt.forward(ids.slice(0, t + 1), rows, { start: t }));
  return gpt.forward(ids, rows, { start: ids.length >> 1 }).values;
};
Answerer.prototype.widened = () => ({ numbers: Float32Array.from({ length: 65536 }, (_, bits) => widen(bits)) });
let work = 0;
const forward = GPT.prototype.forward;
GPT.prototype.forward = function (ids, activations, options = {}) {
  work += (ids.length - (options.start ?? 0)) * (this.config.n_layer - (options.layer ?? 0));
  return forward.call(this, ids, activations, options);
};
const worker = {}, loads = [], answers = [];
const { requests, room } = JSON.parse(fs.readFileSync(0, "utf8"));
serve(worker, room ?? undefined);
for (const request of requests) {
  let answer;
  worker.postMessage = (message, arrays) => {
    const own = request.method === "activations" || request.method === "typed";
    answer = structuredClone(message, { transfer: own ? [] : arrays });
  };
  work = 0;
  worker.onmessage({ data: structuredClone(request) });
  const done = work, other = new Answerer(), isAlone = request.alone || request.method === "load";
  if (request.method === "load") loads.push(request);
  for (const load of isAlone ? [] : loads) if (load.step === request.step) other.answer(load);
  answers.push({ ...answer, work: done, anew: isAlone ? null : other.answer(request) });
}
const plain = (_, value) => ArrayBuffer.isView(value)
  ? { array: value.constructor.name.slice(0, -5).toLowerCase(), base64: Buffer.from(value.buffer).toString("base64") }
  : value === Infinity ? "Infinity" : value;
console.log(JSON.stringify(answers, plain));
"""
INTERVENTIONS = [
    [],
    [Intervention("head", 1, 0), Intervention("neuron", 0, 7, scale=3.0), Intervention("block", 1, positions=(2, 5))],
    [Intervention("position", positions=(3, 4)), Intervention("position", 1, 0, positions=(0,), scale=0.5)],
    [Intervention("residual", 1, positions=(4, 9), patch_from=OTHER), Intervention("attention", 1, mean_of=OTHER)],
    [Intervention("embedding", positions=(1,), mean_of=OTHER), Intervention("residual_middle", 0, scale=0.5)],
    [Intervention("feed_forward", 0), Intervention("residual", 2, positions=(13,), patch_from=OTHER)],
    [Intervention("attention", 1, scale=2.0), Intervention("head", 0, 0, mean_of=OTHER)],
    [Intervention("embedding", scale=3.0)],
]
SAMPLINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0),
    Sampling(temperature=0.7, top_k=5),
    Sampling(top_p=0.6),
    Sampling(min_p=0.5),
    Sampling(temperature=1.5, top_k=12, top_p=0.9, min_p=0.1),
]

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="the engine is tried in Node.js, which isn't here")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For models as small as these, two threads on a busy machine wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The glass box computes in float64, by the same formulas of model.py."""
    monkeypatch.setattr(trace.__module__ + ".make_shell", lambda gpt: copy.deepcopy(gpt).double())


def make_model(
    norm: Any = "post",
    positions: Any = "learned",
    n_head: int = 2,
    block_size: int = 14,
    n_embd: int = 12,
    letters: str = LETTERS,
) -> Any:
    """A model of 2 blocks with random weights, as they are after rounding to float16."""
    gpt = GPT(GPTConfig(len(letters), block_size, 2, n_head, n_embd, norm=norm, positions=positions)).eval()
    generator = torch.Generator().manual_seed(block_size)
    for name, parameter in gpt.named_parameters():
        is_gain = "norm" in name and name.endswith("weight")
        parameter.data.normal_(1.0 if is_gain else 0.0, 0.2, generator=generator)
    return SimpleNamespace(gpt=gpt, tokenizer=CharTokenizer(letters))


def load(model: Any, step: int = 0, precision: str = "float32") -> dict[str, Any]:
    """The request that gives a model to the worker; in float16 the model itself is rounded too."""
    gpt = model.gpt
    if precision == "float16":
        gpt.half().float()
    tensors = dict(gpt.state_dict())
    tensors["position_embedding.weight"] = gpt.position_embedding(torch.arange(gpt.config.block_size)).detach()
    numbers = b"".join(
        it.numpy().astype("<f2" if precision == "float16" else "<f4").tobytes() for it in tensors.values()
    )
    return {
        "id": f"load {step}",
        "method": "load",
        "step": step,
        "weights": base64.b64encode(numbers).decode(),
        "config": dataclasses.asdict(gpt.config),
        "tensors": [[name, list(it.shape)] for name, it in tensors.items()],
        "precision": precision,
    }


def as_json(model: Any, interventions: list[Intervention]) -> list[dict[str, Any]]:
    """As a request has them: texts are ids."""
    found = [dataclasses.asdict(it) for it in interventions]
    for it in found:
        for text in ("mean_of", "patch_from"):
            it[text] = it[text] and model.tokenizer.encode(it[text]).tolist()
    return found


def ask(requests: list[dict[str, Any]], room: int | None = None) -> list[dict[str, Any]]:
    """The answers: {id, result or error, work, anew: the answer of a new worker}; room for kept activations."""
    command = ["node", "-e", DRIVER, str(PAGE / "engine.js"), str(PAGE / "worker.js")]
    text = json.dumps({"requests": requests, "room": room})
    done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert not done.stderr
    assert done.returncode == 0
    return json.loads(done.stdout, object_hook=as_array)


def as_array(found: dict[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(found["base64"]), found["array"]) if "array" in found else found


def results(requests: list[dict[str, Any]], room: int | None = None) -> list[dict[str, Any]]:
    """What is answered, by one worker for all requests and by a new one for each."""
    answers = ask(requests, room)
    for answer in answers:
        assert "error" not in answer, answer
        if answer["anew"] and answer["id"] != "activations":  # they have rows behind the text, of older ones
            alike(answer["result"], answer["anew"]["result"], answer["id"])
    return [answer["result"] for answer in answers]


def alike(found: Any, wanted: Any, what: str) -> None:
    """Two results are the same, numbers to 1e-5."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            alike(found[name], wanted[name], f"{what}: {name}")
    elif isinstance(wanted, list) and isinstance(wanted[0], (list, str)):
        for it in zip(found, wanted, strict=True):
            alike(*it, what)
    elif isinstance(wanted, (str, type(None))):
        assert found == wanted, what
    elif isinstance(wanted, np.ndarray):
        close(found, wanted, what)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5, err_msg=what)


def close(found: Any, wanted: Any, what: str) -> None:
    """Equal to 1e-5 of the largest value; NaN and infinities are where they should be."""
    found, wanted = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert found.shape == wanted.shape, what
    finite = np.isfinite(wanted)
    assert np.array_equal(found[~finite], wanted[~finite], equal_nan=True), what
    found, wanted = found[finite], wanted[finite]
    assert np.abs(found - wanted).max(initial=0) <= 1e-5 * np.abs(wanted).max(initial=0), what


def equals_trace(values: dict[str, np.ndarray], wanted: Trace, what: str) -> None:
    (T,), H = wanted.ids_BT.shape, wanted.gpt.config.n_head
    assert wanted.logits.dtype == torch.float64
    ours = {"embedding", "token_embedding", "position_embedding"}  # looked at by trace.py, but not kept by the engine
    assert set(values) == set(wanted.values) - ours
    for name, flat in values.items():
        rows = flat.reshape(wanted.gpt.config.block_size, -1)[:T]
        if name.endswith((".scores", ".softmax")):
            rows = rows.reshape(T, H, -1)[:, :, :T].transpose(1, 0, 2)
            seen = np.tri(T, dtype=bool)
            rows, reference = rows[:, seen], wanted.values[name].numpy()[:, seen]
        else:
            reference = wanted.values[name].numpy()
        close(rows.reshape(reference.shape), reference, f"{what}: {name}")


def test_every_activation_is_that_of_model_py(in_float64: None) -> None:
    """For every norm, kind of positions, number of heads, window, length and vocabulary, in both precisions."""
    shapes = itertools.product(
        ("post", "pre"), ("learned", "sinusoidal"), (1, 2, 4), ((1, 1), (7, 5), (16, 16)), (2, 21, 87)
    )
    requests, models = [], []
    for step, (norm, positions, n_head, (block_size, length), vocabulary) in enumerate(shapes):
        letters = (string.digits + string.ascii_letters + string.punctuation)[:vocabulary]
        model = make_model(norm, positions, n_head, block_size, 12, letters)
        requests.append(load(model, step, ("float16", "float32")[step % 2]) | {"alone": True})
        text = "".join(random.Random(step).choices(letters, k=length))
        ids = model.tokenizer.encode(text).tolist()
        models.append((f"{norm} {positions} {n_head} heads, {length} of {block_size}, {vocabulary}", model, text))
        for method in ("activations", "typed"):
            requests.append({"id": method, "method": method, "step": step, "ids": ids, "alone": True})
    answers = results(requests)
    for i, (what, model, text) in enumerate(models):
        wanted = trace(model, text)
        for found in answers[3 * i + 1 : 3 * i + 3]:
            equals_trace(found, wanted, what)


@pytest.mark.parametrize(
    ("norm", "positions", "n_head", "block_size", "precision"),
    [
        ("post", "learned", 1, 14, "float32"),
        pytest.param("post", "sinusoidal", 2, 16, "float16", marks=pytest.mark.soak),
        pytest.param("pre", "learned", 4, 14, "float16", marks=pytest.mark.soak),
        pytest.param("pre", "sinusoidal", 2, 23, "float32", marks=pytest.mark.soak),
    ],
)
def test_every_request_is_answered_as_python_would(
    norm: Any, positions: Any, n_head: int, block_size: int, precision: str, in_float64: None
) -> None:
    model = make_model(norm, positions, n_head, block_size)
    ids = model.tokenizer.encode(TEXT).tolist()
    n = len(ids)
    requests = [load(model, 3, precision)]
    methods: list[dict[str, Any]] = [
        {"method": "activations"},
        {"method": "read"},
        {"method": "maps", "size": 5},
        {"method": "maps", "size": 100},
        {"method": "pattern", "layer": 1, "head": n_head - 1},
        {"method": "lens", "from": 0, "to": n},
        {"method": "lens", "from": 4, "to": 9},
        {"method": "attribute", "position": n - 1, "chosen": 2, "against": 5},
        {"method": "attribute", "position": 4, "chosen": 7, "against": None},
    ]
    for interventions in INTERVENTIONS:
        common = {"step": 3, "ids": ids, "interventions": as_json(model, interventions)}
        requests += [{"id": method["method"], **method, **common} for method in methods]
    answers = iter(results(requests)[1:])
    for interventions in INTERVENTIONS:
        wanted, what = trace(model, TEXT, interventions), f"{interventions}"
        equals_trace(next(answers), wanted, what)

        found = next(answers)
        close(found["surprisal"], wanted.nats, what)
        close(found["logits"], wanted.logits.flatten(), what)

        for size in (5, n):  # of the maps
            found = next(answers)
            assert found["size"] == size
            edges = [i * n // size for i in range(size + 1)]
            cells = [slice(a, b) for a, b in itertools.pairwise(edges)]
            largest = [[wanted.pattern[:, :, rows, columns].amax((2, 3)) for columns in cells] for rows in cells]
            maps = torch.stack([torch.stack(row, -1) for row in largest], -2)
            difference = found["maps"] - (255 * maps.sqrt()).flatten().numpy()
            assert np.abs(difference).max() < 0.51

        close(next(answers)["pattern"], wanted.pattern[1, -1].flatten(), what)

        probabilities_STV = lens(wanted).softmax(-1)
        following = torch.tensor([*ids[1:], 0])
        for part in (slice(0, n), slice(4, 9)):
            found = next(answers)
            assert found["stages"] == [
                "embedding_dropout",
                *[f"blocks.{i // 2}{'' if i % 2 else '.residual_middle'}" for i in range(4)],
            ]
            right = probabilities_STV.gather(-1, following.expand(5, n).unsqueeze(-1)).squeeze(-1)
            right[:, -1] = math.nan
            assert found["best"].tolist() == probabilities_STV.argmax(-1)[:, part].flatten().tolist()
            close(found["probability"], probabilities_STV.amax(-1)[:, part].flatten(), what)
            close(found["right"], right[:, part].flatten(), what)

        for position, chosen, against in ((n - 1, 2, 5), (4, 7, None)):
            found = next(answers)
            parts = attribute(wanted, position, LETTERS[chosen], None if against is None else LETTERS[against])
            for name in ("logit", "token", "place", "heads", "feed_forwards", "biases", "final_bias", "replaced"):
                np.testing.assert_allclose(found[name], getattr(parts, name), rtol=1e-5, atol=2e-5, err_msg=what + name)
            np.testing.assert_allclose(found["sources"], parts.sources[:, :, : position + 1], atol=2e-5, err_msg=what)
            each = (np.sum(found[name]) for name in found if name not in ("logit", "sources"))
            assert sum(each) == pytest.approx(parts.logit, abs=1e-4)


def test_it_writes_what_generate_writes() -> None:
    """Longer than the window: it moves on by half when it is full, as that of the command does."""
    for block_size, prompt, count, never in ((14, TEXT, 12, 3), (7, "ab", 15, None), (1, "q", 3, 0)):
        model = make_model("pre", "sinusoidal", 2, block_size)
        ids = model.tokenizer.encode(prompt).tolist()
        draws = torch.rand(count, generator=torch.Generator().manual_seed(5), dtype=torch.float64).tolist()
        requests = [load(model)]
        for sampling in SAMPLINGS:
            settings = dataclasses.asdict(sampling) | {"count": count, "draws": draws, "never": never}
            requests.append({"id": str(sampling), "method": "write", "step": 0, "ids": ids, **settings})
        for sampling, found in zip(SAMPLINGS, results(requests)[1:], strict=True):
            drawn = itertools.islice(generate(model.gpt, [ids], sampling, [5], never=never), count)
            wanted = [(*ids, *log_probabilities) for ids, log_probabilities in drawn]
            assert found["ids"] == [id_ for id_, _ in wanted], sampling
            np.testing.assert_allclose(found["surprisal"], [-nats for _, nats in wanted], rtol=1e-4, atol=1e-5)


def test_it_writes_with_parts_switched_off() -> None:
    """A position counts within the window, from when it is there."""
    model = make_model()
    window = model.tokenizer.encode(TEXT[:12]).tolist()
    interventions = [Intervention("head", 1, 1), Intervention("attention", 0, positions=(0, 8), scale=3.0)]
    request = {"id": 1, "method": "write", "step": 0, "ids": window, "interventions": as_json(model, interventions)}
    draws = [0.3, 0.9, 0.0, 0.05, 0.7, 0.2]
    found = results([load(model), request | {"count": 6, "draws": draws}])[1]
    for draw, id_ in zip(draws, found["ids"], strict=True):
        window = window[7:] if len(window) > 14 else window
        there = [
            it
            if it.positions is None
            else dataclasses.replace(it, positions=tuple(t for t in it.positions if t < len(window)))
            for it in interventions
        ]
        read = trace(model, model.tokenizer.decode(window), there)
        probs = probabilities(read.logits[-1:], read.ids_BT[None], Sampling(temperature=1.0))[0]
        assert id_ == int(torch.searchsorted(probs.cumsum(0), draw, right=True))
        window.append(id_)


def test_it_computes_no_more_than_it_must() -> None:
    """And what it has kept never shows: `results` compares each answer with that of a new worker."""
    model, other = make_model(block_size=16), make_model("pre", "sinusoidal", 4, 16)
    loads = [load(model, 0), load(other, 1)]
    off, late, early = Intervention("head", 1, 0), Intervention("neuron", 1, 5), Intervention("block", 0)
    after, middle = Intervention("residual", 2, scale=0.5), Intervention("residual", 1, scale=0.5)
    everywhere, here = Intervention("position", positions=(1,)), Intervention("position", 1, positions=(1,))
    patch = Intervention("attention", 1, patch_from="abacos")
    L = 2
    steps: list[tuple[int, str, list[Intervention], int]] = [
        (0, "abac", [], 4 * L),
        (0, "abac", [], 0),
        (0, "abaca", [], L),  # one more at the end
        (0, "abacadabra", [], 5 * L),
        (0, "abac", [], 0),  # taken back
        (0, "abac", [off], 4),  # the lower block stays
        (0, "abacadabra", [], 0),  # and nothing is lost
        (0, "abacadabra", [off], 10),
        (0, "abacadabra", [off, late], 10),
        (0, "abacadabra", [early, off], 10 * L),
        (0, "abacadabra", [early], 10),
        (0, "abacadabra", [off], 0),
        (0, "abaqadabra", [off], 7 * L),  # changed in the middle
        (0, "abaqadabra", [], 10),
        (0, "abacadabra", [], 0),
        (0, "bacadabra", [], 9 * L),  # at the beginning
        (1, "abacadabra", [], 10 * L),  # another model
        (1, "abacadabras", [], L),
        (0, "abacadabras", [], L),
        (0, "abacadabras", [after], 11),
        (0, "abacadabras", [middle], 11 * L),
        (0, "abacadabras", [here], 11),
        (0, "abacadabras", [everywhere], 11 * L),
        (0, "abacos", [], 2 * L),
        (0, "abacad", [patch], 6),  # from a text that is known
        (0, "abacat", [patch], L),
        (0, "abracadabra", [], 9 * L),
        (0, "abacadabras", [], 0),
        (0, "abacadabrasabaca", [off], 6 * L),
    ]
    requests, work = loads, [0, 0]
    for step, text, interventions, wanted in steps:
        common = {
            "step": step,
            "ids": model.tokenizer.encode(text).tolist(),
            "interventions": as_json(model, interventions),
        }
        requests.append({"id": f"{text} {interventions}", "method": "read", **common})
        requests.append({"id": "activations", "method": "activations", **common})
        work += [wanted, 0]
    results(requests, room=1)  # also if next to nothing can be kept
    found = results(requests)
    for (step, text, interventions, _), values in zip(steps, found[3::2], strict=True):
        expected = trace((model, other)[step], text, interventions)
        close(values["logits"].reshape(16, -1)[: len(text)], expected.logits, text)
    assert [answer["work"] for answer in ask(requests)] == work


def test_the_probe_finds_a_wrong_weight() -> None:
    model = make_model("pre")
    ids = model.tokenizer.encode(TEXT).tolist()
    read = trace(model, TEXT)
    values: dict[str, Any] = {}
    for name in (
        "logits",
        "blocks.1",
        "blocks.0.attention.qkv",
        "blocks.1.feed_forward.gelu",
        "blocks.0.residual_middle",
    ):
        flat = read.values[name].flatten()
        at = [0, 3, len(flat) // 2, len(flat) - 1]
        values[name] = {"at": at, "values": flat[at].tolist(), "largest": float(flat.abs().max())}
    probe = {"id": 1, "method": "probe", "step": 0, "ids": ids, "values": values}
    found = results([load(model), probe])[1]
    assert found["worst"] < 2e-6
    assert found["first"] is None
    for weight, first in (
        ("blocks.1.feed_forward.expand.weight", "blocks.1.feed_forward.gelu"),
        ("blocks.1.feed_forward.contract.bias", "blocks.1"),
        ("blocks.0.norm_1.weight", "blocks.0.attention.qkv"),
        ("final_norm.bias", "logits"),
    ):
        wrong = copy.deepcopy(model)
        wrong.gpt.get_parameter(weight).data[0] += 0.1
        found = results([load(wrong), probe])[1]
        assert found["worst"] > 1e-3
        assert found["first"] == first
        wrong.gpt.get_parameter(weight).data[0] = math.nan
        assert results([load(wrong), probe])[1] == {"worst": "Infinity", "first": first}


def test_wrong_requests_are_refused_with_a_sentence() -> None:
    model = make_model()
    ids = [1, 2, 3]
    write = {"method": "write", "count": 1, "draws": [0.5], "temperature": 1}
    intervene = lambda **it: {"method": "read", "interventions": [{"part": "head", "layer": 0, "index": 0} | it]}  # noqa: E731
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"method": "constructor"}, "constructor is none of load, read"),
        ({}, "undefined is none of"),
        ({"method": "read", "step": 8}, "no model of step 8"),
        ({"method": "read", "ids": []}, "1 to 14 ids; this has 0"),
        ({"method": "read", "ids": [1] * 15}, "this has 15"),
        ({"method": "read", "ids": None}, "list of 1 to 14"),
        ({"method": "read", "ids": [0, 20]}, "Id 20 at position 1"),
        ({"method": "read", "ids": [-1]}, "Id -1"),
        ({"method": "read", "ids": [0.5]}, "Id 0.5"),
        ({"method": "read", "interventions": "x"}, "must be a list"),
        ({"method": "read", "interventions": [None]}, "none of the parts"),
        (intervene(part="tail"), "tail is none of the parts"),
        (intervene(layers=1), "no layers"),
        (intervene(layer=2), "layer is 2; for the part head it must be from 0 to 1"),
        (intervene(layer=None), "layer is null"),
        (intervene(index=2), "from 0 to 1"),
        (intervene(part="block"), "index is 0; for the part block it must be left out"),
        (intervene(part="embedding", index=None), "layer is 0"),
        (intervene(part="position", layer=None), "layer is null"),
        (intervene(part="position"), "say which"),
        (intervene(part="position", positions=[0], scale=-1), "more than 0"),
        (intervene(positions=[3]), "the text has 3"),
        (intervene(positions=4), "Positions 4"),
        (intervene(scale="1"), "finite"),
        (intervene(scale=2, mean_of=[1]), "one of the three"),
        (intervene(mean_of=[]), "1 to 14 ids"),
        (intervene(patch_from=[1, 2]), "only 2 positions"),
        (intervene(patch_from=[1, 2], positions=[2]), "only 2 positions"),
        ({"method": "maps", "size": 0}, "size is 0"),
        ({"method": "pattern", "layer": 0, "head": 2}, "no head 0.2"),
        ({"method": "lens", "from": 0, "to": 4}, "no positions 0 to 4"),
        ({"method": "lens", "from": 2, "to": 2}, "no positions 2 to 2"),
        ({"method": "attribute", "position": 3, "chosen": 0}, "no position 3"),
        ({"method": "attribute", "position": 0, "chosen": 20}, "no id 20"),
        ({"method": "attribute", "position": 0, "chosen": 0, "against": -1}, "no id -1"),
        (write | {"draws": []}, "a number from 0"),
        (write | {"draws": [1]}, "a number from 0"),
        (write | {"count": 0}, "count is 0"),
        (write | {"temperature": -1}, "temperature is -1"),
        (write | {"top_k": 0}, "top_k is 0"),
        (write | {"top_p": 0}, "top_p is 0"),
        (write | {"min_p": 1.5}, "min_p is 1.5"),
        (write | {"never": 20}, "no id 20"),
        ({"method": "probe", "values": {}}, "holds nothing"),
        ({"method": "probe", "values": {"x": {"at": [0], "values": [0], "largest": 1}}}, "holds x"),
        (load(model) | {"precision": "int8"}, "precision is int8"),
        (load(model) | {"weights": "!"}, "no base64"),
        (load(model) | {"weights": ""}, "have 0 bytes"),
        (load(model) | {"config": dataclasses.asdict(model.gpt.config) | {"n_layer": 3}}, "blocks.2.norm_1.weight"),
    ]
    diverged = copy.deepcopy(model)
    diverged.gpt.token_embedding.weight.data[:] = math.nan
    wrong.append((write | {"step": 9}, "not a number"))
    common = {"step": 0, "ids": ids}
    requests = [common | request | {"id": i} for i, (request, _) in enumerate(wrong)]
    answers = ask([load(model), load(diverged, 9), *requests, common | {"id": "last", "method": "read"}])
    for answer, (request, sentence) in zip(answers[2:], wrong, strict=False):
        assert sentence in answer.get("error", ""), (request, answer)
        assert "result" not in answer
    assert [answer["id"] for answer in answers[2:]] == [*range(len(wrong)), "last"]
    assert answers[-1]["result"] is not None


def test_float16_is_widened_exactly() -> None:
    found = ask([{"id": 0, "method": "widened", "alone": True}])[0]["result"]["numbers"]
    np.testing.assert_array_equal(found, np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32))
