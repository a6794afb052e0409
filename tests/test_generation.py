"""Writing: the cache, the window, sampling, stop strings, and the ways in and out."""

import codecs
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
from minigpt.generation import RowLinear, Sampling, Writer, draw, generate, quicken
from minigpt.model import GPT, GPTConfig
from minigpt.run import load_gpt
from minigpt.text.tokenizer import ByteTokenizer, CharTokenizer
from minigpt.training.module import GPTLightningModule

LAST = Path("lightning_logs/tiny/version_0/checkpoints/last.ckpt")
GREEDY = Sampling(temperature=0)
VARIANTS = list(itertools.product(("post", "pre"), ("learned", "sinusoidal")))


def make_gpt(norm: str = "post", positions: str = "learned", vocab_size: int = 11, block_size: int = 8) -> GPT:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "norm": norm, "positions": positions}
    gpt = GPT(GPTConfig(vocab_size=vocab_size, block_size=block_size, **shape))  # type: ignore[arg-type]
    for parameter in gpt.parameters():
        parameter.data.normal_(0, 0.3)
    return gpt.eval()


def write_ids(gpt: GPT, prompts: list[list[int]], length: int, sampling: Sampling = GREEDY, **more: object) -> list:
    """The ids that continue each prompt."""
    drawn = generate(gpt, prompts, sampling, range(len(prompts)), **more)  # type: ignore[arg-type]
    return [list(ids) for ids in zip(*(ids for ids, _ in itertools.islice(drawn, length)), strict=True)]


# The key-value cache


@pytest.mark.parametrize(("norm", "positions"), VARIANTS)
@pytest.mark.parametrize("fused", [True, False])
def test_logits_with_the_cache_are_those_without_at_every_position(norm: str, positions: str, fused: bool) -> None:
    gpt = make_gpt(norm, positions, block_size=32)
    for module in gpt.modules():
        if hasattr(module, "fused"):
            setattr(module, "fused", fused)  # noqa: B010 - mypy takes it for a tensor
    ids = torch.randint(11, (3, 32), generator=torch.Generator().manual_seed(1))
    whole = gpt(ids)
    # Whatever the pieces.
    for sizes in ([1] * 32, [5, 1, 1, 20, 5], [32], [31, 1]):
        cache = gpt.make_cache(3)
        pieces = [gpt(piece, cache) for piece in ids.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=2e-5, rtol=1e-5)
    # Prompts of different lengths, filled up at the end: the filling is taken back.
    lengths, cache = [4, 9, 1], gpt.make_cache(3)
    padded = torch.zeros(3, 9, dtype=torch.long)
    for b, length in enumerate(lengths):
        padded[b, :length] = ids[b, :length]
    first = gpt(padded, cache)
    cache.lengths = list(lengths)
    for b, length in enumerate(lengths):
        torch.testing.assert_close(first[b, :length], whole[b, :length], atol=2e-5, rtol=1e-5)
    for step in range(20):
        logits = gpt(torch.stack([ids[b, n + step] for b, n in enumerate(lengths)]).unsqueeze(1), cache)
        expected = torch.stack([whole[b, n + step] for b, n in enumerate(lengths)]).unsqueeze(1)
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("norm", "positions"), VARIANTS)
@pytest.mark.parametrize("stride", [1, 3, 8, None])
def test_greedy_text_is_that_of_the_whole_window_read_anew_each_time(
    norm: str, positions: str, stride: int | None
) -> None:
    gpt, prompts = make_gpt(norm, positions), [[1, 2, 3], [4, 5, 6, 7, 8, 9, 1], [7], list(range(11)) * 2]
    written = write_ids(gpt, prompts, 40, stride=stride)
    for prompt, ids in zip(prompts, written, strict=True):
        window = prompt[-8:]  # as the docstring has it: it grows until it is full, then moves on by the stride
        for id_ in ids:
            assert gpt(torch.tensor([window]))[0, -1].argmax() == id_
            window = (window[stride or 4 :] if len(window) == 8 else window) + [id_]
    if stride == 1:  # the sliding window that every simple implementation recomputes
        text = list(prompts[1])
        for id_ in written[1]:
            assert gpt(torch.tensor([text[-8:]]))[0, -1].argmax() == id_
            text.append(id_)


