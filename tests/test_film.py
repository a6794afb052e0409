"""The film of a run: weights at some of its steps, which change nothing of it."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import minigpt
from conftest import assert_clear_error, run_minigpt
from minigpt.errors import UserError
from minigpt.glassbox.film import film
from minigpt.glassbox.learning import Learned, learned
from minigpt.glassbox.ngrams import ngram_bits
from minigpt.glassbox.validation import CLASSES, classes
from minigpt.run import RunFolder, find_checkpoint, load_gpt, read_checkpoint
from minigpt.text.tokenizer import ByteTokenizer, CharTokenizer
from minigpt.training.film import film_steps
from minigpt.training.proof import compare, different, read_curves

RUN = RunFolder.first("tiny")
FILM = ("--film.per_doubling", 2)
STEPS = [0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 24]


@pytest.fixture(scope="module")
def filmed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was filmed, as it ended and as it stood after each of its steps. Not to be changed."""
    folder = tmp_path_factory.mktemp("filmed")
    for name in ("text.txt", "tiny.yaml"):
        shutil.copy(trained / name, folder)
    with contextlib.chdir(folder):
        keep = ("--trainer.callbacks", "test_resume.KeepEveryStep")
        result = run_minigpt("fit", "--config", "tiny.yaml", *FILM, *keep)
    assert result.code == 0, result.err
    return folder


