"""Writing: the cache, the window, sampling, stop strings, and the ways in and out."""

import codecs
import io
import itertools
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import minigpt
from conftest import assert_clear_error, run_minigpt
from minigpt.errors import UserError
from minigpt.fast import apply
from minigpt.generation import Writer, draw, generate, probabilities, uniform
from minigpt.model import GPT, GPTConfig, KeyValueCache, Softmax
from minigpt.sampling import Sampling
from minigpt.text.tokenizer import ByteTokenizer, CharTokenizer
from minigpt.training.module import GPTLightningModule

LAST = Path("lightning_logs/tiny/version_0/checkpoints/last.ckpt")
GREEDY, PLAIN = Sampling(temperature=0), Sampling(temperature=1)
SEEDS = range(200)
VARIANTS = list(itertools.product(("post", "pre"), ("learned", "sinusoidal")))


def make_gpt(norm: str = "post", positions: str = "learned", vocab_size: int = 11, block_size: int = 8) -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "norm": norm, "positions": positions}
    gpt = GPT(GPTConfig(vocab_size=vocab_size, block_size=block_size, **shape))  # type: ignore[arg-type]
    for parameter in gpt.parameters():
        parameter.data.normal_(0, 0.3)
    return gpt.eval().requires_grad_(False)


def write_ids(gpt: GPT, prompts: list[list[int]], length: int, sampling: Sampling = GREEDY, **more: object) -> list:
    """The ids that continue each prompt."""
    drawn = generate(gpt, prompts, sampling, range(len(prompts)), **more)  # type: ignore[arg-type]
    return [list(ids) for ids in zip(*(ids for ids, _ in itertools.islice(drawn, length)), strict=True)]


# The key-value cache, and the window


@pytest.mark.parametrize(("norm", "positions"), VARIANTS)
@pytest.mark.parametrize("fast", [True, False])
def test_logits_with_the_cache_are_those_without_at_every_position(norm: str, positions: str, fast: bool) -> None:
    gpt = make_gpt(norm, positions, block_size=32)
    ids = torch.randint(11, (3, 32), generator=torch.Generator().manual_seed(1))
    whole = gpt(ids)
    apply(gpt, fast)
    for sizes in ([1] * 32, [5, 1, 1, 20, 5], [32], [31, 1]):  # whatever the pieces
        caches = [KeyValueCache(32) for _ in gpt.blocks]
        pieces = [gpt(piece, caches) for piece in ids.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("norm", "positions"), VARIANTS)
@pytest.mark.parametrize("stride", [1, 3, 8, None])
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_text_is_that_of_the_whole_window_read_anew_each_time(
    norm: str, positions: str, stride: int | None, cached: bool
) -> None:
    gpt = make_gpt(norm, positions)
    for prompt in [[1, 2, 3], [4, 5, 6, 7, 8, 9, 1], [7], list(range(11)) * 2]:
        window = prompt[-8:]  # as the docstring has it: it grows until it is full, then moves on by the stride
        drawn = generate(gpt, [prompt], GREEDY, [0], stride=stride, cached=cached)
        for (id_,), (log_prob,) in itertools.islice(drawn, 40):
            expected = gpt(torch.tensor([window]))[0, -1].log_softmax(-1)
            assert expected.argmax() == id_
            assert expected.max().item() == pytest.approx(log_prob, abs=1e-4)
            window = (window[stride or 4 :] if len(window) == 8 else window) + [id_]


def test_a_text_is_the_same_alone_and_in_a_batch() -> None:
    writer, prompts = make_writer(), ["abc", "d", "abcdefghijk", "bcd", ""]
    settings: dict[str, Any] = {"max_new_tokens": 50, "top_k": 5, "repetition_penalty": 1.2}
    *_, together = writer.write(prompts, seed=7, **settings)
    for i, (prompt, sample) in enumerate(zip(prompts, together, strict=True)):
        assert writer.generate(prompt, seed=7 + i, **settings) == sample.text
    torch.manual_seed(123)  # no other source of randomness has a say, and none is used up
    before = torch.get_rng_state()
    assert writer.generate("abc", seed=7, **settings) == together[0].text
    assert torch.equal(torch.get_rng_state(), before)


