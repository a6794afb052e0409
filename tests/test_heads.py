"""What heads look at, held to plain loops and to models whose heads are known."""

import math
import random
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.errors import UserError
from minigpt.glassbox.heads import KINDS, HeadScores, head_scores, nulls, scores
from minigpt.glassbox.trace import Model, observe
from minigpt.model import GPT, GPTConfig
from minigpt.text.tokenizer import CharTokenizer

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCD \n"
TOKENIZER = CharTokenizer(CHARACTERS)


def make_prose(length: int, seed: int = 0) -> str:
    """Short words of random letters, some with a capital, in short lines."""
    draw = random.Random(seed)
    words = [
        draw.choice(CHARACTERS[:30])
        + "".join(draw.choices(CHARACTERS[:26], k=draw.randint(1, 5)))
        + draw.choice("  \n")
        for _ in range(length)
    ]
    return "".join(words)[:length]


def places(kind: str, text: str, t: int) -> list[int]:
    """Where a head of this kind looks from position t, by the words of its definition."""
    c = text[t]
    if kind == "previous character":
        return [t - 1] if t else []
    if kind == "first character":
        return [0] if t else []
    if kind == "same character":
        return [s for s in range(t) if text[s] == c]
    if kind == "induction":
        return [s for s in range(1, t - 1) if text[s - 1] == c]
    is_one = {"last line end": "\n".__eq__, "last space": " ".__eq__, "last capital": str.isupper}[kind]
    return [s for s in range(t) if is_one(text[s])][-1:] if not is_one(c) else []


def by_loops(kind: str, texts: list[str], pattern_BTS: torch.Tensor) -> float:
    mass = [
        sum(float(pattern_BTS[b, t, s]) for s in found)
        for b, text in enumerate(texts)
        for t in range(len(text))
        if (found := places(kind, text, t))
    ]
    return sum(mass) / len(mass) if mass else math.nan


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.data())
def test_scores_and_nulls_are_those_of_plain_loops(data: st.DataObject) -> None:
    T, seed = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 1000))
    texts = data.draw(st.lists(st.text("abA \n", min_size=T, max_size=T), min_size=1, max_size=3))
    ids_BT = torch.from_numpy(np.stack([TOKENIZER.encode(text) for text in texts]).astype("int64"))
    logits = torch.randn(2, len(texts), 3, T, T, generator=torch.Generator().manual_seed(seed))
    pattern = logits.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)  # (L, B, H, T, S)
    # Head 0.0 looks at the position before, head 0.1 at all alike.
    pattern[0, :, 0] = torch.eye(T).roll(-1, 1).tril()
    pattern[0, :, 1] = torch.ones(T, T).tril() / torch.arange(1, T + 1).unsqueeze(1)
    found = scores(cast(Any, SimpleNamespace(ids_BT=ids_BT, pattern=pattern)), TOKENIZER)
    null = nulls(ids_BT, TOKENIZER)
    for kind in KINDS:
        expected = [[by_loops(kind, texts, pattern[i, :, h]) for h in range(3)] for i in range(2)]
        torch.testing.assert_close(found[kind], torch.tensor(expected), equal_nan=True)
        torch.testing.assert_close(torch.tensor(null[kind]), found[kind][0, 1], equal_nan=True)
        assert ((found[kind] > -1e-6) & (found[kind] < 1 + 1e-6) | found[kind].isnan()).all()
    assert T == 1 or found["previous character"][0, 0] == 1


