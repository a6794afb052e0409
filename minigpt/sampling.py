"""How the next token is chosen: the settings, in one place; without torch, so that --help need not wait for it."""

import math
from dataclasses import dataclass

from minigpt.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Settings that act in this order: repetition_penalty, temperature, top_k, top_p, min_p.

    Args:
        temperature: divides the logits: below 1 more certain, above 1 more varied; 0 always takes the likeliest token
            (of several, the first in the vocabulary).
        top_k: choose among the k likeliest tokens only; of equally likely ones the first in the vocabulary.
        top_p: choose among the fewest likeliest tokens that hold this much of the probability (Holtzman et al. 2020).
        min_p: choose among the tokens at least this many times as probable as the likeliest (Nguyen et al. 2024).
        repetition_penalty: the logits of tokens in the window are divided by this where positive, and multiplied by
            it where negative (Keskar et al. 2019, section 4.1). 1 is none; above 1 such tokens become less likely.

    Raises:
        UserError: a setting is out of range.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, possible, words in (
            ("temperature", 0 <= self.temperature < math.inf, "at least 0, which always takes the likeliest character"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, the likeliest character"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "greater than 0 and at most 1"),
            ("min_p", self.min_p is None or 0 < self.min_p <= 1, "greater than 0 and at most 1"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "from 0.01 to 100, where 1 is none"),
        ):
            if not possible:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {words}.")
