"""Models that leave for elsewhere and come from there: Hugging Face's folders, OpenAI's release, small checkpoints.

What users of other converters met is tried on look-alikes with random weights; nothing is downloaded.
"""

import contextlib
import dataclasses
import io
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
ODD = "\n\n\n\t\t  n't 's 'll  .,!\n \u00e9e\u0301\u0308 \u0e01\u0e33 \U0001f600\U0001f468\u200d\U0001f469"
ODD += " a\u00a0b <unk> \ufffd\r\n x "
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

    # Or transformers 4 would hand on token types, which OpenAI-GPT embeds.
    settings = json.loads(Path("hf/tokenizer_config.json").read_text())
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    pieces = transformers.AutoTokenizer.from_pretrained("hf")
    for text in (ODD, ODD.strip(), "\n", " ", make_text(300)):
        encoded = pieces(text)
        assert set(encoded) == {"input_ids", "attention_mask"}
        assert encoded.input_ids == tokenizer.encode(text).tolist()
        assert pieces.decode(encoded.input_ids) == text
        assert pieces.decode(encoded.input_ids, skip_special_tokens=True) == text

    whole = kind == POST  # to load all of it once more takes a while
    pipeline = transformers.pipeline("text-generation", "hf" if whole else theirs, tokenizer=None if whole else pieces)
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


