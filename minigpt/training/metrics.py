"""What is scored: nats, bits and perplexity over a split."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from minigpt.text.tokenizer import CharTokenizer

SCORES = ("loss", "bits_per_char", "bits_per_byte", "perplexity")


class Scores(Metric):
    """Exact means over a split, over all devices. A loss that is not a number shows in them.

    Args:
        tokenizer: tells how many bytes and characters an id stands for.
    """

    full_state_update = False
    nats: Tensor
    ids: Tensor
    bytes: Tensor
    characters: Tensor

    def __init__(self, tokenizer: CharTokenizer) -> None:
        super().__init__()
        real = torch.float32 if torch.backends.mps.is_available() else torch.float64  # which Apple's GPUs lack
        for name, dtype in (("nats", real), ("ids", torch.int64), ("bytes", torch.int64), ("characters", torch.int64)):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self.bytes_V: Tensor
        self.characters_V: Tensor
        self.register_buffer("bytes_V", torch.tensor(tokenizer.byte_counts()), persistent=False)
        self.register_buffer("characters_V", torch.tensor(tokenizer.character_counts()), persistent=False)

    def update(self, nats: Tensor, targets_BT: Tensor) -> None:
        """Add the nats of the scored targets, (number of them,), in order."""
        targets = targets_BT[targets_BT >= 0]
        # Not in place: sums that began under inference mode could not be changed outside it.
        self.nats = self.nats + nats.sum(dtype=self.nats.dtype)
        self.ids = self.ids + len(targets)
        self.bytes = self.bytes + self.bytes_V[targets].sum()
        self.characters = self.characters + self.characters_V[targets].sum()

    def compute(self) -> dict[str, Tensor]:
        """Loss (nats per id), bits per character and per byte, perplexity (per id)."""
        loss, bits = self.nats / self.ids, self.nats / math.log(2)
        values = (loss, bits / self.characters, bits / self.bytes, loss.exp())
        return {name: value.float() for name, value in zip(SCORES, values, strict=True)}
