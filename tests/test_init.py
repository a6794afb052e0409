"""A new run goes on from the weights of another model, on another text."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Result, assert_clear_error, make_text, run_minigpt
from minigpt.records import METRICS, read_rows
from minigpt.run import RunFolder, load_gpt, read_checkpoint, write_checkpoint
from minigpt.text.tokenizer import UNKNOWN
from minigpt.training import plan
from minigpt.training.data import CharDataModule
from minigpt.training.proof import compare
from test_distributed import EXACT, TWO, assert_close_run, fit

OLD = RunFolder.first("tiny")
NEW = RunFolder(OLD.path.with_name("version_1"))
UNTRAINED = ("--trainer.max_steps", 1)  # the first step of a warm-up has a learning rate of 0


@pytest.fixture(autouse=True)
def in_library(in_trained: Path) -> Path:
    """A folder with a run, and with a second book, whose characters are partly others."""
    Path("book2.txt").write_text(make_text(6000, seed=3).replace("cat", "Kätze").replace(";", ""))
    return in_trained


def init(*args: object, path: object = OLD.last, book: str = "book2.txt") -> Result:
    return run_minigpt("fit", "--init_from", path, "--data.corpus", book, *args)


def begin(*args: object, path: object = OLD.last, book: str = "book2.txt") -> Result:
    result = init(*args, path=path, book=book)
    assert result.code == 0, result.err
    return result


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return read_checkpoint(run.last)["state_dict"]


def vocabulary(run: RunFolder) -> str:
    return read_checkpoint(run.last)["hyper_parameters"]["vocabulary"]


def test_one_command_goes_on_with_a_second_book(in_library: Path) -> None:
    result = begin(path="best")
    assert "and by its recipe where nothing else is given: adamw at 0.003, 4 steps of warm-up, 24 steps" in result.out
    assert "of which 3 are new: 'K' (U+004B), 'z' (U+007A), 'ä' (U+00E4)." in result.out
    assert "don't occur in this text, and stay: 2." in result.out  # the semicolon, and the c of cat
    checkpoint, old = read_checkpoint(NEW.last), read_checkpoint(OLD.last)
    assert vocabulary(NEW) == vocabulary(OLD) + "Kzä"
    assert [row["step"] for row in read_rows(NEW.path / METRICS)] == [str(step) for step in range(1, 25)]
    for key in ("batch_size", "val_fraction", "seed"):
        assert checkpoint["datamodule_hyper_parameters"][key] == old["datamodule_hyper_parameters"][key]
    best = next(OLD.checkpoints.glob("step*"))
    assert json.loads(NEW.parent.read_text()) == {"parent": str(best), "parent_step": 24, "taken": "weights"}
    assert checkpoint["parents"] == [{"parent": "tiny/version_0", "parent_step": 24, "corpus": ["text.txt"]}]
    assert "weights of tiny/version_0 at step 24" in " ".join(run_minigpt("runs").out.split())
    begin(*UNTRAINED, path=NEW.last, book="text.txt")
    third = read_checkpoint(RunFolder(OLD.path.with_name("version_2")).last)
    assert [parent["parent"] for parent in third["parents"]] == ["tiny/version_0", "tiny/version_1"]


def test_old_rows_are_kept_to_the_bit_and_new_ones_are_drawn_from_the_seed(in_library: Path) -> None:
    result = begin(*UNTRAINED, "--data.block_size", 24, "--name", "a")
    assert "Positions 17 to 24 of the window begin as copies" in result.out
    begin(*UNTRAINED, "--data.block_size", 8, "--name", "b", "--seed_everything", 7)
    old, longer, shorter = weights(OLD), weights(RunFolder.first("a")), weights(RunFolder.first("b"))
    tokens, positions = "gpt.token_embedding.weight", "gpt.position_embedding.weight"
    for name, weight in old.items():
        for new in (longer, shorter):
            rows = min(len(weight), len(new[name]))
            assert rows == (8 if name == positions and new is shorter else len(weight))
            assert torch.equal(new[name][:rows], weight[:rows]), name
    assert torch.equal(longer[positions][16:], old[positions][:8])
    assert 0.013 < float(longer[tokens][len(old[tokens]) :].std()) < 0.027  # of 48
    assert not torch.equal(longer[tokens], shorter[tokens])


def test_a_window_of_sines_grows(in_library: Path) -> None:
    sines = ("--config", "tiny.yaml", "--model.positions", "sinusoidal", "--name", "sines", *UNTRAINED)
    assert run_minigpt("fit", *sines).code == 0
    result = begin("--data.block_size", 32, "--name", "more", path=RunFolder.first("sines").last)
    assert "window 32" in result.out
    assert "Positions" not in result.out


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.soak)])
def test_what_is_frozen_stays_and_a_run_that_was_stopped_ends_in_the_same_bits(
    in_library: Path, optimizer: str
) -> None:
    parts = ("--model.freeze", "[blocks.0,blocks.1.attention,blocks.1.norm_2.bias]", "--model.optimizer", optimizer)
    flags = (*parts, "--data.block_size", 20, "--checkpoint.every_n_steps", 1, "--trainer.max_steps", 12)
    result = begin(*flags, "--name", "whole")
    assert "of them frozen" in result.out
    stop = ("--trainer.callbacks", "test_resume.StopAt", "--trainer.callbacks.batch", 6)
    assert init(*flags, *stop, "--name", "stopped").code == 128 + 15
    whole, stopped = RunFolder.first("whole"), RunFolder.first("stopped")
    assert read_checkpoint(stopped.last)["global_step"] == 6
    resumed = run_minigpt("fit", "--ckpt_path", stopped.last, "--trainer.callbacks", "null")
    assert resumed.code == 0, resumed.err
    for part, (_, places) in compare(whole, stopped).items():
        assert places == [], (part, places)
    assert read_checkpoint(whole.last)["parents"] == read_checkpoint(stopped.last)["parents"] != []
    old, new = weights(OLD), weights(whole)
    for name, weight in old.items():
        frozen = name.startswith(("gpt.blocks.0", "gpt.blocks.1.attention")) or name == "gpt.blocks.1.norm_2.bias"
        assert torch.equal(new[name][: len(weight)], weight[: len(new[name])]) == frozen, name
    state = read_checkpoint(whole.last)["optimizer_states"][0]
    trained = sum(not name.startswith(("gpt.blocks.0", "gpt.blocks.1.attention")) for name in new) - 1
    assert len(state["state"]) == sum(len(group["params"]) for group in state["param_groups"]) == trained


def test_a_fresh_model_may_have_frozen_parts_too(in_library: Path) -> None:
    flags = ("--config", "tiny.yaml", "--model.optimizer", "muon", "--trainer.max_steps", 6, "--model.freeze", "blocks")
    assert run_minigpt("fit", *flags).code == 0
    assert run_minigpt("fit", "--config", "tiny.yaml", *UNTRAINED, "--name", "fresh").code == 0
    new, fresh = weights(NEW), weights(RunFolder.first("fresh"))
    for name, weight in new.items():
        assert torch.equal(weight, fresh[name]) == ("blocks" in name), name
    further = ("--ckpt_path", NEW.last, "--branch", "true", "--trainer.max_steps", 9, "--model.freeze", "null")
    assert_clear_error(run_minigpt("fit", *further), "model.freeze is given as None", "made with 'blocks'")
    begin(*UNTRAINED, "--name", "free", path=NEW.last)
    assert read_checkpoint(RunFolder.first("free").last)["hyper_parameters"]["freeze"] is None


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ("[blocks.2]", "names 'blocks.2', in which there is nothing to train. There are: token_embedding, position_"),
        ("block", "token_embedding, position_embedding, blocks.0, blocks.1; blocks"),
        ("[token_embedding,position_embedding,blocks]", "nothing left to train"),
        ("token_embedding", "names token_embedding, but this text or window needs 3 new rows"),
        ("position_embedding", "names position_embedding, but this text or window needs 16 new rows"),
    ],
)
def test_what_can_not_be_frozen_is_refused(in_library: Path, parts: str, said: str) -> None:
    result = init("--model.freeze", parts, "--data.block_size", 32)
    assert_clear_error(result, said)
    assert not NEW.path.exists()


@pytest.mark.parametrize(
    ("flag", "value", "has"),
    [
        ("model.n_layer", 3, 2),
        ("model.n_head", 4, 2),
        ("model.n_embd", 32, 16),
        ("model.norm", "pre", "'post'"),
        ("model.positions", "sinusoidal", "'learned'"),
        ("data.tokenizer", "byte", "'char'"),
    ],
)
def test_another_shape_is_refused_and_other_dropout_is_not(
    in_library: Path, flag: str, value: object, has: str
) -> None:
    result = init(f"--{flag}", value)
    assert_clear_error(result, f"{flag} is given as {value!r}, but the model of {OLD.last} has {has}")
    assert not NEW.path.exists()
    if flag == "model.n_layer":
        begin(*UNTRAINED, "--model.resid_pdrop", 0.3, "--config", "tiny.yaml", "--data.corpus", "book2.txt")
        assert read_checkpoint(NEW.last)["hyper_parameters"]["resid_pdrop"] == 0.3


def test_bytes_go_on_with_any_book(in_library: Path) -> None:
    assert run_minigpt("fit", "--config", "tiny.yaml", "--data.tokenizer", "byte", *UNTRAINED).code == 0
    result = begin(*UNTRAINED, path=NEW.last, book="book2.txt")
    assert "Characters" not in result.out
    assert len(vocabulary(RunFolder(OLD.path.with_name("version_2")))) == 256
    assert_clear_error(init("--data.tokenizer", "char", path=NEW.last), "data.tokenizer is given as 'char'")


def test_a_frame_of_a_film_is_widened(in_library: Path) -> None:
    filmed = ("--config", "tiny.yaml", "--film.per_doubling", 1, "--name", "filmed", "--trainer.max_steps", 8)
    assert run_minigpt("fit", *filmed).code == 0
    frame = RunFolder.first("filmed").frame(4)
    begin(*UNTRAINED, "--name", "new", path=frame)
    new = weights(RunFolder.first("new"))
    for name, weight in read_checkpoint(frame)["state_dict"].items():
        assert weight.dtype == torch.float16
        assert torch.equal(new[name][: len(weight)], weight.float()), name
    assert read_checkpoint(RunFolder.first("new").last)["parents"][0]["parent"] == "filmed/version_0"
    assert not RunFolder.first("new").frames().keys() - {0, 1}


def test_characters_that_are_rare_become_the_unknown_symbol(in_library: Path) -> None:
    Path("rare.txt").write_text("aß" * 40 + "Ω" + "ab" * 200 + "λ" + "ba" * 200)
    both = [
        CharDataModule("rare.txt", block_size=4, min_count=3, base_vocabulary=base) for base in ("zb", "z" + UNKNOWN)
    ]
    assert [data.vocabulary for data in both] == ["zbaß" + UNKNOWN, f"z{UNKNOWN}abß"]
    assert CharDataModule("rare.txt", block_size=4, base_vocabulary="z" + UNKNOWN).vocabulary == f"z{UNKNOWN}abßΩλ"
    begin(*UNTRAINED, "--data.min_count", 3, "--data.block_size", 8, book="rare.txt")
    assert vocabulary(NEW) == vocabulary(OLD) + "bß" + UNKNOWN


def test_a_model_without_a_newline_learns_one(in_library: Path) -> None:
    Path("flat.txt").write_text("ba" * 300)
    assert (
        run_minigpt("fit", "--config", "tiny.yaml", "--data.corpus", "flat.txt", *UNTRAINED, "--name", "flat").code == 0
    )
    begin("--trainer.max_steps", 8, "--name", "lines", path=RunFolder.first("flat").last)
    lines = RunFolder.first("lines")
    assert vocabulary(lines).startswith("ab\n ")
    scored = run_minigpt("validate", "--ckpt_path", lines.last).out  # which numbers the text once more
    loss = next(line for line in scored.splitlines() if "val/loss" in line)
    assert float(loss.strip("│ \n").split()[-1]) == pytest.approx(
        float(read_rows(lines.path / METRICS)[-1]["val/loss"])
    )
    written = run_minigpt("generate", "--ckpt_path", lines.last, "--prompt", "Kätze\n", "--max_new_tokens", 5)
    assert written.code == 0, written.err


def strip(**changes: Any) -> dict[str, Any]:
    """The checkpoint of the trained run with the weights, the vocabulary and the shape alone."""
    kept = read_checkpoint(OLD.last)
    return {key: kept[key] for key in ("state_dict", "hyper_parameters", "minigpt_format")} | changes


def test_a_checkpoint_without_a_recipe_takes_one(in_library: Path) -> None:
    write_checkpoint(strip(), Path("bare.ckpt"))
    assert_clear_error(init(path="bare.ckpt"), "bare.ckpt doesn't hold how long", "--trainer.max_steps N")
    begin(*UNTRAINED, "--trainer.accelerator", "cpu", "--name", "new", path="bare.ckpt")
    new = RunFolder.first("new")
    assert torch.equal(weights(new)["gpt.token_embedding.weight"][:17], weights(OLD)["gpt.token_embedding.weight"])
    assert read_checkpoint(new.last)["parents"] == [{"parent": "bare.ckpt", "parent_step": 0, "corpus": []}]


def test_what_can_not_be_gone_on_from_is_told(in_library: Path) -> None:
    assert_clear_error(run_minigpt("fit", "--init_from", "last"), "goes on with a text", "--data.corpus FILE")
    assert_clear_error(init(path="none.ckpt"), "none.ckpt is not there")
    assert_clear_error(init(path="."), "is a folder", "python -m minigpt import")
    assert_clear_error(init("--ckpt_path", "last"), "only one of them can be given")
    assert_clear_error(init("--branch", "true"), "--branch")
    assert_clear_error(init("--data.vocabulary", "abc"), "data.vocabulary can't be given")
    torch.save({"model": 1}, "other.ckpt")
    assert_clear_error(init(path="other.ckpt"), "other.ckpt is a checkpoint of another program")
    sick = {name: weight.clone() for name, weight in weights(OLD).items()}
    sick["gpt.blocks.1.norm_1.bias"][3] = math.nan
    write_checkpoint(strip(state_dict=sick), Path("sick.ckpt"))
    assert_clear_error(init(path="sick.ckpt"), "Weights in sick.ckpt are not finite", "earlier checkpoint")
    imported = strip()["hyper_parameters"] | {"tokenizer": "bpe"}
    write_checkpoint(strip(hyper_parameters=imported), Path("bpe.ckpt"))
    assert_clear_error(init(path="bpe.ckpt"), "the tokenizer bpe", "characters and bytes")
    assert [path.name for path in OLD.path.parent.iterdir()] == ["version_0"]


def test_a_run_may_be_planned_from_another_model(in_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CALIBRATION", 0.1)
    planned = run_minigpt("plan", "--init_from", "last", "--data.corpus", "book2.txt", "--model.freeze", "blocks")
    assert planned.code == 0, planned.err
    frozen = sum(parameter.numel() for name, parameter in load_gpt(OLD.last)[0].named_parameters() if "blocks" in name)
    assert f"{frozen:,} of them frozen" in planned.out
    assert not NEW.path.exists()


@pytest.mark.soak
def test_two_processes_go_on_as_one(in_library: Path) -> None:
    flags = ("--init_from", "last", "--data.corpus", "book2.txt", "--trainer.max_steps", 12, *EXACT)
    begun = fit(*flags, *TWO, "--model.freeze", "blocks.0", "--name", "two")
    assert begun.returncode == 0, begun.stderr
    begin(*flags[4:], "--model.freeze", "blocks.0", "--name", "one")
    assert_close_run("two", "one")
