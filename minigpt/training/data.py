"""The corpus as Lightning's data: which batches there are, and where a resumed run goes on."""

import dataclasses
import signal
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from minigpt.errors import UserError
from minigpt.text.corpus import Corpus, DataSettings
from minigpt.text.tokenizer import TOKENIZERS, UNKNOWN, BPETokenizer
from minigpt.text.windows import Batch, ScoringBatches, TrainingBatches

# What says where things lie and how they are computed; all other settings are in a checkpoint.
NOT_KEPT = {
    *("vocabulary", "base_vocabulary", "predict_corpus", "data_dir", "num_workers", "mirror", "max_unpacked_gb"),
    "scoring_batch_size",
}


def make_loader(batches: Dataset[Batch], num_workers: int, numbers: range | None = None) -> DataLoader[Batch]:
    """The batches of those numbers, in order; all of them by default."""
    return DataLoader(
        batches, batch_size=None, sampler=numbers, num_workers=num_workers, worker_init_fn=ignore_interrupts
    )


def ignore_interrupts(worker: int) -> None:
    """Leave signals, which may reach every process of the group, to the training process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class TrainingLoader:
    """Training batches in the order of their numbers, from ``next_batch`` on, as many as a whole epoch has.

    Where an epoch ends is for Lightning to say, which may have begun it before, or be told to cut it short. It has a
    length because Lightning reads one batch ahead of a loader without.
    """

    def __init__(self, batches: TrainingBatches, batches_per_epoch: int, num_workers: int, next_batch: int) -> None:
        self.batches = batches
        self.batches_per_epoch = batches_per_epoch
        self.num_workers = num_workers
        self.next_batch = next_batch

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        numbers = range(self.next_batch, self.next_batch + len(self))
        # Without workers, a DataLoader's own work would take as long as gathering the batch does.
        here = map(self.batches.__getitem__, numbers)
        for batch in make_loader(self.batches, self.num_workers, numbers) if self.num_workers else here:
            self.next_batch += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next_batch = state["next_batch"]


class CharDataModule(LightningDataModule):
    """A corpus, split into a training, a validation and a test part, as batches of windows.

    The splits lie side by side in this order. One epoch is as many optimizer steps as it takes to read about the
    training split's number of characters. Nothing is read before ``vocabulary`` or ``setup`` is asked for.

    Args:
        corpus: a text file, a folder of them, a glob, a list of these, or a named corpus (shakespeare,
            tinyshakespeare, enwik8, text8). Files may be compressed: .gz, .xz, .bz2, .zst, .zip. "-" is the standard
            input, which is read once and kept under data_dir; the setting then names that file.
        data: the other fields of :class:`~minigpt.text.corpus.DataSettings`.

    Raises:
        UserError: a setting is out of range; later, that a corpus can't be read or is too short.
    """

    def __init__(self, corpus: str | list[str] | Path = "shakespeare", **data: Any) -> None:
        super().__init__()
        settings = DataSettings(corpus=str(corpus) if isinstance(corpus, Path) else corpus, **data)
        self.settings = settings
        self.corpus, self.predict_corpus = settings.corpus, settings.predict_corpus
        self.block_size, self.batch_size, self.tokenizer = settings.block_size, settings.batch_size, settings.tokenizer
        self.texts: dict[str, Corpus] = {}  # by split
        self.save_hyperparameters({k: v for k, v in dataclasses.asdict(settings).items() if k not in NOT_KEPT})

    @cached_property
    def vocabulary(self) -> str:
        """The characters to know: those given, else all of the texts, or the frequent ones and the unknown symbol.

        A model needs them before it can be built, so the texts are read when this is first asked for.
        """
        if self.settings.vocabulary is not None:
            return self.settings.vocabulary
        self._open()
        text, min_count = self.texts["train"], self.settings.min_count
        if self.tokenizer == "byte":
            return text.characters
        base = self.settings.base_vocabulary or ""
        characters = set().union(*(text.characters for text in self.texts.values())).difference(base)
        if min_count > 1:
            counts = text.counts(self.splits()["train"])
            frequent = {c for c, count in zip(text.characters, counts, strict=True) if count >= min_count}
            if not frequent:
                raise UserError(f"No character occurs {min_count} times in the training split; lower data.min_count.")
            rare = characters - frequent
            characters = characters - rare | ({UNKNOWN} if rare else set()).difference(base)
        return base + "".join(sorted(characters))

    def _open(self) -> None:
        """Open the texts of all splits as they are, and see that each is long enough."""
        self.texts = self.settings.open_splits()
        for name, split in self.splits().items():
            if len(split) <= self.block_size and (split or name != "test"):
                raise UserError(
                    f"The corpus {self.texts[name].name} has {len(self.texts[name])} characters, of which the {name} "
                    f"split gets {len(split)}; it needs more than block_size = {self.block_size}. Take a longer text, "
                    f"a smaller --data.block_size, or a larger fraction for that split."
                )

    def setup(self, stage: str) -> None:
        vocabulary = self.vocabulary
        if stage == "predict":
            if not self.predict_corpus:
                raise UserError("predict needs a text to score: --data.predict_corpus FILE.")
            if isinstance(tokenizer := TOKENIZERS[self.tokenizer](vocabulary), BPETokenizer):
                self.texts = {"predict": self.settings.open_in_pieces(self.predict_corpus, tokenizer)}
            else:
                self.texts = {"predict": self.settings.open(self.predict_corpus)}
        elif "train" not in self.texts:
            self._open()
        self.texts = {name: text.renumbered(vocabulary) for name, text in self.texts.items()}
        if stage == "fit":
            self.check_share(self.trainer_share[1])
        if stage == "test" and not self.splits()["test"]:
            raise UserError(
                "There is no test split: this model was trained with test_fraction = 0. "
                "Use validate, or test on another text with --data.corpus and --data.test_fraction."
            )

    def check_share(self, devices: int) -> None:
        """Raise a UserError unless so many devices can share a training batch equally."""
        if self.batch_size % devices:
            raise UserError(
                f"batch_size = {self.batch_size} can't be shared equally by {devices} devices. "
                f"{-(-self.batch_size // devices) * devices} can."
            )

    @property
    def trainer_share(self) -> tuple[int, int]:
        """The number of this device, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def splits(self) -> dict[str, range]:
        """The places of its text that belong to each split.

        The splits of one text lie side by side, disjoint, and cover all of it; a text of its own is a split as a whole.
        """
        own = {"val": self.settings.val_corpus, "test": self.settings.test_corpus}
        whole = {name: range(len(self.texts[name])) for name, corpus in own.items() if corpus}
        return self.settings.places(len(self.texts["train"])) | whole

    def _training_batches(self) -> TrainingBatches:
        ids, settings, share = self.texts["train"].ids(self.splits()["train"]), self.settings, self.trainer_share
        repeat = 1 if settings.overfit_one_batch else 0
        if overfit := getattr(self.trainer, "overfit_batches", 0):
            repeat = overfit if isinstance(overfit, int) else max(1, int(overfit * self._batches_per_epoch()))
        return TrainingBatches(ids, self.block_size, self.batch_size, settings.seed, *share, repeat)

    def _batches_per_epoch(self) -> int:
        # Lightning ends an epoch with an optimizer step, so an epoch must not end half-way through one.
        accumulated = self.trainer.accumulate_grad_batches if self.trainer else 1
        steps = -(-len(self.splits()["train"]) // (self.batch_size * self.block_size * accumulated))
        return steps * accumulated

    def train_dataloader(self) -> TrainingLoader:
        done = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1 if self.trainer else 0
        return TrainingLoader(self._training_batches(), self._batches_per_epoch(), self.settings.num_workers, done)

    def window_places(self, batch: int) -> list[int]:
        """Where in the training text the windows of this device's share of a training batch begin."""
        return self._training_batches().starts(batch).tolist()

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._scoring_loader("val", self.splits()["val"])

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._scoring_loader("test", self.splits()["test"])

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._scoring_loader("predict", range(len(self.texts["predict"])))

    def _scoring_loader(self, name: str, places: range) -> DataLoader[Batch]:
        tokenizer = TOKENIZERS[self.tokenizer](self.vocabulary)
        first = int(tokenizer.encode(tokenizer.start)[0])
        size, ids = self.settings.eval_batch_size, self.texts[name].ids()
        batches = ScoringBatches(ids, places, self.block_size, size, first, *self.trainer_share)
        return make_loader(batches, self.settings.num_workers)

    def state_dict(self) -> dict[str, str]:
        # A list of files is kept as text, so that the checkpoint stays plain and comparable.
        return {"sha256": " ".join(text.sha256 for text in self.texts.values()), "corpus": str(self.corpus)}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Refuse a text that is not the one the checkpoint was trained on, unless another was asked for by name."""
        if self.trainer is None:  # in load_from_checkpoint; no text has been opened yet
            return
        resuming, predicting = self.trainer.training, self.trainer.predicting
        if not predicting and (resuming or str(self.corpus) == state["corpus"]):
            self.check_same_text(state)

    def check_same_text(self, state: dict[str, str]) -> None:
        """Raise a UserError unless the text is that of the checkpoint whose state of this class is given."""
        if state["sha256"] != self.state_dict()["sha256"]:
            raise UserError(
                f"The corpus {self.corpus} is not the text that the checkpoint was trained on: its content differs. "
                "Bring the old text back; or start a new run, without --ckpt_path, on this one."
            )
