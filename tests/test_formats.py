"""Models that leave for elsewhere and come from there: Hugging Face's folders, OpenAI's release, small checkpoints.

What users of other converters met is tried on look-alikes with random weights; nothing is downloaded.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import minigpt
from conftest import assert_clear_error, make_text, run_minigpt
from minigpt.files import written_whole
from minigpt.formats import layouts
from minigpt.model import GPT, GPTConfig
from minigpt.run import load_gpt, read_checkpoint, write_checkpoint
from minigpt.text.tokenizer import UNKNOWN, ByteTokenizer

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
ODD = "\n\n\n\t\t  n't 's 'll  .,!\n \u00e9e\u0301\u0308 \u0e01\u0e33 \U0001f600\U0001f468\u200d\U0001f469 a\u00a0b <unk> \ufffd\r\n x "
VOCABULARY = "".join(sorted(set(ODD) | set(make_text(3000))))
WINDOW = 16
KINDS = [
    (norm, positions, tokenizer)
    for norm, positions, tokenizer in itertools.product(("post", "pre"), ("learned", "sinusoidal"), ("char", "byte"))
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids="-".join)
POST, PRE = ("post", "learned", "char"), ("pre", "learned", "char")


def checkpoint_like(trained: Path, path: Path, kind: tuple[str, str, str], vocabulary: str = VOCABULARY) -> Path:
    """A checkpoint as of a run, of a model whose every weight counts: gains and biases are far from 1 and 0."""
    norm, positions, tokenizer = kind
    checkpoint = read_checkpoint(trained / "lightning_logs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt")
    vocabulary = ByteTokenizer.BYTES if tokenizer == "byte" else vocabulary
    checkpoint["hyper_parameters"] |= {"norm": norm, "positions": positions, "tokenizer": tokenizer}
    checkpoint["hyper_parameters"] |= {"vocabulary": vocabulary}
    checkpoint["datamodule_hyper_parameters"]["tokenizer"] = tokenizer
    gpt = GPT(GPTConfig(len(vocabulary), WINDOW, 2, 2, 16, norm=norm, positions=positions))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for parameter in gpt.parameters():
        parameter.data = (parameter.dim() == 1) * parameter.data + torch.empty_like(parameter).normal_(
            0, 0.2, generator=generator
        )
    checkpoint["state_dict"] = {f"gpt.{name}": weight for name, weight in gpt.state_dict().items()}
    write_checkpoint(checkpoint, path)
    return path


@pytest.fixture
def made(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """What makes such a checkpoint in the current folder, and exports it to the folder ``hf``."""
    monkeypatch.chdir(tmp_path)

    def make(kind: tuple[str, str, str] = POST, vocabulary: str = VOCABULARY) -> Path:
        path = checkpoint_like(trained, Path("model.ckpt"), kind, vocabulary)
        done = run_minigpt("export", "--ckpt_path", path, "--output_dir", "hf")
        assert done.code == 0, done.err
        return path

    return make


def imported(folder: str | Path = "hf", output: str = "imported.ckpt") -> tuple[GPT, Any]:
    done = run_minigpt("import", folder, "--output", output)
    assert done.code == 0, done.err
    return load_gpt(Path(output))


def assert_equal_weights(one: GPT, other: GPT) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert dataclasses.asdict(one.config) == dataclasses.asdict(other.config)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def ids_of(gpt: GPT, batch: int = 3) -> torch.Tensor:
    return torch.randint(gpt.config.vocab_size, (batch, WINDOW), generator=torch.Generator().manual_seed(1))


# To Hugging Face


@each_kind
def test_transformers_load_what_is_exported_as_it_is(made: Callable[..., Path], kind: tuple[str, str, str]) -> None:
    transformers = pytest.importorskip("transformers")
    path = made(kind)
    gpt, tokenizer = load_gpt(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained("hf")
    assert type(theirs).__name__ == {"post": "OpenAIGPTLMHeadModel", "pre": "GPT2LMHeadModel"}[kind[0]]
    ids = ids_of(gpt)
    with torch.no_grad():
        found = theirs(ids, labels=ids)
        logits = gpt(ids)
    torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=1e-5)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())  # they shift the labels themselves
    assert float(found.loss) == pytest.approx(float(loss), abs=1e-5)

    pieces = transformers.AutoTokenizer.from_pretrained("hf")
    for text in (ODD, ODD.strip(), "\n", " ", make_text(300)):
        encoded = pieces(text)
        assert set(encoded) == {"input_ids", "attention_mask"}  # token types would be embedded
        assert encoded.input_ids == tokenizer.encode(text).tolist()
        assert pieces.decode(encoded.input_ids) == text
        assert pieces.decode(encoded.input_ids, skip_special_tokens=True) == text

    pipeline = transformers.pipeline("text-generation", "hf")
    written = pipeline("the ", do_sample=False)[0]["generated_text"]
    assert written == "the " + minigpt.load(path).generate("the ", max_new_tokens=WINDOW - 4, temperature=0)
    assert pipeline("the ")[0]["generated_text"].startswith("the ")  # by default, too


@each_kind
def test_what_was_exported_comes_back_to_the_bit(made: Callable[..., Path], kind: tuple[str, str, str]) -> None:
    before, after = load_gpt(made(kind)), imported()
    assert_equal_weights(before[0], after[0])
    assert (type(before[1]), before[1].vocabulary) == (type(after[1]), after[1].vocabulary)


@pytest.mark.parametrize("kind", [("post", "sinusoidal", "char"), ("pre", "learned", "byte")], ids="-".join)
def test_what_transformers_saved_again_comes_back_to_the_bit(
    made: Callable[..., Path], kind: tuple[str, str, str]
) -> None:
    transformers = pytest.importorskip("transformers")
    before = load_gpt(made(kind))
    transformers.AutoModelForCausalLM.from_pretrained("hf").save_pretrained("again", max_shard_size="20KB")
    transformers.AutoTokenizer.from_pretrained("hf").save_pretrained("again")
    assert Path("again/model.safetensors.index.json").exists()  # in several files
    after = imported("again")
    assert_equal_weights(before[0], after[0])
    assert (type(before[1]), before[1].vocabulary) == (type(after[1]), after[1].vocabulary)


def test_the_card_tells_the_recipe_and_its_loop_writes_past_the_window(
    made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    made(("pre", "sinusoidal", "char"))
    card = Path("hf/README.md").read_text(encoding="utf-8")
    for part in ("trained on text.txt", "nats per character, after 24 steps", "`learning_rate` | `0.003`"):
        assert part in card
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir("hf")
    exec(compile(code, "card", "exec"), {})
    written = capsys.readouterr().out
    assert len(written) > WINDOW + 100
    assert set(written) <= set(VOCABULARY)


def test_an_unknown_character_raises_and_the_unknown_symbol_is_never_written(made: Callable[..., Path]) -> None:
    transformers = pytest.importorskip("transformers")
    made(POST, "abc \n")
    pieces = transformers.AutoTokenizer.from_pretrained("hf")
    with pytest.raises(Exception, match="Missing"):
        pieces("abd")
    shutil.rmtree("hf")
    made(POST, "abc \n" + UNKNOWN)
    pieces = transformers.AutoTokenizer.from_pretrained("hf")
    assert pieces("abd").input_ids == [0, 1, 5]
    assert pieces.decode([0, 5]) == "a\ufffd"
    model = transformers.AutoModelForCausalLM.from_pretrained("hf")
    written = model.generate(torch.tensor([[0] * 2] * 50), max_new_tokens=WINDOW - 2)
    assert not (written == 5).any()
    assert imported()[1].unknown == 5
    shutil.rmtree("hf")
    made(POST, "ab\ufffd" + UNKNOWN)  # where a text has that character too
    assert transformers.AutoTokenizer.from_pretrained("hf")("b\ufffdx").input_ids == [1, 2, 3]
    assert imported(output="both.ckpt")[1].vocabulary == "ab\ufffd" + UNKNOWN


def test_half_a_surrogate_pair_can_t_be_exported(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint_like(trained, Path("model.ckpt"), POST, "ab\ud83d")
    done = run_minigpt("export", "--ckpt_path", "model.ckpt", "--output_dir", "hf")
    assert_clear_error(done, "(U+D83D): half a surrogate pair")
    assert sorted(p.name for p in Path().iterdir()) == ["model.ckpt"]


def test_a_folder_of_the_user_s_is_never_overwritten(made: Callable[..., Path]) -> None:
    path = made()
    before = {file: file.read_bytes() for file in Path("hf").iterdir()}
    for _ in range(2):
        assert_clear_error(run_minigpt("export", "--ckpt_path", path, "--output_dir", "hf"), "hf is there already")
    assert {file: file.read_bytes() for file in Path("hf").iterdir()} == before
    Path("empty").mkdir()
    assert run_minigpt("export", "--ckpt_path", path, "--output_dir", "empty").code == 0
    Path("file").touch()
    assert_clear_error(run_minigpt("export", "--ckpt_path", path, "--output_dir", "file"), "file is there already")
    for command in (
        ("import", "hf", "--output", "file"),
        ("export", "--ckpt_path", path, "--format", "checkpoint", "--output", "file"),
    ):
        assert_clear_error(run_minigpt(*command), "file is there already")
    assert Path("file").read_bytes() == b""


def test_an_export_that_fails_leaves_nothing_behind(made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = made()

    @contextlib.contextmanager
    def full(place: Path) -> Iterator[Any]:
        if place.name == "model.safetensors":
            raise OSError(28, "No space left on device")
        with written_whole(place) as file:
            yield file

    monkeypatch.setattr("minigpt.formats.export.written_whole", full)
    assert_clear_error(run_minigpt("export", "--ckpt_path", path, "--output_dir", "new"), "new can't be written")
    assert sorted(p.name for p in Path().iterdir()) == ["hf", "model.ckpt"]


@pytest.mark.skipif("MINIGPT_TRANSFORMERS" not in os.environ, reason="names the interpreter of another transformers")
@each_kind
def test_another_major_of_transformers_loads_it_too(made: Callable[..., Path], kind: tuple[str, str, str]) -> None:
    path = made(kind)
    gpt, _ = load_gpt(path)
    code = f"""
import json, torch, transformers
theirs, pieces = transformers.AutoModelForCausalLM.from_pretrained("hf"), transformers.AutoTokenizer.from_pretrained("hf")
text = json.load(open("text.json"))
encoded = pieces(text)
assert set(encoded) == {{"input_ids", "attention_mask"}}
assert pieces.decode(encoded.input_ids) == text
written = transformers.pipeline("text-generation", "hf")("the ", do_sample=False)[0]["generated_text"]
with torch.no_grad():
    logits = theirs(torch.tensor({ids_of(gpt).tolist()})).logits
json.dump([transformers.__version__, encoded.input_ids, written, logits.tolist()], open("found.json", "w"))
"""
    Path("text.json").write_text(json.dumps(ODD))
    command = [os.environ["MINIGPT_TRANSFORMERS"], "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    _, ids, written, logits = json.loads(Path("found.json").read_text())
    model = minigpt.load(path)
    assert ids == model.tokenizer.encode(ODD).tolist()
    assert written == "the " + model.generate("the ", max_new_tokens=WINDOW - 4, temperature=0)
    torch.testing.assert_close(torch.tensor(logits), gpt(ids_of(gpt)), rtol=1e-5, atol=1e-5)
