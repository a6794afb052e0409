"""The command line, as its users call it."""

import contextlib
import csv
import io
import json
import math
import os
import random
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import ROOT, TINY, Result, assert_clear_error, make_text, run_minigpt
from minigpt.__main__ import main
from minigpt.commands.generate import print_json
from minigpt.errors import UserError
from minigpt.generation import Sample
from minigpt.training.module import GPTLightningModule

RUN = Path("lightning_logs/tiny/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def minigpt(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "minigpt", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **kwargs)  # type: ignore[call-overload]


def best_checkpoint() -> Path:
    (path,) = (RUN / "checkpoints").glob("step*-val*.ckpt")
    return path


def printed(name: str, text: str) -> float:
    """The value that Lightning's table of results gives a metric."""
    match = re.search(rf"{re.escape(name)}\s+│?\s*([\d.]+)", text)
    assert match, text
    return float(match[1])


def curve(run: Path, tag: str) -> list[tuple[int, float]]:
    """A curve as TensorBoard's own reader shows it."""
    reader = EventAccumulator(str(run), size_guidance={"scalars": 0})
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)]


# fit


def test_fit_leaves_the_best_and_the_last_checkpoint_and_says_how_to_use_them(in_trained: Path) -> None:
    out = (in_trained / "fit.out").read_text()
    best = best_checkpoint()
    assert LAST.is_file()
    assert not LAST.is_symlink()
    step, loss = re.fullmatch(r"step(\d+)-val([\d.]+)", best.stem).groups()  # type: ignore[union-attr]
    assert f"Best: {loss} nats per character" in out
    assert f"generate --ckpt_path {best}" in out
    assert f"fit --ckpt_path {LAST}" in out
    assert f"tensorboard --logdir {RUN}" in out
    assert out.count("Precision: ") == 1
    assert "--- step 16 ---" in out
    assert "Traceback" not in out
    assert int(step) in (8, 16, 24)


def test_a_checkpoint_is_plain_data_and_complete(in_trained: Path) -> None:
    checkpoint = torch.load(LAST, weights_only=True)
    parameters = checkpoint["hyper_parameters"]
    assert parameters["vocabulary"] == "".join(sorted(set(Path("text.txt").read_text())))
    assert {k: parameters[k] for k in ("n_layer", "n_head", "n_embd", "block_size", "norm")} == {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "block_size": 16,
        "norm": "post",
    }
    assert all(isinstance(value, int | float | str | None) for value in parameters.values())


