"""The course: exercises and their mistakes, answers that misbehave, and the program trained with one's own parts."""

import dataclasses
import inspect
import json
import os
import re
import select
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import ROOT, assert_clear_error, run_minigpt
from minigpt import generation, model, optim
from minigpt.course import child, mine, places, progress, reading
from minigpt.course.check import Result, check, equal, inputs_of, job_of, judge, report_of, results_of
from minigpt.course.exercises import NAMES, exercise
from minigpt.course.experiments import EXPERIMENTS
from minigpt.course.lesson import Lesson, Step, lessons
from minigpt.errors import UserError
from minigpt.fast import why_not
from minigpt.glassbox.lens import lens, stages
from minigpt.glassbox.trace import observe
from minigpt.model import GPT, GPTConfig
from minigpt.run import read_checkpoint
from minigpt.sampling import Sampling
from minigpt.text.windows import TrainingBatches
from minigpt.training.data import CharDataModule
from minigpt.training.module import GPTLightningModule
from test_model import build, random_ids

each_exercise = pytest.mark.parametrize("name", NAMES)


@child.one_thread()
def judged(name: str, function: Callable[..., Any], first: int = 1) -> Result:
    """The check of a function, in this process."""
    asked = exercise(name)
    return judge(asked, {"state": "ran", "draws": list(results_of(asked, function, first))}, first)


def run_file(name: str, path: Path, text: str) -> dict[str, Any]:
    """What the child reports of a file, in this process."""
    rows = inputs_of(exercise(name), 1)
    report = child.run(job_of(name, text.encode(), str(path), rows, 30) | {"memory": None})
    found = report_of(json.dumps(report).encode(), len(rows))
    assert found
    return found


# The exercises


@each_exercise
def test_an_exercise_fails_as_it_is_handed_out_and_its_solution_passes(name: str, tmp_path: Path) -> None:
    asked = exercise(name)
    result = judge(asked, run_file(name, tmp_path / "answer.py", asked.stub), 1)
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


@pytest.mark.parametrize("name", [name for name in NAMES if exercise(name).raising])
def test_an_error_that_a_known_mistake_raises_is_told_by_its_sentence(name: str, tmp_path: Path) -> None:
    asked = exercise(name)
    for number, (sentence, _) in enumerate(asked.raising):
        wrong = f"exercise({name!r}).raising[{number}][1](*a)"
        text = f"from minigpt.course.exercises import exercise\n\ndef {name}(*a):\n    return {wrong}\n"
        result = judge(asked, run_file(name, tmp_path / "answer.py", text), 1)
        assert not result.passed
        assert result.message.startswith("It raises an error:\n  line 4: return")
        assert result.message.splitlines()[-1] == f"This error often means: {sentence}"


ONE_SIZE: dict[str, Callable[..., Any]] = {  # the size of the first draw, by whatever seed, is not that of the others
    "attend": lambda q, k, v: F.softmax((q @ k.mT / 2).masked_fill(torch.ones(4, 6).triu(3).bool(), -9e99), -1) @ v,
    "split_heads": lambda qkv, n: tuple(qkv.view(*qkv.shape[:2], 3, 3, -1).permute(2, 0, 3, 1, 4)),
    "layer_norm": lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], w, b, 1e-3),
    "gpt": lambda i, w, p, b, n: n(b[2](b[1](b[0](w[i] + p)))) @ w.T,
    "adamw_step": lambda p, g, m, v, s, r, *_: exercise("adamw_step").solution(p, g, m, v, s, r, 0.9, 0.95, 1e-2, 0.2),
    "choose": lambda z, t, k, u: exercise("choose").solution(z, t, k and 4, u),
}


@pytest.mark.parametrize("name", ONE_SIZE)
def test_an_answer_that_is_right_for_one_size_or_number_alone_is_wrong(name: str) -> None:
    for seed in (1, 2, 3):
        asked, draws = exercise(name), []
        for arguments in inputs_of(asked, seed):
            try:
                draws.append(child.drawn(ONE_SIZE[name], arguments))
            except (RuntimeError, IndexError):
                break  # it raises an error, which a check tells
        else:
            assert not judge(asked, {"state": "ran", "draws": draws}, seed).passed


def attend_by_pytorch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    T, S = q.shape[-2], k.shape[-2]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(T, S, dtype=torch.bool).tril(S - T))


def gpt_by_pytorch(ids: Tensor, w: Tensor, p: Tensor, blocks: Any, norm: Any) -> Tensor:
    x = F.one_hot(ids, len(w)).to(w.dtype) @ w
    x += p
    while blocks:
        x = blocks.pop(0)(x)
    return torch.stack([F.linear(norm(row[None])[0], w) for row in x])


