"""Nonsense on the command line and in files: done as asked or refused in one paragraph, never a traceback.

What is drawn is the same each time. To look for more, change SEED.
"""

import gzip
import io
import os
import random
import re
import resource
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from conftest import TINY, Result, assert_clear_error, run_minigpt

SEED = 20
VALUES = [
    *("x", "", " ", "é", "\x01", "%s", "--x", "a/b", "[", "{", "[]", "{}", "[1,2]", "{a: 1}", "&a", "*a", "!!set {a}"),
    *("null", "true", "$HOME", "2024-01-01", "nan", "inf", "-inf", "1e999", "1e-400", "1e30", "1e-30", "0x10", "1_0"),
    *("0", "-1", "1.5", "9223372036854775807", "99999999999999999999", "9" * 5000, "a" * 5000, "\ud800"),
]
NOT_NUMBERS = ["x", "", "é", "[1,2]", "{a: 1}", "true", "1e", "0x", "1 2", "2024-01-01", "--x"]
QUICK = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false"]
FIT = ["fit", "--config", "tiny.yaml", *QUICK]
GENERATE = ["generate", "--ckpt_path", "last", "--max_new_tokens", "20"]
CORPUS = ["corpus", "--data.corpus", "text.txt"]
COMMANDS = {
    "fit": FIT,
    "validate": ["validate", "--ckpt_path", "last", *QUICK[1:]],
    "generate": GENERATE,
    "corpus": CORPUS,
}
# How many of the values each flag meets in a run of the tests; below 1, how many of the flags meet one.
DRAWS = {"fit": 0.3, "validate": 0.1, "generate": 4.0, "corpus": 6.0}


@pytest.fixture(autouse=True)
def within_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A call that hangs, starts processes or takes gigabytes fails; none leaves anything behind for the next test."""

    def hangs(number: int, frame: FrameType | None) -> None:
        pytest.fail("it hangs")

    def starts(process: object) -> None:
        pytest.fail(f"it starts a process: {process}")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", starts)
    environment, memory = dict(os.environ), resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")  # where there is none, the limit has no effect either
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 30), memory[1]))
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, memory)
    torch.use_deterministic_algorithms(False)
    os.environ.clear()
    os.environ.update(environment)


def call(*args: str) -> Result:
    """Call the command line; whatever was asked, the answer must be sound."""
    print(f"seed {SEED}:", ascii(args)[:300])
    try:
        result = run_minigpt(*args)
    except RecursionError:
        pytest.fail("it nests too deeply", pytrace=False)  # pytest itself would stumble over such a traceback
    assert "Traceback" not in result.out + result.err
    if result.code == 0:
        assert result.out
    else:
        assert_clear_error(result)
        told = result.err[result.err.index("minigpt: ") :].rstrip("\n")
        assert "\n\n" not in told
        assert len(told.split()) > 2, "it must say what is wrong"
    return result


def flags(command: str, kind: str = "") -> list[str]:
    """The flags that a command's help lists, or those of them that take one value of some kind."""
    options = re.findall(
        r"^  (?:-\w, )?--([\w.]+)[ \n](.*?)(?=^  -|^\S|\Z)", run_minigpt(command, "--help").out, re.M | re.S
    )
    names = [name for name, text in options if re.search(rf"\(type:\s+{kind}[,)]" if kind else "", text)]
    return [name for name in names if not name.endswith(("help", "print_config"))]


def is_long(flag: str, value: str) -> bool:
    """Whether a soundly understood value asks for something long: many devices or machines, an endless text or run."""
    large = re.fullmatch(r"1_0|0x10|9+|92\d+", value) is not None
    endless = flag in ("trainer.max_steps", "trainer.max_epochs") and (value == "-1" or large)
    return endless or (large and flag in ("trainer.devices", "trainer.num_nodes", "max_new_tokens"))


# Flags


@pytest.mark.soak
@pytest.mark.parametrize("command", COMMANDS)
def test_any_flag_with_any_value_is_taken_or_refused(in_trained: Path, command: str) -> None:
    draw = random.Random(f"{SEED} {command}")
    names, draws = flags(command), DRAWS[command]
    assert len(names) > 9
    for name in draw.sample(names, int(len(names) * min(1, draws))):
        for value in draw.sample(VALUES, max(1, int(draws))):
            if not is_long(name, value):
                call(*COMMANDS[command], *draw.choice([[f"--{name}", value], [f"--{name}={value}"]]))