@pytest.fixture
def in_filmed(filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the current folder."""
    monkeypatch.chdir(shutil.copytree(filmed, tmp_path / "filmed"))
    return Path.cwd()


def frames(run: RunFolder) -> dict[int, bytes]:
    return {step: path.read_bytes() for step, path in run.frames().items()}


def test_frames_are_spaced_by_logarithm_and_few_enough() -> None:
    steps = film_steps(1200, 3)
    assert len(steps) == 30
    assert {0, 1, 2, 4, 512, 1024, 1200} <= steps
    assert film_steps(2400, 3) - film_steps(1200, 3) == {1290, 1625, 2048, 2400}
    assert film_steps(0, 3) == {0}
    assert film_steps(1200, 0) == set()
    for most in range(31):
        fewer = film_steps(1200, 3, most)
        assert fewer <= steps
        assert len(fewer) <= most
        assert fewer >= {0, 1, 1200} or most < 3
    assert len(film_steps(2400, 3, 33, kept=steps)) < 33


def test_a_run_ends_in_the_same_bits_with_a_film_and_without(filmed: Path, trained: Path) -> None:
    with_film, without = RunFolder(filmed / RUN.path), RunFolder(trained / RUN.path)
    assert list(with_film.frames()) == STEPS
    assert not without.film.exists()
    for part, (count, places) in compare(without, with_film).items():
        assert count or part == "film"
        assert places == [] or part == "film", (part, places)
    for part, (count, places) in compare(with_film, with_film).items():
        assert (count, places) > (0, []), part


def test_a_frame_is_a_checkpoint_with_the_losses_of_the_probe(in_filmed: Path) -> None:
    text = Path("text.txt").read_text()
    probe = text[int(0.8 * len(text)) :][:17]
    last = read_checkpoint(RUN.last)
    for step, path in RUN.frames().items():
        frame = read_checkpoint(path)
        assert (frame["global_step"], frame["hyper_parameters"]) == (step, last["hyper_parameters"])
        gpt, tokenizer = load_gpt(path)
        assert tokenizer.decode(frame["film"]["ids"].numpy()) == probe
        assert all(weight.dtype == torch.float32 for weight in gpt.state_dict().values())
        logits = gpt(frame["film"]["ids"][None, :-1])[0]
        losses = torch.nn.functional.cross_entropy(logits, frame["film"]["ids"][1:], reduction="none")
        torch.testing.assert_close(frame["film"]["losses"], losses, atol=0.01, rtol=0)
    halves = {name: weight.half() for name, weight in last["state_dict"].items()}
    assert different(frame["state_dict"], halves)[1] == []
    assert path.stat().st_size < 2 * sum(weight.numel() for weight in halves.values()) + 12_000


def test_a_frame_writes_and_is_scored_but_no_run_goes_on_from_it(in_filmed: Path) -> None:
    frame = RUN.frame(16)
    assert len(minigpt.load(frame).generate("the ", max_new_tokens=9)) == 9
    written = run_minigpt("generate", "--ckpt_path", frame, "--max_new_tokens", 9)
    assert written.code == 0, written.err
    scored = run_minigpt("validate", "--ckpt_path", frame)
    assert scored.code == 0, scored.err
    loss = float(scored.out.split("val/loss")[1].split()[1])
    assert loss == pytest.approx(dict(read_curves(RUN)["val/loss"])[15], abs=0.003)
    assert_clear_error(run_minigpt("fit", "--ckpt_path", frame, "--trainer.max_steps", 40), "is a frame of a film")
    assert RunFolder.of(frame) is None
    shutil.copy(RUN.frame(24), RUN.frame(1_000_000))
    assert list(RUN.frames()) == [*STEPS, 1_000_000]
    assert RUN.newest_step() == 24
    assert find_checkpoint("last") == RUN.last
    assert find_checkpoint("best").parent == RUN.checkpoints


def test_a_killed_run_ends_with_the_film_of_one_that_was_not(in_filmed: Path) -> None:
    killed = RunFolder.first("tiny-14")  # whose last checkpoint is of step 8
    assert list(killed.frames()) == STEPS[: STEPS.index(11) + 1]
    shutil.copy(killed.frame(11), killed.frame(12))
    killed.frame(11).with_name("step000011.ckpt.123.part").touch()
    resumed = run_minigpt("fit", "--ckpt_path", killed.last)
    assert resumed.code == 0, resumed.err
    assert frames(killed) == frames(RUN)
    assert len(list(killed.film.iterdir())) == len(STEPS)


def test_a_new_run_begins_with_the_film_up_to_its_checkpoint(in_filmed: Path) -> None:
    older = RUN.checkpoints / "older.ckpt"
    shutil.copy(RunFolder.first("tiny-9").last, older)
    branch = ("--branch", "true", "--model.learning_rate", 0.0001)
    before = frames(RUN)
    result = run_minigpt("fit", "--ckpt_path", older, *branch, "--trainer.max_steps", 10)
    assert result.code == 0, result.err
    new = RunFolder(RUN.path.with_name("version_1"))
    assert list(new.frames()) == [*STEPS[: STEPS.index(8) + 1], 10]
    assert frames(RUN) == before == before | {step: frame for step, frame in frames(new).items() if step <= 8}


def test_a_run_made_longer_keeps_all_frames_and_may_be_filmed_otherwise(in_filmed: Path) -> None:
    before, flags = frames(RUN), ("fit", "--ckpt_path", "last", "--trainer.max_steps")
    assert run_minigpt(*flags, 26, "--film.per_doubling", 0).code == 0
    assert frames(RUN) == before
    assert run_minigpt(*flags, 34, "--film.per_doubling", 1).code == 0
    assert list(RUN.frames()) == [*STEPS, 32, 34]


def test_a_run_that_ends_early_keeps_its_end(workplace: Path) -> None:
    stop = ("--early_stopping.stopping_threshold", 99, "--trainer.val_check_interval", 5)
    assert run_minigpt("fit", "--config", "tiny.yaml", *FILM, *stop).code == 0
    assert list(RUN.frames()) == [0, 1, 2, 3, 4, 5]


def test_a_film_keeps_to_its_limit(workplace: Path) -> None:
    for limit, kept in ((0.25, [0, 1, 2, 4, 8, 12]), (0.05, [])):
        fit = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 12, *FILM)
        result = run_minigpt(*fit, "--film.limit_mb", limit, "--name", f"limit{limit}")
        assert result.code == 0, result.err
        run = RunFolder.first(f"limit{limit}")
        assert list(run.frames()) == kept
        assert f"Warning: the film has {len(kept)} frames instead of 9" in result.out
        assert f"--film.limit_mb is {limit}" in result.out
        assert sum(map(len, frames(run).values())) <= limit * 1e6
    assert_clear_error(run_minigpt(*fit, "--film.limit_mb", -2), "film.limit_mb is -2")
    assert_clear_error(run_minigpt(*fit, "--film.per_doubling", -1), "film.per_doubling is -1")


def test_frames_are_models(in_filmed: Path) -> None:
    for run in ("last", RUN.path, RunFolder.first("tiny-14").path, find_checkpoint("best", "tiny")):
        seen = list(film(run))
        assert [frame.step for frame in seen] == STEPS[: len(seen)]
        assert len(seen) == (8 if "tiny-14" in str(run) else len(STEPS))
    frame = next(film(RUN.path))
    assert len(frame.text) == len(frame.losses) + 1 == 17
    assert frame.gpt is frame.gpt
    assert not frame.gpt.training
    with pytest.raises(UserError, match="was not filmed"):
        film(Path())
    with pytest.raises(UserError, match="lies in no run's folder"):
        film(RUN.frame(8))
    shutil.copy(RUN.last, RUN.frame(5))
    with pytest.raises(UserError, match="no frame of a film"):
        list(film(RUN.path))


def test_what_was_learned_is_told_by_step(in_filmed: Path) -> None:
    found = learned(RUN.path, windows=32)
    assert (found.steps, found.contexts) == (STEPS, [1, 2, 4, 8, 16])
    assert found.gains.shape == (len(STEPS), 4)
    assert abs(found.bits[-1] - dict(read_curves(RUN)["val/loss"])[23] / np.log(2)) < 0.1
    assert found.crossed(1) is None
    assert set(found.class_bits) == {"letters", "spaces", "line ends", "punctuation"}
    assert str(found) == str(learned(RUN.last, windows=32))
    assert max(map(len, str(found).splitlines())) <= 80
    assert learned(RUN.path, "the cat sat on a mat\n" * 9, windows=4).baselines[0] < 5
    with pytest.raises(UserError, match="needs more than the window"):
        learned(RUN.path, "the cat")
    Path("text.txt").write_text("another text, and not a short one\n" * 50)
    with pytest.raises(UserError, match="not the text"):
        learned(RUN.path)


def test_the_first_frame_that_is_good_enough_counts() -> None:
    bits = np.array([4.0, 3.0, 2.0, 1.9])
    falls = {"letters": bits, "digits": bits[::-1]}
    found = Learned([0, 1, 2, 4], bits, {0: 3.0, 1: 2.5, 2: 1.0}, [1], bits[:, None], falls, 1)
    assert [found.crossed(order) for order in range(3)] == [2, 2, None]
    assert (found.learned("letters"), found.learned("digits")) == (2, None)
    kinds = ["letters", "capitals", "spaces", "line ends", "digits", "punctuation", "letters"]
    assert [CLASSES[i] for i in classes(CharTokenizer("aZ \n7;é"))] == kinds
    assert {CLASSES[i] for i in classes(ByteTokenizer())[128:]} == {"others"}


def test_the_ngrams_are_those_of_witten_and_bell() -> None:
    draw = np.random.default_rng(0)
    train, windows = draw.integers(0, 4, 500), draw.integers(0, 5, (3, 9))  # the text lacks one id

    def probability(token: int, context: tuple[int, ...]) -> float:
        lower = probability(token, context[1:]) if context else 1 / 5
        order = len(context)
        after = [int(train[i + order]) for i in range(500 - order) if tuple(train[i : i + order]) == context]
        distinct = len(set(after))
        return (after.count(token) + distinct * lower) / (len(after) + distinct) if after else lower

    found = ngram_bits(train, windows, 5, 3)
    assert found.shape == (4, 3, 6)
    for order, w, t in np.ndindex(*found.shape):
        row, place = windows[w].tolist(), t + 3
        expected = probability(row[place], tuple(row[place - order : place]))
        assert found[order, w, t] == pytest.approx(-np.log2(expected))
