"""Writing: logits to the next id, ids to text, one token at a time.

:func:`generate` is the loop over token ids; :class:`Writer` puts texts around it.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.text.tokenizer import CharTokenizer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The steps are taken in the order in which they stand here.

    Args:
        repetition_penalty: the logits of tokens in the window are divided by this where positive, and multiplied by
            it where negative (Keskar et al. 2019, "CTRL", section 4.1). 1 is none; among characters, nearly all of
            which recur, little more than 1 is of use.
        temperature: divides the logits: below 1 more certain, above 1 more varied. 0 always takes the likeliest token
            (of several, the first in the vocabulary) and makes the rest of the steps needless.
        top_k: keep the k likeliest tokens; of equally likely ones those that come first in the vocabulary.
        top_p: keep the fewest likeliest tokens whose probabilities sum to p or more (Holtzman et al. 2020).
        min_p: keep the tokens at least p times as probable as the likeliest (Nguyen et al. 2024).

    Raises:
        UserError: a setting is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(
                f"temperature is {self.temperature}; it must be at least 0, which always takes the likeliest character."
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; at least the 1 likeliest character must remain.")
        for name in ("top_p", "min_p"):
            if (p := getattr(self, name)) is not None and not 0 < p <= 1:
                raise UserError(f"{name} is {p}; it must be greater than 0 and at most 1.")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise UserError(
                f"repetition_penalty is {self.repetition_penalty}; it must be from 0.01 to 100, where 1 is none."
            )

    def probabilities(self, logits_BV: Tensor, windows: Sequence[Sequence[int]]) -> Tensor:
        """What the next token is drawn from.

        Args:
            logits_BV: logits of the last position, floating-point.
            windows: the token ids that each sequence has in its window, for the repetition penalty.

        Returns:
            Probabilities, float64, (B, V), 0 for each token that was not kept.

        Raises:
            UserError: a logit is not a number.
        """
        logits_BV = logits_BV.double()
        if logits_BV.isnan().any():
            raise UserError(
                "The model's output is not a number: its training went astray, as it does with too high a learning "
                "rate. Go back to an earlier checkpoint, or begin anew with a smaller --model.learning_rate."
            )
        if self.repetition_penalty != 1:
            logits_BV = logits_BV.clone()
            for logits_V, window in zip(logits_BV, windows, strict=True):
                ids = torch.tensor(sorted(set(window)))
                seen = logits_V[ids]
                logits_V[ids] = torch.where(seen > 0, seen / self.repetition_penalty, seen * self.repetition_penalty)
        if self.temperature == 0:
            return F.one_hot(logits_BV.argmax(-1), logits_BV.shape[-1]).double()
        # Relative to the likeliest: no temperature above 0 is too small for that.
        logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is self.top_p is self.min_p is None:
            return logits_BV.softmax(-1)
        sorted_BV, order_BV = logits_BV.sort(descending=True, stable=True)
        if self.top_k is not None:
            sorted_BV[:, self.top_k :] = -math.inf
        probs_BV = sorted_BV.softmax(-1)
        if self.top_p is not None:
            mass_before_BV = probs_BV.cumsum(-1) - probs_BV
            probs_BV = probs_BV.where(mass_before_BV < self.top_p, 0.0)
        if self.min_p is not None:
            probs_BV = probs_BV.where(probs_BV >= self.min_p * probs_BV[:, :1], 0.0)
        probs_BV = probs_BV / probs_BV.sum(-1, keepdim=True)
        return torch.zeros_like(probs_BV).scatter(-1, order_BV, probs_BV)


def draw(probabilities_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one id per sequence, each with its own generator, so that no sequence changes what another draws.

    Inverts the cumulative distribution at a uniform number.

    Returns:
        Ids, (B,).
    """
    uniform_B1 = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    cumulative_BV = probabilities_BV.cumsum(-1)
    # The total is 1 but for rounding. To the right, so that a token of probability 0 is never met.
    return torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True).squeeze(-1)


