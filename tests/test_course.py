"""The course: exercises and their mistakes, answers that misbehave, and the real program trained with one's own parts."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt import generation, model, optim
from minigpt.course import child
from minigpt.course.check import Result, equal, judge
from minigpt.course.exercises import NAMES, exercise
from minigpt.model import GPTConfig
from minigpt.sampling import Sampling
from minigpt.text.tokenizer import CharTokenizer
from minigpt.text.windows import TrainingBatches
from minigpt.training.module import GPTLightningModule

each_exercise = pytest.mark.parametrize("name", NAMES)


def judged(name: str, function: Callable[..., Any], first: int = 1) -> Result:
    """The check of a function, in this process."""
    asked = exercise(name)
    seeds = list(range(first, first + asked.draws))
    draws = [child.drawn(name, function, seed) for seed in seeds]
    return judge(asked, {"state": "ran", "draws": draws}, seeds)


def run_file(name: str, path: Path, text: str, seeds: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """What the child reports of a file, in this process."""
    path.write_text(text, encoding="utf-8")
    return child.run(name, path, list(seeds), 30, None)


# The exercises


@each_exercise
def test_an_exercise_fails_as_it_is_handed_out_and_its_solution_passes(name: str, tmp_path: Path) -> None:
    asked = exercise(name)
    result = judge(asked, run_file(name, tmp_path / "answer.py", asked.stub), [1, 2])
    if name == "vocabulary":  # which nobody fails
        assert result.passed
    else:
        assert not result.passed
        assert "Not begun" in result.message
    result = judged(name, asked.solution)
    assert result.passed, result.message
    given = list(inspect.signature(asked.specification).parameters)
    assert f"def {name}({', '.join(given)}):" in asked.stub
    assert len(asked.hints) == 4


@each_exercise
def test_each_known_mistake_is_told_by_its_own_sentence(name: str) -> None:
    asked = exercise(name)
    assert len(asked.wrong) >= 6
    assert len({sentence for sentence, _ in asked.wrong}) == len(asked.wrong)
    for sentence, wrong in asked.wrong:  # of two that are the same function, one would get the other's sentence
        result = judged(name, wrong, first=700)
        assert not result.passed
        assert (result.message, result.mistake) == (sentence, sentence)


def by_attention(x_BTC: Tensor) -> Tensor:
    """All scores 0: the mean of the past."""
    x_B1TC = x_BTC.unsqueeze(1)
    return by_model_attend(torch.zeros_like(x_B1TC), x_B1TC, x_B1TC).squeeze(1)


def by_model_attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attention = model.CausalSelfAttention(GPTConfig(n_head=1, n_embd=4)).eval()
    return attention.attend(query, key, value)


def by_model_split(qkv_BTE: Tensor, n_head: int) -> tuple[Tensor, ...]:
    heads: list[Tensor] = []

    def attend(*three: Tensor) -> Tensor:
        heads.extend(three)
        return three[0]

    B, T, E = qkv_BTE.shape
    layer: Any = SimpleNamespace(n_head=n_head, qkv=lambda _: qkv_BTE, attend=attend)
    layer.dropout = layer.projection = lambda x: x
    model.CausalSelfAttention.forward(layer, torch.empty(B, T, E // 3))
    return tuple(heads)


def by_model_table(block_size: int, n_embd: int) -> Tensor:
    torch.set_default_dtype(torch.float64)
    try:
        return model.SinusoidalEmbedding(block_size, n_embd).get_buffer("table")
    finally:
        torch.set_default_dtype(torch.float32)


def by_model_norm(x_BTC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    layer = model.LayerNorm(x_BTC.shape[-1], eps=eps)
    return torch.func.functional_call(layer, {"weight": weight_C, "bias": bias_C}, (x_BTC,))


def by_model_block(x: Tensor, attention: Any, feed_forward: Any, norm_1: Any, norm_2: Any) -> Tensor:
    layer: Any = SimpleNamespace(norm="post", feed_forward=feed_forward, norm_1=norm_1, norm_2=norm_2)
    layer.attention, layer.residual_middle = (lambda y, cache: attention(y)), (lambda y: y)
    return model.Block.forward(layer, x)


def by_make_optimizer(
    p: Tensor, g: Tensor, m1: Tensor, m2: Tensor, step: int, rate: float, b1: float, b2: float, eps: float, wd: float
) -> tuple[Tensor, ...]:
    weight = torch.nn.Parameter(p.clone())
    weight.grad = g
    h = SimpleNamespace(optimizer="adamw", learning_rate=rate, beta1=b1, beta2=b2, eps=eps, weight_decay=wd)
    optimizer = optim.make_optimizer({"weight": weight}, h, "32-true")
    optimizer.state[weight] = {"step": torch.tensor(step - 1.0), "exp_avg": m1.clone(), "exp_avg_sq": m2.clone()}
    optimizer.step()
    return weight.detach(), optimizer.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg_sq"]


def by_generation(logits_V: Tensor, temperature: float, top_k: int | None, uniform: float) -> int:
    probs_BV = generation.probabilities(logits_V[None], torch.zeros(1, 1).long(), Sampling(temperature, top_k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: torch.tensor([uniform], dtype=torch.float64))
        return int(generation.draw(probs_BV, [torch.Generator()]))


def by_windows(ids_N: Tensor, starts_B: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    batches: Any = SimpleNamespace(ids=ids_N.numpy(), block_size=block_size, starts=lambda _: starts_B.numpy())
    return TrainingBatches.__getitem__(batches, 0)


def by_lens(stream_STC: Tensor, norm: Any, embedding_VC: Tensor) -> Tensor:
    gpt: Any = SimpleNamespace(final_norm=norm, token_embedding=SimpleNamespace(weight=embedding_VC))
    decode = model.TokenEmbedding.decode
    return torch.stack([decode(gpt.token_embedding, gpt.final_norm(stage)) for stage in stream_STC])


def by_module_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    module: Any = SimpleNamespace(gpt=lambda _: SimpleNamespace(float=lambda: logits_BTV))  # kept in float64
    return GPTLightningModule.character_nats(module, (targets_BT, targets_BT)).mean()


PROGRAM: dict[str, Callable[..., Any]] = {
    "vocabulary": lambda text: CharTokenizer("".join(sorted(set(text)))).vocabulary,
    "surprisal": lambda probs, ids: F.cross_entropy(probs.log(), ids, reduction="none"),
    "windows": by_windows,
    "cross_entropy": by_module_loss,
    "average_past": by_attention,
    "attend": by_model_attend,
    "split_heads": by_model_split,
    "position_table": by_model_table,
    "layer_norm": by_model_norm,
    "block": by_model_block,
    "learning_rate": lambda s, peak, w, m: peak * optim.learning_rate_factor(s, "cosine", w, m, 0.3),
    "adamw_step": by_make_optimizer,
    "choose": by_generation,
    "lens": by_lens,
}


@each_exercise
def test_the_specification_is_what_the_real_program_computes(name: str) -> None:
    for seed in range(5):
        wanted = child.drawn(name, exercise(name).specification, seed)
        if name in ("vocabulary", "lens"):
            pass
        found = child.drawn(name, PROGRAM[name], seed)
        assert equal(found["values"], wanted["values"])
        for a, b in zip(found["gradients"], wanted["gradients"], strict=True):
            torch.testing.assert_close(a, b)
