"""Windows over a corpus: what the model reads, and the characters it must predict."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from minigpt.text.corpus import Ids

IGNORED = -100  # the target of a position that is not scored; the default of cross-entropy's ignore_index

Batch = tuple[Tensor, Tensor]  # ids and targets, each (B, T), int64


def window_starts(seed: int, batch: int, batch_size: int, n_starts: int) -> NDArray[np.int64]:
    """Where the windows of training batch number ``batch`` begin: a pure function of its arguments.

    They are ``batch_size`` independent uniform draws from ``range(n_starts)``.
    """
    return np.random.Generator(np.random.Philox(key=[seed, batch])).integers(n_starts, size=batch_size)


@dataclass(eq=False)
class TrainingBatches(Dataset[Batch]):
    """Item k is this device's share of training batch k: windows at random places, targets one character on."""

    ids: Ids  # of the training split
    block_size: int  # length of a window, T
    batch_size: int  # windows in a batch, over all devices together
    seed: int
    rank: int = 0  # this device's number
    world: int = 1  # number of devices
    repeat: int = 0  # how many batches there are, again and again; 0 for ever new ones

    def starts(self, batch: int) -> NDArray[np.int64]:
        """Where in ``ids`` the windows of this device's share begin."""
        number, n_starts = batch % self.repeat if self.repeat else batch, len(self.ids) - self.block_size
        return window_starts(self.seed, number, self.batch_size, n_starts)[self.rank :: self.world]

    def __getitem__(self, batch: int) -> Batch:
        places = self.starts(batch)[:, None] + np.arange(self.block_size + 1)
        windows = torch.from_numpy(self.ids[places].astype(np.int64))
        return windows[:, :-1], windows[:, 1:]


@dataclass(eq=False)
class ScoringBatches(Dataset[Batch]):
    """Windows side by side, so that each character of ``split`` is a target exactly once.

    The first target's context is the character before it; at the very beginning of the text, where there is
    none, it is ``first``. Every device gets the same number of batches, some perhaps with nothing to score.
    """

    ids: Ids  # of the whole text
    split: range  # the places to score
    block_size: int  # length of a window, T
    batch_size: int  # windows per device and batch, B
    first: int = 0  # the id that stands before the text
    rank: int = 0  # this device's number
    world: int = 1  # number of devices

    def __len__(self) -> int:
        windows = -(-len(self.split) // self.block_size)
        return -(-windows // (self.batch_size * self.world))

    def __getitem__(self, batch: int) -> Batch:
        if not 0 <= batch < len(self):
            raise IndexError(batch)
        rows = np.arange(self.batch_size)[:, None] + (batch * self.world + self.rank) * self.batch_size
        places = self.split.start + rows * self.block_size + np.arange(self.block_size)  # of the targets
        scored = places < self.split.stop
        last = self.split.stop - 1
        targets = self.ids[np.minimum(places, last)].astype(np.int64)
        inputs = self.ids[np.clip(places - 1, 0, last)].astype(np.int64)
        inputs[places == 0] = self.first
        targets[~scored] = IGNORED
        used = max(1, int(scored.any(axis=1).sum()))  # the last batch may be short, but never empty
        return torch.from_numpy(inputs[:used]), torch.from_numpy(targets[:used])