def attend_row_by_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    T, S, D = q.shape[-2], *k.shape[-2:]
    rows = []
    for t in range(T):
        seen = S - T + t + 1
        weights = torch.einsum("bhd,bhsd->bhs", q[:, :, t], k[:, :, :seen]).div(D**0.5).softmax(-1)
        rows.append((weights[..., None] * v[:, :, :seen]).sum(2))
    return torch.stack(rows, 2)


@pytest.mark.parametrize("function", [attend_by_pytorch, attend_row_by_row, gpt_by_pytorch])
def test_a_right_answer_of_another_kind_is_right(function: Callable[..., Any]) -> None:
    for seed in range(1, 6):
        result = judged(function.__name__.partition("_")[0], function, seed)
        assert result.passed, result.message


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


def ignoring_caches(block: Any) -> Any:
    return lambda x_BTC, cache: block(x_BTC)


def by_model_gpt(ids_BT: Tensor, token_VC: Tensor, position_TC: Tensor, blocks: Any, final_norm: Any) -> Tensor:
    layer: Any = SimpleNamespace(config=GPTConfig(), final_norm=final_norm, embedding_dropout=lambda x: x)
    layer.token_embedding = model.TokenEmbedding(*token_VC.shape)
    del layer.token_embedding.weight  # a parameter would be a leaf of its own
    layer.token_embedding.weight = token_VC
    layer.position_embedding, layer.blocks = position_TC.__getitem__, list(map(ignoring_caches, blocks))
    return model.GPT.forward(layer, ids_BT)


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
    return int(generation.draw(probs_BV, torch.tensor([[uniform]], dtype=torch.float64)))


