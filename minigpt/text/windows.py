"""Windows over a corpus: what the model reads, and the characters it must predict."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

IGNORED = -100  # the target of a position that is not scored; the default of cross-entropy's ignore_index

Batch = tuple[Tensor, Tensor]  # ids and targets, each (B, T), int64


def window_starts(seed: int, batch: int, batch_size: int, n_starts: int) -> NDArray[np.int64]:
    """Where the windows of training batch number ``batch`` begin: a pure function of its arguments.

    Returns:
        ``batch_size`` independent uniform draws from ``range(n_starts)``.
    """
    return np.random.Generator(np.random.Philox(key=[seed, batch])).integers(n_starts, size=batch_size)


class TrainingBatches(Dataset[Batch]):
    """Item k is this device's share of training batch k: windows at random places, targets one character on."""

    def __init__(
        self,
        ids: NDArray,
        block_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        only_first: bool = False,
    ) -> None:
        self.ids = ids
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.only_first = only_first

    def __getitem__(self, batch: int) -> Batch:
        starts = window_starts(
            self.seed, 0 if self.only_first else batch, self.batch_size, len(self.ids) - self.block_size
        )
        places = starts[self.rank :: self.world, None] + np.arange(self.block_size + 1)
        windows = torch.from_numpy(self.ids[places].astype(np.int64))
        return windows[:, :-1], windows[:, 1:]


class ScoringBatches(Dataset[Batch]):
    """Windows side by side, so that each character of ``split`` is a target exactly once.

    The first target's context is the character before it; at the very beginning of the text, where there is
    none, it is ``first``. Every device gets the same number of batches, some perhaps with nothing to score.

    Args:
        ids: the whole text.
        split: the places to score.
        block_size: length of a window, T.
        batch_size: windows per device and batch, B.
        first: the id that stands before the text.
        rank: this device's number.
        world: number of devices.
    """

    def __init__(
        self,
        ids: NDArray,
        split: range,
        block_size: int,
        batch_size: int,
        first: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.ids = ids
        self.split = split
        self.block_size = block_size
        self.batch_size = batch_size
        self.first = first
        self.rank = rank
        self.world = world

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
