"""Writing: logits to the next id, ids to text, one token at a time.

:func:`generate` is the loop over token ids; :class:`Writer` puts texts around it.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt.errors import UserError
from minigpt.fast import Packed, apply, why_not
from minigpt.model import GPT, KeyValueCache
from minigpt.sampling import Sampling
from minigpt.text.tokenizer import CharTokenizer, Decoder

Drawn = Iterator[tuple[list[int], list[float]]]  # at each step the next id of each sequence, and its log-probability


def probabilities(logits_BV: Tensor, window_BT: Tensor, sampling: Sampling) -> Tensor:
    """What the next token is drawn from: float64, (B, V), 0 for each token that was not kept.

    Args:
        logits_BV: logits of the last position, floating-point.
        window_BT: the token ids that each sequence has in its window, for the repetition penalty.
        sampling: the settings.

    Raises:
        UserError: a logit is not a number.
    """
    logits_BV = logits_BV.double()
    if logits_BV.isnan().any():
        raise UserError(
            "The model's output is not a number: its training diverged, as it does with too high a learning rate. "
            "Go back to an earlier checkpoint, or begin anew with a smaller --model.learning_rate."
        )
    if (penalty := sampling.repetition_penalty) != 1:
        seen_BT = logits_BV.gather(1, window_BT)
        logits_BV = logits_BV.scatter(1, window_BT, torch.where(seen_BT > 0, seen_BT / penalty, seen_BT * penalty))
    if sampling.temperature == 0:
        return F.one_hot(logits_BV.argmax(-1), logits_BV.shape[-1]).double()
    # Relative to the likeliest: no temperature above 0 is too small for that.
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is sampling.top_p is sampling.min_p is None:
        return logits_BV.softmax(-1)
    sorted_BV, order_BV = logits_BV.sort(descending=True, stable=True)
    if sampling.top_k is not None:
        sorted_BV[:, sampling.top_k :] = -math.inf
    probs_BV = sorted_BV.softmax(-1)
    if sampling.top_p is not None:
        mass_before_BV = probs_BV.cumsum(-1) - probs_BV
        probs_BV = probs_BV.where(mass_before_BV < sampling.top_p, 0.0)
    if sampling.min_p is not None:
        probs_BV = probs_BV.where(probs_BV >= sampling.min_p * probs_BV[:, :1], 0.0)
    probs_BV = probs_BV / probs_BV.sum(-1, keepdim=True)
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, probs_BV)


def uniform(seeds: Sequence[int]) -> Iterator[Tensor]:
    """At each step a number in [0, 1) per sequence, (B, 1), float64.

    Each is from a generator of its own, so that no sequence changes what another draws.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        yield torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])


def draw(probabilities_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """Draw one id per sequence, (B,): invert the cumulative distribution at a uniform number."""
    cumulative_BV = probabilities_BV.cumsum(-1)
    # The total is 1 but for rounding. To the right, so that a token of probability 0 is never met.
    return torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True).squeeze(-1)


def next_ids(logits_BV: Tensor, window_BT: Tensor, sampling: Sampling, uniform_B1: Tensor) -> Tensor:
    """The next id of each sequence, (B,): drawn by :func:`draw` from :func:`probabilities`."""
    return draw(probabilities(logits_BV, window_BT, sampling), uniform_B1)


