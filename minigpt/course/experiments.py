"""The break-it lab: experiments, each one line or one flag away from the real program.

First the learner predicts, then it runs, then it shows what was measured: a signature, which tells this fault from
others, and something that one might expect but that does not happen. ``python -m minigpt.course.experiments --seeds 5``
measures all of it over several seeds.

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

from minigpt.course.child import one_thread
from minigpt.course.text import text as sentences
from minigpt.errors import UserError
from minigpt.generation import generate
from minigpt.model import GPT
from minigpt.optim import decay_groups, learning_rate_factor
from minigpt.sampling import Sampling
from minigpt.text.tokenizer import CharTokenizer
from minigpt.text.windows import ScoringBatches

PACKAGE = Path(__file__).parents[1]
Results = dict[str, dict[str, float]]  # of each arm, by its name, what was measured

# The texts

LENGTH = 120_000  # characters of the course's own text, or of an experiment's own
NOISE = "abcdefghijklmnop"


def noise(seed: int) -> str:
    """Text in which each of 16 letters is equally likely at each position, whatever went before."""
    return "".join(random.Random(seed).choices(NOISE, k=LENGTH))


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
    pieces: list[str] = []
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

    gpt: GPT  # or what a changed model.py makes of it
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
    shape = {name: getattr(setup, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}
    dropout = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    torch.manual_seed(seed)
    gpt = model.GPT(model.GPTConfig(vocab_size=len(tokenizer.vocabulary), norm="pre", **shape, **dropout))
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


def with_shuffled_past(arm: Arm, seed: int, text: str) -> dict[str, float]:
    """Also how far the last position's logits move, at most, when the characters before it change places."""
    trained, scores = losses_of(arm, seed, text)
    T = arm.setup.block_size
    windows_BT = torch.from_numpy(trained.held_out[: 50 * T].astype(np.int64)).view(-1, T)
    order = torch.randperm(T - 1, generator=torch.Generator().manual_seed(seed))
    shuffled_BT = torch.cat((windows_BT[:, order], windows_BT[:, -1:]), 1)
    with torch.no_grad():
        moved_BV = trained.gpt(windows_BT)[:, -1] - trained.gpt(shuffled_BT)[:, -1]
    return scores | {"moved by shuffling": float(moved_BV.abs().max())}


def leak(arm: Arm, seed: int, text: str) -> dict[str, float]:
    trained = train(arm.edits, arm.setup, seed, text)
    return {
        "training": statistics.fmean(trained.losses[-20:]),
        "held out": float(nats(trained, trained.held_out[:1_000]).mean()),
        "fresh text": float(nats(trained, trained.held_out[1_000:9_000]).mean()),
    }


def written(trained: Trained, seed: int, temperature: float, length: int = 400) -> list[str]:
    """Eight texts that the model writes, each from another beginning."""
    starts = [trained.held_out[i : i + 8].tolist() for i in range(0, 800, 100)]
    drawn = generate(trained.gpt, starts, Sampling(temperature=temperature), range(seed, seed + 8), cached=False)
    ids = [next(drawn)[0] for _ in range(length)]
    return [trained.tokenizer.decode(np.array(column)) for column in zip(*ids, strict=True)]


def writing(arm: Arm, seed: int, text: str) -> dict[str, float]:
    """Of what a model writes: how much is a repetition of its own last lines, and how many words are the text's."""
    trained = train(arm.edits, replace(arm.setup, temperature=1.0), seed, text)  # the same for each temperature
    texts = written(trained, seed, arm.setup.temperature)
    again = []
    for it in texts:
        pieces = [it[i : i + 16] for i in range(len(it) - 15)]
        again.append(1 - len(set(pieces)) / len(pieces))
    known = set(re.findall(r"\w+", text))
    words = [word for it in texts for word in re.findall(r"\w+", it)[1:-1]]
    return {
        "repeated": statistics.fmean(again),
        "known words": sum(word in known for word in words) / len(words),
    }