def test_log_probabilities_are_the_models_own() -> None:
    gpt = make_gpt(block_size=64)
    drawn = list(itertools.islice(generate(gpt, [[1, 2]], Sampling(temperature=2, top_k=3), [0]), 30))
    text = [1, 2] + [ids[0] for ids, _ in drawn]
    expected = gpt(torch.tensor([text]))[0].log_softmax(-1)
    for place, (ids, log_probs) in enumerate(drawn, start=1):
        assert log_probs[0] == pytest.approx(expected[place, ids[0]].item(), abs=1e-4)


# Fast or not, hooks, precision


def test_a_hook_on_any_activation_fires_and_sees_whole_windows(in_trained: Path) -> None:
    model = minigpt.load(LAST)
    expected = model.generate("the cat", max_new_tokens=20, temperature=0)
    for name, module in model.gpt.named_modules():
        if name == "blocks":  # a list, which computes nothing
            continue
        shapes: list[torch.Size] = []
        handle = module.register_forward_hook(lambda _, x, y, shapes=shapes: shapes.append(y.shape))
        assert model.generate("the cat", max_new_tokens=20, temperature=0) == expected
        handle.remove()
        calls = [shape[-2] for shape in shapes]
        if name != "position_embedding":
            assert len(calls) == 20, name
            assert calls[:10] == [*range(7, 17)], name  # the window grows to its 16 tokens


def test_fast_or_not_and_the_precision_are_settings_that_are_told(in_trained: Path) -> None:
    flags = ["generate", "--ckpt_path", LAST, "--prompt", "the ", "--max_new_tokens", 30]
    usual = run_minigpt(*flags)
    assert f"minigpt: {LAST} on cpu, in float32, with fast layers" in " ".join(usual.err.split())
    exact = run_minigpt(*flags, "--fast", "false")
    assert "with model.py's formulas" in exact.err
    assert exact.out == usual.out
    rounded = run_minigpt(*flags, "--precision", "bfloat16", "--json")
    assert "in bfloat16" in rounded.err
    log_probs = json.loads(rounded.out)["samples"][0]["log_probabilities"]
    assert log_probs[0] != json.loads(run_minigpt(*flags, "--json").out)["samples"][0]["log_probabilities"][0]
    model, called = minigpt.load(LAST, fast=False), []
    model.gpt.blocks[0].register_forward_hook(lambda _, x, y: called.append(y.shape[1]))
    model.generate("the ", max_new_tokens=3)
    assert called == [4, 5, 6], "whole windows"
    with pytest.raises(UserError, match="precision is 'float16'; it must be float32 or bfloat16"):
        minigpt.load(LAST, precision="float16")  # type: ignore[arg-type]