def by_windows(ids_N: Tensor, starts_B: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    batches: Any = SimpleNamespace(ids=ids_N.numpy(), block_size=block_size, starts=lambda _: starts_B.numpy())
    return TrainingBatches.__getitem__(batches, 0)


def by_module_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    module: Any = SimpleNamespace(gpt=lambda _: SimpleNamespace(float=lambda: logits_BTV))  # kept in float64
    return GPTLightningModule.character_nats(module, (targets_BT, targets_BT)).mean()


PROGRAM: dict[str, Callable[..., Any]] = {
    "surprisal": lambda probs, ids: F.nll_loss(probs.log(), ids, reduction="none"),
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
    "gpt": by_model_gpt,
    "choose": by_generation,
}


@pytest.mark.parametrize("name", PROGRAM)
def test_the_specification_is_what_the_real_program_computes(name: str) -> None:
    asked = exercise(name)
    asked = dataclasses.replace(asked, draws=160 if name == "choose" else 5)  # loops in Python take long
    for found, wanted in zip(
        results_of(asked, PROGRAM[name], 0), results_of(asked, asked.specification, 0), strict=True
    ):
        assert equal(found["values"], wanted["values"])
        for a, b in zip(found["gradients"]["items"], wanted["gradients"]["items"], strict=True):
            torch.testing.assert_close(a, b)


def test_vocabulary_and_lens_are_those_of_the_real_program(workplace: Path) -> None:
    text = "".join(exercise("vocabulary").inputs(torch.Generator().manual_seed(3)))
    Path("letters.txt").write_text(9 * text, encoding="utf-8")
    assert exercise("vocabulary").specification(text) == CharDataModule("letters.txt", block_size=8).vocabulary
    gpt = build(GPTConfig(vocab_size=23, block_size=16, n_layer=2, n_head=2, n_embd=12, norm="pre"))
    seen = observe(gpt, random_ids(1, 5))
    logits_STV = exercise("lens").specification(stages(seen)[:, 0], gpt.final_norm, gpt.token_embedding.weight)
    torch.testing.assert_close(lens(seen)[:, 0], logits_STV)


# Answers as files


@each_exercise
def test_what_is_sent_to_a_child_arrives_bit_for_bit(name: str) -> None:
    for row in inputs_of(exercise(name), 5):
        sent = json.loads(json.dumps([child.packed(child.plain(value)) for value in row]))
        for value, arrived in zip(row, [child.given(child.unpacked(value)) for value in sent], strict=True):
            assert_arrived(value, arrived)


def assert_arrived(value: Any, arrived: Any) -> None:
    assert type(arrived) is type(value)
    if isinstance(value, list):
        for item, arrived_item in zip(value, arrived, strict=True):
            assert_arrived(item, arrived_item)
    elif isinstance(value, child.Function):
        assert arrived.name == value.name
        assert_arrived(value.numbers, arrived.numbers)
    elif isinstance(value, Tensor):
        assert (arrived.dtype, arrived.requires_grad) == (value.dtype, value.requires_grad)
        assert torch.equal(arrived, value)
    else:
        assert arrived == value


DRAW = {"values": 1.5, "gradients": {"kind": "list", "items": []}}
HUGE = {"dtype": "float64", "shape": [10**9, 10**9], "data": "", "requires_grad": False}


@pytest.mark.parametrize(
    "report",
    [
        b"",
        b"{",
        b"[1]",
        b"[" * 100_000,
        b'{"state": "ran", "draws": [' + b"9" * 10_000 + b"]}",
        *(
            json.dumps(report).encode()
            for report in (
                {"state": "passed"},
                {"state": "raised", "error": ["text"]},
                {"state": "ran", "draws": []},
                {"state": "ran", "draws": [DRAW, 5]},
                {"state": "ran", "draws": [{"values": 1.5}, DRAW]},
                {"state": "ran", "draws": [DRAW, {**DRAW, "gradients": 5}]},
                {"state": "ran", "draws": [DRAW, {**DRAW, "values": HUGE}]},
                {"state": "ran", "draws": [DRAW, {**DRAW, "values": {**HUGE, "shape": [-1, -8], "data": "A" * 88}}]},
                {"state": "ran", "draws": [DRAW, {**DRAW, "values": {**HUGE, "dtype": "Tensor"}}]},
                {"state": "ran", "draws": [DRAW, {**DRAW, "values": 10**30}]},
                {"state": "ran", "draws": [DRAW, {**DRAW, "values": {"items": 5}}]},
            )
        ),
    ],
)
def test_a_report_that_is_not_of_its_form_is_none(report: bytes) -> None:
    assert report_of(json.dumps({"state": "ran", "draws": [DRAW, DRAW]}).encode(), 2) is not None
    assert report_of(report, 2) is None


def test_a_forged_report_of_the_right_form_is_judged_and_not_right() -> None:
    asked = exercise("attend")
    wanted = list(results_of(asked, asked.solution, 1))
    others: list[Any] = [None, True, "right", float("nan"), {"kind": "list", "items": []}]
    for forged in [*others, child.Function("norm", wanted[0]["values"])]:
        for part in ("values", "gradients"):
            value = forged if part == "values" else {"kind": "list", "items": [forged]}
            draws = [{**draw, part: value} for draw in wanted]
            result = judge(asked, {"state": "ran", "draws": draws}, 1)
            assert not result.passed
            assert len(result.message) < 500


def test_what_a_check_says_of_an_answer_that_is_no_known_mistake(tmp_path: Path) -> None:
    def said(name: str, body: str) -> str:
        text = f"import torch\n\n\ndef {name}(*a):\n" + "".join(f"    {line}\n" for line in body.split("\n"))
        return judge(exercise(name), run_file(name, tmp_path / "answer.py", text), 1).message

    model_py = "T, C = a\nangle = torch.arange(T).unsqueeze(1) / 10000 ** (torch.arange(0, C, 2) / C)\n"
    model_py += "return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)"
    assert "float32" in said("position_table", model_py)
    detached = "z, y = a\nreturn (z.logsumexp(-1) - z.gather(-1, y[..., None])[..., 0]).mean().detach()"
    assert "The values are right, but the gradient with respect to logits_BTV" in said("cross_entropy", detached)
    right = "x, n, e = a\nreturn n(x) @ e.T"
    assert "gradient with respect to embedding_VC" in said("lens", right.replace("e.T", "e.T.detach()"))
    assert "shape (4, 6); wanted is a tensor of floating-point numbers of shape ()" in said(
        "cross_entropy", "return a[0].logsumexp(-1)"
    )
    assert "a float; wanted is a tensor" in said("cross_entropy", "return 1.5")
    assert "line 6: return 1 / 0\nZeroDivisionError" in said("attend", "pass\nreturn 1 / 0")
    assert "None (is `return` missing?)" in said("attend", "pass")
    assert said("windows", "return windows(*a)").count("return windows") == 1  # and not a thousand times
    for body, advised in (
        ("x, = a\nreturn torch.ones(x.shape[1], x.shape[1]).tril() @ x", "dtype=x.dtype"),
        ("x, = a\nx += 1\nreturn x", "change an input in place"),
        ("x, = a\nreturn torch.tensor(x.numpy().cumsum(1))", "NumPy knows no gradients"),
        ("x, = a\nreturn x + torch.ones(9, 9)", "shapes don't fit"),
        ("x, = a\nreturn torch.ones(9, 9) @ x", "shapes don't fit"),
    ):
        assert advised in said("average_past", body)
    assert "SyntaxError" in said("attend", "return (")
    assert "first at [0, 0, 0, 0]: 1; wanted is" in said("attend", "return torch.ones_like(a[0])")
    tensor = "from minigpt.course.exercises.choose import solution\nreturn torch.tensor(solution(*a))"
    assert "Right" in said("choose", tensor)
    numpy = "import numpy as np\nfrom minigpt.course.exercises.learning_rate import solution\n"
    assert "Right" in said("learning_rate", numpy + "return np.float64(solution(*a))")
    other = run_file("attend", tmp_path / "answer.py", "def attention(q, k, v):\n    return v\n")
    assert "no function attend" in judge(exercise("attend"), other, 1).message


def test_an_answer_that_changes_its_inputs_or_prints_without_end_is_compared_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "windows.py"
    text = "from minigpt.course.exercises.windows import solution\n\ndef windows(ids, starts, size):\n"
    text += "    y = solution(ids, starts, size)\n    y = y[0].clone(), y[1].clone()\n    ids.zero_()\n    return y\n"
    assert judge(exercise("windows"), run_file("windows", path, text), 1).passed
    with path.open("w") as file:
        beginning = child.Beginning(file)
        for _ in range(10_000):
            print("more", file=beginning)
    assert path.stat().st_size <= child.PRINTED


HOSTILE = {
    "while True: pass": "took more than 1 seconds, and was at line 3. Is there a loop",
    "import os; os._exit(0)": "ended the whole process.",
    "import sys; sys.exit(0)": "ends the program by exit",
    "while True: print('and on and on')": "took more than 1 seconds",
    "import os; os.remove(__file__); raise ValueError('gone')": "ValueError: gone",
    "while True: __import__('os').write(2, b'x' * 10**6)": "File too large",
    "import torch; return torch.zeros(10**10)": "memory",
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])": "returns None",
}


