"""``corpus``: a look at a text before training on it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from minigpt.commands import call
from minigpt.errors import UserError
from minigpt.text.baselines import ladder, show
from minigpt.text.corpus import CorpusReader, check_fractions, split_places
from minigpt.text.tokenizer import TOKENIZERS


@dataclass(frozen=True)
class Data:
    """What to look at; the flags are those of ``fit``.

    Args:
        corpus: a text file, a folder of them, a glob, a list of these, or a named corpus.
        val_fraction: part of the corpus that is the validation split.
        test_fraction: part of the corpus, at its end, that is the test split.
        block_size: characters in a window.
        tokenizer: "char" or "byte".
        encoding: of the text files, as Python names it.
        data_dir: folder for named corpora and encoded text.
        mirror: where to fetch a named corpus from instead of its public home.
        max_unpacked_gb: the most that one compressed file may unpack to, in 10^9 bytes.
    """

    corpus: str | list[str] = "shakespeare"
    val_fraction: float = 0.05
    test_fraction: float = 0.05
    block_size: int = 64
    tokenizer: Literal["char", "byte"] = "char"
    encoding: str = "utf-8"
    data_dir: str = "data"
    mirror: str | None = None
    max_unpacked_gb: float = 100.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is None and "None" not in str(field.type):
                raise UserError(f"data.{field.name} is null; it needs a value.")
        check_fractions(self.val_fraction, self.test_fraction)
        if self.block_size < 1:
            raise UserError(f"data.block_size is {self.block_size}; it must be at least 1.")


def corpus(data: Data) -> None:
    """Look at a text before training on it: its size, vocabulary, splits, a few windows, and how predictable it is.

    Args:
        data: the text.
    """
    reader = CorpusReader(Path(data.data_dir), data.tokenizer, data.encoding, data.mirror, data.max_unpacked_gb)
    text = reader.open(data.corpus)
    if len(text) <= data.block_size:
        raise UserError(f"{text.name} has {len(text)} characters, no more than data.block_size = {data.block_size}.")
    tokenizer, ids = TOKENIZERS[data.tokenizer](text.vocabulary), text.ids()
    counts = text.counts(range(len(text)))
    bytes_of, characters_of = np.array(tokenizer.byte_counts()), np.array(tokenizer.character_counts())
    newline = text.vocabulary.find("\n")
    for note in text.notes:
        print(note)
    print(f"{text.name}: {counts @ characters_of:,} characters, {counts @ bytes_of:,} bytes of UTF-8, ", end="")
    print(f"{counts[newline] if newline >= 0 else 0:,} line ends, {np.count_nonzero(counts):,} different ids")

    print("\nVocabulary, most frequent first:")
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    shown = order if len(order) <= 100 else np.concatenate((order[:80], order[-20:]))
    entries = [f"{tokenizer.label(int(i))!r} {counts[i]:,}" for i in shown]
    if len(order) > len(shown):
        entries.insert(80, f"... {len(order) - len(shown):,} more ...")
    print_wrapped(entries)

    print("\nSplits:")
    for name, places in split_places(len(text), data.val_fraction, data.test_fraction).items():
        print(f"  {name:<8}{places.start:>14,} to {places.stop:>14,}   {len(places):>14,} ids")

    print(f"\nWindows of {data.block_size}:")
    for start in np.linspace(0, max(0, len(text) - data.block_size), 3).astype(int):
        print(f"  {start:>14,}: {tokenizer.decode(ids[start : start + data.block_size])!r}")

    print("\nHow predictable it is, without learning:")
    for line in show(ladder(ids, characters_of)):
        print(line)


def print_wrapped(entries: list[str], width: int = 100) -> None:
    """Print entries side by side, as many as fit in a line."""
    line = " "
    for entry in entries:
        if len(line) + len(entry) + 3 > width:
            print(line)
            line = " "
        line += f" {entry}  "
    print(line)


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments."""
    call(corpus, args, f"minigpt {command}")
