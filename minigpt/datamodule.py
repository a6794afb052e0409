"""Windows over a corpus: what the model reads, and the characters it must foretell."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from minigpt.corpus import Corpus, open_corpus
from minigpt.tokenizer import CharTokenizer

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


def ignore_interrupts(worker: int) -> None:
    """Leave signals, which may reach every process of the group, to the training process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class TrainingLoader(DataLoader[Batch]):
    """Training batches in the order of their numbers, epoch after epoch.

    It counts what it handed out, and Lightning keeps that count in the checkpoint, so that a resumed run goes on
    with the very next batch. It has a length because Lightning reads one batch ahead of a loader without.
    """

    def __init__(self, dataset: TrainingBatches, batches_per_epoch: int, num_workers: int) -> None:
        self.next_batch = 0
        self.batches_per_epoch = batches_per_epoch
        super().__init__(
            dataset,
            batch_size=None,
            sampler=_Rest(self),
            num_workers=num_workers,
            worker_init_fn=ignore_interrupts,
        )

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            self.next_batch += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next_batch = state["next_batch"]


class _Rest(Sampler[int]):
    """The numbers of the batches that are left in the epoch."""

    def __init__(self, loader: TrainingLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[int]:
        start, length = self.loader.next_batch, self.loader.batches_per_epoch
        yield from range(start, (start // length + 1) * length)


class CharDataModule(LightningDataModule):
    """A corpus, split into a training, a validation and a test part, as batches of windows.

    The splits lie side by side in this order. One epoch is as many optimizer steps as it takes to read about the
    training split's number of characters.

    Args:
        corpus: a text file, a folder of .txt files, a glob, or a named corpus (shakespeare, tinyshakespeare).
        block_size: characters in a window: the model's context.
        batch_size: windows in a training batch, over all devices together.
        val_fraction: part of the text that is the validation split.
        test_fraction: part of the text, at its end, that is the test split; 0 for none.
        seed: decides which windows are in which training batch.
        overfit_one_batch: train on the first batch for ever. A model that can't learn it by heart is broken.
        scoring_batch_size: windows per device and batch when validating, testing and predicting.
        num_workers: processes that gather batches; 0 gathers them in the training process, which is fast enough.
        encoding: of the text files, as Python names it: utf-8, latin-1, utf-16, ...
        data_dir: folder for named corpora and encoded text.
        predict_corpus: the text that ``predict`` scores.
        vocabulary: the characters to know; by default those of the corpus, or those of the checkpoint.

    Raises:
        ValueError: a size or fraction is out of range, the corpus can't be read or is too short.
    """

    def __init__(
        self,
        corpus: str = "shakespeare",
        block_size: int = 256,
        batch_size: int = 32,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        seed: int = 1337,
        overfit_one_batch: bool = False,
        scoring_batch_size: int = 32,
        num_workers: int = 0,
        encoding: str = "utf-8",
        data_dir: str = "data",
        predict_corpus: str | None = None,
        vocabulary: str | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("block_size", block_size), ("batch_size", batch_size)):
            if size < 1:
                raise ValueError(f"data.{name} is {size}; it must be at least 1.")
        if scoring_batch_size < 1 or num_workers < 0 or seed < 0:
            raise ValueError("data.scoring_batch_size must be at least 1, data.num_workers and the seed at least 0.")
        if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
            raise ValueError(
                f"val_fraction = {val_fraction} and test_fraction = {test_fraction} leave no sound split: validation "
                "must be more than 0, test at least 0, and together they must leave something to train on."
            )
        self.corpus = corpus
        self.block_size = block_size
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.overfit_one_batch = overfit_one_batch
        self.scoring_batch_size = scoring_batch_size
        self.num_workers = num_workers
        self.encoding = encoding
        self.data_dir = Path(data_dir)
        self.predict_corpus = predict_corpus
        self.text: Corpus
        if vocabulary is None:
            # A model needs its vocabulary before it can be built, so the text is read here, not in `setup`.
            self._open()
            vocabulary = self.text.vocabulary
        self.vocabulary = vocabulary
        self.save_hyperparameters(ignore=["vocabulary", "predict_corpus", "data_dir", "num_workers"])

    def _open(self, vocabulary: str | None = None) -> None:
        self.text = open_corpus(self.corpus, self.data_dir, vocabulary, self.encoding)
        for name, split in self.splits().items():
            if len(split) <= self.block_size and (split or name != "test"):
                raise ValueError(
                    f"The corpus {self.corpus} has {len(self.text)} characters, of which the {name} split gets "
                    f"{len(split)}; it needs more than block_size = {self.block_size}. Take a longer text, "
                    f"a smaller --data.block_size, or a larger fraction for that split."
                )

    def setup(self, stage: str) -> None:
        if stage == "predict":
            if not self.predict_corpus:
                raise ValueError("predict needs a text to score: --data.predict_corpus FILE.")
            self.text = open_corpus(self.predict_corpus, self.data_dir, self.vocabulary, self.encoding)
            return
        if not hasattr(self, "text"):
            self._open(self.vocabulary)
        if stage == "fit" and self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size = {self.batch_size} can't be shared equally by {self.world_size} devices. "
                f"{-(-self.batch_size // self.world_size) * self.world_size} can."
            )
        if stage == "test" and not self.splits()["test"]:
            raise ValueError(
                "There is no test split: this model was trained with test_fraction = 0. "
                "Use validate, or test on another text with --data.corpus and --data.test_fraction."
            )

    @property
    def world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def splits(self) -> dict[str, range]:
        """The places of the text that belong to each split: side by side, disjoint, and covering all of it."""
        n = len(self.text)
        val_start = int(n * round(1 - self.val_fraction - self.test_fraction, 9))
        test_start = int(n * round(1 - self.test_fraction, 9))
        return {"train": range(val_start), "val": range(val_start, test_start), "test": range(test_start, n)}

    def train_dataloader(self) -> TrainingLoader:
        split = self.splits()["train"]
        dataset = TrainingBatches(
            self.text.ids()[split.start : split.stop],
            self.block_size,
            self.batch_size,
            self.seed,
            rank=self.rank,
            world=self.world_size,
            only_first=self.overfit_one_batch,
        )
        # Lightning ends an epoch with an optimizer step, so an epoch must not end half-way through one.
        accumulated = self.trainer.accumulate_grad_batches if self.trainer else 1
        steps = -(-len(split) // (self.batch_size * self.block_size * accumulated))
        return TrainingLoader(dataset, steps * accumulated, self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._scoring_loader(self.splits()["val"])

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._scoring_loader(self.splits()["test"])

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._scoring_loader(range(len(self.text)))

    def _scoring_loader(self, split: range) -> DataLoader[Batch]:
        dataset = ScoringBatches(
            self.text.ids(),
            split,
            self.block_size,
            self.scoring_batch_size,
            first=self.vocabulary.index(CharTokenizer(self.vocabulary).start),
            rank=self.rank,
            world=self.world_size,
        )
        return DataLoader(dataset, batch_size=None, num_workers=self.num_workers, worker_init_fn=ignore_interrupts)

    def state_dict(self) -> dict[str, str]:
        return {"sha256": self.text.sha256, "corpus": self.corpus}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Refuse a text that is not the one the checkpoint was trained on, unless another was asked for by name."""
        assert self.trainer is not None
        resuming, predicting = self.trainer.training, self.trainer.predicting
        if predicting or (not resuming and self.corpus != state["corpus"]):
            return
        if state["sha256"] != self.text.sha256:
            raise ValueError(
                f"The corpus {self.corpus} is not the text that the checkpoint was trained on: its content differs. "
                "Bring the old text back; or start a new run, without --ckpt_path, on this one."
            )