WIDTHS = (4, 16, 64, 256, 1024)


@torch.no_grad()
def largest_weights(arm: Arm, seed: int, text: str) -> dict[str, float]:
    """The largest of 32 attention weights: for queries and keys of unit variance, by D, and in a new model."""
    model, found = module_with("model.py", arm.edits), {}
    generator = torch.Generator().manual_seed(seed)
    for D in WIDTHS:
        attention = model.CausalSelfAttention(model.GPTConfig(n_embd=D, n_head=1, attn_pdrop=0.0))
        query_BHTD = torch.randn(200, 1, 1, D, generator=generator)
        key_BHSD = torch.randn(200, 1, 32, D, generator=generator)
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
UNIFORM = Edit(
    "pattern_BHTS = self.softmax(scores_BHTS.masked_fill(future_TS, -math.inf))",
    "pattern_BHTS = self.softmax((0 * scores_BHTS).masked_fill(future_TS, -math.inf))",
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
SHIFTED_BY_0 = Edit(
    "return windows[:, :-1], windows[:, 1:]", "return windows[:, :-1], windows[:, :-1]", "text/windows.py"
)

TINY = Setup(characters=3_000)
NO_LAYERS = Setup(n_layer=0)

LIST = (
    Experiment(
        "random_text",
        1,
        "Each letter of a text is drawn at random from 16. How low can the loss get: ln 16 = 2.77 nats, or lower? And "
        "with a model whose mask is missing?",
        (
            "Only the one without the mask gets below 2.77.",
            "Neither gets below 2.77.",
            "Both do, if they train for long enough.",
        ),
        0,
        arms("no mask", NO_MASK),
        Claim(
            "Without the mask the loss is more than 1 nat below ln 16, which no honest prediction of this text can "
            "reach.",
            lambda results: math.log(len(NOISE)) - 1 - results["no mask"]["held out"],
            0.0,
        ),
        Claim(
            "With the mask the loss does not get below ln 16 (but for 0.02 by chance), however good the model is.",
            lambda results: results["as it is"]["held out"] - math.log(len(NOISE)),
            -0.02,
        ),
        "The loss is the mean surprise. Of 16 letters that are equally likely, whatever went before, each has "
        "probability 1/16 and costs ln 16 nats; nothing can be learned that costs less. Who gets below has seen the "
        "answer. So random text is a test of any causal model, and a loss below ln V on it the proof of a leak.",
        text=noise,
    ),
    Experiment(
        "targets_shifted_by_0",
        2,
        "The targets are the inputs shifted by one. What if they are shifted by 0, in training only?",
        (
            "Training fails with an error.",
            "Both losses fall to nearly 0.",
            "The training loss falls to nearly 0; on held-out text it is worse than a guess.",
            "Nothing changes: the model sees the same characters.",
        ),
        2,
        arms("shifted by 0", SHIFTED_BY_0),
        Claim(
            "The loss on held-out text is at least 5 nats above that in training.",
            lambda results: results["shifted by 0"]["held out"] - results["shifted by 0"]["training"],
            5.0,
        ),
        Claim(
            "Training shows nothing wrong: its loss is below 0.1.",
            lambda results: 0.1 - results["shifted by 0"]["training"],
            0.0,
        ),
        "The model learns to say again what it has just read, which a tied embedding can nearly do from the start. It "
        "is as sure of it as can be, so the right next character gets next to no probability: 13 nats, where a guess "
        "among all characters costs less than 4. Validation finds it, because it has a line of its own that shifts by "
        "1.",
    ),
    Experiment(
        "untied",
        3,
        "A model without any layers, embedding and decoding alone, learns which character follows which. GPT-1 uses "
        "one matrix for both. What does a second matrix change?",
        (
            "Nothing: tying only saves memory.",
            "Without layers much is won, with two layers next to nothing.",
            "It helps in both by as much.",
            "It harms in both, because there is more to learn.",
        ),
        1,
        (
            Arm("no layers, tied", (), NO_LAYERS),
            Arm("no layers, untied", UNTIED, NO_LAYERS),
            Arm("two layers, tied"),
            Arm("two layers, untied", UNTIED),
        ),
        Claim(
            "Without layers the loss is at least 0.5 nats lower when the matrices are untied.",
            more("held out", "no layers, tied", "no layers, untied"),
            0.5,
        ),
        Claim(
            "With two layers untying wins less than 0.1 nats, if anything.",
            more("held out", "two layers, untied", "two layers, tied"),
            -0.1,
        ),
        "With one matrix E and nothing between, the logit of b after a is about E[a]·E[b], which is that of a after b: "
        "such a model can't say that u follows q but q hardly ever u. Two matrices can. So can layers, which turn what "
        "has been read into what is to come.",
    ),
    Experiment(
        "no_mask",
        4,
        "No position may see a later one. What happens to the losses without this mask?",
        (
            "Training falls lower, and validation rises: it overfits.",
            "Nothing: the model doesn't use the future.",
            "It fails with an error.",
            "Both fall, and nothing warns; but where there is no next character to look at, it is lost.",
        ),
        3,
        arms("no mask", NO_MASK, base=Setup(block_size=16, batch_size=32, learning_rate=7e-3)),
        Claim(
            "At the last position of each window, which has no future, the loss is at least 0.4 nats higher than with "
            "the mask.",
            more("last position", "no mask"),
            0.4,
        ),
        Claim(
            "Validation does not find it: held-out text costs no more than 0.15 nats more than training.",
            lambda results: 0.15 - results["no mask"]["held out"] + results["no mask"]["training"],
            0.0,
        ),
        "The target of a position stands at the next one, and now it can be looked at there: the model learns to copy. "
        "Validation shows it the future as well, so both losses are good together. When it writes, it is always at the "
        "last position.",
        measure=with_last_position,
    ),
    Experiment(
        "average_the_past",
        4,
        "Each position takes a mean over the past. What if all weights of the mean are equal, so that the scores don't "
        "matter?",
        (
            "It learns nothing.",
            "It is clearly worse, but far better than letter frequencies.",
            "It is as good: the mean is what counts.",
        ),
        1,
        arms("equal weights", UNIFORM),
        Claim("The loss is at least 0.3 nats higher.", more("held out", "equal weights"), 0.3),
        Claim(
            "It does not fall back to counting letters, which costs more than 2.5 nats.",
            lambda results: 2.5 - results["equal weights"]["held out"],
            0.0,
        ),
        "A plain mean of the past still tells what has been said, though not where. What a query adds is a choice: to "
        "look at the character before, or at the beginning of the word.",
    ),
    Experiment(
        "no_scale",
        5,
        "Without the scale, queries and keys of size 1 give one position nearly all of the weight, if D is large. And "
        "in a new GPT, whose weights are small?",
        (
            "There, too.",
            "There nothing is to be seen.",
            "There all positions get the same weight, and with the scale they don't.",
        ),
        1,
        arms("no scale", NO_SCALE),
        Claim(
            "With D = 1024 the largest weight is at least 0.6 larger than with the scale.",
            more("D = 1024", "no scale"),
            0.6,
        ),
        Claim(
            "In a new model nothing is to be seen: the largest weights differ by less than 0.05.",
            lambda results: 0.05 - abs(more("new model", "no scale")(results)),
            0.0,
        ),
        "The product of two vectors of D numbers with variance 1 has variance D. Scores of size 32 make a softmax "
        "that is 0 or 1, and its gradient vanishes. Divided by the square root of D they have variance 1 for each D. "
        "A new model begins with small weights and so with small scores; that is why removing the scale seems to do "
        "nothing at first.",
        measure=largest_weights,
    ),
    Experiment(
        "one_head",
        6,
        "One head of 64 channels instead of four of 16. What changes?",
        (
            "It has a quarter of the parameters.",
            "It has as many parameters, and is about as good.",
            "It has as many parameters, and is far worse.",
            "It has four times as many parameters, and is better.",
        ),
        1,
        arms("one head", n_head=1),
        Claim(
            "The number of parameters is the same.",
            lambda results: -abs(more("parameters", "one head")(results)),
            0.0,
        ),
        Claim(
            "It is not far worse: the loss is not 0.3 nats higher.",
            lambda results: 0.3 - more("held out", "one head")(results),
            0.0,
        ),
        "The same matrices make the queries, keys and values; heads only say which of their channels are compared "
        "together. Four heads can look at four positions at once, one must mix them in one pattern. On this text that "
        "costs 0.05 nats, hardly more than another seed does (0.03): one run would not tell.",
        measure=with_parameters,
    ),
    Experiment(
        "no_positions",
        7,
        "Without position embeddings, can a model tell the order of what it has read?",
        (
            "No: it sees a bag of characters.",
            "Yes, the order of the input tells it.",
            "Not with one layer; with three it can.",
        ),
        2,
        tuple(
            Arm(f"{word}, {'no positions' if edits else 'as it is'}", edits, Setup(n_layer=n_layer))
            for word, n_layer in (("one layer", 1), ("three layers", 3))
            for edits in ((), (NO_POSITIONS,))
        ),
        Claim(
            "With one layer the loss is at least 0.3 nats higher without positions.",
            more("held out", "one layer, no positions", "one layer, as it is"),
            0.3,
        ),
        Claim(
            "With three layers it is no bag of characters: shuffling the past moves a logit by 0.5 or more. (With one "
            "layer, by nothing.)",
            more("moved by shuffling", "three layers, no positions", "one layer, no positions"),
            0.5,
        ),
        "One layer without positions takes a mean over a set, and a set has no order. But the mask gives some of it "
        "away: each position averages over as many characters as stand before it, so what the first layer makes of "
        "them differs, and the layers above can use that.",
        measure=with_shuffled_past,
    ),
    Experiment(
        "no_residuals",
        8,
        "In a GPT of two blocks, what attention and feed-forward compute is no longer added to their input, but takes "
        "its place. Nothing else changes. What does it learn?",
        (
            "As much as before.",
            "Less, but more than a table of pairs of characters.",
            "Hardly more than how frequent each character is.",
            "Nothing: the loss becomes infinite.",
        ),
        2,
        arms("no residuals", *NO_RESIDUALS),
        Claim("The loss is at least 1 nat higher.", more("held out", "no residuals"), 1.0),
        Claim(
            "Nothing explodes: the loss stays below 3.3 nats, less than a guess among all characters.",
            lambda results: 3.3 - results["no residuals"]["held out"],
            0.0,
        ),
        "What a position knows of its own character must now pass through every attention pattern, which begins as a "
        "mean over all the past, and the gradient comes back the same way. With the stream, both have a direct path, "
        "and each layer begins by adding nearly nothing.",
    ),
    Experiment(
        "no_feed_forward",
        11,
        "Two thirds of a block's parameters are in the feed-forward. What if it is left out?",
        (
            "It learns nothing: attention alone is linear.",
            "It is clearly worse, but works.",
            "It is as good: attention does the work.",
        ),
        1,
        arms("no feed-forward", NO_FEED_FORWARD),
        Claim("The loss is at least 0.3 nats higher.", more("held out", "no feed-forward"), 0.3),
        Claim(
            "It does not fall back to counting letters, which costs more than 2.5 nats.",
            lambda results: 2.5 - results["no feed-forward"]["held out"],
            0.0,
        ),
        "Attention brings together what stands at different positions; its values are linear, and only the "
        "feed-forward can say what a combination of them means. Half of this model is left: the half that moves "
        "things.",
    ),
    Experiment(
        "large_start",
        9,
        "Weights begin as N(0, 0.02). What if they begin ten times as large?",
        (
            "The first loss is above ln V, and after as many steps it is still behind.",
            "Nothing: training corrects it at once.",
            "It never learns.",
        ),
        0,
        arms("ten times as large", LARGE_START),
        Claim(
            "The first loss is at least 0.2 nats above that of the usual start, which is ln V.",
            more("first step", "ten times as large"),
            0.2,
        ),
        Claim(
            "It is not lost: at the end the loss is below 2 nats.",
            lambda results: 2.0 - results["ten times as large"]["held out"],
            0.0,
        ),
        "A model that knows nothing should say so: equal probabilities, ln V nats. Large weights make it sure of "
        "something from the start, and wrong. The first steps go into unlearning that. A first loss well above ln V is "
        "the sign of it, before any training.",
        measure=with_first_step,
    ),
    Experiment(
        "too_high_a_learning_rate",
        9,
        "AdamW's learning rate is made thirty times as high, 0.3 instead of 0.01. What becomes of the loss?",
        (
            "It grows without end.",
            "It falls faster, and ends a little higher.",
            "It stays near what counting characters costs.",
        ),
        2,
        arms("thirty times", learning_rate=0.3),
        Claim("The loss is at least 1 nat higher.", more("held out", "thirty times"), 1.0),
        Claim(
            "It does not become infinite, nor not a number: at the end it is below 4 nats.",
            lambda results: 4.0 - results["thirty times"]["held out"],
            0.0,
        ),
        "Steps so large jump over every valley. AdamW's have the size of the rate whatever the gradient, and layer "
        "norm takes back what grows, so nothing overflows: the curve is flat, and looks like a model that can't learn.",
    ),
    Experiment(
        "temperature_0",
        10,
        "A model always takes the character that it finds likeliest, at each step. What does it write?",
        (
            "Words that exist, but before long the same again and again.",
            "Its best text.",
            "Words that don't exist.",
            "Each time something else.",
        ),
        0,
        arms("temperature 0", temperature=0.0),
        Claim(
            "Of the runs of 16 characters in what it writes, at least 0.1 more have been there before.",
            more("repeated", "temperature 0"),
            0.1,
        ),
        Claim(
            "It does not write worse words: the share of them that the text has is no smaller.",
            more("known words", "temperature 0"),
            0.0,
        ),
        "The likeliest character at each step makes each word right. But from the same window the same follows, so "
        "once it has come back to where it was, it never leaves. The likeliest step is not the likeliest text, and a "
        "text of likely steps alone is not like those that it has read.",
        measure=writing,
    ),
    Experiment(
        "leaked_validation",
        4,
        "A third of the training text is taken from the held-out text. Which loss will tell?",
        (
            "Validation rises: it sees the leak.",
            "All get better: the model has learned more.",
            "Validation gets better, though fresh text is predicted no better.",
        ),
        2,
        (
            Arm("as it is", (), TINY),
            Arm("leaked", (), replace(TINY, characters=2_000, leaked=1_000)),
        ),
        Claim(
            "The held-out text that leaked costs at least 0.1 nats less.",
            more("held out", "as it is", "leaked"),
            0.1,
        ),
        Claim(
            "Text that neither has seen is not predicted better by more than 0.15 nats.",
            lambda results: 0.15 - more("fresh text", "as it is", "leaked")(results),
            0.0,
        ),
        "A text that is read often enough is partly known by heart, wherever it comes from. Validation measures what "
        "is new only while it is new; it can't tell that it isn't. Only text from elsewhere does.",
        measure=leak,
    ),
    Experiment(
        "tiny_text",
        12,
        "The same model makes as many steps as before, but on 2,000 characters only, which it reads fifty times. What "
        "do its losses show?",
        (
            "Both are worse.",
            "Both are as before.",
            "Both are better.",
            "Training looks better, held-out text is worse.",
        ),
        3,
        arms("2,000 characters", characters=2_000),
        Claim(
            "Held-out text costs at least 0.2 nats more than with the long text.",
            more("held out", "2,000 characters"),
            0.2,
        ),
        Claim(
            "The loss in training does not show it: it is lower than with the long text.",
            more("training", "as it is", "2,000 characters"),
            0.0,
        ),
        "What is read fifty times is learned by heart, and that is easier than learning the language. The gap between "
        "the two losses is how much of it is memory. More text closes it.",
    ),
)
EXPERIMENTS = {experiment.name: experiment for experiment in LIST}

Row = tuple[str, str]


def known_experiment(name: str) -> Experiment:
    """The experiment of that name, or a UserError."""
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name.lower(), EXPERIMENTS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(EXPERIMENTS)}."
        raise UserError(f"There is no experiment {name}; {hint}")
    return EXPERIMENTS[name]