def test_half_a_surrogate_pair_can_t_be_exported(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
theirs = transformers.AutoModelForCausalLM.from_pretrained("hf")
pieces = transformers.AutoTokenizer.from_pretrained("hf")
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
def test_half_precision_is_widened(made: Callable[..., Path], kind: tuple[str, str, str], dtype: torch.dtype) -> None:
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
        "h.0.attn.c_attn.weight has the shape (48, 16); by config.json it must have (16, 48); it is a Conv1D",
    ),
    (POST, {}, without("transformer.h.1.ln_2.bias"), "A tensor is missing: h.1.ln_2.bias"),
    (PRE, {}, without("transformer.ln_f.weight"), "A tensor is missing: ln_f.weight"),
    (
        POST,
        {},
        lambda t: t | {"score.weight": torch.ones(2, 16)},
        "A tensor is none of a GPT with 2 blocks: score.weight",
    ),
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
        (
            {"normalizer": {"type": "Lowercase"}},
            "tokenizer.json is of the kind WordLevel, and not as minigpt writes it",
        ),
    ):
        path = Path("hf/tokenizer.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        refused(message)


def test_what_came_in_works_as_any_checkpoint(made: Callable[..., Path]) -> None:
    path = made()
    Path("text.txt").write_text(make_text(6000))
    imported()
    for name in (str(path), "imported.ckpt"):
        done = run_minigpt(
            "validate", "--ckpt_path", name, "--data.corpus", "text.txt", "--trainer.precision", "32-true"
        )
        assert done.code == 0, done.err
        Path(f"{name}.validate").write_text(re.sub("(?s).*?(?=─)", "", done.out, count=1))
        done = run_minigpt(
            "predict", "--ckpt_path", name, "--data.predict_corpus", "text.txt", "--output", f"{name}.csv"
        )
        assert done.code == 0, done.err
        done = run_minigpt("generate", "--ckpt_path", name, "--max_new_tokens", 40)
        Path(f"{name}.out").write_text(done.out)
    for suffix in (".validate", ".csv", ".out"):
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


# Word pieces, and OpenAI's release


def write_pieces(vocabulary: str, merges: str) -> dict[str, int]:
    """A small byte-pair encoding as GPT-1's, trained here, in two files; its ids are in the order of GPT-1's."""
    library = pytest.importorskip("tokenizers")
    trainer = library.trainers.BpeTrainer(vocab_size=60, end_of_word_suffix="</w>", show_progress=False)
    tokenizer = library.Tokenizer(library.models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator([make_text(3000) + "caf\u00e9 ? ."], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    single = sorted(word for word in model["vocab"] if len(word.removesuffix("</w>")) == 1 and word != "\n</w>")
    single = sorted(single, key=lambda word: word.endswith("</w>"))
    merged = ["".join(pair) for pair in model["merges"]]
    ids = {word: i for i, word in enumerate(dict.fromkeys(["<unk>", *single, *merged, "\n</w>"]))}
    Path(vocabulary).parent.mkdir(exist_ok=True)
    Path(vocabulary).write_text(json.dumps(ids), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    Path(merges).write_text("\n".join(lines), encoding="utf-8")
    return ids


# Of a block, in the order of the release.
ORDER = ("attention.qkv", "attention.projection", "norm_1", "feed_forward.expand", "feed_forward.contract", "norm_2")


def write_release(folder: str = "gpt1") -> GPT:
    """A model as OpenAI's release of GPT-1 stores it, in ten files."""
    ids = write_pieces(f"{folder}/encoder_bpe_40000.json", f"{folder}/vocab_40000.bpe")
    gpt = GPT(GPTConfig(len(ids), WINDOW, 2, 2, 128)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in gpt.parameters():
        parameter.data.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    arrays: list[torch.Tensor] = [gpt.get_parameter(f"{name}_embedding.weight") for name in ("position", "token")]
    for i, part in itertools.product(range(2), ORDER):
        weight = gpt.get_parameter(f"blocks.{i}.{part}.weight")
        arrays += [weight if weight.dim() == 1 else weight.T[None], gpt.get_parameter(f"blocks.{i}.{part}.bias")]
    plain = [array.detach().numpy() for array in arrays]
    Path(folder, "params_shapes.json").write_text(json.dumps([array.shape for array in plain]))
    for i, piece in enumerate(np.array_split(np.concatenate([array.ravel() for array in plain]), 10)):
        np.save(f"{folder}/params_{i}.npy", piece)
    return gpt


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GPT:
    monkeypatch.chdir(tmp_path)
    return write_release()


TEXT = "the cat sat on a mat and saw two old rats."


def test_openai_s_release_comes_in_to_the_bit_and_writes(release: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, tokenizer = imported("gpt1", "gpt1.ckpt")
    assert_equal_weights(release, gpt)
    ids = tokenizer.encode(TEXT)
    assert len(ids) < len(TEXT) / 2
    assert tokenizer.decode(ids) == TEXT.replace(".", " .")
    model = minigpt.load("gpt1.ckpt")
    written = model.generate("the cat", max_new_tokens=3 * WINDOW)
    assert len(written.split()) > 3
    assert written[0] in " .;" or model.tokenizer.vocabulary[int(ids[1])].endswith("</w>")
    pieces = "".join(model.stream("the cat", max_new_tokens=3 * WINDOW))
    assert pieces == written
    monkeypatch.setattr("sys.stdin", io.StringIO("/length 9\nthe cat\n/quit\n"))
    short = ("--max_new_tokens", 9)
    for command in (("generate", "--prompt", "the cat", "--json", *short), ("generate", *short), ("chat",)):
        done = run_minigpt(*command, "--ckpt_path", "gpt1.ckpt")
        assert done.code == 0, done.err
    traced = model.trace("The cat")
    assert traced.tokens == ["the</w>", "cat</w>"]
    assert "the</w>" in str(traced)


def test_the_surprisal_of_a_text_in_pieces_is_told_per_token(release: GPT) -> None:
    gpt, tokenizer = imported("gpt1", "gpt1.ckpt")
    Path("text.txt").write_text(TEXT + "\n\n" + TEXT)
    done = run_minigpt(
        "predict", "--ckpt_path", "gpt1.ckpt", "--data.predict_corpus", "text.txt", "--output", "nats.csv"
    )
    assert done.code == 0, done.err
    assert "nats per token" in done.out
    assert "pieces of words" in done.out
    header, *rows = [line.split(",") for line in Path("nats.csv").read_text().splitlines()]
    ids = tokenizer.encode(Path("text.txt").read_text())
    assert header == ["place", "token", "nats"]
    assert [row[1] for row in rows] == [tokenizer.label(i) for i in ids]
    first = tokenizer.encode(tokenizer.start)
    read = torch.from_numpy(np.concatenate([first, ids]).astype(np.int64))[: WINDOW + 1]
    nats = F.cross_entropy(gpt(read[None, :-1])[0], read[1:], reduction="none")
    torch.testing.assert_close(torch.tensor([float(row[2]) for row in rows[:WINDOW]]), nats, rtol=1e-4, atol=1e-5)


def test_what_can_t_be_done_with_pieces_is_refused_with_the_reason(release: GPT) -> None:
    imported("gpt1", "gpt1.ckpt")
    Path("text.txt").write_text(make_text(6000))
    for command in ("fit", "validate", "test"):
        done = run_minigpt(command, "--ckpt_path", "gpt1.ckpt", "--data.corpus", "text.txt")
        assert_clear_error(done, "gpt1.ckpt reads pieces of words", "no loss per character can be told", command)
    done = run_minigpt("fit", "--data.corpus", "text.txt", "--data.tokenizer", "bpe", "--model.n_layer", 1)
    assert_clear_error(done, "a model of word pieces is imported, not trained here")
    done = run_minigpt("generate", "--ckpt_path", "gpt1.ckpt", "--prompt", "a \ud83d")
    assert_clear_error(done, "(U+D83D): half a surrogate pair")


def test_without_the_library_of_pieces_it_is_named(release: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    imported("gpt1", "gpt1.ckpt")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for command in (("generate", "--ckpt_path", "gpt1.ckpt"), ("import", "gpt1", "--output", "new.ckpt")):
        assert_clear_error(run_minigpt(*command), "pip install tokenizers")


def test_a_model_of_pieces_goes_out_as_hugging_face_s_own(release: GPT) -> None:
    transformers = pytest.importorskip("transformers")
    gpt, tokenizer = imported("gpt1", "gpt1.ckpt")
    assert run_minigpt("export", "--ckpt_path", "gpt1.ckpt", "--output_dir", "hf").code == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained("hf")
    ids = ids_of(gpt)
    torch.testing.assert_close(theirs(ids).logits, gpt(ids), rtol=1e-5, atol=1e-5)
    names = {"vocab": "gpt1/encoder_bpe_40000.json", "merges": "gpt1/vocab_40000.bpe"}
    own = transformers.OpenAIGPTTokenizer(
        vocab=json.loads(Path(names["vocab"]).read_text()),
        merges=[tuple(line.split()) for line in Path(names["merges"]).read_text().splitlines()[1:]],
    )
    for text in (TEXT, "Caf\u00e9\n\nisn't it? The  CAT;xyz", "cafe\u0301"):
        found = tokenizer.encode(text).tolist()
        assert found == transformers.AutoTokenizer.from_pretrained("hf")(text).input_ids
        assert found == own(text).input_ids
    after = imported("hf", "again.ckpt")
    assert_equal_weights(gpt, after[0])
    assert after[1].vocabulary == tokenizer.vocabulary


def test_the_hub_s_two_files_of_pieces_are_read(release: GPT) -> None:
    gpt, tokenizer = imported("gpt1", "gpt1.ckpt")
    assert run_minigpt("export", "--ckpt_path", "gpt1.ckpt", "--output_dir", "hf").code == 0
    Path("hf/tokenizer.json").unlink()
    shutil.copy("gpt1/encoder_bpe_40000.json", "hf/vocab.json")
    shutil.copy("gpt1/vocab_40000.bpe", "hf/merges.txt")
    edit(renamed(r"^transformer\.", ""))
    after = imported("hf", "hub.ckpt")
    assert_equal_weights(gpt, after[0])
    assert after[1].encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_a_release_that_is_not_whole_is_told_what_it_lacks(release: GPT) -> None:
    shutil.copytree("gpt1", "whole")

    def refused(message: str) -> None:
        assert_clear_error(run_minigpt("import", "gpt1", "--output", "new.ckpt"), "gpt1 can't be imported.", message)
        shutil.rmtree("gpt1")
        shutil.copytree("whole", "gpt1")

    for name, message in {
        "params_9.npy": "params_0.npy to params_8.npy hold",
        "params_3.npy": "params_0.npy to params_2.npy hold",
        "params_0.npy": "There is no params_0.npy",
        "encoder_bpe_40000.json": "encoder_bpe_40000.json can't be read",
        "vocab_40000.bpe": "vocab_40000.bpe can't be read",
    }.items():
        Path("gpt1", name).unlink()
        refused(message)
    np.save("gpt1/params_4.npy", np.array([Runs()], dtype=object), allow_pickle=True)
    refused("params_4.npy is no array of plain numbers: Object arrays cannot be loaded")
    assert not Path("ran").exists()
    shapes = json.loads(Path("gpt1/params_shapes.json").read_text())
    for wrong, message in (
        (shapes[:-1], "has 25 shapes; GPT-1 has 2, and 12 for each block"),
        ([[16, 100], [60, 100], *shapes[2:]], "the width is 100, no multiple of 64"),
        ({"a": 1}, "is no list of shapes"),
        ([*shapes[:2], [1, 384, 128], *shapes[3:]], "h.0.attn.c_attn.weight has the shape (384, 128)"),
    ):
        Path("gpt1/params_shapes.json").write_text(json.dumps(wrong))
        refused(message)
    path = Path("gpt1/encoder_bpe_40000.json")
    path.write_text(json.dumps({word: i for word, i in json.loads(path.read_text()).items() if word != "\n</w>"}))
    refused("its vocabulary is padded")


@pytest.mark.soak
def test_the_full_gpt1_comes_in_and_goes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 117M shape, of which a window is compared in float32."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    gpt = GPT(GPTConfig()).eval()
    words = ["<unk>", *(f"w{i}</w>" for i in range(40476)), ".</w>"]
    write_pieces("hub/vocab.json", "hub/merges.txt")
    Path("hub/vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    Path("hub/merges.txt").write_text("#version: 0.2\n")
    save_file(layouts.to_tensors(gpt), "hub/model.safetensors")
    Path("hub/config.json").write_text(json.dumps(layouts.to_configuration(gpt.config)))
    theirs = transformers.OpenAIGPTLMHeadModel.from_pretrained("hub")
    ours, _ = imported("hub")
    assert sum(parameter.numel() for parameter in ours.parameters()) == 116_534_784
    ids = torch.randint(40478, (1, 512), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=1e-5, atol=2e-5)


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
