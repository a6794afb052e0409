"""What a model needs for each character of the validation split of its own corpus, and what follows from that."""

import math
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from minigpt.cost import flops_per_token
from minigpt.errors import UserError
from minigpt.fast import apply
from minigpt.glassbox.trace import Model, Traceable
from minigpt.run import find_checkpoint, load_gpt, read_checkpoint
from minigpt.text.corpus import Corpus, DataSettings
from minigpt.text.tokenizer import TOKENIZERS, ByteTokenizer, CharTokenizer
from minigpt.text.windows import ScoringBatches

MOST = 1e12  # floating-point operations, half a minute on two cores; of a longer split windows all over it are read
CLASSES = ("letters", "capitals", "digits", "spaces", "line ends", "punctuation", "others")
BATCH = 16  # windows
PASSAGE = 120  # tokens that a passage has at most


@dataclass
class Validation:
    """The validation split of a run, and what was lost on it in N windows of T tokens."""

    data: DataSettings
    training: range  # the places of the training split
    corpus: Corpus  # what the validation split is of, in the model's ids
    places: range  # of it
    starts: NDArray[np.int64]  # where in the corpus the targets of each window begin, (N,)
    nats: NDArray[np.float64]  # of each target, (N, T); NaN behind the end of the split

    @property
    def complete(self) -> bool:
        """Whether all of the split was read."""
        return int(np.isfinite(self.nats).sum()) == len(self.places)

    @cached_property
    def tokenizer(self) -> CharTokenizer:
        """The model's."""
        return TOKENIZERS[self.data.tokenizer](self.corpus.vocabulary)

    @cached_property
    def targets(self) -> NDArray[np.unsignedinteger]:
        """The ids of the targets, (N, T); behind the end of the split the last again and again."""
        places_NT = self.starts[:, None] + np.arange(self.nats.shape[1])
        return self.corpus.ids()[np.minimum(places_NT, self.places.stop - 1)]


class ByPosition(NamedTuple):
    """The loss of the targets at each place in the window, (T,): the t-th has t tokens before it, from 1 on."""

    nats: NDArray[np.float64]  # the mean
    error: NDArray[np.float64]  # half of its 95 % confidence interval
    counts: NDArray[np.int64]


class OfClass(NamedTuple):
    """The loss of the targets of one class."""

    nats: float  # the mean
    number: int  # of targets
    share: float  # of all targets, from 0 to 1


@dataclass(frozen=True)
class Passage:
    """A passage of the split and what it cost."""

    text: str
    place: int  # where in the corpus it begins
    bits: float  # the mean of a token
    ids: NDArray[np.unsignedinteger]  # its tokens
    costs: NDArray[np.float64]  # the bits of each


Split = Literal["val", "test"]


def losses(ckpt_path: str | Path = "best", split: Split = "val", **moved: Any) -> Validation:
    """What the model of a checkpoint loses on its own text::

        found = losses("best")
        for kind, loss in by_class(found).items():
            print(kind, loss.nats)
        for passage in passages(found):
            print(passage.bits, passage.text)

    Args:
        ckpt_path: a checkpoint file, or "last" or "best" for that of the newest run.
        split: val or test.
        moved: fields of DataSettings that say where things lie now: corpus, data_dir.

    Raises:
        UserError: there is no such checkpoint, or its text isn't there.
    """
    path = find_checkpoint(str(ckpt_path))
    gpt, tokenizer = load_gpt(path)
    apply(gpt)
    return score(Model(gpt, tokenizer), open_corpus(read_checkpoint(path), **moved), split)


def validation_text(ckpt_path: str | Path = "best", **moved: Any) -> str:
    """The validation split that a checkpoint was not trained on, as text; arguments and errors as of :func:`losses`."""
    checkpoint = read_checkpoint(find_checkpoint(str(ckpt_path)))
    data = open_corpus(checkpoint, **moved)
    hyperparameters = checkpoint["hyper_parameters"]
    tokenizer = TOKENIZERS[hyperparameters["tokenizer"]](hyperparameters["vocabulary"])
    corpus, places = open_split(tokenizer, data)
    return tokenizer.decode(corpus.ids(places["val"])[:])


def open_split(tokenizer: CharTokenizer, data: DataSettings, split: Split = "val") -> tuple[Corpus, dict[str, range]]:
    """The text that a split is of, in the ids of a model, and the places of the splits.

    Raises:
        UserError: the split is empty, or the model doesn't know all of its characters.
    """
    texts = data.open_splits()
    corpus, places = texts[split].renumbered(tokenizer.vocabulary), data.places(len(texts["train"]))
    if {"val": data.val_corpus, "test": data.test_corpus}[split]:
        places[split] = range(len(corpus))
    if not places[split]:
        raise UserError(f"The {split} split of {corpus.name} is empty: there is nothing to read.")
    return corpus, places


def open_corpus(checkpoint: dict[str, Any], **moved: Any) -> DataSettings:
    """The settings of the data that a checkpoint was made with.

    Args:
        checkpoint: what it holds.
        moved: fields of DataSettings that say where things lie now: corpus, data_dir.

    Raises:
        UserError: the text isn't there, or it is another one.
    """
    if "datamodule_hyper_parameters" not in checkpoint:
        raise UserError("The checkpoint doesn't say on what text it was trained.")
    data = DataSettings(**{**checkpoint["datamodule_hyper_parameters"], **moved})
    if " ".join(text.sha256 for text in data.open_splits().values()) != checkpoint["CharDataModule"]["sha256"]:
        raise UserError(f"The corpus {data.corpus} is not the text that the model was trained on: its content differs.")
    return data


