"""``corpus``: a look at a text before training on it."""

from argparse import SUPPRESS
from cmd import Cmd

import numpy as np
from jsonargparse import ArgumentParser

from minigpt.errors import UserError, building_from, parse_arguments
from minigpt.text.baselines import baselines, table
from minigpt.text.corpus import DataSettings
from minigpt.text.tokenizer import TOKENIZERS

# What else stands in a recipe, or in the config.yaml of a run, and says nothing about the text.
OTHERS = (
    *("name", "fast", "threads", "branch", "rewarm", "init_from", "seed_everything", "model", "trainer", "sampler"),
    *("checkpoint", "early_stopping", "film", "ckpt_path"),
)


def corpus(data: DataSettings) -> None:
    """Look at a text before training on it: its size, vocabulary, splits, a few windows, and how predictable it is."""
    texts = data.open_splits()
    text = texts["train"]
    if len(text) <= data.block_size:
        raise UserError(f"{text.name} has {len(text)} characters, no more than data.block_size = {data.block_size}.")
    tokenizer, ids = TOKENIZERS[data.tokenizer](text.vocabulary), text.ids()[:]
    counts = text.counts(range(len(text)))
    bytes_of, characters_of = np.array(tokenizer.byte_counts()), np.array(tokenizer.character_counts())
    newline = text.vocabulary.find("\n")
    for note in dict.fromkeys(note for text in texts.values() for note in text.notes):
        print(note)
    print(f"{text.name}: {counts @ characters_of:,} characters, {counts @ bytes_of:,} bytes of UTF-8, ", end="")
    print(f"{counts[newline] if newline >= 0 else 0:,} line ends, {np.count_nonzero(counts):,} different ids")

    print("\nVocabulary, most frequent first:")
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    entries = [f"{tokenizer.label(int(i))!r} {counts[i]:,}" for i in order]
    if len(order) > 100:
        entries[80:-20] = [f"... {len(order) - 100:,} more ..."]
    Cmd().columnize(entries, displaywidth=100)

    print("\nSplits:")
    for name, places in data.places(len(text)).items():
        if {"val": data.val_corpus, "test": data.test_corpus}.get(name):
            print(f"  {name:<8}{texts[name].name:<35}{len(texts[name]):>14,} ids")
        else:
            print(f"  {name:<8}{places.start:>14,} to {places.stop:>14,}   {len(places):>14,} ids")

    print(f"\nWindows of {data.block_size}:")
    for start in np.linspace(0, len(text) - data.block_size, 3).astype(int):
        print(f"  {start:>14,}: {tokenizer.decode(ids[start : start + data.block_size])!r}")

    print("\nHow predictable it is, without learning:")
    print("\n".join(table(baselines(ids, characters_of))))


def main(command: str, args: list[str]) -> None:
    """Run the command from its arguments: the settings of ``data``, from flags or from a whole recipe."""
    parser = ArgumentParser(
        prog=f"minigpt {command}", description=corpus.__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="a recipe, of which the group data is taken")
    parser.add_class_arguments(DataSettings, "data")
    parser.set_defaults({"data.block_size": 64})
    for name in (*OTHERS, "weights_only"):
        parser.add_argument(f"--{name}", help=SUPPRESS)  # untyped: what it names is never imported or made
    with building_from("One of the settings"):
        data = DataSettings(**parse_arguments(parser, args).data.as_dict())
    corpus(data)