def test_tensorboard_shows_the_run(in_trained: Path) -> None:
    reader = EventAccumulator(str(RUN), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    for tag in ("loss", "bits_per_char", "grad_norm", "tokens_per_second", "mfu"):
        assert [step for step, _ in curve(RUN, f"train/{tag}")] == list(range(24)), tag
    speed = re.search(r"Speed: [\d,]+ characters a second, (\d+)% of this machine's", Path("fit.out").read_text())
    assert speed
    assert float(speed[1]) == pytest.approx(100 * statistics.median(v for _, v in curve(RUN, "train/mfu")), abs=0.6)
    for tag in ("val/loss", "val/bits_per_char", "val/perplexity"):
        assert [step for step, _ in curve(RUN, tag)] == [7, 15, 23], tag
    loss, bits = curve(RUN, "val/loss")[-1][1], curve(RUN, "val/bits_per_char")[-1][1]
    assert bits == pytest.approx(loss / math.log(2), rel=1e-6)
    assert curve(RUN, "val/perplexity")[-1][1] == pytest.approx(math.exp(loss), rel=1e-5)
    rates = [value for _, value in curve(RUN, "train/lr-AdamW/decay")]
    assert max(rates) == pytest.approx(0.003)
    assert rates[0] == 0
    assert [event.step for event in reader.Tensors("sample/text_summary")] == [7, 15, 23]
    labels = next(RUN.rglob("metadata.tsv")).read_text().splitlines()
    assert labels[:2] == ["\\n", "space"]
    assert (RUN / "config.yaml").is_file()


def test_the_training_loss_is_per_character_however_gradients_are_accumulated(workplace: Path) -> None:
    assert run_minigpt("fit", "--config", "tiny.yaml", "--trainer.accumulate_grad_batches", 4).code == 0
    characters = len(set(Path("text.txt").read_text()))
    assert curve(RUN, "train/loss")[0][1] == pytest.approx(math.log(characters), rel=0.05)
    assert [step for step, _ in curve(RUN, "train/loss")] == list(range(24))


def test_training_lowers_the_loss(in_trained: Path) -> None:
    losses = [loss for _, loss in curve(RUN, "val/loss")]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < math.log(len(set(Path("text.txt").read_text())))


def test_any_field_is_a_flag_and_each_run_has_its_folder(workplace: Path) -> None:
    flags = ("--model.n_layer", 1, "--model.attn_pdrop", 0, "--data.batch_size", 4, "--data.block_size", 12)
    quick = ("--trainer.max_steps", 2, "--model.positions", "sinusoidal", "--model.norm", "pre", "--name", "mine")
    for version in range(2):
        assert run_minigpt("fit", "--config", "tiny.yaml", *flags, *quick).code == 0
        checkpoint = torch.load(f"lightning_logs/mine/version_{version}/checkpoints/last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 2
        assert {"n_layer": 1, "attn_pdrop": 0, "block_size": 12}.items() <= checkpoint["hyper_parameters"].items()
        assert checkpoint["hyper_parameters"]["positions"] == "sinusoidal"
        assert checkpoint["datamodule_hyper_parameters"]["batch_size"] == 4


def test_one_batch_can_be_learned_by_heart(workplace: Path) -> None:
    dropout = [flag for name in ("embd", "attn", "resid") for flag in (f"--model.{name}_pdrop", 0)]
    result = run_minigpt(
        *("fit", "--config", "tiny.yaml", "--data.overfit_one_batch", "true", "--data.batch_size", 2, *dropout),
        *("--model.n_embd", 64, "--model.learning_rate", 0.01, "--trainer.max_steps", 150),
        *("--early_stopping.patience", 100, "--sampler.every_n_steps", 0),
    )
    assert result.code == 0, result.err
    assert curve(RUN, "train/loss")[-1][1] < 0.05


def test_early_stopping_ends_a_run_that_no_longer_improves(workplace: Path) -> None:
    result = run_minigpt(
        *("fit", "--config", "tiny.yaml", "--early_stopping.patience", 1, "--early_stopping.min_delta", 100),
    )
    assert result.code == 0, result.err
    assert torch.load(LAST, weights_only=True)["global_step"] == 16


def test_sampling_changes_nothing_in_training(workplace: Path) -> None:
    for name, steps in (("often", 1), ("never", 0)):
        run_minigpt("fit", "--config", "tiny.yaml", "--name", name, "--sampler.every_n_steps", steps)
    often, never = (
        torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("often", "never")
    )
    assert all(torch.equal(often[key], never[key]) for key in never)


def test_the_last_weights_are_always_scored(workplace: Path) -> None:
    assert run_minigpt("fit", "--config", "tiny.yaml", "--trainer.max_steps", 11).code == 0
    assert [step for step, _ in curve(RUN, "val/loss")] == [7, 10]
    epochs = ("--name", "epochs", "--trainer.max_steps", -1, "--trainer.max_epochs", 1, "--data.batch_size", 64)
    assert run_minigpt("fit", "--config", "tiny.yaml", *epochs, "--trainer.val_check_interval", 4).code == 0
    assert [step for step, _ in curve(Path("lightning_logs/epochs/version_0"), "val/loss")] == [3, 4]
    result = run_minigpt("fit", "--ckpt_path", "lightning_logs/epochs/version_0/checkpoints/last.ckpt")
    assert_clear_error(result, "has done 1 of max_epochs = 1")


def test_a_rehearsal_leaves_nothing_behind(workplace: Path) -> None:
    assert run_minigpt("fit", "--config", "tiny.yaml", "--trainer.fast_dev_run", "true").code == 0
    assert sorted(p.name for p in workplace.iterdir()) == ["data", "text.txt", "tiny.yaml"]


def test_without_a_logger_a_run_keeps_to_its_folder(workplace: Path) -> None:
    assert run_minigpt("fit", "--config", "tiny.yaml", "--trainer.logger", "false").code == 0
    assert sorted(p.name for p in workplace.iterdir()) == ["data", "lightning_logs", "text.txt", "tiny.yaml"]
    assert LAST.exists()


def test_a_text_in_another_encoding_is_read_by_name(workplace: Path) -> None:
    (workplace / "latin1.txt").write_bytes(("café " * 500).encode("latin-1"))
    corpus = ("--data.corpus", "latin1.txt", "--data.encoding", "latin-1", "--trainer.max_steps", 2)
    assert run_minigpt("fit", "--config", "tiny.yaml", *corpus).code == 0
    assert torch.load(LAST, weights_only=True)["hyper_parameters"]["vocabulary"] == " acfé"
    result = run_minigpt("fit", "--config", "tiny.yaml", "--data.encoding", "klingon")
    assert_clear_error(result, "no text encoding 'klingon'")


# validate, test, predict


def test_validate_reports_the_loss_of_the_checkpoint(in_trained: Path) -> None:
    result = run_minigpt("validate", "--ckpt_path", "best", "--trainer.enable_progress_bar", "false")
    assert result.code == 0, result.err
    loss = float(best_checkpoint().stem.split("-val")[1])
    assert printed("val/loss", result.out) == pytest.approx(loss, abs=5e-5)
    assert sorted(p.name for p in Path("lightning_logs").rglob("version_*")) == ["version_0"]


def test_predict_writes_the_nats_of_every_character_and_agrees_with_test(in_trained: Path, tmp_path: Path) -> None:
    quiet = ("--trainer.enable_progress_bar", "false")
    result = run_minigpt("test", "--ckpt_path", LAST, *quiet)
    assert result.code == 0, result.err
    loss = printed("test/loss", result.out)
    assert printed("test/bits_per_char", result.out) == pytest.approx(loss / math.log(2), rel=1e-5)
    assert printed("test/perplexity", result.out) == pytest.approx(math.exp(loss), rel=1e-5)

    text = Path("text.txt").read_text()
    split = text[int(len(text) * 0.9) :]
    (tmp_path / "split.txt").write_text(split)
    csv_file = tmp_path / "nats.csv"
    result = run_minigpt(
        *("predict", "--ckpt_path", LAST, "--data.predict_corpus", tmp_path / "split.txt"),
        *("--output", csv_file, *quiet),
    )
    assert result.code == 0, result.err
    with csv_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert "".join(row["character"] for row in rows) == split
    assert [int(row["place"]) for row in rows] == list(range(len(split)))
    nats = [float(row["nats"]) for row in rows]
    # Only the first character differs: `test` knows what stood before it.
    assert sum(nats) / len(nats) == pytest.approx(loss, abs=10 / len(nats))


def test_predict_reads_a_glob_and_never_overwrites_a_file(in_trained: Path) -> None:
    predict = ("predict", "--ckpt_path", LAST, "--trainer.enable_progress_bar", "false", "--data.predict_corpus")
    for folder in ("x", "y"):
        Path(folder).mkdir()
        shutil.copy("text.txt", f"{folder}/ch1.txt")
    result = run_minigpt(*predict, "x/ch?.txt", "--output", "ch1.nats.csv")
    assert result.code == 0, result.err
    assert "ch1.nats.csv: 6000 characters" in result.out
    before = Path("ch1.nats.csv").read_bytes()
    assert_clear_error(run_minigpt(*predict, "y/ch1.txt"), "ch1.nats.csv is there already")
    assert Path("ch1.nats.csv").read_bytes() == before


def test_another_text_can_be_scored(in_trained: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(make_text(3000, seed=9))
    other = ("--data.corpus", tmp_path / "other.txt", "--data.test_fraction", 0.5)
    result = run_minigpt("test", "--ckpt_path", LAST, *other, "--trainer.enable_progress_bar", "false")
    assert result.code == 0, result.err
    assert printed("test/loss", result.out) > 0


# generate


def test_generate_writes_the_same_text_for_the_same_seed(in_trained: Path) -> None:
    def text(*args: object) -> str:
        result = run_minigpt("generate", "--ckpt_path", LAST, "--prompt", "the ", "--max_new_tokens", 50, *args)
        assert result.code == 0, result.err
        return result.out

    assert text("--seed", 1) == text("--seed", 1)
    assert text("--seed", 1) != text("--seed", 2)
    assert text("--seed", 1).startswith("the ")
    assert len(text("--seed", 1)) == len("the ") + 50 + 1
    greedy = text("--temperature", 0)
    assert greedy == text("--temperature", 0, "--seed", 5) == text("--top_k", 1, "--seed", 7)


def test_generate_starts_without_lightning_and_streams(in_trained: Path) -> None:
    code = (
        "import sys; sys.argv = ['minigpt', 'generate', '--ckpt_path', 'last', '--max_new_tokens', '5'];"
        "from minigpt.__main__ import main; main(); sys.exit('lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=False, capture_output=True).returncode == 0
    # The reader sees the first characters long before the last is made, and may leave.
    command = [sys.executable, "-m", "minigpt", "generate", "--ckpt_path", "last", "--max_new_tokens", "100000000"]
    command += ["--prompt", "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(20)) == 20
        process.stdout.close()
        assert process.wait(60) == 141
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize("place", ["argparse.ArgumentParser.add_subparsers", "importlib.import_module"])
def test_an_interrupt_ends_quietly_before_a_command_has_begun(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    result = run_minigpt("runs")
    assert (result.code, result.out, result.err) == (130, "", "")


def test_a_misspelt_command_is_answered_by_the_nearest() -> None:
    result = run_minigpt("generat")
    assert result.code == 2
    assert "did you mean generate?" in result.err


def test_a_stream_that_cannot_show_a_text_ends_no_command(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "russian.txt").write_text("Привет, мир\n" * 20, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["minigpt", "corpus", "--data.corpus", "russian.txt", "--data.block_size", "16"])
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "cp1252")) as narrow:
        main()
    narrow.seek(0)
    assert "'?' 20" in narrow.read()


@pytest.fixture(scope="module")
def russian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a model of a Russian text has been trained, with samples printed to a narrow stream."""
    folder = tmp_path_factory.mktemp("russian")
    text = "".join(random.Random(0).choices("Привет, мир! Ещё раз\n", k=6000))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    (folder / "tiny.yaml").write_text(TINY)
    assert narrow(folder, "fit --config tiny.yaml --sampler.prompt Привет").count("--- step") == 3
    return folder


def narrow(folder: Path, command: str) -> str:
    """What a command prints to a stream that has no Cyrillic letters, of which each is replaced."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    words = [sys.executable, "-m", "minigpt", *command.split()]
    done = subprocess.run(words, input="Привет\n/quit\n".encode(), capture_output=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert b"Traceback" not in done.stderr
    return done.stdout.decode("cp1252")


@pytest.mark.soak
@pytest.mark.parametrize(
    "command",
    [
        "corpus --data.corpus text.txt",
        "plan --config tiny.yaml",
        "runs",
        *(f"{command} --ckpt_path best" for command in ("validate", "test", "chat", "generate --prompt Привет")),
        "predict --ckpt_path best --data.predict_corpus text.txt",
    ],
)
def test_a_russian_text_goes_through_a_stream_without_its_letters(russian: Path, command: str) -> None:
    assert narrow(russian, command)
    if command.startswith("predict"):
        assert "П" in (russian / "text.nats.csv").read_text(encoding="utf-8")


def test_json_keeps_what_its_stream_cannot_show() -> None:
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "cp1252", errors="replace")) as narrow:
        print_json([[Sample("Привет", 1, "\udfff мир")]])
    narrow.seek(0)
    (sample,) = json.load(narrow)["samples"]
    assert (sample["prompt"], sample["text"]) == ("Привет", "\udfff мир")


@pytest.mark.parametrize(("ending", "status"), [(">&-", 0), ("| true; exit ${PIPESTATUS[0]}", 141)])
@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes the stream")
def test_an_output_that_is_closed_leaves_no_traceback(workplace: Path, ending: str, status: int) -> None:
    command = f"{shlex.quote(sys.executable)} -m minigpt corpus --data.corpus text.txt {ending}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (status, "")


def test_help_lists_every_command(in_trained: Path) -> None:
    result = run_minigpt("--help")
    assert result.code == 0
    for command in ("fit", "validate", "test", "predict", "generate"):
        assert f"    {command} " in result.out
        assert "--ckpt_path" in run_minigpt(command, "--help").out


def test_help_begins_with_our_settings_and_explains_each() -> None:
    short, whole = (run_minigpt("fit", *flags).out for flags in (("--help",), ("--help", "all")))
    assert len(short.splitlines()) < 310
    assert "trainer.profiler" in whole
    assert "trainer.profiler" not in short
    assert short.index("--model.n_layer") < short.index("--trainer.max_steps")
    for flag in re.findall(r"^  (--[\w.]+)", short, re.MULTILINE):
        text = re.search(rf"^  {re.escape(flag)}\b.*?(?=^  -|\n\n|\Z)", short, re.MULTILINE | re.DOTALL)
        assert text is not None
        assert re.search(r"[a-z]{3}.*\(.*type:", text[0].split(None, 1)[1].replace("\n", " ")) or "config" in flag, flag


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("--model.n_layers", "--model.n_layer"), ("--trainer.max_step", "--trainer.max_steps"), ("--nam", "--name")],
)
def test_a_misspelt_flag_is_told_with_the_right_one(workplace: Path, wrong: str, right: str) -> None:
    assert_clear_error(run_minigpt("fit", "--config", "tiny.yaml", wrong, 1), wrong, f"Did you mean {right}?")
    group, _, key = wrong.removeprefix("--").rpartition(".")
    Path("wrong.yaml").write_text(f"{group}: {{{key}: 1}}\n" if group else f"{key}: 1\n")
    assert_clear_error(run_minigpt("fit", "--config", "wrong.yaml"), f"Did you mean {right}?")


# What is trained, and how it is computed


def test_how_a_run_is_computed_is_free_on_every_call_and_told(in_trained: Path) -> None:
    """``trained`` computes in what this machine is best at."""
    quiet = ("--trainer.enable_progress_bar", "false")
    own = torch.load(LAST, weights_only=True)["precision"]
    other = "32-true" if own == "bf16-mixed" else "bf16-mixed"
    scores = {}
    for fast, layers in (("true", "fast layers"), ("false", "model.py's formulas, as asked")):
        result = run_minigpt("validate", "--ckpt_path", LAST, *quiet, "--fast", fast)
        assert f"Computing in {own} on cpu with {layers}, " in result.out
        assert ("The run computed otherwise so far: layers fast layers." in result.out) == (fast == "false")
        scores[fast] = printed("val/loss", result.out)
    assert scores["true"] == pytest.approx(scores["false"], rel=1e-3)
    result = run_minigpt("validate", "--ckpt_path", LAST, *quiet, "--trainer.precision", other)
    assert f"The run computed otherwise so far: precision {own}." in result.out
    result = run_minigpt("predict", "--ckpt_path", LAST, *quiet, "--data.predict_corpus", "text.txt")
    assert "Computing in 32-true on cpu" in result.out
    assert "otherwise" not in result.out
    how = ("--trainer.precision", other, "--data.num_workers", 1, "--data.eval_batch_size", 3, "--fast", "false")
    result = run_minigpt("fit", "--ckpt_path", LAST, "--trainer.max_steps", 25, *how)
    assert f"The run computed otherwise so far: precision {own}, layers fast layers." in result.out
    assert run_minigpt("fit", "--ckpt_path", LAST, "--trainer.max_steps", 26).out.count("otherwise") == 0
    checkpoint = torch.load(LAST, weights_only=True)
    assert (checkpoint["global_step"], checkpoint["precision"], checkpoint["settings"]["fast"]) == (26, other, False)


def test_a_checkpoint_alone_is_the_run(in_trained: Path, tmp_path: Path) -> None:
    flags = ("--trainer.accumulate_grad_batches", 2, "--trainer.max_steps", 8, "--early_stopping.patience", 3)
    assert run_minigpt("fit", "--config", "tiny.yaml", "--name", "whole", *flags).code == 0
    stop = (*flags, "--trainer.callbacks", "test_resume.StopAt", "--trainer.callbacks.batch", 6)
    assert run_minigpt("fit", "--config", "tiny.yaml", "--name", "copied", *stop).code == 128 + 15
    whole, stopped = (Path(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt") for name in ("whole", "copied"))
    stopped.rename("alone.ckpt")
    shutil.rmtree("lightning_logs/copied")
    result = run_minigpt("fit", "--ckpt_path", "alone.ckpt")
    assert result.code == 0, result.err
    assert "it may name code from elsewhere: --trainer.callbacks. Give it again" in result.out
    one, other = (torch.load(path, weights_only=True) for path in (whole, stopped))
    assert one["global_step"] == other["global_step"] == 8
    for name, weight in one["state_dict"].items():
        assert torch.equal(weight, other["state_dict"][name]), name
    assert other["settings"]["early_stopping"]["patience"] == 3


def test_what_a_checkpoint_says_starts_no_code(in_trained: Path) -> None:
    def call(setting: object) -> Result:
        checkpoint = torch.load(LAST, weights_only=True)
        checkpoint["settings"]["trainer"]["logger"] = setting
        torch.save(checkpoint, LAST)
        return run_minigpt("fit", "--ckpt_path", LAST, "--trainer.max_steps", checkpoint["global_step"] + 1)

    Path("hidden.yaml").write_text("class_path: subprocess.Popen\ninit_args: {args: [touch, hacked]}\n")
    popen = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "hacked"]}}
    for setting in (popen, [popen], "subprocess.Popen", str(popen), "hidden.yaml"):
        result = call(setting)
        assert result.code == 0, result.err
        assert "it may name code from elsewhere: --trainer.logger." in result.out
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "csv"}}
    assert "elsewhere" not in call(logger).out
    assert list(Path("csv").rglob("metrics.csv"))
    assert not list(Path("csv").rglob("*.ckpt")), "a logger may write elsewhere, the run keeps to its folder"
    assert torch.load(LAST, weights_only=True)["global_step"] == 24 + 6
    assert not Path("hacked").exists()


