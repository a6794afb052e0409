"""What a model needs for each character of the validation split of its own corpus, and what follows from that."""

import math
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from minigpt.cost import flops_per_token
from minigpt.errors import UserError
from minigpt.glassbox.trace import Traceable
from minigpt.text.corpus import Corpus, DataSettings
from minigpt.text.windows import ScoringBatches

MOST = 1e12  # floating-point operations, half a minute on two cores; of a longer split windows all over it are read
CLASSES = ("letters", "capitals", "digits", "spaces", "line ends", "punctuation", "others")
BATCH = 16  # windows
PASSAGE = 120  # tokens


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
def score(model: Traceable, data: DataSettings) -> Validation:
    """What the model, in float32 as it was loaded, loses on the windows that ``validate`` reads too."""
    config, tokenizer = model.gpt.config, model.tokenizer
    texts = data.open_splits()
    splits = data.places(len(texts["train"]))
    corpus = texts["val"].renumbered(tokenizer.vocabulary)
    places = range(len(corpus)) if data.val_corpus else splits["val"]
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


def class_of(character: str) -> str:
    """Which of the CLASSES a character belongs to."""
    if character == "\n":
        return "line ends"
    kind = unicodedata.category(character)
    known = {"Lu": "capitals", "Lt": "capitals", "Nd": "digits", "Zs": "spaces"}
    return known.get(kind) or {"L": "letters", "P": "punctuation"}.get(kind[0], "others")
