"""The glass box: what a text shares with the training text."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from minigpt.errors import UserError
from minigpt.glassbox import copying as module
from minigpt.glassbox.copying import EXCERPTS, SHORTEST, SIZES, copying, shared
from minigpt.text.corpus import DataSettings

Ids = NDArray[np.integer]


def lengths_by_hand(sample: Ids, training: Ids) -> Ids:
    """For each place of the sample how many ids from there on stand in the training text, somewhere."""
    equal = np.zeros((len(sample) + 1, len(training) + 1), dtype=int)
    for i in reversed(range(len(sample))):
        equal[i, :-1] = np.where(training == sample[i], equal[i + 1, 1:] + 1, 0)
    return equal[:-1].max(axis=1)


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[Ids], Ids]:
    """Samples and a training text made of the same blocks, so that they share much and repeat themselves."""
    dtype, vocabulary = draw(st.sampled_from([(np.uint8, 1), (np.uint8, 2), (np.uint8, 5), (np.uint16, 60_000)]))
    block = st.lists(st.integers(0, vocabulary - 1), max_size=30).map(lambda ids: np.array(ids, dtype))
    blocks = [np.empty(0, dtype), *draw(st.lists(block, min_size=1, max_size=4))]

    def text(most: int) -> Ids:
        chosen = draw(st.lists(st.integers(0, len(blocks) - 1), max_size=most))
        return np.concatenate([blocks[0], *(blocks[i] for i in chosen)])

    return [text(6) for _ in range(draw(st.integers(0, 3)))], text(8)


SAMPLE, OTHER = np.arange(60, dtype=np.uint8), np.full(200, 99, np.uint8)
# A run from 5 to 50, after which nothing is new to one who knows those from 0 to 40 and from 15 to 60.
LATE = np.concatenate([SAMPLE[:40], OTHER, SAMPLE[15:], OTHER, SAMPLE[5:50], OTHER])


@settings(max_examples=150, deadline=None)
@example(([SAMPLE], LATE), [], 40, False)
@given(texts(), st.lists(st.integers(0, 200), max_size=3), st.integers(1, 40), st.booleans())
def test_it_finds_what_comparing_every_place_with_every_other_finds(
    case: tuple[list[Ids], Ids], cuts: list[int], size: int, collide: bool
) -> None:
    samples, training = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", size)
        patch.setattr(module, "CHUNK", size)
        if collide:  # all hashes are 0, so all that is found was found by comparing
            patch.setattr(module._Hashes, "FACTOR", np.uint32(0))
        found = shared(samples, np.split(training, sorted(cuts)))
    for sample, result in zip(samples, found, strict=True):
        lengths = lengths_by_hand(sample, training)
        ends = np.arange(len(sample)) + lengths
        for n in SIZES:
            assert result.new[n] == ((lengths[: len(sample) - n + 1] < n).mean() if len(sample) >= n else None)
        maximal = [
            (i, int(ends[i])) for i in np.flatnonzero(lengths >= SHORTEST).tolist() if not i or ends[i - 1] < ends[i]
        ]
        assert [(run.start, run.end) for run in result.passages] == maximal
        assert (len(result.longest) if result.longest else 0) == lengths.max(initial=0)
        for run in [*result.passages, *([result.longest] if result.longest else [])]:
            assert np.array_equal(training[run.place : run.place + len(run)], sample[run.start : run.end])


def test_a_text_of_one_character_takes_no_square_of_its_length() -> None:
    training, sample = np.zeros(3_000_000, np.uint8), np.zeros(10_000, np.uint8)
    sample[5000] = 1
    (found,) = shared([sample], [training])
    assert found.longest is not None
    assert len(found.longest) == 5000
    assert len(found.passages) == 2


LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz \n", np.uint8)


def random_text(length: int, seed: int) -> str:
    return np.random.default_rng(seed).choice(LETTERS, length).tobytes().decode()


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_planted_copy_is_found_at_its_place(tmp_path: Path, tokenizer: str) -> None:
    training = random_text(100_000, seed=1)
    (tmp_path / "my.txt").write_text(training, encoding="utf-8")
    data = DataSettings(corpus=str(tmp_path / "my.txt"), data_dir=str(tmp_path), tokenizer=tokenizer)  # type: ignore[arg-type]
    planted = training[70_000:70_060]
    text = random_text(300, seed=2) + "É" + planted + "É" + random_text(200, seed=3)
    (found,) = copying(text, data)
    start = len(text[: text.index(planted)].encode()) if tokenizer == "byte" else text.index(planted)
    assert found.shared.longest == module.Run(start, start + 60, 70_000)
    assert found.shared.passages == [found.shared.longest]
    assert found.longest == (training[69_960:70_000], planted, training[70_060:70_100])
    assert found.shared.new[20] == pytest.approx(1 - 41 / (len(text) - 19 + (2 if tokenizer == "byte" else 0)))
    # Random text shares with random text what chance gives it: 4 or 5 characters.
    assert len(found.null) == EXCERPTS
    assert not found.remark
    for null in found.null:
        assert null.longest is not None
        assert 4 <= len(null.longest) < 10
        assert null.new[10] == null.new[50] == 1.0
        assert null.passages == []


def test_the_null_is_what_the_held_out_text_allows(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text(random_text(10_000, seed=1))
    (tmp_path / "other.txt").write_text("Ω" * 350)
    data = DataSettings(corpus=str(tmp_path / "my.txt"), val_corpus=str(tmp_path / "other.txt"), data_dir=str(tmp_path))
    short, long = copying(["a" * 100, "Ω" * 400], data)
    assert len(short.null) == 3
    assert short.null[0].longest is None  # characters that the training text lacks
    assert "3 excerpts" in short.remark
    assert "350" in short.remark
    assert long.null == []
    assert "0 excerpts" in long.remark
    with pytest.raises(UserError, match="empty"):
        copying(["a", ""], data)


def test_it_needs_no_torch() -> None:
    code = "import sys; import minigpt.glassbox.copying; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