# Mistakes


class Broken(Callback):
    """A callback as a user writes it, with a mistake."""

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == 2:
            int("oops")


@pytest.mark.soak
def test_a_mistake_in_a_users_own_code_keeps_its_traceback(workplace: Path) -> None:
    paths = {"PYTHONPATH": str(Path(__file__).parent)}
    done = minigpt("fit", "--config", "tiny.yaml", "--trainer.callbacks", "test_cli.Broken", env=os.environ | paths)
    assert done.returncode == 1
    assert 'int("oops")' in done.stderr, "where it happened"
    assert "minigpt: " not in done.stderr


def test_a_mistake_of_this_program_keeps_its_traceback(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def make_optimizer(self, precision):\n    raise ValueError('a bug')\n"
    broken: dict[str, Any] = {}
    exec(compile(source, GPTLightningModule.__init__.__code__.co_filename, "exec"), broken)
    monkeypatch.setattr(GPTLightningModule, "make_optimizer", broken["make_optimizer"])
    with pytest.raises(ValueError, match="a bug") as error:
        run_minigpt("fit", "--config", "tiny.yaml")
    assert not isinstance(error.value, UserError)


def test_a_corpus_that_cannot_be_used_is_a_clear_error(workplace: Path) -> None:
    (workplace / "empty.txt").write_text("")
    (workplace / "short.txt").write_text(make_text(100))
    (workplace / "latin1.txt").write_bytes("un café\n".encode("latin1") * 100)
    (workplace / "folder").mkdir()
    for corpus, parts in {
        "empty.txt": ["In the corpus empty.txt: it is empty"],
        "short.txt": ["100 characters", "val split gets 10", "block_size = 16", "--data.block_size"],
        "missing.txt": ["no corpus 'missing.txt'", "shakespeare, tinyshakespeare"],
        "shakespear": ["no corpus 'shakespear'", "shakespeare, tinyshakespeare"],
        "folder": ["folder holds no text"],
        "*.text": ["No file matches *.text"],
        "latin1.txt": ["latin1.txt is not utf-8: byte 6 (0xe9)", "--data.encoding latin-1"],
    }.items():
        assert_clear_error(run_minigpt("fit", "--config", "tiny.yaml", "--data.corpus", corpus), *parts)
    assert not Path("lightning_logs").exists()


def test_without_a_network_a_download_says_how_to_supply_the_file(workplace: Path) -> None:
    corpus = ("--data.corpus", "tinyshakespeare", "--data.mirror", "http://127.0.0.1:9/input.txt")
    result = run_minigpt("fit", "--config", "tiny.yaml", *corpus)
    assert_clear_error(result, "Could not download http://127.0.0.1:9/input.txt", "put the file at data/")
    assert not list(Path("data").glob("tiny*"))


def test_a_prompt_with_unknown_characters_names_them(in_trained: Path) -> None:
    result = run_minigpt("generate", "--ckpt_path", LAST, "--prompt", "the é")
    assert_clear_error(result, "'é' (U+00E9)")
    assert result.out == ""
    config = ("--config", "tiny.yaml", "--name", "none")
    assert_clear_error(run_minigpt("fit", *config, "--sampler.prompt", "Ж"), "'Ж' (U+0416)")


def test_a_file_that_is_no_checkpoint_is_a_clear_error(in_trained: Path, tmp_path: Path) -> None:
    cut, foreign, noise, empty = (tmp_path / f"{name}.ckpt" for name in ("cut", "foreign", "noise", "empty"))
    cut.write_bytes(LAST.read_bytes()[:5000])
    torch.save({"state_dict": {}, "hyper_parameters": {"lr": 1}}, foreign)
    noise.write_bytes(b"hello world" * 100)
    empty.write_bytes(b"")
    for command in ("generate", "validate", "fit"):
        for path in (cut, noise, empty):
            assert_clear_error(run_minigpt(command, "--ckpt_path", path), str(path))
        assert_clear_error(run_minigpt(command, "--ckpt_path", foreign), "checkpoint of another program")
        assert_clear_error(run_minigpt(command, "--ckpt_path", "nowhere.ckpt"), "nowhere.ckpt is not there")
        assert_clear_error(run_minigpt(command, "--ckpt_path", "https://example.org/a.ckpt"), "is a URL")


def test_a_checkpoint_that_would_run_code_is_refused(in_trained: Path, tmp_path: Path) -> None:
    class Malice:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "touched"),)  # type: ignore[return-value]

    torch.save({"hyper_parameters": Malice()}, tmp_path / "evil.ckpt")
    for command in ("generate", "validate", "fit"):
        assert_clear_error(run_minigpt(command, "--ckpt_path", tmp_path / "evil.ckpt"), "more than plain data")
    assert not (tmp_path / "touched").exists()