def check_stride(stride: int | None, block_size: int) -> int:
    """The stride to use. Raises a ValueError unless it is from 1 to ``block_size``, or None for the default."""
    stride = max(1, block_size // 2) if stride is None else stride
    if not 1 <= stride <= block_size:
        raise UserError(f"stride is {stride}; it must be from 1 to the window's {block_size} characters.")
    return stride


@torch.inference_mode()
def generate(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    stride: int | None = None,
    never: int | None = None,
) -> Iterator[tuple[list[int], list[float]]]:
    """Continue each of B prompts for ever, one token of each at a time.

    The model sees a window of at most ``block_size`` tokens. Keys and values of the window are cached. Positions
    are absolute, so when a token comes that the full window has no place for, the cache is void: the window moves on
    by ``stride``, and the model reads its last ``block_size - stride`` tokens again::

        |-------------- block_size --------------|
        |--- stride ---|-- kept and read again --|
                       |-- kept and read again --|--- room for stride new tokens ---|

    A sequence sees the same window and draws the same random numbers alone and in a batch; its logits are the same
    to rounding.

    Args:
        gpt: the model, in evaluation mode.
        prompts: token ids, at least one per sequence; of a longer one the last ``block_size`` are seen.
        sampling: how the next token is chosen.
        seeds: one per sequence; the only source of randomness, on the CPU, so that it means the same on every device.
        stride: how far a full window moves. 1 always shows the model as much as it can see, at the price of reading
            the whole window for each token; the default, half the window, is fast; ``block_size`` is fastest.
        never: an id that is not to be drawn.

    Yields:
        The next B ids, and the logarithm of the probability that the model gave each, before any filter.
    """
    block_size = gpt.config.block_size
    stride = check_stride(stride, block_size)
    device = gpt.token_embedding.weight.device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    windows = [list(prompt[-block_size:]) for prompt in prompts]
    cache = gpt.make_cache(len(windows))
    logits_BV = torch.zeros(len(windows), gpt.config.vocab_size)
    unread = list(range(len(windows)))  # the sequences whose whole window is to be read
    while True:
        if unread:
            # Shorter windows are filled up at their end, where nothing before sees the filling, and cut off again.
            texts = [windows[b] for b in unread]
            longest = max(map(len, texts))
            ids_BT = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=device)
            part = gpt.make_cache(len(unread))
            last_B = torch.tensor([len(text) - 1 for text in texts], device=device)
            read_BTV = gpt(ids_BT, part)
            logits_BV[unread] = read_BTV[torch.arange(len(unread), device=device), last_B].float().cpu()
            for layer, read in zip(cache.layers, part.layers, strict=True):
                layer[:, unread] = read
            for b in unread:
                cache.lengths[b] = len(windows[b])
        if never is not None:
            logits_BV[:, never] = -math.inf
        ids_B = draw(sampling.probabilities(logits_BV, windows), generators)
        log_probs_B = logits_BV.log_softmax(-1).gather(-1, ids_B.unsqueeze(-1)).squeeze(-1)
        ids = ids_B.tolist()
        yield ids, log_probs_B.tolist()

        unread = [b for b, length in enumerate(cache.lengths) if length == block_size]
        for b, window in enumerate(windows):
            if b in unread:
                del window[:stride]
                cache.lengths[b] = 0
            window.append(ids[b])
        if len(unread) < len(windows):  # those in ``unread`` run along, to be read properly above
            logits_BV = gpt(ids_B.to(device).unsqueeze(1), cache)[:, -1].float().cpu()


class RowLinear(nn.Linear):
    """nn.Linear, faster where few rows meet a large matrix on a CPU: the same values to rounding.

    A generation step multiplies each weight matrix with one vector, or with one for each text of a batch. For one
    vector it matters how fast the matrix is read: PyTorch's batched product reads several times as fast as its linear
    map. For a few, oneDNN computes faster than the default library; it wants the matrix in an order of its own, so it
    gets a copy, made when it is first needed. ``benchmarks/generation.py`` measures both.
    """

    packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        N, K = self.weight.shape
        rows = x.numel() // K
        if rows > 32 or self.weight.numel() < 2**17 or N % 2 or not x.is_cpu or torch.is_grad_enabled():
            return super().forward(x)
        if rows == 1:
            column_K1 = x.reshape(1, K).t()  # not x.reshape(K, 1): the same numbers, but another, slower kernel
            y_N = torch.bmm(self.weight.view(2, N // 2, K), column_K1.expand(2, K, 1)).view(N)
            return (y_N + self.bias).view(*x.shape[:-1], N)
        if not torch.backends.mkldnn.is_available():
            return super().forward(x)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), 16)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def quicken(gpt: GPT) -> GPT:
    """Let a model's linear maps compute as :class:`RowLinear`; its parameters and their names stay as they are."""
    for module in gpt.modules():
        if type(module) is nn.Linear:
            module.__class__ = RowLinear
    return gpt


@dataclass
class Sample:
    """A text as it is being written.

    Attributes:
        prompt: what it continues.
        seed: what it was drawn with.
        text: the continuation so far, without the prompt, and never with a part of a stop string.
        log_probabilities: for each token of ``text`` (a character, or a byte for a model of bytes) the natural
            logarithm of the probability that the model gave it, before temperature and filters.
        stop_reason: "length", "stop", or None while it is still being written.
    """

    prompt: str
    seed: int
    text: str = ""
    log_probabilities: list[float] = field(default_factory=list)
    stop_reason: str | None = None