def test_a_text_is_the_same_alone_and_in_a_batch() -> None:
    gpt, sampling = make_gpt(), Sampling(top_k=5, repetition_penalty=1.2)
    prompts = [[1, 2, 3], [4], list(range(11))]
    together = write_ids(gpt, prompts, 50, sampling)
    for seed, prompt in enumerate(prompts):
        drawn = generate(gpt, [prompt], sampling, [seed])
        assert [ids[0] for ids, _ in itertools.islice(drawn, 50)] == together[seed]
    torch.manual_seed(123)  # no other source of randomness has a say, and none is used up
    before = torch.get_rng_state()
    assert write_ids(gpt, prompts, 50, sampling) == together
    assert torch.equal(torch.get_rng_state(), before)


def test_log_probabilities_are_the_models_own() -> None:
    gpt = make_gpt(block_size=64)
    drawn = list(itertools.islice(generate(gpt, [[1, 2]], Sampling(temperature=2, top_k=3), [0]), 30))
    text = [1, 2] + [ids[0] for ids, _ in drawn]
    expected = gpt(torch.tensor([text]))[0].log_softmax(-1)
    for place, (ids, log_probs) in enumerate(drawn, start=1):
        assert log_probs[0] == pytest.approx(expected[place, ids[0]].item(), abs=1e-4)


def test_quick_linear_maps_compute_the_same() -> None:
    torch.manual_seed(0)
    slow = torch.nn.Linear(384, 1536)
    fast = RowLinear(384, 1536)
    fast.load_state_dict(slow.state_dict())
    with torch.inference_mode():
        for shape in [(1, 1, 384), (4, 1, 384), (384,), (1, 4, 384), (2, 30, 384)]:
            x = torch.randn(shape)
            torch.testing.assert_close(fast(x), slow(x))
    gpt = make_gpt()
    names = list(gpt.state_dict())
    assert sum(isinstance(module, RowLinear) for module in quicken(gpt).modules()) == 8
    assert list(gpt.state_dict()) == names


# Sampling


LOGITS = torch.tensor([[1.0, 0.0, 2.0, -1.0, 0.5]])
MODEL = LOGITS[0].double().softmax(-1)


def kept(p: torch.Tensor) -> set[int]:
    """The ids that may be drawn."""
    return set(p[0].nonzero().flatten().tolist())


def test_each_filter_has_its_property() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        logits = torch.randn(1, 30, generator=generator) * 3
        model = logits[0].double().softmax(-1)
        sampling: dict[str, Any] = {}
        for name in ("top_k", "top_p", "min_p"):
            if torch.rand(1, generator=generator) < 0.5:
                uniform = 1 - torch.rand(1, generator=generator).item()
                sampling[name] = int(uniform * 39) + 1 if name == "top_k" else uniform
        probs = Sampling(**sampling).probabilities(logits, [[]])
        assert probs.sum().item() == pytest.approx(1, abs=1e-12)
        assert model.argmax().item() in kept(probs)
        inside = model[sorted(kept(probs))]
        assert inside.min() >= model.sort(descending=True).values[len(inside) - 1]  # the likeliest are kept
        torch.testing.assert_close(probs[0, sorted(kept(probs))], inside / inside.sum())
        if list(sampling) == ["top_k"]:
            assert len(inside) == min(sampling["top_k"], 30)
        if list(sampling) == ["top_p"]:
            assert inside.sum() >= sampling["top_p"] - 1e-12
            assert inside.sum() - inside.min() < sampling["top_p"]  # and no fewer would do
        if list(sampling) == ["min_p"]:
            assert kept(probs) == set((model >= sampling["min_p"] * model.max()).nonzero().flatten().tolist())


def test_filters_act_in_their_stated_order() -> None:
    # Temperature before top-p: the flatter distribution needs more tokens to hold the same mass.
    assert len(kept(Sampling(temperature=5, top_p=0.7).probabilities(LOGITS, [[]]))) > len(
        kept(Sampling(temperature=1, top_p=0.7).probabilities(LOGITS, [[]]))
    )
    # Top-k before top-p: p is the part of what k left, so that 0.8 keeps one of the two likeliest, 0.74 would of all.
    two = MODEL[2] / (MODEL[2] + MODEL[0])
    p = two.item() - 0.01
    assert p > MODEL[2]
    assert kept(Sampling(top_k=2, top_p=p).probabilities(LOGITS, [[]])) == {2}
    assert len(kept(Sampling(top_p=p).probabilities(LOGITS, [[]]))) > 1
    # The penalty before all: it changes who is likeliest.
    assert kept(Sampling(temperature=0, repetition_penalty=3).probabilities(LOGITS, [[2, 2]])) == {0}
    penalised = Sampling(repetition_penalty=2).probabilities(LOGITS, [[2, 3]])
    torch.testing.assert_close(penalised[0], torch.tensor([1.0, 0.0, 1.0, -2.0, 0.5], dtype=torch.float64).softmax(-1))