@torch.inference_mode()
def generate(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    stride: int | None = None,
    never: int | None = None,
    cached: bool = True,
    dtype: torch.dtype = torch.float32,
    numbers: Iterator[Tensor] | None = None,
) -> Drawn:
    """Continue each of B prompts for ever, one token of each at a time.

    The model sees a window of at most ``block_size`` tokens. Positions are absolute, so a full window has no place
    for another token: it moves on by ``stride``, and the model reads what is left of it again::

        |-------------- block_size --------------|
        |--- stride ---|-- kept and read again --|
                       |-- kept and read again --|--- room for stride new tokens ---|

    A sequence sees the same window and draws the same random numbers alone and in a batch; its logits are the same
    to rounding.

    Args:
        gpt: the model, in evaluation mode.
        prompts: token ids, (B, T): at least one of each; the last ``block_size`` are seen.
        sampling: how the next token is chosen.
        seeds: one per sequence; the only source of randomness, on the CPU, so that it means the same on every device.
        stride: how far a full window moves, from 1, which always shows the model as much as it can see but reads the
            whole window for each token, to ``block_size``, the fastest; by default half the window.
        never: an id that is not to be drawn.
        cached: keep keys and values, so that no token of a window is read twice; otherwise all are for each new one.
        dtype: bfloat16 computes under ``torch.autocast``.
        numbers: what is drawn with instead, as :func:`uniform` gives them; with the last of them the text ends.

    Yields:
        The next B ids, and the logarithm of the probability that the model gave each, before any filter.
    """
    block_size = gpt.config.block_size
    device = gpt.token_embedding.weight.device
    numbers = numbers or uniform(seeds)
    window_BT = torch.tensor([prompt[-block_size:] for prompt in prompts])
    while True:
        caches = [KeyValueCache(block_size) for _ in gpt.blocks] if cached else None
        copies = Packed(gpt, len(prompts))
        unread_BT = window_BT
        while window_BT.shape[1] <= block_size:
            if (uniform_B1 := next(numbers, None)) is None:
                return
            with copies, torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits_BV = gpt(unread_BT.to(device), caches)[:, -1].float().cpu()
            if never is not None:
                logits_BV[:, never] = -math.inf
            ids_B = next_ids(logits_BV, window_BT, sampling, uniform_B1)
            ids_B1 = ids_B.unsqueeze(1)
            yield ids_B.tolist(), logits_BV.log_softmax(-1).gather(1, ids_B1).squeeze(1).tolist()
            window_BT = torch.cat((window_BT, ids_B1), dim=1)
            unread_BT = ids_B1 if cached else window_BT
        window_BT = window_BT[:, stride or max(1, block_size // 2) :]


@dataclass
class Sample:
    """A text as it is being written."""

    prompt: str  # what it continues
    seed: int  # what it is drawn with
    text: str = ""  # the continuation so far, never with a part of a stop string
    # Of each token of the text (a character, or a byte for a model of bytes), as the model gave it before any filter.
    log_probabilities: list[float] = field(default_factory=list)
    stop_reason: str | None = None  # "length", "stop", or None while it is being written


@dataclass(eq=False, repr=False)
class Writer:
    """A trained model that writes: text in, text out."""

    gpt: GPT  # in evaluation mode
    tokenizer: CharTokenizer  # the one it was trained with
    fast: bool | None = None  # keep keys and values; by default where minigpt.fast.why_not has no objection
    dtype: torch.dtype = torch.float32  # bfloat16 computes under torch.autocast
    # From where to where minigpt.load brought the model: it is this writer's own then, and which layers compute it is
    # decided anew for each text. A model that is in training keeps its layers.
    loaded: str = ""

    @property
    def description(self) -> str:
        """Where a loaded model is from, and how it computes now."""
        return self.loaded and f"{self.loaded}, with {apply(self.gpt, self.fast)}"

    def fold(self, text: str) -> str:
        """The text with each unknown character in the place of which a known one differs by typography only."""
        for unknown, known in self.tokenizer.lookalikes(text).items():
            text = text.replace(unknown, known)
        return text

    def _encode(self, text: str) -> list[int]:
        try:
            return self.tokenizer.encode(text).tolist()
        except UserError as error:
            alike = ", ".join(f"{known!r} for {it!r}" for it, known in self.tokenizer.lookalikes(text).items())
            hint = f" The model knows {alike}: --fold takes that instead (in Python, the method fold)." if alike else ""
            raise UserError(f"{error}{hint}") from error

    def notes(self, prompt: str) -> list[str]:
        """What a user should know of how ``prompt`` is taken."""
        block_size = self.gpt.config.block_size
        if not prompt:
            return [f"the prompt is empty; the text begins after {self.tokenizer.start!r}."]
        if (length := len(self._encode(prompt))) > block_size:
            return [f"the prompt has {length:,} characters; the model sees the last {block_size:,} of them."]
        return []

    def generate(self, prompt: str = "", **settings: Any) -> str:
        """The continuation of ``prompt``; settings as for :meth:`write`."""
        return "".join(self.stream(prompt, **settings))

    def stream(self, prompt: str = "", **settings: Any) -> Iterator[str]:
        """The continuation of ``prompt``, in pieces, each as soon as it is certain; settings as for :meth:`write`."""
        texts = (sample.text for (sample,) in self.write([prompt], **settings))
        return (text[len(before) :] for before, text in itertools.pairwise(texts) if text != before)

    def write(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 500,
        stop: str | Sequence[str] = (),
        seed: int = 1,
        stride: int | None = None,
        **sampling: Any,
    ) -> Iterator[list[Sample]]:
        """Continue several prompts side by side.

        An empty prompt stands for a new line. The unknown symbol, where the vocabulary has one, is never drawn.

        Args:
            prompts: the beginnings, of any lengths; of each the model sees the last ``block_size`` tokens.
            max_new_tokens: how many tokens to write at most: characters, or bytes for a model of bytes.
            stop: strings, each of which ends a text where it would appear; it is not part of the text.
            seed: the first text is drawn with this seed, the second with the next, and so on.
            stride: how far the window moves when it is full, see :func:`generate`.
            sampling: see :class:`~minigpt.sampling.Sampling`.

        Yields:
            Before the first step and after each the same samples, one per prompt, as far as they have come.

        Raises:
            UserError: a prompt or stop string has characters that the model doesn't know, or a setting is out of
                range. It is raised at once, before anything is written.
        """
        chosen = Sampling(**sampling)
        block_size = self.gpt.config.block_size
        if stride is not None and not 1 <= stride <= block_size:
            raise UserError(f"stride is {stride}; it must be from 1 to the window's {block_size} characters.")
        if max_new_tokens < 0:
            raise UserError(f"max_new_tokens is {max_new_tokens}; a text can't have fewer than 0 characters.")
        if not 0 <= seed <= 2**63 - len(prompts):
            raise UserError(f"seed is {seed}; it must be a whole number from 0 to 2^63.")
        stops = [self._encode(s) for s in ([stop] if isinstance(stop, str) else stop)]
        if [] in stops:
            raise UserError("A stop string is empty; it must have at least one character.")
        if self.loaded:
            apply(self.gpt, self.fast)
        cached = self.fast if self.fast is not None else why_not(self.gpt) is None
        windows = [self._encode(prompt or self.tokenizer.start)[-block_size:] for prompt in prompts]
        batches: list[tuple[list[int], Drawn]] = []  # windows of one length are written together
        for length in sorted({len(window) for window in windows}):
            batch = [i for i, window in enumerate(windows) if len(window) == length]
            ids, seeds = [windows[i] for i in batch], [seed + i for i in batch]
            never = self.tokenizer.unknown
            batches.append((batch, generate(self.gpt, ids, chosen, seeds, stride, never, cached, self.dtype)))
        reason = None if max_new_tokens else "length"
        samples = [Sample(prompt, seed + i, stop_reason=reason) for i, prompt in enumerate(prompts)]
        decoders = [self.tokenizer.decoder(window) for window in windows]
        return self._follow(samples, batches, decoders, max_new_tokens, stops)

    def _follow(
        self,
        samples: list[Sample],
        batches: list[tuple[list[int], Drawn]],
        decoders: list[Decoder],
        max_new_tokens: int,
        stops: list[list[int]],
    ) -> Iterator[list[Sample]]:
        """Turn ids into text, holding back what may be the beginning of a stop string."""
        held: list[tuple[list[int], list[float]]] = [([], []) for _ in samples]
        yield samples
        for left in reversed(range(max_new_tokens)):
            batches = [(batch, drawn) for batch, drawn in batches if any(not samples[i].stop_reason for i in batch)]
            if not batches:
                return
            for batch, drawn in batches:
                for i, id_, log_prob in zip(batch, *next(drawn), strict=True):
                    sample, (ids, log_probs) = samples[i], held[i]
                    if sample.stop_reason:
                        continue
                    ids.append(id_)
                    log_probs.append(log_prob)
                    # The longest stop string that is complete, or else the longest beginning of one.
                    ends = ((n == len(s), n) for s in stops for n in range(1, len(s) + 1) if ids[-n:] == s[:n])
                    complete, length = max(ends, default=(False, 0))
                    if complete or left == 0:
                        sample.stop_reason = "stop" if complete else "length"
                    certain = len(ids) - (0 if sample.stop_reason == "length" else length)
                    sample.text += decoders[i](ids[:certain], bool(sample.stop_reason))
                    sample.log_probabilities += log_probs[:certain]
                    del ids[:certain], log_probs[:certain]
            yield samples