class Writer:
    """A trained model that writes: text in, text out.

    Args:
        gpt: the model, in evaluation mode.
        tokenizer: the tokenizer it was trained with.
    """

    def __init__(self, gpt: GPT, tokenizer: CharTokenizer) -> None:
        self.gpt = gpt
        self.tokenizer = tokenizer

    def notes(self, prompt: str) -> list[str]:
        """What a user should know of how ``prompt`` is taken."""
        block_size = self.gpt.config.block_size
        if not prompt:
            return [f"the prompt is empty; the text begins after {self.tokenizer.start!r}."]
        if (length := len(self.tokenizer.encode(prompt))) > block_size:
            return [f"the prompt has {length:,} characters; the model sees the last {block_size:,} of them."]
        return []

    def generate(self, prompt: str = "", **settings: Any) -> str:
        """The continuation of ``prompt``; settings as for :meth:`write`."""
        return "".join(self.stream(prompt, **settings))

    def stream(self, prompt: str = "", **settings: Any) -> Iterator[str]:
        """The continuation of ``prompt``, in pieces, each as soon as it is certain; settings as for :meth:`write`."""

        def pieces() -> Iterator[str]:
            shown = 0
            for (sample,) in steps:
                if len(sample.text) > shown:
                    yield sample.text[shown:]
                    shown = len(sample.text)

        steps = self.write([prompt], **settings)
        return pieces()

    def write(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 500,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int = 1,
        stride: int | None = None,
    ) -> Iterator[list[Sample]]:
        """Continue several prompts side by side.

        An empty prompt stands for a new line. The unknown symbol, where the vocabulary has one, is never drawn.

        Args:
            prompts: the beginnings, of any lengths; of each the model sees the last ``block_size`` tokens.
            max_new_tokens: how many tokens to write at most: characters, or bytes for a model of bytes.
            temperature: this and the next four: see :class:`Sampling`.
            top_k: see :class:`Sampling`.
            top_p: see :class:`Sampling`.
            min_p: see :class:`Sampling`.
            repetition_penalty: see :class:`Sampling`.
            stop: strings, each of which ends a text where it would appear; it is not part of the text.
            seed: the first text is drawn with this seed, the second with the next, and so on.
            stride: how far the window moves when it is full, see :func:`generate`.

        Yields:
            After each step the same samples, one per prompt, as far as they have come.

        Raises:
            UserError: a prompt or stop string has characters that the model doesn't know, or a setting is out of
                range. It is raised at once, before anything is written.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        check_stride(stride, self.gpt.config.block_size)
        if max_new_tokens < 0:
            raise UserError(f"max_new_tokens is {max_new_tokens}; a text can't have fewer than 0 characters.")
        if not 0 <= seed <= 2**63 - len(prompts):
            raise UserError(f"seed is {seed}; it must be a whole number from 0 to 2^63.")
        stops = [self.tokenizer.encode(s).tolist() for s in ([stop] if isinstance(stop, str) else stop)]
        if [] in stops:
            raise UserError("A stop string is empty; it must have at least one character.")
        ids = [self.tokenizer.encode(prompt or self.tokenizer.start).tolist() for prompt in prompts]
        samples = [Sample(prompt, seed + i) for i, prompt in enumerate(prompts)]
        if max_new_tokens == 0:
            for sample in samples:
                sample.stop_reason = "length"
            return iter([samples])
        drawn = generate(self.gpt, ids, sampling, [s.seed for s in samples], stride, self.tokenizer.unknown)
        return self._follow(samples, itertools.islice(drawn, max_new_tokens), max_new_tokens, stops)

    def _follow(
        self,
        samples: list[Sample],
        drawn: Iterator[tuple[list[int], list[float]]],
        max_new_tokens: int,
        stops: list[list[int]],
    ) -> Iterator[list[Sample]]:
        """Turn ids into text, holding back what may be the beginning of a stop string."""
        decoders = [self.tokenizer.decoder() for _ in samples]
        held: list[list[tuple[int, float]]] = [[] for _ in samples]
        for count, drawn_B in enumerate(drawn, start=1):
            for sample, decode, waiting, token in zip(samples, decoders, held, zip(*drawn_B, strict=True), strict=True):
                if sample.stop_reason:
                    continue
                waiting.append(token)
                tail = [id_ for id_, _ in waiting]
                if found := max((len(stop) for stop in stops if tail[-len(stop) :] == stop), default=0):
                    del waiting[-found:]
                    sample.stop_reason = "stop"
                elif count == max_new_tokens:
                    sample.stop_reason = "length"
                certain = len(waiting) - (0 if sample.stop_reason else length_of_begun_stop(tail, stops))
                sample.text += decode([id_ for id_, _ in waiting[:certain]], bool(sample.stop_reason))
                sample.log_probabilities += [log_prob for _, log_prob in waiting[:certain]]
                del waiting[:certain]
            yield samples
            if all(sample.stop_reason for sample in samples):
                return


def length_of_begun_stop(ids: list[int], stops: list[list[int]]) -> int:
    """How many of the last ids are the beginning of a stop, the longest that is."""
    lengths = (n for stop in stops for n in range(len(stop) - 1, 0, -1) if ids[-n:] == stop[:n])
    return max(lengths, default=0)
