"""What is scored: nats, bits and perplexity over a split."""

import math

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from minigpt.text.tokenizer import CharTokenizer

SCORES = ("loss", "bits_per_char", "bits_per_byte", "perplexity")


class Scores(nn.Module):
    """The means over a split, over all devices. A loss that is not a number shows in them.

    Args:
        tokenizer: tells how many bytes and characters an id stands for.
    """

    def __init__(self, tokenizer: CharTokenizer) -> None:
        super().__init__()
        self.nats, self.bytes, self.characters = (MeanMetric(nan_strategy="disable") for _ in range(3))
        self.register_buffer("bytes_V", torch.tensor(tokenizer.byte_counts()), persistent=False)
        self.register_buffer("characters_V", torch.tensor(tokenizer.character_counts()), persistent=False)
        self.bytes_V: Tensor
        self.characters_V: Tensor

    def update(self, nats: Tensor, targets_BT: Tensor) -> None:
        """Add the nats of the scored targets, (number of them,), in order."""
        targets = targets_BT[targets_BT >= 0]
        self.nats.update(nats)
        self.bytes.update(self.bytes_V[targets])
        self.characters.update(self.characters_V[targets])

    def compute(self) -> dict[str, Tensor]:
        """Loss (nats per id), bits per character and per byte, perplexity (per id)."""
        loss = self.nats.compute()
        bits = loss / math.log(2)
        return {
            "loss": loss,
            "bits_per_char": bits / self.characters.compute(),
            "bits_per_byte": bits / self.bytes.compute(),
            "perplexity": loss.exp(),
        }

    def reset(self) -> None:
        for metric in (self.nats, self.bytes, self.characters):
            metric.reset()