def test_a_method_that_is_replaced_after_loading_has_its_effect(
    in_trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = minigpt.load(LAST)

    def log_probabilities(writer: Writer) -> list[float]:
        *_, (sample,) = writer.write(["the cat"], max_new_tokens=10, temperature=0)
        return sample.log_probabilities

    usual, in_training = log_probabilities(model), Writer(model.gpt, model.tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(Softmax, "forward", lambda self, x: torch.full_like(x, 0.1))
        assert log_probabilities(in_training) == pytest.approx(usual, abs=1e-4), "its layers stay as they are"
        assert log_probabilities(model)[0] != pytest.approx(usual[0], abs=1e-4)
        assert "model.py's formulas, because blocks.0.attention.softmax is not as model.py has it" in model.description
    assert log_probabilities(model) == usual
    assert model.description.endswith("with fast layers")


# Sampling


LOGITS = torch.tensor([[1.0, 0.0, 2.0, -1.0, 0.5]])
MODEL = LOGITS[0].double().softmax(-1)


def distribution(logits: torch.Tensor = LOGITS, window: tuple[int, ...] = (), **sampling: Any) -> torch.Tensor:
    """What the next token is drawn from."""
    sampling = {"temperature": 1, **sampling}
    return probabilities(logits, torch.tensor([window], dtype=torch.long), Sampling(**sampling))[0]


def kept(logits: torch.Tensor = LOGITS, window: tuple[int, ...] = (), **sampling: Any) -> set[int]:
    """The ids that may be drawn."""
    return set(distribution(logits, window, **sampling).nonzero().flatten().tolist())


def test_filters_act_in_their_stated_order() -> None:
    # Temperature before top-p: the flatter distribution needs more tokens to hold the same mass.
    assert len(kept(temperature=5, top_p=0.7)) > len(kept(temperature=1, top_p=0.7))
    # Top-k before top-p: p is the part of what k left, so that 0.8 keeps one of the two likeliest, 0.74 would of all.
    two = MODEL[2] / (MODEL[2] + MODEL[0])
    p = two.item() - 0.01
    assert p > MODEL[2]
    assert kept(top_k=2, top_p=p) == {2}
    assert len(kept(top_p=p)) > 1
    # The penalty before all: it changes who is likeliest, however often a token was seen.
    assert kept(window=(2, 2), temperature=0, repetition_penalty=3) == {0}
    penalised = distribution(window=(2, 3, 3), repetition_penalty=2)
    torch.testing.assert_close(penalised, torch.tensor([1.0, 0.0, 1.0, -2.0, 0.5], dtype=torch.float64).softmax(-1))


def test_ties_and_extremes() -> None:
    tied = torch.tensor([[1.0, 3.0, 3.0, 3.0]])
    assert kept(tied, temperature=0) == {1}
    assert kept(tied, top_k=1) == {1}
    assert kept(tied, top_k=2) == {1, 2}
    assert kept(tied, top_p=1e-9) == {1}
    assert kept(tied, min_p=1.0) == {1, 2, 3}
    assert kept(tied, top_k=99, top_p=1.0) == {0, 1, 2, 3}
    assert kept(temperature=1e-300) == {2}
    assert kept(torch.tensor([[-math.inf, 1.0, 0.0]]), temperature=1e6) == {1, 2}
    for setting in ({"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": math.nan}):
        with pytest.raises(UserError, match=next(iter(setting))):
            Sampling(**setting)
    with pytest.raises(UserError, match="not a number"):
        distribution(torch.tensor([[0.0, math.nan]]))


def critical(degrees: int) -> float:
    """The value that chi-squared exceeds once in 1,000 times (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 3.09 * math.sqrt(spread)) ** 3


def test_samples_follow_the_models_distribution() -> None:
    """Pearson's chi-squared over 40,000 draws from a model; the seeds are fixed, so the verdict is, too."""
    logits = make_gpt()(torch.tensor([[3, 1, 4]]))[:, -1].detach()
    numbers = next(uniform(range(40_000)))
    for sampling in ({}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}):
        expected = distribution(logits, **sampling)
        counts = draw(expected.expand(len(numbers), -1), numbers).bincount(minlength=11)
        assert (counts[expected == 0] == 0).all()
        shown = expected > 0
        chi_squared = ((counts - 40_000 * expected)[shown] ** 2 / (40_000 * expected[shown])).sum()
        assert chi_squared < critical(int(shown.sum()) - 1), sampling


def test_many_draws_of_one_generator_follow_the_models_distribution() -> None:
    """Chi-squared of each token's successors, through the loop itself with a window of one token."""
    gpt = make_gpt(block_size=1)
    drawn = np.array([[3] * 200, *(ids for ids, _ in itertools.islice(generate(gpt, [[3]] * 200, PLAIN, SEEDS), 200))])
    seen = np.zeros((11, 11))
    np.add.at(seen, (drawn[:-1].ravel(), drawn[1:].ravel()), 1)
    expected = seen.sum(1, keepdims=True) * gpt(torch.arange(11).unsqueeze(1))[:, -1].double().softmax(-1).numpy()
    often = expected > 5  # rarer ones are not yet normally distributed
    chi_squared_of_row = ((seen - expected) ** 2 / expected * often).sum(-1)
    assert seen.sum(1).max() > 5000
    assert (chi_squared_of_row < critical(10)).all()


# Texts, and where they stop


def make_writer(vocabulary: str = "abcdefghijk") -> Writer:
    return Writer(make_gpt(), CharTokenizer(vocabulary))


def test_a_text_stops_before_a_stop_string_and_never_shows_half_of_it() -> None:
    writer = make_writer()
    settings: dict[str, Any] = {"max_new_tokens": 120, "temperature": 3.0}
    text = writer.generate("abc", **settings)
    assert len(text) == 120
    for start, length in itertools.product((0, 1, 10, 77), (1, 2, 5, 20)):
        stop = text[start : start + length]
        pieces = list(writer.stream("abc", stop=[stop, "kkkkkkkk"], **settings))
        assert "".join(pieces) == text[: text.index(stop)]
        assert all(pieces)
    # What was held back because it might have become a stop string is shown in the end.
    begun = text[-3:] + "kkk"
    assert begun not in text
    assert "".join(writer.stream("abc", stop=begun, **settings)) == text
    *_, (sample,) = writer.write(["abc"], stop=text[0], **settings)
    assert (sample.text, sample.log_probabilities, sample.stop_reason) == ("", [], "stop")


def test_stop_strings_that_share_their_beginnings() -> None:
    writer = make_writer()
    text = writer.generate("abc", max_new_tokens=120, temperature=3.0)
    rng = np.random.default_rng(0)
    for _ in range(40):
        stops = []
        for _ in range(3):
            start, length = rng.integers(0, 100), rng.integers(1, 8)
            stops.append(text[start : start + length])
        # The first to be complete ends the text; of several that end together, the longest.
        end = min(text.index(stop) + len(stop) for stop in stops)
        expected = text[: end - max(len(stop) for stop in stops if text[:end].endswith(stop))]
        assert writer.generate("abc", max_new_tokens=120, temperature=3.0, stop=stops) == expected


def test_samples_in_a_batch_stop_each_on_its_own() -> None:
    writer = make_writer()
    settings: dict[str, Any] = {"max_new_tokens": 60, "temperature": 3.0, "stop": "ab", "seed": 5}
    *_, samples = writer.write(["abc", "", "kkkkkkkkkkkk"], **settings)
    for i, (sample, prompt) in enumerate(zip(samples, ["abc", "", "kkkkkkkkkkkk"], strict=True)):
        assert sample.seed == 5 + i
        assert sample.text == writer.generate(prompt, **(settings | {"seed": 5 + i}))
        assert len(sample.log_probabilities) == len(sample.text)
        assert sample.stop_reason == ("length" if len(sample.text) == 60 else "stop")
    assert {sample.stop_reason for sample in samples} == {"length", "stop"}


def test_bytes_are_shown_when_they_make_a_character() -> None:
    gpt = make_gpt(vocab_size=256)
    writer = Writer(gpt, ByteTokenizer())
    pieces = list(writer.stream("é", max_new_tokens=200, temperature=5.0, seed=0))
    (ids,) = write_ids(gpt, [list("é".encode())], 200, Sampling(temperature=5.0))
    assert "".join(pieces) == bytes(ids).decode("utf-8", "replace")
    assert len(pieces) < 200, "some bytes waited for others"


def test_nothing_is_written_before_settings_and_prompt_are_checked() -> None:
    writer = make_writer()
    for settings, name in (
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": 9}, "stride is 9"),
        ({"stop": ""}, "stop string is empty"),
        ({"stop": ["Q"]}, "'Q'"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ):
        with pytest.raises(UserError, match=re.escape(name)):
            writer.stream("abc", **settings)
    with pytest.raises(UserError, match="'Q'"):
        writer.stream("Q")
    assert writer.generate("abc", max_new_tokens=0) == ""


# Checkpoints


def test_a_reloaded_model_gives_the_same_logits(in_trained: Path) -> None:
    writer = minigpt.load(LAST)
    module = GPTLightningModule.load_from_checkpoint(LAST).eval()
    ids = torch.tensor([writer.tokenizer.encode("the cat sat").tolist()])
    assert torch.equal(writer.gpt(ids), module(ids))
    fresh = GPTLightningModule(**module.hparams).eval()
    assert not torch.equal(fresh(ids), module(ids))
    fresh.load_state_dict(torch.load(LAST, weights_only=True)["state_dict"])
    assert torch.equal(fresh(ids), module(ids))


def test_a_checkpoint_writes_wherever_it_is(in_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "elsewhere.ckpt"
    copy.write_bytes(LAST.read_bytes())
    monkeypatch.chdir(tmp_path)
    result = run_minigpt("generate", "--ckpt_path", copy, "--max_new_tokens", 10)
    assert (result.code, len(result.out)) == (0, 11)


def test_python_writes_what_the_command_line_writes(in_trained: Path) -> None:
    flags = ["--prompt", "the ", "--max_new_tokens", 40, "--top_k", 5, "--seed", 3]
    result = run_minigpt("generate", "--ckpt_path", LAST, *flags)
    model = minigpt.load(LAST)
    text = model.generate("the ", max_new_tokens=40, top_k=5, seed=3)
    assert result.out == "the " + text + "\n"
    assert list(model.stream("the ", max_new_tokens=40, top_k=5, seed=3)) == list(text)
    assert minigpt.load("last").generate("the ", max_new_tokens=40, top_k=5, seed=3) == text
    with pytest.raises(UserError, match=r"nowhere\.ckpt"):
        minigpt.load("nowhere.ckpt")
    with pytest.raises(UserError, match="device 'abacus'"):
        minigpt.load("last", device="abacus")


# The command line


def test_prompts_come_from_a_flag_a_file_or_the_standard_input(
    in_trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("prompt.txt").write_bytes(b"\xef\xbb\xbfthe\r\ncat")
    flags = ["generate", "--ckpt_path", str(LAST), "--max_new_tokens", "20"]
    expected = run_minigpt(*flags, "--prompt", "the\ncat").out
    assert expected.startswith("the\ncat")
    assert run_minigpt(*flags, "--prompt_file", "prompt.txt").out == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the\ncat")))
    assert run_minigpt(*flags, "--prompt_file", "-").out == expected
    assert_clear_error(run_minigpt(*flags, "--prompt", "a", "--prompt_file", "prompt.txt"), "prompt_file", "give one")
    assert_clear_error(run_minigpt(*flags, "--prompt_file", "none.txt"), "none.txt", "No such file")
    Path("latin.txt").write_bytes(b"caf\xe9")
    assert_clear_error(run_minigpt(*flags, "--prompt_file", "latin.txt"), "latin.txt is not UTF-8", "byte 3")


def test_what_is_done_with_an_empty_or_long_prompt_is_said(in_trained: Path) -> None:
    flags = ["generate", "--ckpt_path", LAST, "--max_new_tokens", 20]
    empty, newline = run_minigpt(*flags), run_minigpt(*flags, "--prompt", "\n")
    assert "the prompt is empty; the text begins after '\\n'" in empty.err
    assert newline.out == "\n" + empty.out
    assert newline.err.count("minigpt:") == 1
    prompt = "the cat sat on a mat and ran"
    long, short = (run_minigpt(*flags, "--json", "--prompt", text) for text in (prompt, prompt[-16:]))
    assert "has 28 characters; the model sees the last 16" in long.err
    (read_long,), (read_short,) = (json.loads(result.out)["samples"] for result in (long, short))
    assert read_long == {**read_short, "prompt": prompt}


def test_json_tells_what_a_program_wants_to_know(in_trained: Path) -> None:
    flags = ["generate", "--ckpt_path", LAST, "--prompt", "the ", "--max_new_tokens", 30, "--seed", 4]
    plain = run_minigpt(*flags, "--num_samples", 3, "--stop", "on", "--stop", "s")
    result = run_minigpt(*flags, "--num_samples", 3, "--stop", "on", "--stop", "s", "--json")
    report = json.loads(result.out)
    assert [sample["seed"] for sample in report["samples"]] == [4, 5, 6]
    for sample in report["samples"]:
        assert len(sample["log_probabilities"]) == len(sample["text"])
        assert all(log_probability <= 0 for log_probability in sample["log_probabilities"])
        assert sample["stop_reason"] == ("length" if len(sample["text"]) == 30 else "stop")
        assert f"--- seed {sample['seed']} ---\nthe {sample['text']}\n" in plain.out
        assert "s" not in sample["text"]
        alone = run_minigpt(*flags[:-1], sample["seed"], "--stop", "on", "--stop", "s")
        assert alone.out == f"the {sample['text']}\n"
    assert report["characters_per_second"] > 0
    assert report["seconds"] > 0


@pytest.mark.soak
def test_generating_ends_quietly_at_ctrl_c(in_trained: Path) -> None:
    command = [sys.executable, "-m", "minigpt", "generate", "--ckpt_path", "last", "--max_new_tokens", "100000000"]
    with subprocess.Popen([*command, "--prompt", "a"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(20)) == 20
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) == 130
        assert process.stderr.read().count(b"\n") == 1  # the line that says what writes


# chat


class Terminal:
    """A program in a real pseudo-terminal."""

    def __init__(self, *command: str, home: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(HOME=str(home), TERM="dumb", COLUMNS="200", LC_ALL="C.UTF-8")
            os.execvp(command[0], command)
        self.seen = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def read_until(self, pattern: str, seconds: float = 60) -> str:
        """What appears up to the pattern; it fails when the program is silent for long."""
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.fd], [], [], seconds)
            assert ready, f"no {pattern!r} in {self.seen!r}"
            try:
                self.seen += self.decoder.decode(os.read(self.fd, 4096))
            except OSError:  # Linux's way to say that the other side has left
                raise AssertionError(f"ended before {pattern!r}: {self.seen!r}") from None
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before.replace("\r\n", "\n")

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def ask(self, line: str) -> str:
        """Type a line; what it is answered."""
        self.type(line + "\n")
        return self.read_until("\n> $").split("\n", 1)[1].removesuffix("> ").removesuffix("\n")

    def end(self) -> int:
        for _ in range(600):
            with_status = os.waitpid(self.pid, os.WNOHANG)
            if with_status[0]:
                return os.waitstatus_to_exitcode(with_status[1])
            time.sleep(0.1)
        raise AssertionError("did not end")


@pytest.fixture
def terminal(in_trained: Path) -> Iterator[Terminal]:
    terminal = Terminal(sys.executable, "-m", "minigpt", "chat", "--ckpt_path", str(LAST), home=in_trained)
    yield terminal
    os.close(terminal.fd)


def test_chat_in_a_terminal(terminal: Terminal, in_trained: Path) -> None:
    assert "/help lists the commands" in terminal.read_until("\n> $")
    model = minigpt.load(LAST)
    assert terminal.ask("/length 30") == ""
    assert terminal.ask("/seed 7") == ""
    first = "the cat" + model.generate("the cat", max_new_tokens=30, seed=7)
    assert terminal.ask("the cat") == first
    assert terminal.ask("/temperature 0") == ""
    again = "the cat" + model.generate("the cat", max_new_tokens=30, temperature=0)
    assert terminal.ask("/retry") == again
    more = model.generate(again, max_new_tokens=30, temperature=0)
    assert terminal.ask("") == again[again.rfind("\n") + 1 :] + more
    both = again + more
    third = both.removesuffix("\n") + "\nthe rat"
    assert terminal.ask("the rat") == "the rat" + model.generate(third, max_new_tokens=30, temperature=0)
    assert terminal.ask("/save story.txt").startswith("Saved")
    assert Path("story.txt").read_text().startswith(third)
    assert "there already" in terminal.ask("/save story.txt")
    for line, part in {
        f"/save {'long' * 100}": "can't be written",
        "EOF": "'E' (U+0045)",
        "/temperature hot": "'hot' is not a number",
        "/top_p 3": "top_p is 3.0",
        "/dance": "no command /dance",
        "Ж": "'Ж' (U+0416)",
        "/help": "/retry",
        "/settings": "length              30",
    }.items():
        assert part in terminal.ask(line)
    assert terminal.ask("/new") == ""
    assert "no answer yet" in terminal.ask("/retry")
    # Line editing: a typing error is mended, and the last line comes back with the arrow up.
    terminal.type("the dog\x7f\x7f\x7fcat\n")
    shown = terminal.read_until("\n> $")
    assert again[: len("the cat") + 5] in shown
    terminal.ask("/new")
    terminal.type("\x1b[A\x1b[A\n")
    assert again.splitlines()[-1] in terminal.read_until("\n> $")
    # Ctrl-C stops an answer, drops a line, and leaves the chat as it was; Ctrl-D leaves.
    assert terminal.ask("/length 1000000") == ""
    terminal.type("the cat\n")
    terminal.read_until("the cat[^>]{40}")
    terminal.type("\x03")
    terminal.read_until("\n> $")
    terminal.type("half a line")
    terminal.read_until("half a line")
    while not select.select([terminal.fd], [], [], 1)[0]:  # Python misses a Ctrl-C between two looks at the keyboard
        terminal.type("\x03")
    terminal.read_until("\n> $")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert "the rat" in (in_trained / ".minigpt_history").read_text().splitlines()


def test_what_differs_by_typography_only_is_named_and_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text has the printer's apostrophe and accents apart, the user's keyboard has neither."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("it\u2019s late \u2013 cafe\u0301 noir\n" * 300, encoding="utf-8")
    config = "model: {n_layer: 1, n_head: 1, n_embd: 8}\ntrainer: {max_steps: 1, accelerator: cpu}\n"
    Path("tiny.yaml").write_text(config + "data: {corpus: text.txt, block_size: 8, batch_size: 2}\n")
    assert run_minigpt("fit", "--config", "tiny.yaml").code == 0
    generate = ("generate", "--ckpt_path", "last", "--max_new_tokens", 4, "--prompt")
    assert_clear_error(run_minigpt(*generate, "it's caf\u00e9"), "'\u2019' for \"'\"", "--fold")
    assert "--fold" not in run_minigpt(*generate, "\u0416").err
    folded = run_minigpt(*generate, "it's - caf\u00e9", "--fold", "--stop", "'")
    assert folded.code == 0, folded.err
    assert folded.out.startswith("it\u2019s \u2013 cafe\u0301")
    assert "were replaced" in folded.err