def test_nothing_to_resume_or_to_score_is_an_error_that_says_where_it_looked(workplace: Path) -> None:
    for command in ("fit", "validate", "test"):
        result = run_minigpt(command, "--config", "tiny.yaml", "--ckpt_path", "last")
        assert_clear_error(result, "no last checkpoint", "lightning_logs/tiny/version_*/checkpoints/last.ckpt")
    for command in ("validate", "test", "predict"):
        assert_clear_error(run_minigpt(command, "--config", "tiny.yaml"), f"{command} needs a trained model")
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_what_contradicts_the_checkpoint_is_refused(in_trained: Path, command: str) -> None:
    for flag, value in {"model.n_layer": 3, "model.learning_rate": 0.5, "data.block_size": 8}.items():
        result = run_minigpt(command, "--ckpt_path", LAST, f"--{flag}", value)
        assert_clear_error(result, f"{flag} is given as {value}", str(LAST))
    config = TINY.replace("n_embd: 16", "n_embd: 32")
    Path("other.yaml").write_text(config)
    result = run_minigpt(command, "--config", "other.yaml", "--ckpt_path", LAST)
    assert_clear_error(result, "model.n_embd is given as 32", "was made with 16")


def test_text_with_characters_that_the_checkpoint_does_not_know_is_refused(in_trained: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(make_text(3000) + "%§")
    other = tmp_path / "other.txt"
    for args in (("test", "--data.corpus", other), ("fit", "--data.corpus", other, "--trainer.max_steps", 99)):
        result = run_minigpt(args[0], "--ckpt_path", LAST, *args[1:])
        assert_clear_error(result, "'%' (U+0025), '§' (U+00A7)", "vocabulary")
    result = run_minigpt("predict", "--ckpt_path", LAST, "--data.predict_corpus", other, "--output", tmp_path / "n.csv")
    assert_clear_error(result, "'%' (U+0025), '§' (U+00A7)")
    assert_clear_error(run_minigpt("predict", "--ckpt_path", LAST), "--data.predict_corpus FILE")


def test_a_text_that_changed_is_neither_resumed_nor_scored(in_trained: Path) -> None:
    Path("text.txt").write_text(Path("text.txt").read_text()[::-1])
    for args in (("fit", "--trainer.max_steps", 30), ("validate",), ("test",)):
        result = run_minigpt(args[0], "--ckpt_path", "last", *args[1:])
        assert_clear_error(result, "text.txt is not the text that the checkpoint was trained on")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["fit"], ["fit needs a recipe: --config"]),
        (["fit", "--config", "tiny.yaml", "--model.n_head", 5], ["n_head = 5 does not divide n_embd = 16", "4"]),
        (["fit", "--config", "tiny.yaml", "--model.n_layers", 5], ["--model.n_layers"]),
        (["fit", "--config", "tiny.yaml", "--model.n_layer", "two"], ["model.n_layer", "two"]),
        (["fit", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["fit", "--config", "tiny.yaml", "--data.val_fraction", 0], ["val_fraction = 0"]),
        (["fit", "--config", "tiny.yaml", "--name", "a/b"], ["'a/b' is a path"]),
        (["fit", "--config", "tiny.yaml", "--trainer.max_steps", -1, "--trainer.max_epochs", -1], ["give an end"]),
        (["fit", "--config", "tiny.yaml", "--trainer.gradient_clip_algorithm", "value"], ["clipped by norm"]),
        (["fit", "--config", "tiny.yaml", "--trainer.accumulate_grad_batches", 3], ["multiple of 3"]),
        (["generate", "--prompt", "x"], ["ckpt_path"]),
        (["generate", "--ckpt_path", "last", "--temperature", -1], ["temperature is -1"]),
        (["generate", "--ckpt_path", "last", "--top_k", 0], ["top_k is 0"]),
        (["generate", "--ckpt_path", "last", "--max_new_tokens", -1], ["max_new_tokens is -1"]),
    ],
    ids=lambda value: " ".join(map(str, value[-2:])) if "fit" in value or "generate" in value else "",
)
def test_a_mistake_is_told_in_one_paragraph(in_trained: Path, args: list[str], parts: list[str]) -> None:
    assert_clear_error(run_minigpt(*args), *parts)


@pytest.mark.soak
def test_mistakes_leave_the_process_with_a_status_and_no_traceback(in_trained: Path) -> None:
    result = minigpt("fit", "--config", "tiny.yaml", "--data.corpus", "missing.txt")
    assert result.returncode == 2
    assert "no corpus 'missing.txt'" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_checkpoint_from_anybody_names_no_folder_and_no_file_outside_its_run(in_trained: Path) -> None:
    path = next(in_trained.glob("lightning_logs/tiny/version_0/checkpoints/last.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    for step, name in ((40, "../../../../text.txt"), (48, 7)):
        checkpoint["callbacks"]["RunCheckpoint"] = {"best_score": 99.0, "best_name": name}
        torch.save(checkpoint, path)
        result = run_minigpt("fit", "--ckpt_path", path, "--trainer.max_steps", step)
        assert result.code == 0, result.err
        assert Path("text.txt").is_file()  # a better score was found, and the best before it is deleted
    checkpoint["settings"]["name"] = "../../elsewhere"
    torch.save(checkpoint, "lone.ckpt")
    assert_clear_error(run_minigpt("fit", "--ckpt_path", "lone.ckpt", "--trainer.max_steps", 60), "is a path")
    assert not (in_trained.parent / "elsewhere").exists()
