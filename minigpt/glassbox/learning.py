"""What a run learned when, from its film."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from minigpt.errors import UserError
from minigpt.fast import apply
from minigpt.glassbox.film import film, run_folder
from minigpt.glassbox.ngrams import ngram_bits
from minigpt.glassbox.validation import CLASSES, classes, open_corpus, open_split
from minigpt.model import GPT
from minigpt.run import RunFolder, read_checkpoint
from minigpt.text.corpus import Ids
from minigpt.text.tokenizer import CharTokenizer
from minigpt.text.windows import window_starts

ORDERS = 5  # of the longest n-gram baseline
BATCH = 1 << 13  # tokens that are read together


@dataclass(frozen=True)
class Learned:
    """What a run had learned at each of F frames, on W windows of T tokens. Losses are in bits per token."""

    steps: list[int]  # of the frames, F
    bits: NDArray[np.float64]  # the mean loss of all tokens with at least 5 before them, (F,)
    baselines: dict[int, float]  # what n-gram models need for the same tokens, by their order
    contexts: list[int]  # numbers of tokens: 1, 2, 4 ... T; K of them
    context_bits: NDArray[np.float64]  # the mean loss of the same W tokens, read with so many before them, (F, K)
    class_bits: dict[str, NDArray[np.float64]]  # the mean loss of each class of characters, (F,)
    windows: int  # W

    @property
    def gains(self) -> NDArray[np.float64]:
        """What each context but the first buys against the one half as long, in bits, (F, K - 1)."""
        return -np.diff(self.context_bits, axis=1)

    def crossed(self, order: int) -> int | None:
        """The step of the first frame that needs less than the n-gram model of that order; None if none does."""
        return self._first(self.bits < self.baselines[order])

    def learned(self, name: str) -> int | None:
        """The step of the first frame at which a class of characters has fallen by 90 % of its whole fall."""
        bits = self.class_bits[name]
        fall = bits[0] - bits[-1]
        return self._first(bits <= bits[0] - 0.9 * fall) if fall > 0 else None

    def _first(self, holds: NDArray[np.bool_]) -> int | None:
        return self.steps[int(holds.argmax())] if holds.any() else None

    def __str__(self) -> str:
        lines = ["Bits per token, and bits gained where so many tokens are seen, not half of them:"]
        lines.append(f"{'step':>8}{'bits':>7}" + "".join(f"{context:>6}" for context in self.contexts[1:]))
        for step, bits, gains in zip(self.steps, self.bits, self.gains, strict=True):
            lines.append(f"{step:>8}{bits:>7.3f}" + "".join(f"{gain:>6.2f}" for gain in gains))
        lines.append("N-gram models of the training text, and when the run was better:")
        for order, needed in self.baselines.items():
            lines.append(f"  order {order}{needed:>20.3f} bits   {when(self.crossed(order))}")
        lines.append("Classes of characters, and when nine tenths of it were learned:")
        for name, values in self.class_bits.items():
            lines.append(f"  {name:<22}{values[0]:>6.3f} to {values[-1]:.3f} bits   {when(self.learned(name))}")
        return "\n".join(lines)


def when(step: int | None) -> str:
    return "never" if step is None else f"step {step}"


def learned(run: str | Path, text: str | None = None, windows: int = 256, seed: int = 1) -> Learned:
    """When a run crossed the n-gram baselines, used longer contexts, and learned each class of characters.

    Every frame reads the same windows, in float32. The baselines are counted in the run's own training text, and know
    the same tokens (see :func:`minigpt.glassbox.ngrams.ngram_bits`). That of order k needs k < T.

    Args:
        run: its folder, one of its checkpoints, or "last" or "best", of the newest run; see
            :func:`minigpt.glassbox.film.film`.
        text: what is read; by default the run's validation split.
        windows: how many windows, which begin at places drawn by ``seed``. What a context buys is measured on the last
            token of each alone, so it takes many to tell a few hundredths of a bit from chance.
        seed: decides where.

    Raises:
        UserError: the run has no film, its text is not there any more or another one, or ``text`` is too short.
    """
    folder = run_folder(run)
    first = next(film(folder.path))
    block_size, tokenizer = first.gpt.config.block_size, first.tokenizer
    train, val = run_texts(folder, tokenizer)
    ids: Ids = val if text is None else tokenizer.encode(text)
    if len(ids) <= block_size:
        raise UserError(f"The text has {len(ids)} tokens; it needs more than the window, {block_size}.")
    starts = window_starts(seed, 0, windows, len(ids) - block_size)
    read = ids[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
    ids_WT = torch.from_numpy(read)  # T + 1 of each
    contexts = [2**k for k in range(block_size.bit_length()) if 2**k < block_size] + [block_size]
    orders = min(ORDERS, block_size)
    of_class = classes(tokenizer)[read[:, orders:]]
    present = {name: of_class == number for number, name in enumerate(CLASSES) if (of_class == number).any()}
    steps: list[int] = []
    bits: list[float] = []
    context_bits: list[list[float]] = []
    class_bits: dict[str, list[float]] = {name: [] for name in present}
    for frame in film(folder.path):
        apply(frame.gpt, None)
        losses = token_bits(frame.gpt, ids_WT)
        seen = losses[:, orders - 1 :]
        shorter = [token_bits(frame.gpt, ids_WT[:, -context - 1 :])[:, -1] for context in contexts[:-1]]
        steps.append(frame.step)
        bits.append(float(seen.mean()))
        context_bits.append([float(column.mean()) for column in (*shorter, losses[:, -1])])
        for name, places in present.items():
            class_bits[name].append(float(seen[places].mean()))
    counted = ngram_bits(train, read, len(tokenizer.vocabulary), orders).mean(axis=(1, 2))
    return Learned(
        steps,
        np.array(bits),
        {order: float(value) for order, value in enumerate(counted)},
        contexts,
        np.array(context_bits),
        {name: np.array(values) for name, values in class_bits.items()},
        windows,
    )


def token_bits(gpt: GPT, ids_WT: Tensor) -> NDArray[np.float64]:
    """The loss of each token of W texts but the first, in bits, (W, T), from ids, (W, T + 1)."""
    found = []
    with torch.inference_mode():
        for ids_BT in ids_WT.split(max(1, BATCH // ids_WT.shape[1])):
            logits_BTV = gpt(ids_BT[:, :-1])
            found.append(F.cross_entropy(logits_BTV.transpose(1, 2), ids_BT[:, 1:], reduction="none"))
    return torch.cat(found).double().numpy() / math.log(2)


def run_texts(folder: RunFolder, tokenizer: CharTokenizer) -> tuple[Ids, Ids]:
    """The training and the validation split of a run, as the ids of its tokenizer.

    Raises:
        UserError: the text can't be read, or its content is not what the run was trained on.
    """
    data = open_corpus(read_checkpoint(folder.last))
    corpus, places = open_split(tokenizer, data)
    training = data.open_splits()["train"].renumbered(tokenizer.vocabulary)
    return training.ids(places["train"]), corpus.ids(places["val"])
