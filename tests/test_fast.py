"""The fast layers against the formulas of model.py, and when neither they nor the cache may stand for them."""

import copy
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import ROOT
from minigpt import fast, model
from minigpt.generation import Writer
from minigpt.model import GPT, GPTConfig, KeyValueCache
from minigpt.text.tokenizer import CharTokenizer
from test_cli import curve
from test_model import GPT1, build, each_shape, random_ids

CONFIG = GPTConfig(vocab_size=23, block_size=16, n_layer=1, n_head=3, n_embd=12, attn_pdrop=0.0, resid_pdrop=0.0)


def attention(training: bool) -> Callable[[], nn.Module]:
    return lambda: model.CausalSelfAttention(CONFIG).train(training)


PAIRS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: model.LayerNorm(12), (4, 7, 12)),
    "GELU": (model.GELU, (4, 7, 12)),
    "softmax": (model.Softmax, (4, 3, 7, 7)),
    "attention in training": (attention(True), (4, 16, 12)),
    "attention": (attention(False), (4, 16, 12)),
    "attention of one": (attention(False), (4, 1, 12)),
}


def tell_values_and_gradients(layer: nn.Module, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """What a layer makes of x, and the gradients of its weighted sum."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * weight).sum().backward()
    assert x.grad is not None
    return {"value": y, "x": x.grad} | {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_fast_layer_equals_its_formula_in_value_and_gradient(pair: str) -> None:
    make, shape = PAIRS[pair]
    torch.manual_seed(0)
    layer = make().double()
    for parameter in layer.parameters():
        parameter.data.normal_(0.5, 1)
    x, weight = 2 * torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], dtype=torch.float64)
    weight = weight.view(-1, *[1] * (len(shape) - 1))
    reference = tell_values_and_gradients(layer, x, weight)
    layer.zero_grad()
    fast.put_in(layer)
    assert type(layer) in fast.REFERENCE
    quick = tell_values_and_gradients(layer, x, weight)
    assert quick.keys() == reference.keys()
    for name, value in reference.items():
        torch.testing.assert_close(quick[name], value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_fast_dropout_equals_its_formula_for_what_it_drops(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(501, 333, dtype=torch.float64) + 9, torch.tensor(1.0)
    quick = tell_values_and_gradients(fast.FastDropout(rate), x, weight)
    kept = (quick["value"] != 0).double()
    share = round(256 * rate) / 256  # one byte decides
    assert float(1 - kept.mean()) == pytest.approx(share, abs=0.005)  # more than 4 standard deviations
    alike = float((kept[:, 1:] == kept[:, :-1]).double().mean())
    assert alike == pytest.approx(share**2 + (1 - share) ** 2, abs=0.01)  # neighbours are drawn apart
    monkeypatch.setattr(torch, "rand_like", lambda _: kept)
    reference = tell_values_and_gradients(model.Dropout(share), x, weight)
    for name, value in reference.items():
        torch.testing.assert_close(quick[name], value, rtol=1e-10, atol=1e-10, msg=name)


# It has no gradient of its own, and is quick in float32 only.
@pytest.mark.parametrize("rows", [1, 2, 16, 33])
def test_the_linear_map_of_a_generation_step_is_the_same_and_keeps_no_old_copy(rows: int) -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=2, n_embd=256))
    fast.put_in(gpt)
    layer, x = gpt.get_submodule("blocks.0.feed_forward.expand"), torch.randn(rows, 1, 256)
    assert isinstance(layer, fast.FastLinear)
    copies = fast.Packed(gpt, rows)
    for _ in range(3):
        with torch.no_grad():
            with copies:
                assert bool(fast.Packed.here.copies) == (rows in (2, 16) and torch.backends.mkldnn.is_available())
                torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
            assert not fast.Packed.here.copies
            layer.weight.mul_(-2)
            torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def make_wide_writer(seed: int = 0) -> Writer:
    torch.manual_seed(seed)
    gpt = GPT(GPTConfig(vocab_size=11, block_size=32, n_layer=2, n_head=2, n_embd=256)).eval()
    assert fast.apply(gpt) == "fast layers"
    return Writer(gpt, CharTokenizer("abcdefghijk"))


@pytest.mark.parametrize("number", [1, 2, 16])
def test_a_model_that_is_changed_after_or_while_it_writes_writes_as_what_it_is(number: int) -> None:
    def log_probabilities(writer: Writer) -> list[float]:
        *_, samples = writer.write(["abc"] * number, max_new_tokens=10)
        return [value for sample in samples for value in sample.log_probabilities]

    writer, other = make_wide_writer(0), make_wide_writer(1)
    first, expected = log_probabilities(writer), log_probabilities(other)
    unfinished = writer.write(["abc"] * number)  # still open when the weights change
    next(unfinished), next(unfinished)
    assert log_probabilities(copy.deepcopy(writer)) == first
    torch.save(writer.gpt, io.BytesIO())
    writer.gpt.load_state_dict(other.gpt.state_dict())
    next(unfinished)
    assert log_probabilities(writer) == expected
    for parameter in writer.gpt.parameters():
        parameter.data.mul_(1.5)
    fast.take_out(other.gpt)
    other.gpt.load_state_dict(writer.gpt.state_dict())
    assert log_probabilities(writer) == pytest.approx(log_probabilities(other), abs=1e-4)


def test_two_threads_that_write_with_one_model_do_not_mix() -> None:
    writer = make_wide_writer()
    writer.loaded = "which layers compute is decided anew for each text"
    tasks = [(["abc"] * number, seed) for seed in range(2) for number in (1, 3, 16)]

    def write(task: tuple[list[str], int]) -> list[str]:
        *_, samples = writer.write(task[0], max_new_tokens=10, seed=task[1])
        return [sample.text for sample in samples]

    expected = [write(task) for task in tasks]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write, tasks)) == expected


@pytest.mark.parametrize("fast_layers", [True, False])
def test_a_cache_goes_on_under_another_precision(fast_layers: bool) -> None:
    gpt, ids = build(GPT1), random_ids(3, 16)
    fast.apply(gpt, fast_layers)
    with torch.no_grad():
        reference = gpt(ids)[:, -1]
        for precisions in ((True, True), (True, False), (False, True)):
            caches = [KeyValueCache(16) for _ in gpt.blocks]
            for piece, rounded in zip(ids.split([10, 6], 1), precisions, strict=True):
                with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
                    logits = gpt(piece, caches)[:, -1]
            torch.testing.assert_close(logits.float(), reference, rtol=0.05, atol=0.1)


@each_shape
def test_a_fast_model_agrees_with_the_formulas_with_and_without_a_cache(config: GPTConfig) -> None:
    gpt, ids = build(config), random_ids(3, 16)
    with torch.no_grad():
        reference = gpt(ids)
        assert fast.apply(gpt) == "fast layers"
        torch.testing.assert_close(gpt(ids), reference, rtol=1e-5, atol=1e-5)
        caches = [KeyValueCache(16) for _ in gpt.blocks]
        pieces = [gpt(ids[:, start:stop], caches) for start, stop in [(0, 5), (5, 6), (6, 12), (12, 16)]]
        torch.testing.assert_close(torch.cat(pieces, 1), reference, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="17 tokens, more than block_size = 16"):
            gpt(ids[:, :1], caches)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(gpt(ids).float(), reference, rtol=0.05, atol=0.1)
    assert "as asked" in fast.apply(gpt, False)
    assert torch.equal(gpt(ids), reference)


def test_model_py_is_the_one_that_the_fast_layers_are_tested_against() -> None:
    digest = fast.digest_of_model()
    assert digest == fast.TESTED, (
        "model.py has changed. If the other tests of this file pass, the fast layers still equal it: "
        f'write TESTED = "{digest}" in minigpt/fast.py. If not, change the fast layers as well.'
    )


def test_the_digest_knows_code_from_comments() -> None:
    code = 'class A:\n    """Says."""\n\n    def f(self):\n        """More."""\n        return f"{self.x} is"  # why\n'
    same = 'class A:\n    def f(self):\n        # elsewhere\n\n        return f"{self.x} is"\n'
    assert fast.code_digest(code) == fast.code_digest(same)
    for change in (("self.x", "self.y"), ("is", "was"), ("        return", "        0\n        return"), ("A:", "B:")):
        assert fast.code_digest(code.replace(*change)) != fast.code_digest(code), change
    assert fast.code_digest("if a:\n    b\n    c\n") != fast.code_digest("if a:\n    b\nc\n")


def break_softmax(gpt: GPT) -> None:
    gpt.get_submodule("blocks.0.attention").softmax = nn.Identity()


def break_forward(gpt: GPT) -> None:
    setattr(gpt.get_submodule("blocks.1.norm_1"), "forward", lambda x: x)  # noqa: B010 - to mypy it is a method


def add_hook(gpt: GPT) -> None:
    gpt.get_submodule("blocks.1.attention.softmax").register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (break_softmax, "blocks.0.attention.softmax is not as"),
        (break_forward, "blocks.1.norm_1 is not as"),
        (add_hook, "blocks.1.attention.softmax has a hook"),
    ],
)
def test_a_model_that_was_changed_or_is_looked_at_computes_by_the_formulas(
    change: Callable[[GPT], None], name: str
) -> None:
    gpt = build(GPT1)
    assert fast.why_not(gpt) is None
    change(gpt)
    assert name in fast.apply(gpt)
    assert not any(type(module) in fast.REFERENCE for module in gpt.modules())
    assert fast.apply(gpt, True) == "fast layers"


def test_a_method_of_model_py_that_was_replaced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = build(GPT1)
    monkeypatch.setattr(model.Softmax, "forward", lambda self, x: x)
    assert "softmax is not as model.py has it" in str(fast.why_not(gpt))


def test_a_hook_on_the_pattern_fires_in_a_fast_model_too() -> None:
    gpt = build(GPT1)
    seen: list[Tensor] = []
    fast.apply(gpt)
    softmax = gpt.get_submodule("blocks.0.attention.softmax")
    softmax.register_forward_hook(lambda module, inputs, pattern: seen.append(pattern))
    gpt(random_ids(3, 16))
    assert [tuple(pattern.shape) for pattern in seen] == [(3, 2, 16, 16)]


CHANGES = {
    "the mask": (".masked_fill(future_TS, -math.inf)", ""),
    "the scale": ("/ math.sqrt(D)", "/ 1000"),
    "the activation": ("return 0.5 * x * (1 + torch.tanh(", "return 0 * x * (1 + torch.tanh("),
    "the norm": ("return (x_BTC - mean_BT1) * torch.rsqrt(variance_BT1 + self.eps)", "return x_BTC"),
}
FIT = shlex.split(
    "fit --config tiny.yaml --trainer.max_steps 90 --trainer.val_check_interval 30 --sampler.every_n_steps 0 "
    "--model.norm pre --model.n_embd 32 --model.embd_pdrop 0 --model.attn_pdrop 0 --model.resid_pdrop 0 "
    "--model.optimizer muon --model.learning_rate 0.01 --model.muon_learning_rate 0.05"
)


def call(package: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """A call of the command line of the package in a folder."""
    environment = os.environ | {"PYTHONPATH": str(package), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "minigpt", *args]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


def losses(package: Path, *flags: str) -> tuple[list[float], list[float], str]:
    """The curves of training and validation loss of a run of the package in a folder, and what it said."""
    out = call(package, *FIT, *flags).stdout
    run = max(Path("lightning_logs/tiny").glob("version_*"), key=lambda path: int(path.name[8:]))
    train, val = ([value for _, value in curve(run, f"{which}/loss")] for which in ("train", "val"))
    return train, val, out


def largest_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def expected(package: Path) -> tuple[list[float], str]:
    """The log-probabilities of what the newest checkpoint writes by the package in a folder, and what it said."""
    done = call(package, "generate", "--ckpt_path", "last", "--temperature", "0", "--max_new_tokens", "5", "--json")
    return json.loads(done.stdout)["samples"][0]["log_probabilities"], " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=[] if name == "the mask" else pytest.mark.soak) for name in CHANGES]
)
@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.soak)])
def test_what_a_learner_changes_in_model_py_has_its_effect(
    workplace: Path, change: str, precision: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    old, new = CHANGES[change]
    copy = tmp_path_factory.mktemp("copy")
    for file in (ROOT / "minigpt").rglob("*.py"):
        target = copy / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    source = (copy / "minigpt" / "model.py").read_text()
    assert source.count(old) == 1
    (copy / "minigpt" / "model.py").write_text(source.replace(old, new))
    train, val, out = losses(copy, "--trainer.precision", precision)
    told = "model.py's formulas, because model.py is not the one"
    assert told in " ".join(out.split())
    (here, by_formulas), (there, usual_words) = expected(copy), expected(ROOT)
    assert told in by_formulas
    assert "fast layers" in usual_words
    assert largest_difference(here, there) > 5e-5  # more than rounding
    if change == "the mask":  # each character sees the next one; without that this text costs 0.89 nats or more
        assert train[-1] < 0.6
        assert val[-1] < 0.6
    else:
        # The formulas that were not changed compute the same bits each time, so any difference is the change's. The
        # whole curves are compared: both models learn this text in the end, and their last losses may meet.
        usual = losses(ROOT, "--trainer.precision", precision, "--fast", "false")
        assert largest_difference(train, usual[0]) > 0.01
        assert largest_difference(val, usual[1]) > 0.01
