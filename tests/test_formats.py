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
KINDS = [*itertools.product(("post", "pre"), ("learned", "sinusoidal"), ("char", "byte"))]
# Quickly, each shape with one of the two tokenizers.
QUICK = {("post", "learned", "char"), ("post", "sinusoidal", "byte"), ("pre", "learned", "byte"), KINDS[6]}
each_kind = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, id="-".join(kind), marks=[] if kind in QUICK else [pytest.mark.soak]) for kind in KINDS],
)
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


# From elsewhere


def edit(
    change: Callable[[dict[str, torch.Tensor]], Any] = lambda tensors: None, folder: str = "hf", **configuration: Any
) -> None:
    """Change the tensors of a folder and settings of its configuration; None takes a setting away."""
    path = Path(folder) / "config.json"
    known = json.loads(path.read_text()) | configuration
    path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))
    tensors = load_file(f"{folder}/model.safetensors")
    changed = change(tensors)
    tensors = changed if isinstance(changed, dict) else tensors
    Path(folder, "model.safetensors").unlink()
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, f"{folder}/model.safetensors")


def renamed(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {re.sub(old, new, name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("kind", [POST, PRE], ids="-".join)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.transformer.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_stripped(made: Callable[..., Path], kind: tuple[str, str, str], prefix: str) -> None:
    before = load_gpt(made(kind))[0]
    edit(renamed(r"^transformer\.", prefix))
    assert_equal_weights(before, imported()[0])


@pytest.mark.parametrize("kind", [POST, PRE], ids="-".join)
def test_masks_among_the_weights_are_passed_over(made: Callable[..., Path], kind: tuple[str, str, str]) -> None:
    before = load_gpt(made(kind))[0]

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for i in range(2):
            tensors[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, WINDOW, WINDOW).tril()
            tensors[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)

    edit(add)
    assert_equal_weights(before, imported()[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [POST, ("pre", "sinusoidal", "char")], ids="-".join)
def test_half_precision_is_widened(
    made: Callable[..., Path], kind: tuple[str, str, str], dtype: torch.dtype
) -> None:
    before = load_gpt(made(kind))[0]
    edit(lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    after = imported()[0]
    for (name, one), other in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        assert torch.equal(one.to(dtype).float(), other), name
    assert after.config.positions == kind[1]


def test_a_head_that_is_the_embedding_may_be_there_twice(made: Callable[..., Path]) -> None:
    before = load_gpt(made())[0]
    assert not any("lm_head" in name for name in load_file("hf/model.safetensors"))  # tensors that share memory
    edit(lambda tensors: tensors | {"lm_head.weight": tensors["transformer.tokens_embed.weight"]})
    assert_equal_weights(before, imported()[0])


@pytest.mark.parametrize(("kind", "zipped"), [(POST, False), (POST, True), (PRE, True)])
def test_the_hub_s_layout_is_read_from_old_files_too(
    made: Callable[..., Path], kind: tuple[str, str, str], zipped: bool
) -> None:
    before = load_gpt(made(kind))[0]
    tensors = {name.removeprefix("transformer."): t for name, t in load_file("hf/model.safetensors").items()}
    tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, WINDOW, WINDOW).tril() for i in range(2)}
    head = next(tensor for name, tensor in tensors.items() if name in ("tokens_embed.weight", "wte.weight"))
    tensors["lm_head.weight"] = head  # the same memory
    Path("hf/model.safetensors").unlink()
    torch.save(tensors, "hf/pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_equal_weights(before, imported()[0])


def without(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {other: tensor for other, tensor in tensors.items() if other != name}


FOREIGN: list[tuple[tuple[str, str, str], dict[str, Any], Any, str]] = [
    # what it is, how its configuration and its tensors differ, and what the error names
    (POST, {"model_type": "llama"}, None, "model_type is 'llama'"),
    (POST, {"model_type": None}, None, "model_type is None"),
    (POST, {"afn": "relu"}, None, "afn is 'relu'"),
    (PRE, {"activation_function": "gelu"}, None, "activation_function is 'gelu'; model.py computes with gelu_new or"),
    (PRE, {"activation_function": None}, None, "config.json doesn't say activation_function"),
    (POST, {"n_head": None}, None, "config.json doesn't say n_head"),
    (POST, {"layer_norm_epsilon": None}, None, "config.json doesn't say layer_norm_epsilon"),
    (PRE, {"layer_norm_epsilon": 1e-6}, None, "layer_norm_epsilon is 1e-06"),
    (PRE, {"n_inner": 48}, None, "n_inner is 48"),
    (PRE, {"scale_attn_by_inverse_layer_idx": True}, None, "scale_attn_by_inverse_layer_idx is True"),
    (PRE, {"scale_attn_weights": False}, None, "scale_attn_weights is False"),
    (PRE, {"add_cross_attention": True}, None, "add_cross_attention is True"),
    (POST, {"n_embd": "16"}, None, "n_embd is '16'"),
    (POST, {"n_head": 3}, None, "n_head = 3 does not divide"),
    (POST, {"n_layer": 3}, None, "A tensor is missing: h.2.attn.c_attn.bias"),
    (POST, {"n_layer": 1}, None, "A tensor is none of a GPT with 1 blocks: h.1.attn.c_attn.bias"),
    (POST, {"vocab_size": 50304}, None, "50,304 tokens, its tokenizer"),
    (POST, {"tie_word_embeddings": False}, None, "untied, but the tensor lm_head.weight is missing"),
    (
        POST,
        {},
        lambda t: t | {n: t[n].T for n in t if "c_attn.weight" in n},
        "h.0.attn.c_attn.weight has the shape (48, 16); by config.json it must have (16, 48); it is a Conv1D, (in, out)",
    ),
    (POST, {}, without("transformer.h.1.ln_2.bias"), "A tensor is missing: h.1.ln_2.bias"),
    (PRE, {}, without("transformer.ln_f.weight"), "A tensor is missing: ln_f.weight"),
    (POST, {}, lambda t: t | {"score.weight": torch.ones(2, 16)}, "A tensor is none of a GPT with 2 blocks: score.weight"),
    (POST, {}, lambda t: t | {"h.0.ln_1.bias": torch.ones(16)}, "Two tensors are called h.0.ln_1.bias"),
    (
        POST,
        {},
        lambda t: t | {"transformer.positions_embed.weight": torch.ones(8, 16)},
        "positions_embed.weight has the shape (8, 16)",
    ),
    (
        POST,
        {},
        lambda t: t | {"transformer.h.0.ln_1.bias": torch.ones(16, dtype=torch.int8)},
        "h.0.ln_1.bias holds int8",
    ),
    (
        PRE,
        {"tie_word_embeddings": False},
        lambda t: t | {"lm_head.weight": t["transformer.wte.weight"] * 4},
        "a head of its own, lm_head.weight",
    ),
    (
        ("post", "sinusoidal", "char"),
        {},
        lambda t: t | {"transformer.positions_embed.weight": t["transformer.positions_embed.weight"].flip(0)},
        "a head of its own, lm_head.weight",
    ),
]


@pytest.mark.parametrize(("kind", "configuration", "change", "message"), FOREIGN, ids=lambda it: str(it)[:30])
def test_what_model_py_doesn_t_compute_is_refused_by_its_name(
    made: Callable[..., Path], kind: tuple[str, str, str], configuration: dict[str, Any], change: Any, message: str
) -> None:
    made(kind)
    edit(change or (lambda tensors: None), **configuration)
    assert_clear_error(run_minigpt("import", "hf", "--output", "new.ckpt"), "hf can't be imported.", message)
    assert not Path("new.ckpt").exists()


def test_a_vocabulary_that_is_padded_is_refused(made: Callable[..., Path]) -> None:
    made(PRE)
    edit(
        lambda t: t | {"transformer.wte.weight": F.pad(t["transformer.wte.weight"], (0, 0, 0, 7))},
        vocab_size=len(VOCABULARY) + 7,
    )
    assert_clear_error(run_minigpt("import", "hf", "--output", "new.ckpt"), "its vocabulary is padded")


def test_the_kind_of_a_model_is_told_by_its_configuration_not_by_its_folder(made: Callable[..., Path]) -> None:
    before = load_gpt(made(PRE))[0]
    Path("hf").rename("openai-gpt")
    assert_equal_weights(before, imported("openai-gpt")[0])


class Runs:
    """An object whose pickle runs a program where it is loaded."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_no_file_can_run_code(made: Callable[..., Path]) -> None:
    made()
    for name in ("pytorch_model.bin", "part.bin"):
        Path("hf/model.safetensors").unlink(missing_ok=True)
        for zipped in (True, False):
            torch.save({"h.0.ln_1.bias": Runs()}, f"hf/{name}", _use_new_zipfile_serialization=zipped)
            done = run_minigpt("import", "hf", "--output", "new.ckpt")
            assert_clear_error(done, f"{name} was not loaded: it holds more than plain data and could run a program")
        Path("hf", name).unlink()
        Path("hf/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"h.0.ln_1.bias": "part.bin"}}))
    assert not Path("ran").exists()


def test_a_folder_that_lacks_something_is_told_what(made: Callable[..., Path]) -> None:
    made()
    shutil.copytree("hf", "whole")

    def refused(message: str, name: str = "hf") -> None:
        assert_clear_error(run_minigpt("import", name, "--output", "new.ckpt"), message)
        shutil.rmtree("hf")
        shutil.copytree("whole", "hf")

    refused("elsewhere is not there", "elsewhere")
    refused("model.ckpt is a file", "model.ckpt")
    for name, message in {
        "config.json": "config.json can't be read: No such file",
        "model.safetensors": "It holds no weights: none of model.safetensors, pytorch_model.bin",
        "tokenizer.json": "It has no tokenizer",
    }.items():
        Path("hf", name).unlink()
        refused(message)
    Path("hf/config.json").write_text("{")
    refused("config.json is no JSON")
    Path("hf/config.json").write_text("[]")
    refused("config.json holds no object")
    raw = Path("hf/model.safetensors").read_bytes()
    Path("hf/model.safetensors").write_bytes(raw[:-100])
    refused("model.safetensors is damaged or cut off")
    for part in ("missing.safetensors", "../whole/model.safetensors"):
        Path("hf/model.safetensors").unlink()
        Path("hf/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
        refused(f"names the file {part!r}, which is not in the folder")
    for change, message in (
        ({"model": {"type": "Unigram", "vocab": []}}, "tokenizer.json is of the kind Unigram"),
        ({"normalizer": {"type": "Lowercase"}}, "tokenizer.json is of the kind WordLevel, and not as minigpt writes it"),
    ):
        path = Path("hf/tokenizer.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        refused(message)


def test_what_came_in_works_as_any_checkpoint(made: Callable[..., Path]) -> None:
    path = made()
    Path("text.txt").write_text(make_text(6000))
    imported()
    for name in (str(path), "imported.ckpt"):
        for command in ("validate", "test"):
            done = run_minigpt(command, "--ckpt_path", name, "--data.corpus", "text.txt", "--trainer.precision", "32-true")
            assert done.code == 0, done.err
            Path(f"{name}.{command}").write_text(re.sub("(?s).*?(?=─)", "", done.out, count=1))
        done = run_minigpt("predict", "--ckpt_path", name, "--data.predict_corpus", "text.txt", "--output", f"{name}.csv")
        assert done.code == 0, done.err
        done = run_minigpt("generate", "--ckpt_path", name, "--max_new_tokens", 40)
        Path(f"{name}.out").write_text(done.out)
    for suffix in (".validate", ".test", ".csv", ".out"):
        assert Path(f"{path}{suffix}").read_text() == Path(f"imported.ckpt{suffix}").read_text()
    assert minigpt.load("imported.ckpt").trace("the cat").logits.shape == (7, len(VOCABULARY))
    done = run_minigpt("fit", "--ckpt_path", "imported.ckpt")
    assert_clear_error(done, "has the weights alone", "fit --init_from imported.ckpt")


def test_a_model_of_unknown_origin_needs_a_text_to_be_scored_on(made: Callable[..., Path]) -> None:
    made()
    edit(minigpt=None)
    imported()
    assert_clear_error(run_minigpt("validate", "--ckpt_path", "imported.ckpt"), "the text that hf was trained on")
    Path("text.txt").write_text(make_text(6000))
    done = run_minigpt("test", "--ckpt_path", "imported.ckpt", "--data.corpus", "text.txt")
    assert done.code == 0, done.err


@pytest.mark.soak
def test_pages_are_made_of_what_came_in_and_of_what_is_given_away(made: Callable[..., Path]) -> None:
    path = made()
    imported()
    assert run_minigpt("export", "--ckpt_path", path, "--format", "checkpoint", "--output", "small.ckpt").code == 0
    for name in ("imported", "small"):
        done = run_minigpt("explain", "--ckpt_path", f"{name}.ckpt", "--output", f"{name}.html")
        assert done.code == 0, done.err
        assert run_minigpt("report", "--ckpt_path", f"{name}.ckpt", "--output", f"{name}.report.html").code == 0


# A small checkpoint


def test_a_small_checkpoint_holds_nothing_of_the_author_s_disk(
    in_trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    private = tmp_path / "home" / "my secret books"
    private.mkdir(parents=True)
    shutil.copy("text.txt", private / "diary.txt")
    done = run_minigpt("fit", "--config", "tiny.yaml", "--name", "secret run", "--data.corpus", private / "diary.txt")
    assert done.code == 0, done.err
    before = Path("lightning_logs/secret run/version_0/checkpoints/last.ckpt")
    done = run_minigpt("export", "--ckpt_path", before, "--format", "checkpoint", "--output", "small.ckpt")
    assert done.code == 0, done.err
    assert run_minigpt("export", "--ckpt_path", before, "--output_dir", "hf").code == 0
    for file in (Path("small.ckpt"), *Path("hf").iterdir()):
        raw = file.read_bytes()
        for word in (private, private.name, "secret run", tmp_path, Path.home(), Path.cwd()):
            assert str(word).encode() not in raw, (file, word)
    assert b"diary.txt" in Path("small.ckpt").read_bytes()
    assert Path("small.ckpt").stat().st_size <= before.stat().st_size / 2
    assert_equal_weights(load_gpt(before)[0], load_gpt(Path("small.ckpt"))[0])
    assert read_checkpoint(Path("small.ckpt"))["val_loss"] == pytest.approx(2.6, abs=0.2)

    monkeypatch.chdir(private)  # a friend's disk, where the text lies as it is called
    shutil.move(in_trained / "small.ckpt", "small.ckpt")
    for command in ("validate", "test"):
        done = run_minigpt(command, "--ckpt_path", "small.ckpt")
        assert done.code == 0, done.err
    assert run_minigpt("generate", "--ckpt_path", "small.ckpt", "--max_new_tokens", 9).code == 0
    assert run_minigpt("predict", "--ckpt_path", "small.ckpt", "--data.predict_corpus", "diary.txt").code == 0
    assert run_minigpt("export", "--ckpt_path", "small.ckpt", "--output_dir", "hf").code == 0
    assert "nats per character, after 24 steps" in Path("hf/README.md").read_text(encoding="utf-8")
    done = run_minigpt("fit", "--ckpt_path", "small.ckpt")
    assert_clear_error(done, "has the weights alone", "fit --init_from small.ckpt")


def test_what_export_writes_is_named_by_its_own_flag(in_trained: Path) -> None:
    for flags in ((), ("--output", "x"), ("--format", "checkpoint"), ("--format", "checkpoint", "--output_dir", "x")):
        assert_clear_error(run_minigpt("export", "--ckpt_path", "last", *flags), "name it with --output")