def misbehaved(path: Path, body: str) -> Result:
    path.mkdir()
    (path / "windows.py").write_text(f"def windows(*a):\n    print('hello')\n    {body}\n", encoding="utf-8")
    return check("windows", path / "windows.py", seconds=1)


def test_an_answer_that_never_ends_or_ends_everything_is_contained(tmp_path: Path) -> None:
    bodies = list(HOSTILE)[:2]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(misbehaved, [tmp_path / str(i) for i in range(len(bodies))], bodies))
    for body, result in zip(bodies, results, strict=True):
        assert not result.passed
        assert HOSTILE[body] in result.message


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and files are known there")
@pytest.mark.parametrize("body", list(HOSTILE)[2:])
def test_an_answer_that_takes_all_there_is_is_contained(body: str, tmp_path: Path) -> None:
    begun = time.perf_counter()
    result = misbehaved(tmp_path / "my", body)
    assert not result.passed
    assert HOSTILE[body] in result.message
    assert len(result.printed) <= 20_000
    assert time.perf_counter() - begun < 60


# The real program


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def count(*arguments: Any) -> Any:
        calls[0] += 1
        return function(*arguments)

    return count


FIT: tuple[object, ...] = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 4, "--trainer.val_check_interval", 4)
FIT += ("--sampler.every_n_steps", 4, "--model.warmup_steps", 2, "--threads", 1, "--trainer.precision", "32-true")


def weights(name: str) -> dict[str, Tensor]:
    return read_checkpoint(Path("lightning_logs") / name / "version_0" / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.parametrize("fast", ["null", pytest.param("true", marks=pytest.mark.soak)])
def test_all_parts_of_ones_own_at_once_train_the_same_model(workplace: Path, fast: str) -> None:
    calls = {name: [0] for name in places.PLACES}
    functions = {name: counted(exercise(name).solution, calls[name]) for name in places.PLACES}
    flags = (*mine.settings_for(list(functions), []), "--fast", fast)
    own_flags = ("--name", "own", "--film.per_doubling", 1)
    with places.in_place(functions):
        gpt = GPT(GPTConfig(5, 8, 1, 1, 4, positions="sinusoidal"))
        assert "is not as model.py has it" in str(why_not(gpt))
        own = run_minigpt(*FIT, *flags, *own_flags)
    assert own.code == 0, own.err
    assert ("model.py's formulas, because" in own.out) == (fast == "null")
    assert all(count > 0 for (count,) in calls.values()), calls
    assert why_not(GPT(GPTConfig(5, 8, 1, 1, 4, positions="sinusoidal"))) is None  # nothing is left behind
    usual = run_minigpt(*FIT, *flags, "--name", "usual", *(("--fast", "false") if fast == "null" else ()))
    assert usual.code == 0, usual.err
    for name, weight in weights("usual").items():
        torch.testing.assert_close(weights("own")[name], weight, rtol=1e-4, atol=1e-5)
    sample = own.out[own.out.index("--- step 4") :].split("Best")[0]
    assert sample.strip() in usual.out  # the same text by the learner's choice


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_the_whole_model_of_ones_own_computes_what_the_programs_does(norm: Any, positions: Any) -> None:
    gpt = build(GPTConfig(23, 16, 2, 2, 12, embd_pdrop=0.3, norm=norm, positions=positions)).double()
    ids_BT = random_ids(3, 16)
    results = []
    for functions in ({}, {"gpt": exercise("gpt").solution}):
        with places.in_place(functions):
            caches = [model.KeyValueCache(16) for _ in gpt.blocks]
            gpt.eval()
            with torch.no_grad():
                cached_BTV = torch.cat([gpt(ids_BT[:, a:b], caches) for a, b in ((0, 9), (9, 10), (10, 16))], 1)
            gpt.train()
            torch.manual_seed(3)
            gpt(ids_BT).square().sum().backward()  # dropout draws the same
            gradient = gpt.token_embedding.weight.grad
            assert gradient is not None
            results.append((cached_BTV, gradient.clone()))
            gpt.zero_grad()
            with pytest.raises(ValueError, match="17 tokens"):
                gpt(random_ids(1, 17))
    for usual, own in zip(*results, strict=True):
        torch.testing.assert_close(own, usual)


def test_a_flag_that_contradicts_a_part_is_refused() -> None:
    for given in (["--model.norm", "pre"], ["--model.norm=pre"]):
        with pytest.raises(UserError, match="norm pre doesn't go with your block"):
            mine.settings_for(["block"], given)
    assert mine.settings_for(["attend"], ["--model.attn_pdrop", "0.0"]) == ["--model.attn_pdrop", "0"]


def answer(name: str, text: str = "") -> None:
    """Write a right answer, or another."""
    path = Path("my") / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text or f"from minigpt.course.exercises.{name} import solution as {name}\n", encoding="utf-8")