@torch.inference_mode()
def score(model: Traceable, data: DataSettings, split: Split = "val") -> Validation:
    """What the model, in float32 as it was loaded, loses on the windows that ``validate``, or ``test``, reads too."""
    config, tokenizer = model.gpt.config, model.tokenizer
    corpus, splits = open_split(tokenizer, data, split)
    places = splits[split]
    first = tokenizer.vocabulary.index(tokenizer.start)
    batches = ScoringBatches(corpus.ids(), places, config.block_size, BATCH, first)
    most = max(1, int(MOST / (flops_per_token(config) / 3 * BATCH * config.block_size)))  # a third is forward
    starts, nats = [], []
    for number in np.unique(np.linspace(0, len(batches) - 1, min(most, len(batches))).round().astype(int)).tolist():
        ids_BT, targets_BT = batches[number]
        nats_BT = F.cross_entropy(model.gpt(ids_BT).transpose(1, 2), targets_BT, reduction="none")
        nats.append(nats_BT.double().masked_fill(targets_BT < 0, torch.nan).numpy())
        starts.append(places.start + (number * BATCH + np.arange(len(ids_BT))) * config.block_size)
    return Validation(data, splits["train"], corpus, places, np.concatenate(starts), np.concatenate(nats))


def mean_and_interval(nats_NT: NDArray[np.float64]) -> tuple[float, list[float] | None]:
    """The mean of a target, and its 95 % confidence interval, which one window doesn't tell.

    The windows count as independent draws from text of this kind; within a window nothing is assumed. It is the
    normal approximation to the error of a ratio (Cochran 1977, equation 6.13), for windows may be short.
    """
    sums, counts = np.nansum(nats_NT, axis=1), np.isfinite(nats_NT).sum(axis=1)
    mean, n = sums.sum() / counts.sum(), len(sums)
    if n < 2:
        return float(mean), None
    error = math.sqrt(((sums - mean * counts) ** 2).sum() / (n - 1) / n) / counts.mean()
    return float(mean), [float(mean - 1.96 * error), float(mean + 1.96 * error)]


def nats_per_bit(found: Validation) -> float:
    """A loss in nats per token, divided by this, is one in bits per character."""
    counts = np.array(found.tokenizer.character_counts())
    return math.log(2) * float(counts[found.corpus.ids(found.places)[:]].mean())


def by_position(found: Validation) -> ByPosition:
    """The loss by the place in the window: what context buys."""
    counts = np.isfinite(found.nats).sum(axis=0)
    reached = slice(int((counts > 0).sum()))  # of a text shorter than a window the rest has none
    nats_NT, counts = found.nats[:, reached], counts[reached]
    return ByPosition(np.nanmean(nats_NT, axis=0), 1.96 * np.nanstd(nats_NT, axis=0) / np.sqrt(counts), counts)


def by_class(found: Validation) -> dict[str, OfClass]:
    """The loss by the class of the character that was to be predicted, of those that occur; see CLASSES."""
    kinds = classes(found.tokenizer)[found.targets]
    read, losses = np.isfinite(found.nats), {}
    for i, kind in enumerate(CLASSES):
        if len(nats := found.nats[read & (kinds == i)]):
            losses[kind] = OfClass(float(nats.mean()), len(nats), len(nats) / int(read.sum()))
    return losses


def passages(found: Validation, count: int = 3, easiest: bool = False) -> list[Passage]:
    """The hardest or the easiest passages, in that order; no two overlap.

    Each is the end of a whole window, whose context is long: at most three quarters of it, and PASSAGE tokens.
    """
    T = found.nats.shape[1]
    end = slice(max(T // 4, T - PASSAGE), T)
    costs = found.nats[:, end] / math.log(2)
    whole = np.flatnonzero(np.isfinite(found.nats).all(axis=1))
    order = whole[np.argsort(costs[whole].mean(axis=1), kind="stable")].tolist()
    return [
        Passage(
            found.tokenizer.decode(found.targets[n, end]),
            int(found.starts[n]) + end.start,
            float(costs[n].mean()),
            found.targets[n, end],
            costs[n],
        )
        for n in (order if easiest else order[::-1])[:count]
    ]


def classes(tokenizer: CharTokenizer) -> NDArray[np.intp]:
    """The place in CLASSES of each id's character, (V,). A byte beyond ASCII, a part of some character, is another."""
    byte = isinstance(tokenizer, ByteTokenizer)
    known = ["others" if byte and not c.isascii() else class_of(c) for c in tokenizer.vocabulary]
    return np.array([CLASSES.index(kind) for kind in known])


def class_of(character: str) -> str:
    """Which of the CLASSES a character belongs to."""
    if character == "\n":
        return "line ends"
    kind = unicodedata.category(character)
    known = {"Lu": "capitals", "Lt": "capitals", "Nd": "digits", "Zs": "spaces"}
    return known.get(kind) or {"L": "letters", "P": "punctuation"}.get(kind[0], "others")
