"""The break-it lab: experiments, each one line or one flag away from the real program.

First the learner predicts, then it runs, then he sees what is measured: a signature, which tells this fault from others,
and something that one might expect but that does not happen. ``python -m minigpt.course.experiments --seeds 5`` measures
all of it over several seeds.

A change of a line is made in the source, which is then run as a module of its own: the model that everything else uses
is untouched. So what is shown is what runs, and a line that is no longer there is noticed. All is computed by the
formulas of ``model.py``: the fast layers would know nothing of a changed line.
"""

import argparse
import difflib
import functools
import math
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from minigpt.errors import UserError
from minigpt.generation import generate
from minigpt.optim import decay_groups, learning_rate_factor
from minigpt.sampling import Sampling
from minigpt.text.tokenizer import CharTokenizer
from minigpt.text.windows import ScoringBatches

PACKAGE = Path(__file__).parents[1]
Results = dict[str, dict[str, float]]  # of each arm, by its name, what was measured

# The texts


def sentences(seed: int, length: int = 120_000) -> str:
    """Text made on the spot: a few words, in sentences with number, order, and names that are told twice."""
    nouns = "fox queen river tower garden miller thief squire baker quarrel lantern bridge letter owl".split()
    adjectives = "old quick green quiet small brave golden lost clever heavy".split()
    verbs = "see find want hear lose fear paint follow sell guard".split()
    draw = random.Random(seed)

    def thing() -> tuple[str, str]:
        """A noun with its article, and the ending of its verb."""
        plural = draw.random() < 0.4
        article = "the" if plural else draw.choice(("a", "the"))
        adjective = f" {draw.choice(adjectives)}" if draw.random() < 0.5 else ""
        return f"{article}{adjective} {draw.choice(nouns)}{'s' * plural}", "" if plural else "s"

    def sentence() -> str:
        if draw.random() < 0.5:
            name = "".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(2)).capitalize()
            return f"{name} {draw.choice(verbs)}s {thing()[0]}, and {name} {draw.choice(verbs)}s {thing()[0]}.\n"
        subject, ending = thing()
        place = draw.choice(("near", "behind", "above", "under", "beside"))
        return f"{subject} {place} {thing()[0]} {draw.choice(verbs)}{ending} {thing()[0]}.\n"

    text = ""
    while len(text) < length:
        text += "".join(sentence() for _ in range(100))
    return text[:length]


NOISE = "abcdefghijklmnop"


def noise(seed: int) -> str:
    """Text in which each of 16 letters is equally likely at each place, whatever went before."""
    return "".join(random.Random(seed).choices(NOISE, k=120_000))


# The changes


@dataclass(frozen=True)
class Edit:
    """Another line in a file of the program."""

    before: str
    after: str
    file: str = "model.py"


def sources(file: str, edits: tuple[Edit, ...]) -> tuple[str, str]:
    """A file of the program as it is, and with the edits that concern it."""
    source = changed = (PACKAGE / file).read_text(encoding="utf-8")
    for edit in edits:
        if edit.file != file:
            continue
        if changed.count(edit.before) != 1:
            raise UserError(
                f"This experiment changes a line of minigpt/{file} that is not there as it was:\n{edit.before}\n"
                "Take back what you changed in that file, and run it again."
            )
        changed = changed.replace(edit.before, edit.after)
    return source, changed


@functools.cache
def module_with(file: str, edits: tuple[Edit, ...]) -> ModuleType:
    """A file of the program with the edits that concern it, as a module that nobody else knows."""
    module = ModuleType(f"changed {file}")
    exec(compile(sources(file, edits)[1], f"minigpt/{file}, changed", "exec"), module.__dict__)
    return module


def diff(edits: tuple[Edit, ...]) -> str:
    """What the edits change, as ``diff`` shows it."""
    pieces = []
    for file in dict.fromkeys(edit.file for edit in edits):
        before, after = (source.splitlines() for source in sources(file, edits))
        pieces += difflib.unified_diff(before, after, f"minigpt/{file}", f"minigpt/{file}", n=0, lineterm="")
    return "\n".join(pieces)