ATTEND = """
import math
import torch


def attend(query_BHTD, key_BHSD, value_BHSD):
    T, S, D = query_BHTD.shape[2], *key_BHSD.shape[2:]
    print("shape", T, S, D)
    scores = query_BHTD @ key_BHSD.transpose(2, 3) / math.sqrt(D)
    future = torch.arange(S)[None, :] > torch.arange(T)[:, None] + S - T
    return torch.softmax(scores.masked_fill(future, -math.inf), 3) @ value_BHSD
"""


@pytest.mark.soak
def test_the_whole_path_from_the_first_command_to_the_last_checkpoint(workplace: Path) -> None:
    first = run_minigpt("learn")
    assert "0 of 12 lessons, 0 of 15 exercises" in first.out
    assert "Next: lesson 1, What surprise costs, about 35 minutes" in first.out
    assert "Why not count mistakes?" in run_minigpt("learn", "read", 1).out
    assert run_minigpt("learn", "predict", 1, 4).code == 0
    assert "Measured:   more than guessing" in run_minigpt("learn", "read", 1).out
    broken = run_minigpt("learn", "break", "random_text", 1)
    assert broken.code == 0, broken.err
    assert "vocabulary: Right" in run_minigpt("learn").out
    answer("attend", ATTEND.replace(" / math.sqrt(D)", ""))
    wrong = run_minigpt("learn", "check", "attend")
    assert wrong.code == 1
    assert "attend: The scale is missing" in wrong.out
    assert re.search(r"It printed:\n  shape \d \d+ \d\n", wrong.out)
    train = ("learn", "train", "--mine", "attend", *FIT[1:])
    answer("attend", ATTEND.replace("    print", "    # print"))
    own = run_minigpt(*train)
    assert own.code == 0, own.err
    for said in ("model.CausalSelfAttention.attend = my.attend\n", "times as long", "model.py's formulas, because"):
        assert said in own.out
    assert "learn train --ckpt_path" in own.out
    last = Path("lightning_logs/tiny/version_0/checkpoints/last.ckpt")
    checkpoint = read_checkpoint(last)
    assert checkpoint["own_parts"] == ["attend"]
    # The reference scores it equally.
    scored = run_minigpt("validate", "--ckpt_path", last)
    loss = float(re.search(r"val/loss\D+([\d.]+)", scored.out)[1])  # type: ignore[index]
    assert loss == pytest.approx(checkpoint["callbacks"]["RunCheckpoint"]["best_score"], abs=1e-4)
    # It goes on with the same parts alone.
    more = ("--ckpt_path", "last", "--trainer.max_steps", 6)
    assert_clear_error(run_minigpt("fit", *more), "own, attend", f"learn train --ckpt_path {last}")
    on = run_minigpt("learn", "train", *more)
    assert on.code == 0, on.err
    assert "model.CausalSelfAttention.attend = my.attend\n" in on.out
    assert read_checkpoint(last)["global_step"] == 6
    assert run_minigpt("fit", *more, "--branch", "true", "--trainer.max_steps", 8).code == 0
    assert "own_parts" not in read_checkpoint(last.parents[2] / "version_1" / "checkpoints" / "last.ckpt")
    assert progress.Folder().progress().trained == ["attend"]