def test_ties_and_extremes() -> None:
    tied = torch.tensor([[1.0, 3.0, 3.0, 3.0]])
    assert kept(Sampling(temperature=0).probabilities(tied, [[]])) == {1}
    assert kept(Sampling(top_k=1).probabilities(tied, [[]])) == {1}
    assert kept(Sampling(top_k=2).probabilities(tied, [[]])) == {1, 2}
    assert kept(Sampling(top_p=1e-9).probabilities(tied, [[]])) == {1}
    assert kept(Sampling(min_p=1.0).probabilities(tied, [[]])) == {1, 2, 3}
    assert kept(Sampling(top_k=99, top_p=1.0).probabilities(tied, [[]])) == {0, 1, 2, 3}
    assert kept(Sampling(temperature=1e-300).probabilities(LOGITS, [[]])) == {2}
    never = torch.tensor([[-math.inf, 1.0, 0.0]])
    assert kept(Sampling(temperature=1e6).probabilities(never, [[]])) == {1, 2}
    for setting in ({"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": math.nan}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            Sampling(**setting)


def critical(degrees: int) -> float:
    """The value that chi-squared exceeds once in 1,000 times (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 3.09 * math.sqrt(spread)) ** 3


def test_samples_follow_the_models_distribution() -> None:
    """Pearson's chi-squared over 40,000 draws from a model; the seeds are fixed, so the verdict is, too."""
    gpt = make_gpt()
    probs = gpt(torch.tensor([[3, 1, 4]]))[0, -1].double().softmax(-1)
    for sampling in (
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(top_k=3),
        Sampling(top_p=0.8),
        Sampling(min_p=0.2),
    ):
        expected = sampling.probabilities(probs.log().unsqueeze(0), [[]])[0]
        generators = [torch.Generator().manual_seed(seed) for seed in range(40_000)]
        counts = draw(expected.expand(len(generators), -1), generators).bincount(minlength=11)
        assert (counts[expected == 0] == 0).all()
        shown = expected > 0
        chi_squared = ((counts - 40_000 * expected)[shown] ** 2 / (40_000 * expected[shown])).sum()
        assert chi_squared < critical(int(shown.sum()) - 1), sampling
    # And through the loop itself, many draws of one generator after another.
    drawn = generate(make_gpt(block_size=1), [[3]] * 200, Sampling(), range(200), stride=1)
    seen = np.zeros((11, 11))
    last = [3] * 200
    for ids, _ in itertools.islice(drawn, 200):
        for a, b in zip(last, ids, strict=True):
            seen[a, b] += 1
        last = ids
    transitions = make_gpt(block_size=1)(torch.arange(11).unsqueeze(1))[:, -1].double().softmax(-1).detach().numpy()
    rows = seen.sum(1, keepdims=True)
    likely = rows * transitions > 5  # rarer ones are not yet normally distributed
    chi_squared_of_row = ((seen - rows * transitions) ** 2 / (rows * transitions) * likely).sum(-1)
    assert rows.max() > 5000
    assert (chi_squared_of_row < critical(10)).all()


# Texts, and where they stop


def make_writer(vocabulary: str = "abcdefghijk") -> Writer:
    return Writer(make_gpt(), CharTokenizer(vocabulary))


def test_a_text_stops_before_a_stop_string_and_never_shows_half_of_it() -> None:
    writer = make_writer()
    settings: dict[str, Any] = {"max_new_tokens": 300, "temperature": 3.0}
    text = writer.generate("abc", **settings)
    assert len(text) == 300
    for start, length in itertools.product((0, 1, 10, 77, 200), (1, 2, 5, 20)):
        stop = text[start : start + length]
        pieces = list(writer.stream("abc", stop=[stop, "kkkkkkkk"], **settings))
        assert "".join(pieces) == text[: text.index(stop)]
        assert all(pieces)
    # What was held back because it might have become a stop string is shown in the end.
    begun = text[-3:] + "zzz".replace("z", "k")
    assert begun not in text
    assert "".join(writer.stream("abc", stop=begun, **settings)) == text
    ((sample,),) = list(writer.write(["abc"], stop=text[0], **settings))
    assert (sample.text, sample.log_probabilities, sample.stop_reason) == ("", [], "stop")


def test_stop_strings_that_share_their_beginnings() -> None:
    writer = make_writer()
    text = writer.generate("abc", max_new_tokens=300, temperature=3.0)
    rng = np.random.default_rng(0)
    for _ in range(40):
        stops = []
        for _ in range(3):
            start, length = rng.integers(0, 250), rng.integers(1, 8)
            stops.append(text[start : start + length])
        # The first to be complete ends the text; of several that end together, the longest.
        end = min(text.index(stop) + len(stop) for stop in stops)
        expected = text[: end - max(len(stop) for stop in stops if text[:end].endswith(stop))]
        assert writer.generate("abc", max_new_tokens=300, temperature=3.0, stop=stops) == expected


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
    pieces = list(writer.stream("é", max_new_tokens=200, temperature=5.0))
    assert len("".join(pieces)) <= 200
    ids = write_ids_of_bytes(gpt)
    assert "".join(pieces) == bytes(ids).decode("utf-8", "replace")


def write_ids_of_bytes(gpt: GPT) -> list[int]:
    drawn = generate(gpt, [list("é".encode())], Sampling(temperature=5.0), [1])
    return [ids[0] for ids, _ in itertools.islice(drawn, 200)]


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
        with pytest.raises(ValueError, match=re.escape(name)):
            writer.stream("abc", **settings)
    with pytest.raises(ValueError, match="'Q'"):
        writer.stream("Q")
    assert writer.generate("abc", max_new_tokens=0) == ""


# Checkpoints


def test_a_reloaded_model_gives_the_same_logits(in_trained: Path) -> None:
    gpt, tokenizer = load_gpt(LAST)
    module = GPTLightningModule.load_from_checkpoint(LAST, weights_only=True).eval()
    ids = torch.from_numpy(tokenizer.encode("the cat sat").astype("int64")).unsqueeze(0)
    assert torch.equal(gpt(ids), module(ids))
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
    with pytest.raises(ValueError, match="no checkpoint"):
        minigpt.load("nowhere.ckpt")
    with pytest.raises(ValueError, match="device 'abacus'"):
        minigpt.load("last", device="abacus")


# The command line


def test_prompts_come_from_a_flag_a_file_or_the_standard_input(in_trained: Path) -> None:
    Path("prompt.txt").write_bytes(b"\xef\xbb\xbfthe\r\ncat")
    flags = ["generate", "--ckpt_path", str(LAST), "--max_new_tokens", "20"]
    expected = run_minigpt(*flags, "--prompt", "the\ncat").out
    assert expected.startswith("the\ncat")
    assert run_minigpt(*flags, "--prompt_file", "prompt.txt").out == expected
    piped = subprocess.run(
        [sys.executable, "-m", "minigpt", *flags, "--prompt_file", "-"],
        input=b"the\ncat",
        capture_output=True,
        timeout=100,
        check=True,
    )
    assert piped.stdout.decode() == expected
    assert_clear_error(run_minigpt(*flags, "--prompt", "a", "--prompt_file", "prompt.txt"), "prompt_file", "give one")
    assert_clear_error(run_minigpt(*flags, "--prompt_file", "none.txt"), "none.txt", "No such file")
    Path("latin.txt").write_bytes(b"caf\xe9")
    assert_clear_error(run_minigpt(*flags, "--prompt_file", "latin.txt"), "latin.txt is not UTF-8", "byte 3")


def test_what_is_done_with_an_empty_or_long_prompt_is_said(in_trained: Path) -> None:
    flags = ["generate", "--ckpt_path", LAST, "--max_new_tokens", 20]
    empty, newline = run_minigpt(*flags), run_minigpt(*flags, "--prompt", "\n")
    assert "the prompt is empty; the text begins after '\\n'" in empty.err
    assert newline.out == "\n" + empty.out
    assert newline.err == ""
    long = run_minigpt(*flags, "--prompt", "the cat sat on a mat and ran")
    assert "has 28 characters; the model sees the last 16" in long.err
    short = run_minigpt(*flags, "--prompt", "the cat sat on a mat and ran"[-16:])
    assert long.out.endswith(short.out)


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


def test_generating_ends_quietly_at_ctrl_c(in_trained: Path) -> None:
    command = [sys.executable, "-m", "minigpt", "generate", "--ckpt_path", "last", "--max_new_tokens", "100000000"]
    with subprocess.Popen([*command, "--prompt", "a"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(20)) == 20
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) == 130
        assert process.stderr.read() == b""


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
        "/temperature hot": "'hot' is not a number",
        "/top_p 3": "top_p is 3.0",
        "/dance": "no command /dance",
        "Ж": "'Ж' (U+0416)",
        "/help": "/retry",
        "/settings": "length       30",
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