# Small runs


@dataclass(frozen=True)
class Setup:
    """A run that takes seconds. Where the real program has a flag for a field, it is beside it."""

    n_layer: int = field(default=2, metadata={"flag": "--model.n_layer {}"})
    n_head: int = field(default=4, metadata={"flag": "--model.n_head {}"})
    n_embd: int = field(default=64, metadata={"flag": "--model.n_embd {}"})
    block_size: int = field(default=32, metadata={"flag": "--model.block_size {}"})
    norm: str = field(default="pre", metadata={"flag": "--model.norm {}"})
    learning_rate: float = field(default=1e-2, metadata={"flag": "--model.learning_rate {}"})
    warmup_steps: int = field(default=20, metadata={"flag": "--model.warmup_steps {}"})
    max_steps: int = field(default=200, metadata={"flag": "--trainer.max_steps {}"})
    batch_size: int = field(default=16, metadata={"flag": "--data.batch_size {}"})
    characters: int = field(default=108_000, metadata={"flag": "(trained on the first {:,} characters only)"})
    leaked: int = field(default=0, metadata={"flag": "(with the first {:,} characters of the held-out text)"})
    temperature: float = field(default=1.0, metadata={"flag": "--temperature {}"})

    def flags(self, other: "Setup") -> str:
        """How this differs from another, in flags of the real program."""
        values = ((f.metadata["flag"], getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return " ".join(flag.format(mine) for flag, mine, its in values if mine != its)


@dataclass(frozen=True)
class Arm:
    """One of the runs that an experiment compares."""

    name: str
    edits: tuple[Edit, ...] = ()
    setup: Setup = Setup()


@dataclass(eq=False)
class Trained:
    """What a run leaves."""

    gpt: nn.Module
    tokenizer: CharTokenizer
    losses: list[float]  # at each step, in nats
    training: NDArray[np.integer]  # ids
    held_out: NDArray[np.integer]


@functools.lru_cache(maxsize=16)  # experiments share their first arm
def train(edits: tuple[Edit, ...], setup: Setup, seed: int, text: str) -> Trained:
    """Train a small model on nine tenths of a text, as the real program does but for the changes."""
    model, windows = module_with("model.py", edits), module_with("text/windows.py", edits)
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    training, held_out = np.split(tokenizer.encode(text), [len(text) * 9 // 10])
    training = np.concatenate((training[: setup.characters], held_out[: setup.leaked]))
    shape = {name: getattr(setup, name) for name in ("block_size", "n_layer", "n_head", "n_embd", "norm")}
    dropout = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gpt = model.GPT(model.GPTConfig(vocab_size=len(tokenizer.vocabulary), **shape, **dropout))
    peak = setup.learning_rate
    optimizer = torch.optim.AdamW(decay_groups(dict(gpt.named_parameters()), 0.01), peak, (0.9, 0.99))
    batches = windows.TrainingBatches(training, setup.block_size, setup.batch_size, seed)
    losses = []
    for step in range(setup.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * learning_rate_factor(step, "linear", setup.warmup_steps, setup.max_steps, 0)
        ids_BT, targets_BT = batches[step]
        loss = F.cross_entropy(gpt(ids_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return Trained(gpt.eval(), tokenizer, losses, training, held_out)


@torch.no_grad()
def nats(trained: Trained, ids: NDArray[np.integer]) -> Tensor:
    """The cross-entropy of each character of a text, in windows side by side, (windows, block_size)."""
    block_size = trained.gpt.config.block_size
    whole = range(1, 1 + (len(ids) - 1) // block_size * block_size)
    ids_BT, targets_BT = ScoringBatches(ids, whole, block_size, len(ids))[0]
    logits_BTV = trained.gpt(ids_BT)
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view_as(targets_BT)


# What is measured

Measure = Callable[[Arm, int, str], dict[str, float]]


def losses_of(arm: Arm, seed: int, text: str) -> tuple[Trained, dict[str, float]]:
    trained = train(arm.edits, arm.setup, seed, text)
    scores = {
        "training": statistics.fmean(trained.losses[-20:]),
        "held out": float(nats(trained, trained.held_out[:8_000]).mean()),
    }
    return trained, scores


def losses(arm: Arm, seed: int, text: str) -> dict[str, float]:
    """The loss at the end, on the text that was trained on and on text that was not."""
    return losses_of(arm, seed, text)[1]


def with_first_step(arm: Arm, seed: int, text: str) -> dict[str, float]:
    trained, scores = losses_of(arm, seed, text)
    return {"first step": trained.losses[0], **scores}


def with_last_position(arm: Arm, seed: int, text: str) -> dict[str, float]:
    """Also the loss at the last position of each window, where there is no future to look at."""
    trained, scores = losses_of(arm, seed, text)
    return scores | {"last position": float(nats(trained, trained.held_out[:8_000])[:, -1].mean())}


def with_parameters(arm: Arm, seed: int, text: str) -> dict[str, float]:
    trained, scores = losses_of(arm, seed, text)
    return scores | {"parameters": sum(p.numel() for p in trained.gpt.parameters())}


@torch.no_grad()
def with_shuffled_past(arm: Arm, seed: int, text: str) -> dict[str, float]:
    """Also how far the last position's logits move, at most, when the characters before it change places."""
    trained, scores = losses_of(arm, seed, text)
    T = arm.setup.block_size
    windows_BT = torch.from_numpy(trained.held_out[: 50 * T].astype(np.int64)).view(-1, T)
    order = torch.randperm(T - 1, generator=torch.Generator().manual_seed(seed))
    shuffled_BT = torch.cat((windows_BT[:, order], windows_BT[:, -1:]), 1)
    moved = (trained.gpt(windows_BT)[:, -1] - trained.gpt(shuffled_BT)[:, -1]).abs().max()
    return scores | {"moved by shuffling": float(moved)}


def leak(arm: Arm, seed: int, text: str) -> dict[str, float]:
    trained = train(arm.edits, arm.setup, seed, text)
    return {
        "training": statistics.fmean(trained.losses[-20:]),
        "held out": float(nats(trained, trained.held_out[:1_000]).mean()),
        "fresh text": float(nats(trained, trained.held_out[1_000:9_000]).mean()),
    }


def written(trained: Trained, seed: int, temperature: float, length: int = 300) -> list[str]:
    """Four texts that the model writes."""
    start = trained.held_out[:8].tolist()
    drawn = generate(trained.gpt, [start] * 4, Sampling(temperature=temperature), range(seed, seed + 4), cached=False)
    ids = [next(drawn)[0] for _ in range(length)]
    return [trained.tokenizer.decode(np.array(column)) for column in zip(*ids, strict=True)]


def writing(arm: Arm, seed: int, text: str) -> dict[str, float]:
    """Of what a model writes: how much is a repetition of its own last lines, and how many words are the text's."""
    texts = written(train(arm.edits, arm.setup, seed, text), seed, arm.setup.temperature)
    again = []
    for it in texts:
        pieces = [it[i : i + 16] for i in range(len(it) - 15)]
        again.append(1 - len(set(pieces)) / len(pieces))
    known = set(re.findall(r"\w+", text))
    words = [word for it in texts for word in re.findall(r"\w+", it)[1:-1]]
    return {
        "repeated": statistics.fmean(again),
        "known words": sum(word in known for word in words) / len(words),
        "different texts": len(set(texts)),
    }


WIDTHS = (4, 16, 64, 256, 1024)


@torch.no_grad()
def largest_weights(arm: Arm, seed: int, text: str) -> dict[str, float]:
    """The largest of 32 attention weights: for queries and keys of unit variance, by D, and in a new model."""
    model, found = module_with("model.py", arm.edits), {}
    generator = torch.Generator().manual_seed(seed)
    for D in WIDTHS:
        attention = model.CausalSelfAttention(model.GPTConfig(n_embd=D, n_head=1, attn_pdrop=0.0))
        query_BHTD = torch.randn(500, 1, 1, D, generator=generator)
        key_BHSD = torch.randn(500, 1, 32, D, generator=generator)
        pattern_BHTS = attention.attend(query_BHTD, key_BHSD, torch.eye(32))  # whose values tell the weights
        found[f"D = {D}"] = float(pattern_BHTS.amax(-1).mean())
    new = train(arm.edits, Setup(max_steps=0), seed, text)
    patterns: list[Tensor] = []
    handle = new.gpt.get_submodule("blocks.0.attention.softmax").register_forward_hook(lambda *a: patterns.append(a[2]))
    nats(new, new.held_out[:3_000])
    handle.remove()
    return found | {"new model": float(patterns[0][:, :, -1].amax(-1).mean())}


# The experiments


@dataclass(frozen=True)
class Claim:
    """A sentence that holds where a value that is measured is large enough."""

    sentence: str
    value: Callable[[Results], float]
    least: float

    def __call__(self, results: Results) -> bool:
        return self.value(results) >= self.least  # never where it is not a number


@dataclass(frozen=True)
class Experiment:
    """One experiment. The first of its arms is the program as it is."""

    name: str
    lesson: int  # where the course comes to it
    question: str
    options: tuple[str, ...]
    answer: int  # which of the options is right
    arms: tuple[Arm, ...]
    signature: Claim
    not_happening: Claim
    explanation: str  # to be shown after the run
    measure: Measure = losses
    text: Callable[[int], str] | None = None  # where it needs a text of its own, from the seed

    @property
    def change(self) -> str:
        """What the arms change, as a diff of the program or as flags."""
        lines: dict[str, None] = {}
        for arm in self.arms[1:]:
            lines |= dict.fromkeys(filter(None, (arm.setup.flags(self.arms[0].setup), diff(arm.edits))))
        return "\n".join(lines)


def arms(changed: str, *edits: Edit, base: Setup | None = None, **settings: Any) -> tuple[Arm, Arm]:
    """The program as it is, and with a change."""
    base = base or Setup()
    return Arm("as it is", (), base), Arm(changed, edits, replace(base, **settings))


def more(measured: str, arm: str, than: str = "as it is") -> Callable[[Results], float]:
    """By how much one arm has more of what was measured than another."""
    return lambda results: results[arm][measured] - results[than][measured]


NO_MASK = Edit(
    "pattern_BHTS = self.softmax(scores_BHTS.masked_fill(future_TS, -math.inf))",
    "pattern_BHTS = self.softmax(scores_BHTS)",
)
NO_SCALE = Edit("key_BHSD.transpose(-2, -1) / math.sqrt(D)", "key_BHSD.transpose(-2, -1)")
NO_POSITIONS = Edit("self.embedding_dropout(token_BTC + position_TC)", "self.embedding_dropout(token_BTC)")
NO_RESIDUALS = (
    Edit(
        "self.residual_middle(x_BTC + self.attention(self.norm_1(x_BTC), cache))",
        "self.residual_middle(self.attention(self.norm_1(x_BTC), cache))",
    ),
    Edit("return x_BTC + self.feed_forward(self.norm_2(x_BTC))", "return self.feed_forward(self.norm_2(x_BTC))"),
)
NO_FEED_FORWARD = Edit("return x_BTC + self.feed_forward(self.norm_2(x_BTC))", "return x_BTC")
UNTIED = (
    Edit(
        "        self.token_embedding = TokenEmbedding(config.vocab_size, config.n_embd)\n",
        "        self.token_embedding = TokenEmbedding(config.vocab_size, config.n_embd)\n"
        "        self.decoding = TokenEmbedding(config.vocab_size, config.n_embd)\n",
    ),
    Edit("self.token_embedding.decode(self.final_norm(x_BTC))", "self.decoding.decode(self.final_norm(x_BTC))"),
)
LARGE_START = Edit("nn.init.normal_(parameter, std=0.02)", "nn.init.normal_(parameter, std=0.2)")
SHIFTED_BY_0 = Edit("return windows[:, :-1], windows[:, 1:]", "return windows[:, :-1], windows[:, :-1]", "text/windows.py")