@pytest.mark.soak
def test_flags_go_to_the_default_recipe_and_what_is_not_right_stays_out(workplace: Path) -> None:
    answer("attend", ATTEND.replace(" / math.sqrt(D)", ""))
    answer("layer_norm")
    flags = ("--data.corpus", "text.txt", "--trainer.max_steps", 1, "--trainer.limit_val_batches", 1)
    assert_clear_error(run_minigpt("learn", "train", "--mine", "attend", *flags), "attend isn't right", "The scale")
    assert_clear_error(run_minigpt("learn", "train", "--mine", "block", *flags), "There is no", "learn check block")
    assert_clear_error(run_minigpt("learn", "train", "--mine", "all", "--mine", "attend", *flags), "attend isn't right")
    own = run_minigpt("learn", "train", "--mine", "all", "--mine", "layer_norm", *flags)
    assert own.code == 0, own.err
    assert "Without your cross_entropy, attend, split_heads" in own.out
    assert "layer_norm" not in own.out.partition(": not right yet")[0]
    assert "model.LayerNorm.forward = my.layer_norm\n" in own.out
    checkpoint = read_checkpoint(Path("lightning_logs/quickstart/version_0/checkpoints/last.ckpt"))
    assert checkpoint["own_parts"] == ["layer_norm"]
    assert checkpoint["global_step"] == 1
    assert checkpoint["datamodule_hyper_parameters"]["corpus"].endswith("text.txt")
    assert progress.Folder().progress().trained == ["layer_norm"]


def test_a_part_that_computes_in_64_bits_alone_is_told_before_training(workplace: Path) -> None:
    answer(
        "gpt",
        "import torch.nn.functional as F\n\ndef gpt(ids, w, p, blocks, norm):\n"
        "    x = F.one_hot(ids, len(w)).double() @ w + p\n    for block in blocks:\n        x = block(x)\n"
        "    return norm(x) @ w.T\n",
    )
    result = run_minigpt("learn", "train", "--mine", "gpt", *FIT[1:])
    assert_clear_error(result, "gpt.py, line 4, x = F.one_hot", "dtype=x.dtype")
    assert not Path("lightning_logs").exists()


def test_where_no_part_is_right_nothing_is_trained(workplace: Path) -> None:
    assert_clear_error(run_minigpt("learn", "train"), "Name parts of your own", "places for cross_entropy, attend")
    named = run_minigpt("learn", "train", "--mine", "lens", "--mine", "all")
    assert_clear_error(named, "lens has no place in the program")
    everything = run_minigpt("learn", "train", "--mine", "all")
    assert "Without your cross_entropy, attend, " in everything.out
    assert_clear_error(everything, "None of your parts is right yet")
    assert not Path("lightning_logs").exists()


def test_a_wrong_answer_is_named_once(workplace: Path) -> None:
    answer("average_past", "def average_past(x_BTC):\n    return x_BTC * 2\n")
    said = run_minigpt("learn", "check", "average_past").out
    assert said.startswith("average_past: ")
    assert said.count("average_past") == 1


def test_hints_come_one_by_one_and_a_reset_keeps_what_was_there(workplace: Path) -> None:
    asked = exercise("attend")
    for shown in (1, 2, 3, 4, 4):
        out = run_minigpt("learn", "hint", "attend").out
        assert [text in out for text in asked.hints] == [number < shown for number in range(4)]
    for text in ("first", "second"):
        answer("attend", text)
        assert run_minigpt("learn", "reset", "attend").code == 0
    assert Path("my/attend.py").read_text() == asked.stub
    assert [Path(f"my/before/attend_{number}.py").read_text() for number in (1, 2)] == ["first", "second"]
    assert asked.hints[1] not in run_minigpt("learn", "hint", "attend").out
    for name in ("atend", "ATTEND", "my/attend.py"):
        assert_clear_error(run_minigpt("learn", "hint", name), f"no exercise {name}; did you mean attend?")


def kept(**changed: Any) -> str:
    """A progress file, with something in it changed."""
    return json.dumps(dataclasses.asdict(progress.Progress()) | changed)


@pytest.mark.parametrize(
    "damage",
    [
        *("", "{", "[1]", '{"minigpt_course": 2}'),
        *(kept(minigpt_course=3), kept(more=1), kept(read=5), kept(read=[1]), kept(experiments=[{}])),
        *(kept(predictions={"1": True}), kept(passed={"attend": 5}), kept(hints={"attend": "two"})),
    ],
)
def test_a_torn_or_foreign_progress_file_is_told_and_left_alone(workplace: Path, damage: str) -> None:
    path = workplace / "my" / "progress.json"
    path.parent.mkdir()
    path.write_text(damage)
    answer("attend")
    for words in ([], ["hint", "attend"], ["reset", "attend"]):
        assert_clear_error(run_minigpt("learn", *words), "progress.json", "left as it is", "move it away")
    assert path.read_text() == damage
    assert "solution" in Path("my/attend.py").read_text(encoding="utf-8")