def told(measured: dict[str, float]) -> str:
    """What was measured, in a line."""
    return ", ".join(
        f"{name} {value:,.0f}" if value > 100 else f"{name} {value:.3f}" for name, value in measured.items()
    )


def run(name: str, seed: int = 0, say: Callable[[str], None] = print, prediction: int | None = None) -> list[Row]:
    """Run an experiment, and say what comes of it.

    Args:
        name: of the experiment.
        seed: decides the first weights, the batches, and the text that is made on the spot.
        say: takes each line of the table as soon as it is known.
        prediction: which of the options the learner has chosen.

    Returns:
        The table: what each line is about, and what it says.

    Raises:
        UserError: there is no such experiment, or the line that it changes isn't there.
    """
    experiment, rows = known_experiment(name), []
    width = max(len("prediction"), *(len(arm.name) for arm in experiment.arms))

    def add(label: str, line: str) -> None:
        rows.append((label, line))
        say(f"{label:<{width}}  {line}")

    if prediction is not None:
        add("prediction", experiment.options[prediction])
    results: Results = {}
    for arm in experiment.arms:
        results[arm.name] = measured(experiment, arm, seed)
        add(arm.name, told(results[arm.name]))
    for label, claim in (("signature", experiment.signature), ("meanwhile", experiment.not_happening)):
        add(label, ("" if claim(results) else "NOT SO HERE: ") + claim.sentence)
    add("answer", experiment.options[experiment.answer])
    return rows


