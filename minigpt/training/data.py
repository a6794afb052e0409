"""The corpus as Lightning's data: which batches there are, and where a resumed run goes on."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from minigpt.errors import UserError
from minigpt.text.corpus import Corpus, CorpusReader, check_fractions, split_places
from minigpt.text.tokenizer import TOKENIZERS, UNKNOWN
from minigpt.text.windows import Batch, ScoringBatches, TrainingBatches, window_starts


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
        corpus: a text file, a folder of them, a glob, a list of these, or a named corpus (shakespeare,
            tinyshakespeare, enwik8, text8). Files may be compressed: .gz, .xz, .bz2, .zst, .zip.
        block_size: characters in a window: the model's context.
        batch_size: windows in a training batch, over all devices together.
        val_fraction: part of the corpus that is the validation split, unless there is a val_corpus.
        test_fraction: part of the corpus, at its end, that is the test split, unless there is a test_corpus; may be 0.
        val_corpus: a text of its own to validate on.
        test_corpus: a text of its own to test on.
        tokenizer: "char", one id per character; or "byte", one per byte of UTF-8, which makes any file trainable.
        min_count: characters rarer than this in the training split become one unknown symbol, never generated.
        seed: decides which windows are in which training batch.
        overfit_one_batch: train on the first batch for ever. A model that can't learn it by heart is broken.
        scoring_batch_size: windows per device and batch when validating, testing and predicting.
        num_workers: processes that gather batches; 0 gathers them in the training process, which is fast enough.
        encoding: of the text files, as Python names it: utf-8, latin-1, utf-16, ...
        data_dir: folder for named corpora and encoded text.
        predict_corpus: the text that ``predict`` scores.
        vocabulary: the characters to know; by default those of the texts, or those of the checkpoint.
        mirror: where to fetch a named corpus from instead of its public home: a URL or a path.
        max_unpacked_gb: the most that one compressed file may unpack to, in 10^9 bytes.

    Raises:
        UserError: a size or fraction is out of range, the corpus can't be read or is too short.
    """

    def __init__(
        self,
        corpus: str | list[str] = "shakespeare",
        block_size: int = 256,
        batch_size: int = 32,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        val_corpus: str | list[str] | None = None,
        test_corpus: str | list[str] | None = None,
        tokenizer: Literal["char", "byte"] = "char",
        min_count: int = 1,
        seed: int = 1337,
        overfit_one_batch: bool = False,
        scoring_batch_size: int = 32,
        num_workers: int = 0,
        encoding: str = "utf-8",
        data_dir: str = "data",
        predict_corpus: str | None = None,
        vocabulary: str | None = None,
        mirror: str | None = None,
        max_unpacked_gb: float = 100.0,
    ) -> None:
        super().__init__()
        for name, size in (("block_size", block_size), ("batch_size", batch_size)):
            if size < 1:
                raise UserError(f"data.{name} is {size}; it must be at least 1.")
        if scoring_batch_size < 1 or seed < 0:
            raise UserError("data.scoring_batch_size must be at least 1, the seed at least 0.")
        if not 0 <= num_workers <= 256:
            raise UserError(f"data.num_workers is {num_workers}; it must be at least 0 and at most 256.")
        if min_count < 1 or (min_count > 1 and tokenizer == "byte"):
            raise UserError(f"data.min_count is {min_count}; it must be at least 1, and just that with bytes.")
        check_fractions(None if val_corpus else val_fraction, None if test_corpus else test_fraction)
        self.corpus = corpus
        self.block_size = block_size
        self.batch_size = batch_size
        self.val_fraction = 0.0 if val_corpus else val_fraction
        self.test_fraction = 0.0 if test_corpus else test_fraction
        self.val_corpus = val_corpus
        self.test_corpus = test_corpus
        self.tokenizer = tokenizer
        self.seed = seed
        self.overfit_one_batch = overfit_one_batch
        self.scoring_batch_size = scoring_batch_size
        self.num_workers = num_workers
        self.predict_corpus = predict_corpus
        self.reader = CorpusReader(Path(data_dir), tokenizer, encoding, mirror, max_unpacked_gb)
        self.texts: dict[str, Corpus] = {}  # by split
        if vocabulary is None:
            # A model needs its vocabulary before it can be built, so the text is read here, not in `setup`.
            vocabulary = self._choose_vocabulary(min_count)
            self._open(vocabulary)
        self.vocabulary = vocabulary
        self.save_hyperparameters(
            ignore=["vocabulary", "predict_corpus", "data_dir", "num_workers", "mirror", "max_unpacked_gb"]
        )

    def _choose_vocabulary(self, min_count: int) -> str:
        """The characters of all texts, or those frequent enough in the training split and the unknown symbol."""
        names = [name for name in (self.corpus, self.val_corpus, self.test_corpus) if name]
        texts = [self.reader.open(name) for name in names]
        if self.tokenizer == "byte":
            return texts[0].vocabulary
        characters = set().union(*(text.vocabulary for text in texts))
        if min_count > 1:
            counts = texts[0].counts(split_places(len(texts[0]), self.val_fraction, self.test_fraction)["train"])
            frequent = {c for c, count in zip(texts[0].vocabulary, counts, strict=True) if count >= min_count}
            if not frequent:
                raise UserError(f"No character occurs {min_count} times in the training split; lower data.min_count.")
            characters = frequent | ({UNKNOWN} if characters - frequent else set())
        return "".join(sorted(characters))

    def _open(self, vocabulary: str) -> None:
        """Open the texts of all splits, and see that each is long enough."""
        text = self.reader.open(self.corpus, vocabulary)
        self.texts = {
            "train": text,
            "val": self.reader.open(self.val_corpus, vocabulary) if self.val_corpus else text,
            "test": self.reader.open(self.test_corpus, vocabulary) if self.test_corpus else text,
        }
        for name, split in self.splits().items():
            if len(split) <= self.block_size and (split or name != "test"):
                raise UserError(
                    f"The corpus {self.texts[name].name} has {len(self.texts[name])} characters, of which the {name} "
                    f"split gets {len(split)}; it needs more than block_size = {self.block_size}. Take a longer text, "
                    f"a smaller --data.block_size, or a larger fraction for that split."
                )

    def setup(self, stage: str) -> None:
        if stage == "predict":
            if not self.predict_corpus:
                raise UserError("predict needs a text to score: --data.predict_corpus FILE.")
            self.texts = {"predict": self.reader.open(self.predict_corpus, self.vocabulary)}
            return
        if not self.texts:
            self._open(self.vocabulary)
        if stage == "fit":
            self.check_share(self.world_size)
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
    def world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def splits(self) -> dict[str, range]:
        """The places of its text that belong to each split.

        The splits of one text lie side by side, disjoint, and cover all of it; a text of its own is a split as a whole.
        """
        places = split_places(len(self.texts["train"]), self.val_fraction, self.test_fraction)
        for name, own in (("val", self.val_corpus), ("test", self.test_corpus)):
            if own:
                places[name] = range(len(self.texts[name]))
        return places

    def train_dataloader(self) -> TrainingLoader:
        split = self.splits()["train"]
        dataset = TrainingBatches(
            self.texts["train"].ids()[split.start : split.stop],
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

    def window_places(self, batch: int) -> list[int]:
        """Where in the training text the windows of this device's share of a training batch begin."""
        split = self.splits()["train"]
        n_starts = len(split) - self.block_size
        starts = window_starts(self.seed, 0 if self.overfit_one_batch else batch, self.batch_size, n_starts)
        return [split.start + int(start) for start in starts[self.rank :: self.world_size]]

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._scoring_loader("val", self.splits()["val"])

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._scoring_loader("test", self.splits()["test"])

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._scoring_loader("predict", range(len(self.texts["predict"])))

    def _scoring_loader(self, name: str, split: range) -> DataLoader[Batch]:
        dataset = ScoringBatches(
            self.texts[name].ids(),
            split,
            self.block_size,
            self.scoring_batch_size,
            first=self.vocabulary.index(TOKENIZERS[self.tokenizer](self.vocabulary).start),
            rank=self.rank,
            world=self.world_size,
        )
        return DataLoader(dataset, batch_size=None, num_workers=self.num_workers, worker_init_fn=ignore_interrupts)

    def state_dict(self) -> dict[str, str]:
        # A list of files is kept as text, so that the checkpoint stays plain and comparable.
        return {"sha256": " ".join(text.sha256 for text in self.texts.values()), "corpus": str(self.corpus)}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Refuse a text that is not the one the checkpoint was trained on, unless another was asked for by name."""
        assert self.trainer is not None
        resuming, predicting = self.trainer.training, self.trainer.predicting
        if predicting or (not resuming and str(self.corpus) != state["corpus"]):
            return
        if state["sha256"] != self.state_dict()["sha256"]:
            raise UserError(
                f"The corpus {self.corpus} is not the text that the checkpoint was trained on: its content differs. "
                "Bring the old text back; or start a new run, without --ckpt_path, on this one."
            )