def test_windows_that_record_progress_at_the_same_moment_lose_none_of_it(tmp_path: Path) -> None:
    def record(lesson: int) -> None:
        with progress.Folder(tmp_path / "my").changed() as found:
            found.predictions[str(lesson)] = 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(record, range(24)))
    assert len(progress.Folder(tmp_path / "my").progress().predictions) == 24


def test_a_file_in_the_place_of_the_folder_is_told(workplace: Path) -> None:
    Path("my").write_text("notes")
    for words in ([], ["check", "attend"], ["train", "--mine", "attend"]):
        assert_clear_error(run_minigpt("learn", *words), "my is a file here", "Move the file away")


def test_a_lesson_is_read_to_its_question_predicted_and_read_to_its_end(workplace: Path) -> None:
    folder = progress.Folder()
    for name in NAMES[: NAMES.index("attend")]:
        folder.begin(name)
    with folder.changed() as done:
        for lesson in lessons()[:4]:
            done.read.append(str(lesson.number))
            done.predictions[lesson.question.key] = 1
            done.experiments += [step.name for step in lesson.steps if step.kind == "break"]
            done.passed |= {name: folder.digest(name) for name in lesson.exercises}
    assert folder.next_step() == Step("predict", "5")
    first = run_minigpt("learn", "read").out
    assert "# Attention: query, key, value" in first
    assert "seed 7: D = 32 1.66" in first
    assert "What will seed 1 say?\n\n  1. the same\n" in first
    assert first.count("What will seed 1 say?") == 1  # and not in the text as well
    assert "seed 1: D = 32 1.61" not in first  # which is the answer
    assert "compare((1,))" in Path("my/lesson_05.py").read_text(encoding="utf-8")
    assert folder.next_step() == Step("predict", "5")
    for wrong in ((), (0,), (4,)):
        assert_clear_error(run_minigpt("learn", "predict", 5, *wrong), "Predict before you see it")
    with folder.changed() as done:
        done.predictions["5"] = 9  # of another version, say
    assert folder.next_step() == Step("predict", "5")
    assert run_minigpt("learn", "predict", 5, 1).code == 0
    assert folder.progress().predictions["5"] == 1
    assert folder.next_step() == Step("read", "5")
    assert "Next: the rest of lesson 5" in run_minigpt("learn").out
    Path("my/lesson_05.py").write_text("# changed\n", encoding="utf-8")
    rest = run_minigpt("learn", "read", 5).out
    assert "seed 1: D = 32 1.61" in rest
    assert "Prediction: the same\nMeasured:   the opposite, as clearly\n" in rest
    assert Path("my/lesson_05.py").read_text(encoding="utf-8") == "# changed\n"
    assert folder.next_step() == Step("break", "no_scale")
    assert_clear_error(run_minigpt("learn", "predict", 5, 3), "stays as it was made", "the same")
    for number in (0, 13):
        assert_clear_error(run_minigpt("learn", "read", number), f"no lesson {number}; there are 1 to 12")


def test_on_a_terminal_a_wrong_number_is_asked_for_again(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["7", "", "x", "4"])
    monkeypatch.setattr(reading, "on_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    assert run_minigpt("learn", "predict", 1).out.count("One of 1, 2, 3, 4.") == 2
    assert progress.Folder().progress().predictions == {"1": 4}

    def end_of_file(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end_of_file)
    assert_clear_error(run_minigpt("learn", "predict", 2), "Nothing was predicted")


@pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.title)
def test_a_lesson_is_no_wider_than_a_terminal(lesson: Lesson) -> None:
    filled = reading.filled(lesson.body, 80)
    assert filled.split() == lesson.body.split()
    blocks = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    assert blocks.findall(filled) == blocks.findall(lesson.body)  # code keeps its lines
    prose = [line for line in blocks.sub("", filled).splitlines() if not line.startswith(("![", "|", ">"))]
    assert max(map(len, prose)) < 80


def test_a_lesson_that_its_experiment_answers_asks_once(workplace: Path) -> None:
    assert run_minigpt("learn", "predict", 10, 2).code == 0
    assert progress.Folder().progress().predictions == {"temperature_0": 2}
    read = run_minigpt("learn", "read", 10).out
    assert "## Where we are" in read
    assert "Measured" not in read  # the experiment will tell


