"""The sampling loop: logits to the next id, one at a time.

Token ids only, but for :func:`generate_text`, which wraps them in a tokenizer.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from minigpt.model import GPT
from minigpt.tokenizer import CharTokenizer


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None) -> None:
    """Raise a ValueError that names the setting which can't be."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; a text can't have fewer than 0 characters.")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be at least 0, which always takes the likeliest.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; at least the 1 likeliest character must remain.")


def sample(logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """Draw the next id of every sequence.

    Args:
        logits_BV: logits of the last position.
        temperature: divides the logits: below 1 more certain, above 1 more varied; 0 takes the likeliest.
        top_k: draw among the k likeliest only.
        generator: the only source of randomness, on the CPU, so that a seed means the same on every device.

    Returns:
        Ids, (B,), on the CPU.

    Raises:
        ValueError: a logit is not a number.
    """
    logits_BV = logits_BV.float().cpu()
    if logits_BV.isnan().any():
        raise ValueError(
            "The model's output is not a number: its training went astray, as it does with too high a learning rate. "
            "Go back to an earlier checkpoint, or begin anew with a smaller --model.learning_rate."
        )
    if temperature == 0:
        return logits_BV.argmax(-1)
    kept_BK, ids_BK = logits_BV.topk(min(top_k or logits_BV.shape[-1], logits_BV.shape[-1]))
    # Relative to the likeliest, which comes first: no temperature above 0 is too small for that.
    probabilities_BK = ((kept_BK - kept_BK[:, :1]) / temperature).softmax(-1)
    return ids_BK.gather(-1, torch.multinomial(probabilities_BK, 1, generator=generator)).squeeze(-1)


@torch.inference_mode()
def generate(
    gpt: GPT,
    prompt_BT: Tensor,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    stride: int | None = None,
    never: int | None = None,
) -> Iterator[Tensor]:
    """Continue ``prompt_BT`` for ever, one id per sequence at a time.

    The model sees at most its window of ``block_size`` tokens. Keys and values of the window are cached; positions
    are absolute, so when the window is full its cache is void. The window then moves on by ``stride``: its last
    ``block_size - stride`` tokens are read again as the beginning of a new one::

        |-------- block_size --------|
        |-- stride --|-- read again --|-- room for stride new tokens --|

    Args:
        gpt: the model, in evaluation mode.
        prompt_BT: token ids, at least one per sequence; of a longer one the last ``block_size`` are seen.
        generator: see :func:`sample`.
        temperature: see :func:`sample`.
        top_k: see :func:`sample`.
        never: an id that is not to be drawn.
        stride: how far the window moves when it is full. 1 always shows the model as much as it can see, at the
            price of reading the window again for each token; the default, half the window, is fast.

    Yields:
        The next ids, (B,), on the CPU.
    """
    block_size = gpt.config.block_size
    keep = max(1, block_size - (stride or max(1, block_size // 2)))
    window_BT = prompt_BT[:, -block_size:]
    cache = gpt.make_cache(len(prompt_BT))
    unread_BT = window_BT
    while True:
        logits_BV = gpt(unread_BT, cache)[:, -1]
        if never is not None:
            logits_BV[:, never] = -math.inf
        next_B = sample(logits_BV, temperature, top_k, generator)
        yield next_B
        unread_BT = next_B.to(window_BT.device).unsqueeze(1)
        window_BT = torch.cat((window_BT, unread_BT), dim=1)
        if cache[0].length == block_size:
            window_BT = unread_BT = window_BT[:, -keep:]
            for layer in cache:
                layer.length = 0


def generate_text(
    gpt: GPT,
    tokenizer: CharTokenizer,
    prompt: str,
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 1,
) -> Iterator[str]:
    """The continuation of ``prompt``, ``max_new_tokens`` ids long, as it is made.

    An empty prompt stands for a new line. The unknown symbol, where the vocabulary has one, is never drawn.

    Raises:
        ValueError: the prompt has characters that the model doesn't know, or a setting is out of range.
    """
    check_sampling(max_new_tokens, temperature, top_k)
    ids = tokenizer.encode(prompt or tokenizer.start)
    device = gpt.token_embedding.weight.device
    prompt_BT = torch.from_numpy(ids.astype("int64")).unsqueeze(0).to(device)
    generator = torch.Generator().manual_seed(seed)
    drawn = generate(gpt, prompt_BT, generator, temperature, top_k, never=tokenizer.unknown)
    return tokenizer.stream(next_B.numpy() for next_B in itertools.islice(drawn, max_new_tokens))