def plant(previous: int, induction: int, T: int = 48) -> Model:
    """A model in which one head of block 0 looks at the previous character and one of block 1 does induction.

    Channels hold, one-hot, the token, the token before and the position. The norms before the planted heads change
    nothing: what they read has always the same mean and variance, which their gains and biases undo.
    """
    V, H, D, strong = len(CHARACTERS), 3, T, 30 * math.sqrt(T)
    C = H * D
    gpt = GPT(GPTConfig(V, T, 2, H, C, norm="pre")).eval()
    for name, parameter in gpt.named_parameters():
        torch.nn.init.constant_(parameter, 1.0 if name == "final_norm.weight" else 0.0)
    token, before, position = torch.arange(V), torch.arange(V, 2 * V), torch.arange(2 * V, 2 * V + T)
    blocks: Any = gpt.blocks
    with torch.no_grad():
        gpt.token_embedding.weight[token, token] = 1
        cast(Any, gpt.position_embedding).weight[torch.arange(T), position] = 1
        for ones, block in enumerate(blocks, 2):
            block.norm_1.weight.fill_(math.sqrt(ones / C - (ones / C) ** 2))
            block.norm_1.bias.fill_(ones / C)
        for block, head in zip(blocks, (previous, induction), strict=True):
            query, key, value = block.attention.qkv.weight.view(3, H, D, C)[:, head]
            projection = block.attention.projection.weight.view(C, H, D)[:, head]
            value[token, token] = 1
            if block is blocks[0]:
                query[(torch.arange(T) - 1).clamp(min=0), position] = strong
                key[torch.arange(T), position] = 1
                projection[before, token] = 1
            else:
                query[token, token] = strong
                key[token, before] = 1
                projection[token, token] = 10
    return Model(gpt, TOKENIZER)


@pytest.mark.parametrize(("previous", "induction"), [(0, 0), (2, 1)])
def test_planted_heads_get_their_names_and_no_other_does(previous: int, induction: int) -> None:
    model = plant(previous, induction)
    generator = torch.Generator().manual_seed(0)
    block = torch.stack([torch.randperm(len(CHARACTERS), generator=generator)[:24] for _ in range(8)])
    bits = observe(model.gpt, block.repeat(1, 2)).bits
    assert bits[:, 25:].mean() < 0.2
    assert bits[:, 1:24].mean() > math.log2(len(CHARACTERS))
    found = head_scores(model, make_prose(2000))
    expected = {(0, previous): "previous character", (1, induction): "induction"}
    assert {(row.layer, row.head): row.name for row in found.rows} == {
        (i, h): expected.get((i, h), "none") for i in range(2) for h in range(3)
    }
    named = [row for row in found.rows if row.name != "none"]
    assert all(row.score > 0.8 and row.repeated.bits > 1 for row in named), str(found)
    assert all(row.text.bits == row.repeated.bits == 0 for row in found.rows if row.name == "none")
    assert all(len(line) <= 80 for line in str(found).splitlines())


def test_a_head_that_looks_but_does_nothing_gets_no_name() -> None:
    model = plant(0, 0)
    blocks: Any = model.gpt.blocks
    for block in blocks:
        torch.nn.init.zeros_(block.attention.projection.weight)
    found = head_scores(model, make_prose(2000))
    assert found.rows[0].kind == "previous character"
    assert found.rows[0].score > 0.99
    assert {row.name for row in found.rows} == {"none"}


@pytest.mark.parametrize("deviation", [None, 0.2])
@pytest.mark.parametrize("shape", [(2, 2, 16, 16, "pre"), (3, 4, 32, 32, "post"), (1, 2, 8, 48, "pre")])
def test_a_random_model_gets_no_names(shape: tuple[int, int, int, int, Any], deviation: float | None) -> None:
    n_layer, n_head, T, C, norm = shape
    for seed in range(2):
        torch.manual_seed(seed)
        gpt = GPT(GPTConfig(len(CHARACTERS), T, n_layer, n_head, C, norm=norm)).eval()
        for parameter in gpt.parameters() if deviation else ():
            torch.nn.init.normal_(parameter, std=deviation or 0)
        found = head_scores(Model(gpt, TOKENIZER), make_prose(1000, seed), seed=seed)
        assert {row.name for row in found.rows} == {"none"}, str(found)


def test_a_text_and_its_ids_give_the_same_and_one_window_is_too_few() -> None:
    model, text = plant(0, 0), make_prose(500)
    first, second = (str(head_scores(model, it, windows=4)) for it in (text, TOKENIZER.encode(text)))
    assert first == second
    with pytest.raises(UserError, match="two windows"):
        head_scores(model, text[:95])
    assert isinstance(head_scores(model, text[:96]), HeadScores)