def test_an_experiment_runs_once_its_prediction_is_recorded(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, say: Callable[[str], None], prediction: int) -> None:
        say(f"{name} ran, {prediction} expected")

    made = SimpleNamespace(name="no_mask", lesson=5, question="Higher?", options=("yes", "no"), answer=0)
    made.change, made.explanation = "- mask", "It copies."
    monkeypatch.setitem(EXPERIMENTS, "no_mask", made)
    monkeypatch.setattr(reading, "run", run)
    assert "no_mask                  lesson  5  Higher?" in run_minigpt("learn", "break").out
    asked = run_minigpt("learn", "break", "no_mask")
    assert_clear_error(asked, "Predict before you see it")
    assert "1. yes" in asked.out
    assert "ran" not in asked.out
    for option in (2, 1):  # a prediction stays as it was made
        done = run_minigpt("learn", "break", "no_mask", option)
        assert "no_mask ran, 1 expected\n\nIt copies." in done.out
    assert progress.Folder().progress().predictions == {"no_mask": 2}
    assert progress.Folder().progress().experiments == ["no_mask"]
    assert_clear_error(run_minigpt("learn", "break", "No-mask", 1), "no experiment No-mask; did you mean no_mask?")


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *command: str) -> None:
        import pty

        self.said = ""  # and not asked for yet
        self.process, self.file = pty.fork()
        if self.process == 0:
            os.environ.update(PYTHONPATH=str(ROOT), PAGER="cat")
            os.execv(sys.executable, [sys.executable, *command])

    def until(self, pattern: str) -> str:
        """What it says until it says this, the last included."""
        deadline = time.monotonic() + 120
        while not (found := re.search(pattern, self.said)):
            assert time.monotonic() < deadline, self.said
            if select.select([self.file], [], [], 1)[0]:
                self.said += os.read(self.file, 10_000).decode(errors="replace")
        before, self.said = self.said[: found.end()], self.said[found.end() :]
        return before

    def type(self, line: str) -> None:
        os.write(self.file, f"{line}\n".encode())

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


on_pseudo_terminals = pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo-terminals of this kind")


@pytest.mark.soak
@on_pseudo_terminals
def test_on_a_terminal_it_watches_the_answer_and_ends_by_ctrl_c(workplace: Path) -> None:
    for words in (("predict", 1, 4), ("read", 1), ("break", "random_text", 1)):
        assert run_minigpt("learn", *words).code == 0
    terminal = Terminal("-m", "minigpt", "learn")
    assert "Next: write my/vocabulary.py" in terminal.until("Ctrl-C ends.")
    path = Path("my/vocabulary.py")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("sorted(", "list("), encoding="utf-8")
    terminal.until("vocabulary is ")
    path.write_text(text, encoding="utf-8")
    terminal.until("vocabulary: Right")
    assert "[x] vocabulary" in terminal.until("Next: write my/surprisal.py")
    terminal.until("Ctrl-C ends.")
    os.write(terminal.file, b"\x03")
    assert terminal.status() == 0


# The program as a shell that knows nothing else, in one process, so that it is imported once. Experiments, whose
# signatures have tests of their own, run none.
SHELL = """
import shlex, sys
import minigpt.course.reading
from minigpt.__main__ import main

minigpt.course.reading.run = lambda name, say, prediction: say(f"{name} is run for {prediction}")
while True:
    print("$ ", end="", flush=True)
    sys.argv = shlex.split(sys.stdin.readline())
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code
    print(f"status {status}")
"""


@pytest.mark.soak
@on_pseudo_terminals
def test_from_the_first_command_to_the_last_each_is_the_one_that_the_one_before_names(workplace: Path) -> None:
    terminal = Terminal("-c", SHELL)
    terminal.until(r"\$ $")
    flags = shlex.join(map(str, FIT[1:]))
    done, call = [], "minigpt learn"
    while call:
        terminal.type(call if "train" not in call else f"{call} {flags}")
        said = ""
        while not re.search(r"status (\w+)\s+\$ $", said):
            said += (now := terminal.until(r"status \w+\s+\$ $|by its number: $|Ctrl-C ends\.\s+$"))
            if now.endswith("number: "):
                terminal.type("1")
            elif now.rstrip().endswith("Ctrl-C ends."):
                name = re.findall(r"write my/(\w+)\.py", said)[-1]
                done.append(f"write {name}")
                answer(name)
        assert "status 0" in said, said
        if call != "minigpt learn":
            done.append(call.removeprefix("minigpt learn "))
        found = re.findall(r"Next: .*: minigpt learn (read \d+|break \w+|train --mine \w+)\s", said)
        call = "" if "That was all of it." in said else f"minigpt learn {found[-1]}" if found else "minigpt learn"
    os.close(terminal.file)
    for lesson in lessons():
        for step in lesson.steps:
            words = {"predict": "read", "train": "train --mine"}.get(step.kind, step.kind)
            assert f"{words} {step.name}" in done
    checkpoint = read_checkpoint(max(Path("lightning_logs/tiny").glob("version_*")) / "checkpoints" / "last.ckpt")
    assert set(checkpoint["own_parts"]) == places.PLACES.keys()