@pytest.mark.soak
@pytest.mark.parametrize(("command", "share"), [("fit", 0.2), ("generate", 1), ("corpus", 1)])
def test_a_number_that_is_none_is_refused_and_its_flag_named(in_trained: Path, command: str, share: float) -> None:
    draw = random.Random(f"{SEED} {command}")
    names = flags(command, "(?:int|float)")
    assert {"fit": "data.block_size", "generate": "temperature", "corpus": "data.val_fraction"}[command] in names
    for name in draw.sample(names, int(len(names) * share)):
        assert_clear_error(call(*COMMANDS[command], f"--{name}={draw.choice(NOT_NUMBERS)}"), name)


@pytest.mark.soak
@pytest.mark.parametrize("command", [*COMMANDS, "test", "predict", "chat"])
def test_a_misspelt_flag_is_refused_and_named(in_trained: Path, command: str) -> None:
    draw = random.Random(f"{SEED} {command}")
    name = draw.choice(flags(command))
    i = draw.randrange(1, len(name))
    wrong = draw.choice([name[:i] + "x" + name[i:], name[:-1], name + "s"])
    assert_clear_error(call(*COMMANDS.get(command, [command, "--ckpt_path", "last"]), f"--{wrong}=1"), wrong)


@pytest.mark.parametrize(
    "args", [[], ["x"], [""], ["é"], ["--x"], ["Fit"], ["fi"], ["--", "fit"], ["fit generate"], ["-"]]
)
def test_a_command_that_there_is_not_is_refused(workplace: Path, args: list[str]) -> None:
    assert call(*args).code == 2


@pytest.mark.parametrize(
    "args", [["fit", "x"], ["fit", "--config"], ["fit", "fit"], ["generate", "x"], ["corpus", "--"]]
)
def test_words_that_belong_nowhere_are_refused(workplace: Path, args: list[str]) -> None:
    assert call(*args).code == 2


