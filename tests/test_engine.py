"""The engine in JavaScript computes what the glass box computes: every named activation, the lens, attributions."""

import dataclasses
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ROOT
from minigpt.generation import probabilities
from minigpt.glassbox.lens import attribute, lens
from minigpt.glassbox.trace import Intervention, Trace, trace
from minigpt.model import GPT, GPTConfig
from minigpt.sampling import Sampling
from minigpt.text.tokenizer import CharTokenizer

ENGINE = ROOT / "minigpt" / "glassbox" / "page" / "engine.js"
LETTERS = "abcdefghijklmnopqrst"
TEXT, OTHER = "abacadabraqrst", "bcdefghijklmno"
# Reads its weights and what to do from a JSON file, and writes what the engine computes.
DRIVER = """
const { GPT, Activations, probabilities, surprisal } = require(process.argv[1]);
const job = JSON.parse(require("fs").readFileSync(process.argv[2]));
const weights = Object.fromEntries(Object.entries(job.weights).map(([name, x]) => [name, Float32Array.from(x)]));
const gpt = new GPT(job.config, weights);
const read = (ids, options) => gpt.forward(ids, new Activations(job.config), options);
const interventions = job.interventions.map((it) => ({ ...it,
  mean_of: it.mean_of && { activations: read(it.mean_of), length: it.mean_of.length },
  patch_from: it.patch_from && { activations: read(it.patch_from) } }));
const whole = read(job.ids, { interventions });
const pieces = new Activations(job.config);  // the same text, typed: a row at a time, and once more from the middle
job.ids.forEach((_, t) => gpt.forward(job.ids.slice(0, t + 1), pieces, { start: t, interventions }));
gpt.forward(job.ids, pieces, { start: job.ids.length >> 1, interventions });
const plain = (values) => Object.fromEntries(Object.entries(values).map(([name, x]) => [name, Array.from(x)]));
console.log(JSON.stringify({ whole: plain(whole.values), pieces: plain(pieces.values),
  lens: gpt.lens(whole, 0, job.ids.length).map((x) => Array.from(x)),
  attribution: gpt.attribute(job.ids, whole, job.ids.length - 1, 2, 5),
  nats: job.ids.slice(1).map((id, t) => surprisal(whole.values.logits, t, job.config.vocab_size, id)),
  drawn: job.samplings.map((it) => Array.from(probabilities(whole.values.logits.slice(0, job.config.vocab_size), it))),
}));
"""
SHAPES = [
    (norm, positions, n_head, block_size)
    for (norm, positions), (n_head, block_size) in zip(
        itertools.product(("post", "pre"), ("learned", "sinusoidal")), ((1, 14), (2, 16), (4, 14), (2, 23)), strict=True
    )
]

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0),
    Sampling(temperature=0.7, top_k=5),
    Sampling(top_p=0.6),
    Sampling(min_p=0.5),
    Sampling(temperature=1.5, top_k=12, top_p=0.9, min_p=0.1),
]

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="the engine is tried in Node.js, which isn't here")


def compute(model: Any, ids: list[int], interventions: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    gpt = model.gpt
    weights = {name: weight.flatten().tolist() for name, weight in gpt.state_dict().items()}
    weights["position_embedding.weight"] = (
        gpt.position_embedding(torch.arange(gpt.config.block_size)).flatten().tolist()
    )
    job = {"config": dataclasses.asdict(gpt.config), "weights": weights, "ids": ids, "interventions": interventions}
    job["samplings"] = [dataclasses.asdict(sampling) for sampling in SAMPLINGS]
    (folder / "job.json").write_text(json.dumps(job))
    command = ["node", "-e", DRIVER, str(ENGINE), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_close(found: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """Equal to 1e-5 of the largest value."""
    assert np.abs(found - wanted).max() <= 1e-5 * max(1e-3, np.abs(wanted).max()), what


def assert_equals_trace(values: dict[str, list[float]], wanted: Trace) -> None:
    T, H = len(wanted.tokens), wanted.gpt.config.n_head
    for name, flat in values.items():
        reference = wanted.values[name].numpy()
        rows = np.array(flat, dtype=np.float64).reshape(wanted.gpt.config.block_size, -1)[:T]
        if name.endswith((".scores", ".softmax")):
            rows = rows.reshape(T, H, -1)[:, :, :T].transpose(1, 0, 2)
            off = np.isnan(rows) & np.tri(T, dtype=bool)  # JSON has no -Infinity: a position that was switched off
            seen = ~off & np.tri(T, dtype=bool)
            assert np.isneginf(reference[off]).all()
            rows, reference = np.where(seen, rows, 0), np.where(seen, reference, 0)
        assert_close(rows.reshape(reference.shape), reference, name)


@pytest.mark.parametrize(("norm", "positions", "n_head", "block_size"), SHAPES)
def test_the_engine_computes_what_the_trace_holds(
    norm: Any, positions: Any, n_head: int, block_size: int, tmp_path: Path
) -> None:
    gpt = GPT(GPTConfig(len(LETTERS), block_size, 2, n_head, 12, norm=norm, positions=positions)).eval()
    generator = torch.Generator().manual_seed(block_size)
    for name, parameter in gpt.named_parameters():
        is_gain = "norm" in name and name.endswith("weight")
        parameter.data.normal_(1.0 if is_gain else 0.0, 0.2, generator=generator)
    model = SimpleNamespace(gpt=gpt, tokenizer=CharTokenizer(LETTERS))
    ids = model.tokenizer.encode(TEXT).tolist()
    changed = [
        [],
        [
            Intervention("head", 1, 0),
            Intervention("neuron", 0, 7, scale=3.0),
            Intervention("block", 1, positions=(2, 5)),
        ],
        [Intervention("position", positions=(3, 4)), Intervention("position", 1, 0, positions=(0,), scale=0.5)],
        [Intervention("residual", 1, positions=(4, 9), patch_from=OTHER), Intervention("attention", 1, mean_of=OTHER)],
        [Intervention("embedding", positions=(1,), mean_of=OTHER), Intervention("residual_middle", 0, scale=0.5)],
        [Intervention("feed_forward", 0), Intervention("residual", 2, positions=(13,), patch_from=OTHER)],
    ]
    for interventions in changed:
        wanted = trace(model, TEXT, interventions)
        as_json = [dataclasses.asdict(it) for it in interventions]
        for it in as_json:
            for text in ("mean_of", "patch_from"):
                it[text] = it[text] and model.tokenizer.encode(it[text]).tolist()
        found = compute(model, ids, as_json, tmp_path)
        assert_equals_trace(found["whole"], wanted)
        assert_equals_trace(found["pieces"], wanted)
        logits = np.array(found["lens"]).reshape(5, -1, len(LETTERS))
        assert_close(np.array(found["nats"]), wanted.nats[1:].numpy(), "nats")
        for sampling, drawn in zip(SAMPLINGS, found["drawn"], strict=True):
            expected = probabilities(wanted.logits[:1], wanted.ids_BT[None], sampling)[0]
            np.testing.assert_allclose(drawn, expected, atol=1e-5, err_msg=str(sampling))
        assert_close(logits, lens(wanted).numpy(), "lens")
        if not interventions:
            part, by_hand = attribute(wanted, -1, LETTERS[2], LETTERS[5]), found["attribution"]
            for name in ("logit", "token", "place", "final_bias"):
                assert by_hand[name] == pytest.approx(getattr(part, name), abs=1e-4)
            for name in ("heads", "sources", "feed_forwards", "biases"):
                np.testing.assert_allclose(by_hand[name], getattr(part, name), atol=1e-4)