def measured(experiment: Experiment, arm: Arm, seed: int) -> dict[str, float]:
    """What an experiment measures of one of its arms."""
    text = experiment.text(seed) if experiment.text else sentences(LENGTH, seed)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return experiment.measure(arm, seed, text)


def survey(names: list[str], seeds: range) -> Iterator[str]:
    """Each experiment over several seeds, as lines of a table."""
    yield "| experiment | signature: mean ± spread, at least | margin | not happening | margin | s an arm |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        experiment, seconds, all_results = known_experiment(name), 0.0, []
        for seed in seeds:
            results: Results = {}
            for arm in experiment.arms:
                began = time.process_time()
                results[arm.name] = measured(experiment, arm, seed)
                seconds = max(seconds, time.process_time() - began)
            all_results.append(results)
        cells = []
        for claim in (experiment.signature, experiment.not_happening):
            values = [claim.value(results) for results in all_results]
            mean, spread = statistics.fmean(values), statistics.stdev(values) if len(seeds) > 1 else 0.0
            margin = f"{(mean - claim.least) / spread:.0f}" if spread > 0 else "exact"
            cells += [f"{mean:.3f} ± {spread:.3f}, {claim.least:g}", margin]
        yield f"| {name} | {' | '.join(cells)} | {seconds:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the signatures of the experiments over several seeds.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; all by default")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first_seed", type=int, default=0)
    settings = parser.parse_args()
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    for line in survey(settings.names or list(EXPERIMENTS), seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