@pytest.mark.parametrize(
    ("base", "flag", "value"),
    [
        (FIT, "trainer.devices", "0"),
        (FIT, "trainer.devices", "x"),
        (FIT, "trainer.devices", "[1,2]"),
        (FIT, "trainer.devices", "99999999999999999999"),
        (FIT, "trainer.max_time", "{a: 1}"),
        (FIT, "trainer.val_check_interval", "{a: 1}"),
        (FIT, "trainer.val_check_interval", "00:00:10:00"),
        (FIT, "trainer.accumulate_grad_batches", "0"),
        (FIT, "trainer.accumulate_grad_batches", "-1"),
        (FIT, "trainer.check_val_every_n_epoch", "0"),
        (FIT, "trainer.val_check_interval", "0"),
        (FIT, "trainer.gradient_clip_val", "-1"),
        (FIT, "trainer.gradient_clip_val", "nan"),
        (FIT, "trainer.accelerator", "tpu"),
        (FIT, "trainer.strategy", "xla"),
        (FIT, "trainer.precision", "transformer-engine"),
        (FIT, "early_stopping.monitor", "loss"),
        (FIT, "data.num_workers", "99999999999999999999"),
        (FIT, "data.batch_size", "99999999999"),
        (FIT, "data.block_size", "99999999999999999999"),
        (FIT, "data.corpus", "~no-such-user/a.txt"),
        (FIT, "ckpt_path", "~no-such-user/a.ckpt"),
        (FIT, "model.n_embd", "1000000000"),
        (FIT, "model.n_layer", "1000000000"),
        (FIT, "seed_everything", "18446744073709551616"),
        (FIT, "sampler.seed", "-1"),
        (FIT, "name", ".."),
        (GENERATE, "num_samples", "9223372036854775807"),
        (GENERATE, "num_samples", "99999999999999999999"),
        (GENERATE, "repetition_penalty", "1e-320"),
        (GENERATE, "device", "meta"),
        (GENERATE, "device", "hpu"),
        (CORPUS, "data.block_size", "0"),
        (CORPUS, "data.block_size", "99999999999999999999"),
        (CORPUS, "data.val_fraction", "-1"),
        (CORPUS, "data.val_fraction", "1e30"),
        (CORPUS, "data.test_fraction", "1e999"),
        (CORPUS, "data.val_fraction", "nan"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_a_value_that_cannot_be_is_refused(in_trained: Path, base: list[str], flag: str, value: str) -> None:
    result = call(*base, f"--{flag}={value}")
    assert result.code == 2, result.out
    assert "lightning_logs" not in result.out, "before anything was trained"


# Config files

CONFIGS = {
    "empty": b"",
    "a comment": b"# nothing\n",
    "zeros": b"\0\0\0\0",
    "bytes": bytes(range(256)),
    "latin-1": b"name: caf\xe9\n",
    "a word": b"hello",
    "a number": b"3",
    "a list": b"- a\n- b\n",
    "not YAML": b"a: b: c",
    "a tab": b"\tname: x",
    "an open bracket": b"model: [1, 2",
    "many open brackets": b"[" * 3000,
    "deep lists": b"a: " + b"[" * 400 + b"]" * 400,
    "deep mappings": b"{a: " * 500 + b"1" + b"}" * 500,
    "an unknown alias": b"data: *nothing",
    "a program": b"!!python/object/apply:os.system ['touch hacked']",
    "an unknown group": b"modell: {n_layer: 1}",
    "an unknown key": b"data: {block_sice: 1}",
    "a key that is a number": b"1: 2",
    "a key that is a list": b"[a]: 2",
    "a huge whole number": b"data: {block_size: " + b"9" * 5000 + b"}",
    "a number for a text": b"data: {corpus: 3}",
    "numbers for texts": b"data: {corpus: [1, 2]}",
    "nothing for a text": b"data: {corpus: null}",
    "nothing for a number": b"data: {block_size: null}",
    "nothing for a fraction": b"data: {val_fraction: null}",
    "nothing for a choice": b"data: {tokenizer: null}",
    "infinity for a whole number": b"data: {block_size: .inf}",
    "not a number": b"data: {val_fraction: .nan}",
    "a list for a group": b"data: [1]",
    "a word for a group": b"data: x",
    "itself": b"config: fuzz.yaml",
}
FIT_CONFIGS = {
    "a class that is a program": b"model: {class_path: os.system, init_args: {command: touch hacked}}",
    "no model": b"model: null",
    "a number for a model": b"model: 3",
    "no trainer": b"trainer: null",
    "a list for a trainer": b"trainer: [1]",
    "no checkpoint": b"checkpoint: null",
    "no early stopping": b"early_stopping: null",
    "no sampler": b"sampler: null",
    "nothing for a size": b"model: {n_layer: null}",
    "nothing for a rate": b"model: {learning_rate: null}",
    "nothing for patience": b"early_stopping: {patience: null}",
    "nothing for steps": b"sampler: {every_n_steps: null}",
    "a list for a number": b"model: {n_layer: [1]}",
    "a callback that is none": b"trainer: {callbacks: [{class_path: os.system}]}",
    "a name that is a path": b"name: ../x",
}


@pytest.mark.soak
@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_cannot_be_read_is_refused(workplace: Path, content: bytes) -> None:
    Path("fuzz.yaml").write_bytes(content)
    assert call("corpus", "--config", "fuzz.yaml").code == 2
    assert not Path("hacked").exists()


@pytest.mark.soak
@pytest.mark.parametrize("content", FIT_CONFIGS.values(), ids=FIT_CONFIGS)
def test_a_recipe_that_cannot_be_trained_is_refused(workplace: Path, content: bytes) -> None:
    Path("fuzz.yaml").write_bytes(content)
    assert call("fit", "--config", "tiny.yaml", "--config", "fuzz.yaml", *QUICK).code == 2
    assert not list(Path("lightning_logs").rglob("*.ckpt"))


@pytest.mark.soak
def test_a_recipe_with_typing_errors_is_taken_or_refused(workplace: Path) -> None:
    draw = random.Random(SEED)
    # What would make it large stays as it is, whatever else the errors change.
    small = ["--model.n_layer=1", "--model.n_embd=8", "--model.n_head=1", "--data.block_size=8", "--data.batch_size=2"]
    codes = set()
    for _ in range(14):
        raw = bytearray(TINY.encode())
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(raw))
            raw[place : place + draw.randint(0, 1)] = draw.choice(b"\0\xff:{}[],&*!|>'\"%@`#-? \n\tx9.").to_bytes()
        Path("fuzz.yaml").write_bytes(raw)
        print(bytes(raw))
        codes.add(call("fit", "--config", "fuzz.yaml", *small, *QUICK, "--sampler.every_n_steps=0").code)
    assert codes <= {0, 2}


# Texts


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "some text\n" * 20)
    return file.getvalue()


def changed(raw: bytes, places: dict[bytes, tuple[int, int]]) -> bytes:
    """``raw`` with another byte at an offset from each of some marks."""
    result = bytearray(raw)
    for mark, (offset, value) in places.items():
        result[raw.index(mark) + offset] = value
    return bytes(result)


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"  # the marks of a zip's two headers
TEXTS = {
    "a.gz": b"no gzip",
    "b.gz": gzip.compress(b"some text\n" * 99)[:-9],
    "c.xz": b"no xz",
    "d.bz2": b"no bzip2" * 20,
    "e.zst": b"no Zstandard" * 20,
    "f.zip": b"no zip",
    "g.zip": zipped()[:-9],
    "encrypted.zip": changed(zipped(), {LOCAL: (6, 1), CENTRAL: (8, 1)}),
    "method.zip": changed(zipped(), {LOCAL: (8, 99), CENTRAL: (10, 99)}),
    "patched.zip": changed(zipped(), {LOCAL: (6, 32), CENTRAL: (8, 32)}),
    "surrogates.txt": "\ud800".encode("utf-8", "surrogatepass") * 50,
    "mark.txt": b"\xef\xbb\xbf" * 40,
}


@pytest.mark.soak
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_holds_no_text_is_refused(workplace: Path, name: str, tokenizer: str) -> None:
    if name.endswith(".zst"):
        pytest.importorskip("zstandard", reason="needs the extra zstd")
    Path(name).write_bytes(TEXTS[name])
    result = call("corpus", "--data.corpus", name, "--data.tokenizer", tokenizer)
    assert result.code == (0 if tokenizer == "byte" and name.endswith(".txt") else 2)


@pytest.mark.soak
def test_a_damaged_archive_is_read_or_refused(workplace: Path) -> None:
    draw = random.Random(SEED)
    codes = set()
    for _ in range(40):
        raw = bytearray(zipped())
        for _ in range(draw.randint(1, 3)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        Path("fuzz.zip").write_bytes(raw)
        codes.add(call("corpus", "--data.corpus", "fuzz.zip").code)
    assert codes == {0, 2}


# Checkpoints


def without(*keys: str) -> Callable[[Any], None]:
    def remove(checkpoint: Any) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        del checkpoint[keys[-1]]

    return remove


def with_(*keys: str, value: object) -> Callable[[Any], None]:
    def put(checkpoint: Any) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = value

    return put


HYPER, DATA, EMBEDDING = "hyper_parameters", "datamodule_hyper_parameters", "gpt.token_embedding.weight"
CHECKPOINTS = {
    "no weights": without("state_dict"),
    "a list of weights": with_("state_dict", value=[1]),
    "one weight too few": without("state_dict", EMBEDDING),
    "a weight of another shape": with_("state_dict", EMBEDDING, value=torch.zeros(3, 3)),
    "a weight that is a text": with_("state_dict", EMBEDDING, value="x"),
    "another depth": with_(HYPER, "n_layer", value=3),
    "no depth": without(HYPER, "n_layer"),
    "a huge width": with_(HYPER, "n_embd", value=10**12),
    "a rate that is a text": with_(HYPER, "learning_rate", value="x"),
    "an unknown setting": with_(HYPER, "colour", value="red"),
    "an unknown tokenizer": with_(DATA, "tokenizer", value="bpe"),
    "a shorter vocabulary": with_(HYPER, "vocabulary", value="abc"),
    "a character twice": with_(HYPER, "vocabulary", value="a" * 17),
    "a list of data settings": with_(DATA, value=[1]),
    "no seed": without(DATA, "seed"),
    "a batch size that is a text": with_(DATA, "batch_size", value="x"),
    "an unknown data setting": with_(DATA, "colour", value="red"),
    "no loops": without("loops"),
    "no step": without("global_step"),
    "a step that is a text": with_("global_step", value="x"),
    "no optimizer": without("optimizer_states"),
    "no schedule": without("lr_schedulers"),
    "no version": without("pytorch-lightning_version"),
}


@pytest.mark.soak
@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_lacks_or_distorts_something_is_not_gone_on_with(
    in_trained: Path, change: Callable[[Any], None]
) -> None:
    checkpoint = torch.load(next(Path("lightning_logs").rglob("last.ckpt")), weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, "fuzz.ckpt")
    assert call("fit", "--ckpt_path", "fuzz.ckpt", "--trainer.max_steps=25").code == 2
    call("generate", "--ckpt_path", "fuzz.ckpt", "--max_new_tokens=5")


# Standard input


@pytest.mark.parametrize("args", [["chat", "--ckpt_path", "last"], [*GENERATE, "--prompt_file", "-"]], ids=" ".join)
def test_without_a_standard_input_nothing_breaks(
    in_trained: Path, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert_clear_error(call(*args), "the standard input")
